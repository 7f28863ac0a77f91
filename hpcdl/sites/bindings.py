"""Lists and masks of CPUs, as site files, launchers and the kernel write them."""

from __future__ import annotations

import re

from hpcdl.sites.node import parse_cores

_SLURM_BINDING = re.compile(r"(?:verbose,|quiet,|[vq],)*(mask_cpu|map_cpu):(.+)")
_PALS_BINDING = re.compile(r"list:(.+)")
_MASK = re.compile(r"(0x)?([0-9a-fA-F]{1,512})(?:\*\d+)?")


def bound_cpus(binding: str) -> list[list[int]]:
    """The CPUs of each rank in a binding of srun's (``mask_cpu``, ``map_cpu``) or PALS' (``list``).

    A binding that names no CPUs (``cores``, ``depth``, ``near-device``) gives none.

    Raises:
        ValueError: a mask or a list that is none.
    """
    if slurm := _SLURM_BINDING.fullmatch(binding):
        entries = slurm[2].split(",")
        return [_masked(entry) if slurm[1] == "mask_cpu" else _mapped(entry) for entry in entries]
    if pals := _PALS_BINDING.fullmatch(binding):
        return [list(parse_cores(entry)) for entry in pals[1].split(":")]
    return []


def _masked(entry: str) -> list[int]:
    match = _MASK.fullmatch(entry.strip())
    if not match:
        raise ValueError(f"{entry!r} is no mask of CPUs; write for example 0xfe")
    bits = int(match[2], 16)
    return [cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1]


def _mapped(entry: str) -> list[int]:
    text = entry.strip().partition("*")[0]
    return [int(text, 16)] if re.fullmatch(r"0x[0-9a-fA-F]{1,4}", text) else list(parse_cores(text))
