"""Reading and printing quantities: bytes, seconds, rates and counts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

KIB = 1024
MIB = 1024**2
GIB = 1024**3
GB = 10**9
TERA = 10**12

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKmMgGtT]?)(i?)[bB]?\s*")
_WALLTIME = re.compile(r"(?:(\d+)-)?(\d{1,4}):([0-5]\d):([0-5]\d)")
_COUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?(?:[eE][0-9]{1,2})?)\s*([kKmMbBtTpP]?)\s*")
_COUNT_SUFFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def parse_bytes(text: str | int) -> int:
    """Bytes from ``40GiB`` (powers of 1024), ``40GB`` (powers of 1000) or a plain number.

    Raises:
        ValueError: the text is not a size.
    """
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a size; write for example 40GiB, 512MB or a number of bytes")
    number, prefix, binary = match.groups()
    base = 1024 if binary else 1000
    return int(float(number) * base ** " kmgt".index(prefix.lower() or " "))


def parse_walltime(text: str) -> int:
    """Seconds from ``HH:MM:SS`` or ``D-HH:MM:SS``, the two spellings every scheduler agrees on.

    Raises:
        ValueError: any other spelling; ``1h`` and bare minutes mean different things to
            different schedulers, so neither is guessed.
    """
    match = _WALLTIME.fullmatch(text.strip())
    if not match:
        raise ValueError(
            f"{text!r} is not a walltime; write HH:MM:SS or D-HH:MM:SS, e.g. 01:00:00 for one hour"
        )
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total == 0:
        raise ValueError(f"{text!r} is a walltime of zero; ask for at least 00:01:00")
    return total


def parse_count(text: str) -> float:
    """A count from ``300B``, ``1.4T``, ``5e9`` or a plain number: what ``format_count`` writes.

    Raises:
        ValueError: the text is not a count, or it is zero.
    """
    match = _COUNT.fullmatch(text)
    suffixes = {suffix.lower(): factor for factor, suffix in _COUNT_SUFFIXES}
    count = float(match[1]) * suffixes.get(match[2].lower(), 1.0) if match else 0.0
    if not count:
        raise ValueError(f"{text!r} is not a count above zero; write for example 300B, 1.4T or 5e9")
    return count


def format_walltime(seconds: int) -> str:
    """``HH:MM:SS``, or ``D-HH:MM:SS`` from one day on."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour:02d}:{minute:02d}:{second:02d}"
    return f"{days}-{clock}" if days else clock


def format_bytes(count: float) -> str:
    """Bytes with a binary suffix: ``1.5 GiB``."""
    for limit, suffix in ((GIB * 1024, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= limit:
            return f"{count / limit:.1f} {suffix}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """A duration in the unit a person would say it in: ``850 ms``, ``12.3 s``, ``9.5 days``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    if seconds < 4 * 86400:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{seconds / 86400:.1f} days"


def format_count(number: float) -> str:
    """A count with a suffix: ``6.7B`` parameters, ``12.4k`` tokens/s."""
    for limit, suffix in _COUNT_SUFFIXES:
        if number >= limit:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.3g}"


def said(value: float) -> float | str:
    """A number as JSON can say it: one that is not finite as the word ``nan``, ``inf`` or ``-inf``."""
    return value if math.isfinite(value) else str(float(value))


def sayable(value: Any) -> Any:
    """A JSON value with all numbers in it as ``said``."""
    if isinstance(value, float):
        return said(value)
    if isinstance(value, dict):
        return {key: sayable(inner) for key, inner in value.items()}
    return [sayable(inner) for inner in value] if isinstance(value, list | tuple) else value


def ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 8 → ``0-2,8``: ranks, or CPUs as the kernel lists them."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
