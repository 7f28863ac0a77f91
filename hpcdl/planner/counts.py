"""Numbers of devices as one writes them: lists and ranges."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import takewhile

from hpcdl.errors import UsageError

MOST_COUNTS = 64
"""Numbers of devices that are looked at in one go."""

MOST_DEVICES = 1 << 24
"""More than any machine has; splitting up larger numbers takes long."""

_NUMBER = r"(\d{1,18})"
_RANGE = re.compile(rf"{_NUMBER}(?:-{_NUMBER}(?::(?:x{_NUMBER}|\+{_NUMBER}))?)?")
_FORMS = "write 64,128,256, or a range: 64-1024 (doubling), 64-4096:x4 (times four), 64-512:+64 (64 more)"


def counts(text: str) -> tuple[int, ...]:
    """Numbers of devices, ascending: ``64``, ``64,128,256``, ``64-1024``, ``64-4096:x4``, ``64-512:+64``.

    A range doubles, or grows by the factor or the step after the colon, up to its end.

    Raises:
        UsageError: anything else, a zero, too many numbers or too many devices.
    """
    found: set[int] = set()
    for item in text.split(","):
        found.update(_range(item.strip(), text))
        if max(found) > MOST_DEVICES:
            raise UsageError(f"--gpus {text} asks for more devices than any machine has", _FORMS)
        if len(found) > MOST_COUNTS:
            raise UsageError(f"--gpus {text} is more than {MOST_COUNTS} numbers of devices", _FORMS)
    return tuple(sorted(found))


def _range(item: str, text: str) -> Iterator[int]:
    match = _RANGE.fullmatch(item)
    if not match:
        raise UsageError(f"--gpus {text}: {item!r} is not a number of devices", _FORMS)
    first = int(match[1])
    last, factor, step = (int(part) if part else None for part in match.groups()[1:])
    if first == 0 or step == 0 or factor in (0, 1):
        raise UsageError(f"--gpus {text}: {item!r} does not grow, or begins with no device", _FORMS)
    if last is None:
        yield first
    elif last < first:
        raise UsageError(f"--gpus {text}: {item!r} ends before it begins", f"write {last}-{first}")
    else:
        grown = (lambda number: number + step) if step else (lambda number: number * (factor or 2))
        yield from takewhile(lambda number: number <= last, _repeated(grown, first))


def _repeated(grown: Callable[[int], int], number: int) -> Iterator[int]:
    """No more of them than are refused."""
    for _ in range(MOST_COUNTS + 1):
        yield number
        number = grown(number)
