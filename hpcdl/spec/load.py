"""Reading YAML into a checked model; every error says file:line:column, the value and the way out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from hpcdl.errors import UsageError
from hpcdl.paths import writable

M = TypeVar("M", bound=BaseModel)
Location = tuple[str | int, ...]

# YAML 1.2's core schema. PyYAML's own is 1.1, where 00:30:00 is the number 1800, 3e-4 a string
# and `on` a truth value.
_NULL = re.compile(r"|~|null|Null|NULL")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

_MOST_VALUES = 200_000
"""A file of a few lines can hold more than any memory: aliases of lists of aliases, again and again."""

# What pydantic says, in the words of who writes YAML.
_OUR_WORDS = (
    (r"^Value error, ", ""),
    (r"Input should be", "must be"),
    (r"^String should have", "must have"),
    (r"a valid (dictionary or instance of \w+|dictionary)", "a mapping (key: value lines)"),
    (r"a valid (list|tuple|set)", "a list, written [a, b]"),
    (r"^\w+ should have at least (\d+) (\w+) after validation, not \d+", r"must have at least \1 \2"),
)


@dataclass
class Document:
    """Parsed YAML and where each of its values stands."""

    source: str
    content: Any = None
    places: dict[Location, str] = field(default_factory=dict)
    bases: tuple[str, ...] = ()  # sources of what it was laid over, the nearest first

    def place(self, location: Location) -> str:
        """``file:line:column`` of the value at ``location``, or of the nearest thing around it."""
        while location and location not in self.places:
            location = location[:-1]
        return self.places.get(location, self.source)


def read(path: Path) -> Document:
    """Parse one YAML file.

    Raises:
        UsageError: it cannot be read, is not YAML, or lies where no record could name it.
    """
    try:
        text = writable(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not a file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    return parse(text, str(path))


def parse(text: str, source: str) -> Document:
    """Parse YAML from ``text``; ``source`` names it in messages."""
    document = Document(source)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        document.content = {} if node is None else _construct(node, (), document)
    except RecursionError:
        raise UsageError(
            f"{source}: its lists and mappings stand within each other without end, or hundreds deep",
            "look for an alias (*name) within what it stands for, and for a bracket too many",
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise UsageError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    return document


def below(document: Document, key: str) -> Document:
    """What stands below one key of a mapping, as a document of its own whose places stay true."""
    places = {location[1:]: place for location, place in document.places.items() if location[:1] == (key,)}
    return Document(document.source, document.content[key], places)


def override(document: Document, settings: Sequence[str]) -> None:
    """Apply ``key.sub=value`` settings to a parsed document; values are read as YAML.

    Raises:
        UsageError: a setting without ``=``, or one that goes below a plain value.
    """
    for setting in settings:
        path, separator, text = setting.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise UsageError(
                f"--set {setting!r} is not of the form key.sub=value", "for example --set training.steps=50"
            )
        source = f"--set {setting}"
        value = parse(text, source)
        assign(document, keys, value.content if text.strip() else None, source)


def assign(document: Document, keys: Sequence[str], value: Any, source: str) -> None:
    """Set one value of a parsed document; ``source`` is where it will stand from now on.

    Raises:
        UsageError: something above it is a plain value.
    """
    _put(document, keys, value, source)
    for location in [place for place in document.places if place[: len(keys)] == tuple(keys)]:
        del document.places[location]
    document.places[tuple(keys)] = source


def validate(document: Document, model: type[M], instead: Sequence[str] = ()) -> M:
    """Check a document against ``model``.

    Args:
        document: what was read.
        model: what it should hold.
        instead: keys at its root with which it would hold something else; advice names them too.

    Raises:
        UsageError: with every problem, each on a line with its place, value and way out.
    """
    try:
        return model.model_validate(document.content)
    except ValidationError as error:
        problems = [_explain(problem, document, model, instead) for problem in _distinct(error)]
        raise UsageError("\n".join(problems)) from None


def _construct(node: yaml.Node, location: Location, document: Document) -> Any:
    mark = node.start_mark
    document.places[location] = f"{document.source}:{mark.line + 1}:{mark.column + 1}"
    if len(document.places) > _MOST_VALUES:
        raise UsageError(
            f"{document.places[location]}: one key or value more than the {_MOST_VALUES} a file may hold",
            "write fewer aliases (*name); each stands for all that is within it",
        )
    if isinstance(node, yaml.MappingNode):
        return _construct_mapping(node, location, document)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*location, index), document) for index, item in enumerate(node.value)]
    node.value = _whole(node.value, document.places[location])
    return _scalar(node)


def _whole(text: str, where: str) -> str:
    """``text`` with the pairs of escapes that JSON writes for one character beyond U+FFFF read as one.

    Raises:
        UsageError: it holds half of such a pair, which no file, argument or variable can.
    """
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        half = next(char for char in text if "\ud800" <= char <= "\udfff")
        raise UsageError(
            f"{where}: {text!r} holds {half!r}, which is half of a character", "write it as it is"
        ) from None


def _construct_mapping(node: yaml.MappingNode, location: Location, document: Document) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        mark = key_node.start_mark
        where = f"{document.source}:{mark.line + 1}:{mark.column + 1}"
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if key is None:
            raise UsageError(f"{where}: a key must be a plain word")
        key = _whole(key, where)
        if key in mapping:
            raise UsageError(f"{where}: the key {key!r} stands here a second time; each key may stand once")
        mapping[key] = _construct(value_node, (*location, key), document)
        document.places[(*location, key, "<key>")] = where
    return mapping


def _scalar(node: yaml.Node) -> Any:
    text: str = node.value
    if getattr(node, "style", None) in ("'", '"', "|", ">"):
        return text
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text):
        return True
    if _FALSE.fullmatch(text):
        return False
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _put(document: Document, keys: Sequence[str], value: Any, source: str) -> None:
    content = document.content
    for depth, key in enumerate(keys[:-1]):
        if not isinstance(content, dict):
            raise UsageError(
                f"{source}: {'.'.join(keys[:depth])} is a plain value, there is nothing below it"
            )
        if not isinstance(content.get(key), dict):
            content[key] = {}
            document.places[tuple(keys[: depth + 1])] = source
        content = content[key]
    if not isinstance(content, dict):
        raise UsageError(f"{source}: {'.'.join(keys[:-1])} is a plain value, there is nothing below it")
    content[keys[-1]] = value


def _distinct(error: ValidationError) -> list[Any]:
    """The errors less those of the other branches of a union (``parallelism: auto | {…}``)."""
    errors = error.errors(include_url=False)
    deepest = [e for e in errors if e["type"] != "literal_error" or not _has_sibling(e, errors)]
    return [_with_alternative(e, errors) for e in deepest or errors]


def _with_alternative(problem: Any, errors: list[Any]) -> Any:
    """A value that fits no branch of a union is told the plain words it could have been."""
    stem = problem["loc"][:-1]
    words = [e["ctx"]["expected"] for e in errors if e["type"] == "literal_error" and e["loc"][:-1] == stem]
    if problem["type"] != "model_type" or not words:
        return problem
    return problem | {"msg": problem["msg"].replace("should be", f"should be {' or '.join(words)} or")}


def _has_sibling(problem: Any, errors: list[Any]) -> bool:
    stem = problem["loc"][:-1]
    return any(other is not problem and other["loc"][: len(stem)] == stem and stem for other in errors)


def _explain(problem: Any, document: Document, model: type[BaseModel], instead: Sequence[str]) -> str:
    location = _location(problem)
    name = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        known = [*_fields_at(model, location[:-1]), *(instead if len(location) == 1 else ())]
        return _explain_unknown(location, document, sorted(known))
    where = document.place(location)
    if problem["type"] == "missing":
        return f"{where}: {name} is missing"
    message = _in_our_words(problem["msg"])
    if problem["type"] == "value_error":
        return f"{where}: {name}: {message}" if name else f"{where}: {message}"
    return f"{where}: {name or 'the file'} is {_shown(problem['input'])}, but {message}"


def _in_our_words(message: str) -> str:
    """A message of pydantic in the words of who writes YAML."""
    for theirs, ours in _OUR_WORDS:
        message = re.sub(theirs, ours, message)
    return message


def _location(problem: Any) -> Location:
    """The keys that lead to ``problem``; one that is not known is a key whatever it looks like."""
    parts = problem["loc"]
    unknown = len(parts) - 1 if problem["type"] == "extra_forbidden" else None
    return tuple(part for place, part in enumerate(parts) if place == unknown or _is_key(part))


def _is_key(part: str | int) -> bool:
    """Whether a part of pydantic's location is a key of ours, not the name of a union's branch."""
    if isinstance(part, int):
        return True
    return not (part[:1].isupper() or part.startswith(("[", "literal[", "function-", "constrained-")))


def _explain_unknown(location: Location, document: Document, known: Sequence[str]) -> str:
    where = document.places.get((*location, "<key>")) or document.place(location)
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    advice = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
    return f"{where}: unknown key {'.'.join(map(str, location))!r}; {advice}"


def _fields_at(model: type[BaseModel], location: Location) -> list[str]:
    """The keys that ``model`` knows at ``location``."""
    found: list[type[BaseModel]] = [model]
    for part in location:
        if isinstance(part, int):
            continue
        inner = [m.model_fields[part].annotation for m in found if part in m.model_fields]
        found = [m for annotation in inner for m in _models_in(annotation)] or found
    return [key for m in found for key in m.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
