"""The same question on another machine: ``link.inter=2x`` and the like, applied to what a site file says."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpcdl.errors import UsageError
from hpcdl.planner.layout import find_partition
from hpcdl.planner.question import Question
from hpcdl.sites.node import NodeType, Precision
from hpcdl.units import parse_bytes

_FACTOR = re.compile(r"(\d+(?:\.\d+)?)x")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z/]*)")
_MOST = 1 << 16  # devices or cores of a node
_EXAMPLES = {"GB/s": "100GB/s", "TFLOP/s": "989TFLOP/s", "bytes": "80GiB", "": "8"}  # by unit
_FORM = "write KEY=VALUE, for example link.inter=2x or device.memory=80GiB"


@dataclass(frozen=True)
class _Key:
    """One figure of a node that can be changed."""

    meaning: str
    unit: str  # GB/s, TFLOP/s, bytes, or empty for a count
    read: Callable[[NodeType, Precision], float | None]
    write: Callable[[NodeType, Precision, float], NodeType]  # a new value, for a precision


def changed(question: Question, settings: Sequence[str]) -> Question:
    """``question`` with the nodes of its queue changed by every one of ``settings``, in order.

    Raises:
        UsageError: a setting that is not ``KEY=VALUE``, an unknown key, or a value that makes no sense.
    """
    site, experiment = question.site, question.experiment
    kind = find_partition(experiment.resources.queue, site)[1].node
    node = site.nodes[kind]
    for setting in settings:
        node = _apply(node, setting, experiment.training.precision)
    return replace(question, site=site.model_copy(update={"nodes": {**site.nodes, kind: node}}))


def _apply(node: NodeType, setting: str, precision: Precision) -> NodeType:
    name, separator, text = (part.strip() for part in setting.partition("="))
    if not separator:
        raise UsageError(f"--what-if {setting!r} is not of the form KEY=VALUE", _FORM)
    if name not in KEYS:
        raise UsageError(f"--what-if {setting}: there is no key {name!r}{_closest(name)}", _known())
    key = KEYS[name]
    now = key.read(node, precision)
    value = _value(setting, text, key, now)
    if not 0 < value < math.inf:
        raise UsageError(f"--what-if {setting}: {name} must be above zero and finite")
    if not key.unit and (value != int(value) or value > _MOST):
        raise UsageError(f"--what-if {setting}: {name} {value:g} is not a whole number of at most {_MOST}")
    return key.write(node, precision, value)


def _value(setting: str, text: str, key: _Key, now: float | None) -> float:
    if factor := _FACTOR.fullmatch(text):
        if not now:
            raise UsageError(
                f"--what-if {setting}: the site does not say what this is now, so no multiple is known",
                f"give {key.unit or 'a count'}: for example {_EXAMPLES[key.unit]}",
            )
        return float(factor[1]) * now
    if key.unit == "bytes":
        try:
            return parse_bytes(text)
        except (ValueError, OverflowError) as error:
            raise UsageError(f"--what-if {setting}: {error}") from None
    number = _NUMBER.fullmatch(text)
    if not number or number[2] not in ("", key.unit):
        raise UsageError(
            f"--what-if {setting}: {text!r} is no value for it", f"for example {_EXAMPLES[key.unit]} or 2x"
        )
    return float(number[1])


def _closest(name: str) -> str:
    close = difflib.get_close_matches(name, KEYS, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else ""


def _known() -> str:
    return "known keys: " + ", ".join(f"{name} ({key.meaning})" for name, key in KEYS.items())


def _device(node: NodeType, **changes: Any) -> NodeType:
    return node.model_copy(update={"device": node.device.model_copy(update=changes)})


def _links(node: NodeType, **changes: Any) -> NodeType:
    return node.model_copy(update={"links": node.links.model_copy(update=changes)})


def _set_intra(node: NodeType, _: Precision, rate: float) -> NodeType:
    """Links between pairs change by the same factor."""
    factor = rate / node.links.intra_node
    return _links(node, intra_node=rate, pairs={pair: own * factor for pair, own in node.links.pairs.items()})


def _set_inter(node: NodeType, _: Precision, rate: float) -> NodeType:
    nics = max(1, node.links.nics)
    return _links(node, nics=nics, nic_bandwidth=rate / nics)


def _set_flops(node: NodeType, precision: Precision, peak: float) -> NodeType:
    """Other precisions change by the same factor."""
    known = node.device.peak_tflops
    factor = peak / known.get(precision, peak)
    scaled = {name: value * factor for name, value in known.items()}
    return _device(node, peak_tflops={**scaled, precision: peak})


def _set_devices(node: NodeType, _: Precision, count: float) -> NodeType:
    """What is said of single devices is gone: cores, NICs and NUMA nodes near them, links between pairs."""
    near: dict[str, list[str]] = {name: [] for name in ("device_cores", "device_nics", "device_numa")}
    return _links(node.model_copy(update={"devices": int(count), **near}), pairs={})


KEYS = {
    "link.intra": _Key(
        "bandwidth of a device inside its node", "GB/s", lambda node, _: node.links.intra_node, _set_intra
    ),
    "link.inter": _Key(
        "injection bandwidth of a node", "GB/s", lambda node, _: node.links.inter_node, _set_inter
    ),
    "link.host": _Key(
        "bandwidth between a device and host memory",
        "GB/s",
        lambda node, _: node.links.host,
        lambda node, _, rate: _links(node, host=rate),
    ),
    "device.memory": _Key(
        "memory of a device",
        "bytes",
        lambda node, _: parse_bytes(node.device.memory),
        lambda node, _, size: _device(node, memory=str(int(size))),
    ),
    "device.bandwidth": _Key(
        "memory bandwidth of a device",
        "GB/s",
        lambda node, _: node.device.memory_bandwidth,
        lambda node, _, rate: _device(node, memory_bandwidth=rate),
    ),
    "device.flops": _Key(
        "peak of a device at the run's precision",
        "TFLOP/s",
        lambda node, precision: node.device.peak_tflops.get(precision),
        _set_flops,
    ),
    "node.devices": _Key("devices of a node", "", lambda node, _: node.devices, _set_devices),
    "node.cores": _Key(
        "cores of a node",
        "",
        lambda node, _: node.cores,
        lambda node, _, count: node.model_copy(update={"cores": int(count) + len(node.reserved_cores)}),
    ),
    "node.memory": _Key(
        "host memory of a node",
        "bytes",
        lambda node, _: parse_bytes(node.host_memory),
        lambda node, _, size: node.model_copy(update={"host_memory": str(int(size))}),
    ),
}
"""What of a machine can be asked about."""
