"""Finding secrets in what somebody is about to give away. Pure.

Two kinds are found: values that are known, and words in the shape of a token. Where a name stands before a
secret, the name stays. Looking is done on bytes, so that all else stays byte for byte as it is, whatever its
encoding.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple
from urllib.parse import quote, unquote

from hpcdl.spec.job import TELLING, looks_secret

REMOVED = b"[removed]"
_SHORTEST = 6  # letters of a value that is looked for: a shorter one stands everywhere
_HELD = 1 << 16  # bytes that are looked at again with what follows: longer than any secret
_SEEN = 64  # bytes before them that stay in sight, as a token does not begin within a word

_IN_ADDRESS = re.compile(r"://[^\s/:@]*:(?P<password>[^\s/]+)@")  # of a database, a proxy


class Shape(NamedTuple):
    """What a kind of secret looks like.

    Args:
        hint: stands, in small letters, wherever there is such a secret; not finding it is fast.
        pattern: its group ``secret`` is what is taken out; the rest says that it is one.
        small: whether the pattern is made for small letters, because either may stand there.
    """

    hint: bytes
    pattern: re.Pattern[bytes]
    small: bool = False


# What ends in a letter or a digit and is no word: of JSON, of an address, and of a terminal's colours.
_ESCAPES = (
    r"\\[nrtbf]", r"\\x[0-9A-Fa-f]{2}", r"\\u[0-9A-Fa-f]{4}", r"%[0-9A-Fa-f]{2}",
    r"\[[mKk]", *(rf"[\[;][0-9]{{{digits}}}m" for digits in (1, 2, 3)),
)  # fmt: skip


def _begins(word: str, letters: str = "a-z0-9") -> str:
    """That ``word``, which was just read, does not go on with a word of these letters."""
    escaped = "".join(f"|(?<={escape}{word})" for escape in _ESCAPES)
    return f"(?:(?<![{letters}]{word}){escaped})"


def _token(prefix: str, rest: str, hint: str = "") -> Shape:
    """A word that begins so, and does not begin within another."""
    words = rf"(?P<secret>{prefix}{_begins(prefix, 'A-Za-z0-9')}{rest})"
    return Shape((hint or prefix.lower()).encode(), re.compile(words.encode()))


def _key(rest: str) -> Shape:
    """A private key as PEM has it."""
    words = rf"(?P<secret>-----BEGIN {_PRIVATE_KEY}-----{rest})"
    return Shape(b"-----begin", re.compile(words.encode()))


def _behind(hint: str, words: str, secret: str) -> Shape:
    """What stands behind words that begin with ``hint``, in small or capital letters."""
    return _valued(hint, f"{words}(?P<secret>{secret})")


def _valued(hint: str, words: str) -> Shape:
    return Shape(hint.encode(), re.compile(words.encode()), small=True)


def _variable(word: str, rest: str = "[A-Z0-9_]{0,32}", never: str = "") -> Shape:
    """The value of a variable in whose name, in capital letters, ``word`` stands before ``rest``."""
    return Shape(word.lower().encode(), re.compile(f"{word}{rest}{_IS}{_value(never)}".encode()))


def _named(word: str, *kinds: str) -> str:
    """``word`` behind one of these, as in api_key, api-key and apikey."""
    return f"{word}(?:{'|'.join(f'(?<={kind}{sign}{word})' for kind in kinds for sign in ('[_-]', ''))})"


def _value(never: str = "") -> str:
    """What stands in quotes up to the same quotes, else up to a space; it does not begin with ``never``.

    Before the quotes Python may say that these are bytes.
    Without quotes, a comma, a semicolon or an & ends it before another name with its value, as in an address,
    and what closes a bracket or a sentence behind it is none of it.
    """
    first = f"(?![{never}])" if never else ""
    quoted = r"(?:(?!(?P=quote))(?:\\.|[^\\\n])){6,4096}"
    bare = r"""(?:[^\s"',;&]|[,;&](?![\w. -]{0,64}[=:])){5,4095}[^\s"',;&)}\]\\]"""
    return rf"""(?:b?(?P<quote>\\{{0,4}}["']))?+{first}(?P<secret>(?(quote){quoted}|{bare}))"""


_IS = r"""(?:\\{0,4}["'])?(?:\][ \t]{0,4}=|[ \t]{0,4}[=:])[ \t]{0,4}"""  # a colon behind ] begins a block
_ARGUMENT = r"""(?:\\{0,4}["'])?(?:=|,?\s{1,32}(?:-\s{1,4})?)"""  # of a flag: on a command line, or listed
_SETENV = rf"setenv[ \t]{{1,32}}(?=[a-z0-9_]{{0,64}}?(?:{TELLING}))[a-z0-9_]{{1,128}}[ \t]{{1,32}}"  # of csh
_HEX = rf"(?=[0-9a-f]{{40}}(?![a-z0-9])){_begins('')}[0-9a-f]{{40}}"
_WORD = r"\s{1,32}\S{1,256}\s{1,32}"
_PRIVATE_KEY = "[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?"
_NEWLINE = r"(?:\r?\n|(?:\\{1,4}r)?\\{1,4}n)"
# A log may say before each line who prints it, and when. Above the first there may be headers.
_KEY_LINE = (
    rf"""{_NEWLINE}[^\n\\]{{0,80}}?[A-Za-z0-9+/=]{{16,256}}(?=["',]{{0,2}}[ \t]{{0,4}}(?:[\r\n\\]|\Z))"""
)
_KEY_LINES = rf"(?:(?:{_NEWLINE}[^\n\\]{{0,120}}){{0,3}}?(?:{_KEY_LINE}){{1,128}})?"
_NAMES = {
    "secret": "secret", "passw": "passw(?:or)?d", "passphrase": "passphrase", "credential": "credentials?",
    "key": _named("key", "api", "access", "private", "account"), "amz": "amz-signature",
    "token": _named("token", "api", "hub", "bot", "auth", "access", "refresh", "session", "security", "hf"),
}  # fmt: skip
_FLAG = r"--(?=[a-z0-9])[a-z0-9_-]{0,32}?(?:token|passw(?:or)?d|passphrase|secret|(?:api|access)[_-]?key)"

SHAPES = (
    _token("hf_", r"[A-Za-z0-9]{20,256}"),
    _token("gh[pousr]_", r"[A-Za-z0-9]{30,256}", hint="gh"),
    _token("github_pat_", r"[A-Za-z0-9_]{22,256}"),
    _token("glpat-", r"[A-Za-z0-9_-]{16,256}"),
    _token("sk-", r"[A-Za-z0-9_-]{20,512}"),
    _token("nvapi-", r"[A-Za-z0-9_-]{20,256}"),
    _token("wandb_v1_", r"[A-Za-z0-9_-]{20,256}"),
    _token("xox[abprs]-", r"[A-Za-z0-9-]{10,256}", hint="xox"),
    _token("AIza", r"[A-Za-z0-9_-]{30,64}"),
    *(_token(kind, r"[A-Z0-9]{16}") for kind in ("AKIA", "ASIA")),
    _token("eyJ", r"[A-Za-z0-9_-]{10,8192}\.[A-Za-z0-9_-]{10,8192}\.[A-Za-z0-9_-]{5,8192}"),
    _key(rf"(?:(?!-----BEGIN)[\s\S]){{1,32768}}?-----END {_PRIVATE_KEY}-----"),
    _key(_KEY_LINES),
    _behind("authorization", rf"""authorization{_IS}["']?(?:[a-z]{{1,16}} +)?""", r"""[^\s"',;]{6,8192}"""),
    _behind("bearer", "bearer +", "[a-z0-9._~+/=-]{16,8192}"),
    *(_behind(word, rf"{word}[^\n]{{0,80}}?", _HEX) for word in ("wandb", "api", "netrc", "login")),
    _behind("machine", rf"machine{_WORD}login{_WORD}password\s{{1,32}}", r"\S{1,4096}"),
    _behind("://", r"""://[^\s/:@"']{0,256}:""", r"""[^\s/"']{1,256}(?=@)"""),
    _behind("sig=", r"sig=(?:(?<=[?&;]sig=)|(?<=\\u0026sig=))", "[a-z0-9%+/=_-]{20,512}"),
    _variable("TOKEN", "(?!S|I[SZ]E)[A-Z0-9_]{0,32}", never=r"<\["),
    *(_variable(word) for word in ("SECRET", "PASSW", "CREDENTIAL", "API_KEY", "APIKEY", "ACCESS_KEY")),
    *(_variable(word, rf"(?<=[A-Z0-9]{word})") for word in ("_PASS", "_KEY", "_SAS", "_JWT")),
    _variable("_PWD", "(?<=[A-Z0-9]_PWD)", never="/"),
    _variable("CONNECTION_STRING"),
    *(_valued(hint, f"{name}(?![a-z0-9]){_IS}{_value()}") for hint, name in _NAMES.items()),
    _valued("setenv", _SETENV + _value(never=r"<\[")),
    _valued("--", f"{_FLAG}(?![a-z0-9_-]){_ARGUMENT}" + _value(never=r"<\[-")),
)
"""Well-known tokens, and what stands behind a word that says so."""


@dataclass
class Cleaner:
    """Takes secrets out of bytes.

    Args:
        values: secrets that are known.
    """

    values: Iterable[str] = ()
    _shapes: tuple[Shape, ...] = field(init=False)

    def __post_init__(self) -> None:
        forms = {form for value in self.values if len(value) >= _SHORTEST for form in _forms(value)}
        known = (Shape(form.lower(), re.compile(rb"(?P<secret>%b)" % re.escape(form))) for form in forms)
        self._shapes = (*known, *SHAPES)

    def cleaned(self, blocks: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
        """Blocks of one file without its secrets, each with how many were taken out of it.

        A secret that lies in two blocks is found too.
        """
        content, start = b"", 0
        for block in chain(blocks, [None]):
            content += block or b""
            end = len(content) if block is None else max(start, len(content) - _HELD)
            found = self._found(content, start)
            while crossing := [match.start() for match in found if match.start() < end < match.end()]:
                end = min(crossing)  # what reaches beyond is looked at again
            spans = _joined(match.span("secret") for match in found if match.end() <= end)
            yield _without(content, (start, end), spans), len(spans)
            start = min(end, _SEEN)
            content = content[end - start :]

    def cleaned_text(self, text: str) -> tuple[str, int]:
        """A text without its secrets, and how many were taken out of it."""
        ((first, early), (last, late)) = self.cleaned([text.encode("utf-8", "replace")])
        return (first + last).decode("utf-8", "replace"), early + late

    def _found(self, content: bytes, start: int) -> list[re.Match[bytes]]:
        small = content.lower()
        hints = {hint for hint in {shape.hint for shape in self._shapes} if hint in small}
        return [
            match
            for shape in self._shapes
            if shape.hint in hints
            for match in shape.pattern.finditer(small if shape.small else content, start)
        ]


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that overlap as one."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if joined and first < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def _without(content: bytes, part: tuple[int, int], spans: Iterable[tuple[int, int]]) -> bytes:
    pieces, place = [], part[0]
    for first, last in spans:
        pieces += [content[place:first], REMOVED]
        place = last
    return b"".join((*pieces, content[place : part[1]]))


def secrets_of(environment: Mapping[str, str]) -> list[str]:
    """Values of variables whose names look as if they held a secret, and passwords in addresses in others."""
    named = [value for name, value in environment.items() if looks_secret(name)]
    found = (_IN_ADDRESS.search(value) for name, value in environment.items() if not looks_secret(name))
    passwords = [match["password"] for match in found if match]
    return [*named, *passwords, *(unquote(word) for word in passwords if "%" in word)]


def _forms(value: str) -> Iterator[bytes]:
    """How a value may be written: in a script, in JSON or in an address."""
    texts = {
        value, shlex.quote(value), json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1],
        quote(value, errors="replace"), quote(value, safe="", errors="replace"),
    }  # fmt: skip
    yield from (text.encode("utf-8", "surrogateescape") for text in texts)
