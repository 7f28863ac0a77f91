"""Text that means something to bash, sbatch, srun, qsub or jinja2, drawn by chance but always the same."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

from schedulers.sample import interpreter

_PIECES = (
    *"'\"`$\\;&|<>(){}[]*?~!#%^=,:@+-/. \t\n\r\x01\x07\x1b\x7f",
    *("$(touch pwned)", "`touch pwned`", "; touch pwned;", "&& touch pwned", "|tee pwned", ">pwned", "\n#SBATCH -N99\n"),
    *("${HOME}", "$HOME", "$1", "$@", "$((1+1))", "!!", "~root", "{1..3}", "%j", "%%", "{{ 7 * 7 }}", "{% for %}", "{#", "{{id}}"),
    *("--export=NONE", "-n", "--", "EOF", "\r\n", "\\n", "'\\''", "a,b=c", "no", "null", "0", "007", "1e999"),
    *("ü", "速度", "🚀", "\u202e", "\u2028", "\xa0", "\ufeff", "word", "two words", "x" * 40),
)  # fmt: skip


def texts(count: int, seed: int) -> Iterator[str]:
    """``count`` values without NUL, of up to eight pieces each; one of forty is empty."""
    chance = random.Random(seed)
    for _ in range(count):
        yield "" if chance.random() < 0.025 else "".join(chance.choices(_PIECES, k=chance.randint(1, 8)))


def folder_names(count: int, seed: int) -> Iterator[str]:
    """Names of folders: no slash, nothing that means a place, short enough, and nothing that Slurm replaces."""
    for number, text in enumerate(texts(count, seed)):
        kept = text.translate(dict.fromkeys(map(ord, "/%\\"))).encode()[:150].decode(errors="ignore")
        yield f"{number}{kept}"


def seen_by(place: Path, number: int) -> str:
    """A rank that leaves its environment and its last argument in files of its own."""
    folder = place / f"rank-{number}"
    folder.mkdir()
    return interpreter(
        folder, f'cat /proc/$$/environ >"{folder}/$$.env"; printf %s "${{@: -1}}" >"{folder}/$$.last"'
    )


def check(place: Path, number: int, values: dict[str, str], last: Path, ranks: int) -> None:
    """All ranks saw ``values`` and ``last``, byte for byte, and nothing of them was run."""
    folder = place / f"rank-{number}"
    environments = list(folder.glob("*.env"))
    assert len(environments) == ranks
    for file in environments:
        pairs = dict(pair.split(b"=", 1) for pair in file.read_bytes().split(b"\0") if b"=" in pair)
        wrong = [name for name, text in values.items() if pairs.get(name.encode()) != text.encode()]
        assert not wrong, {name: (values[name], pairs.get(name.encode())) for name in wrong[:3]}
        assert file.with_suffix(".last").read_bytes() == os.fsencode(last)
    assert not list(place.rglob("pwned"))
