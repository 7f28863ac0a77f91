"""What torch sees of a rank's device, before the rank takes it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

import torch

from hpcdl.engine.preflight.observing import numa_of_device
from hpcdl.placement import Device, Seat


def with_device(seat: Seat, index: int, environment: Mapping[str, str] = os.environ) -> Seat:
    """The rank with how many devices it sees, and the one with this index if it is there."""
    count = torch.cuda.device_count()
    if index >= count:
        return replace(seat, devices=count)
    told = torch.cuda.get_device_properties(index)
    pci = _pci(told)
    device = Device(
        index=index,
        name=told.name,
        uuid=_slice(index, environment) or str(getattr(told, "uuid", "")),
        pci=pci,
        memory=told.total_memory,
        numa=numa_of_device(pci) if pci else None,
    )
    return replace(seat, devices=count, device=device)


def _pci(told: object) -> str:
    """As the kernel names it, without the function; older torch does not say."""
    parts = [getattr(told, name, None) for name in ("pci_domain_id", "pci_bus_id", "pci_device_id")]
    numbers = [part for part in parts if isinstance(part, int)]
    return f"{numbers[0]:04x}:{numbers[1]:02x}:{numbers[2]:02x}" if len(numbers) == 3 else ""


def _slice(index: int, environment: Mapping[str, str]) -> str:
    """The name of a slice of a device (MIG): several of them share what the device itself says."""
    named = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return named[index] if index < len(named) and named[index].startswith("MIG-") else ""
