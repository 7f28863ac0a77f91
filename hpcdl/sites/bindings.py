"""Lists and masks of CPUs, as site files, launchers and the kernel write them."""

from __future__ import annotations

import re

from hpcdl.sites.node import parse_cores

_SLURM_BINDING = re.compile(r"(?:verbose,|quiet,|[vq],)*(mask_cpu|map_cpu):(.+)")
_PALS_BINDING = re.compile(r"list:(.+)")
_MASK = re.compile(r"(0x)?([0-9a-fA-F]{1,512})")
_TIMES = re.compile(r"[1-9]\d{0,3}")


def bound_cpus(binding: str) -> list[list[int]]:
    """The CPUs of each rank in a binding of srun's (``mask_cpu``, ``map_cpu``) or PALS' (``list``).

    A binding that names no CPUs (``cores``, ``depth``, ``near-device``) gives none.

    Raises:
        ValueError: a mask or a list that is none.
    """
    if slurm := _SLURM_BINDING.fullmatch(binding):
        entries = [entry for words in slurm[2].split(",") for entry in _repeated(words.strip())]
        return [_masked(entry) if slurm[1] == "mask_cpu" else _mapped(entry) for entry in entries]
    if pals := _PALS_BINDING.fullmatch(binding):
        return [list(parse_cores(entry)) for entry in pals[1].split(":")]
    return []


def _repeated(words: str) -> list[str]:
    """An entry as often as it stands for: ``0xff*2`` is that of two ranks."""
    entry, star, times = words.partition("*")
    if star and not _TIMES.fullmatch(times):
        raise ValueError(f"{words!r} is no entry with its number of ranks; write for example 0xff*2")
    return [entry] * int(times or 1)


def _masked(entry: str) -> list[int]:
    match = _MASK.fullmatch(entry)
    if not match:
        raise ValueError(f"{entry!r} is no mask of CPUs; write for example 0xfe")
    bits = int(match[2], 16)
    return [cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1]


def _mapped(entry: str) -> list[int]:
    return [int(entry, 16)] if re.fullmatch(r"0x[0-9a-fA-F]{1,4}", entry) else list(parse_cores(entry))
