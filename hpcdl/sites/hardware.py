"""Whether what a site file says of a node goes together: bindings, links and peaks. Pure."""

from __future__ import annotations

from hpcdl.sites.bindings import bound_cpus
from hpcdl.sites.findings import Desk
from hpcdl.sites.node import Device, NodeType
from hpcdl.units import ranges

# Vendors' figures with structured sparsity, TFLOP/s in bf16 and fp16: data sheets of the A100 (624), H100 SXM
# and GH200 (1979), H200 (1979), B200 (4500), MI300X (2614.9) and MI300A (1961.2). Twice the dense ones.
_SPARSE = {
    "GH200": 1979.0, "H200": 1979.0, "H100": 1979.0, "B200": 4500.0, "A100": 624.0, "MI300X": 2614.9,
    "MI300A": 1961.2,
}  # fmt: skip
_WHOLE_CARD = {"MI250X": 383.0}  # two dies, of which the framework sees each as a device
UNKNOWN_MODEL = "unknown"


def check_node(desk: Desk, key: str) -> None:
    """Note what does not go together in the node type ``key``."""
    node = desk.site.nodes[key]
    used = [name for name, partition in desk.site.partitions.items() if partition.node == key]
    if not used:
        desk.warning(("nodes", key), f"no partition gives nodes {key}", "take it out, or add its partition")
    _check_order(desk, key, node)
    _check_binding(desk, key, node)
    _check_names(desk, key, node)
    _check_pairs(desk, key, node)
    _check_peaks(desk, ("nodes", key, "device"), node.device)


def _check_order(desk: Desk, key: str, node: NodeType) -> None:
    order = desk.site.launch.device_order
    if order and sorted(order) != list(range(node.devices)):
        desk.error(
            ("launch", "device_order"),
            f"device_order {order} is no order of the {node.devices} devices of nodes {key}",
            f"name each of 0 to {node.devices - 1} once",
        )


def _check_binding(desk: Desk, key: str, node: NodeType) -> None:
    """What the launcher is told in its own words: each rank's CPUs, none of them reserved."""
    launch = desk.site.launch
    given = [(("launch", "cpu_bind"), launch.cpu_bind or "")]
    given += [
        (("launch", "arguments"), line.partition("=")[2])
        for line in launch.arguments
        if line.startswith("--cpu-bind=")
    ]
    for keys, binding in given:
        try:
            bound = bound_cpus(binding)
        except ValueError as error:
            desk.error(keys, str(error), "see the launcher's manual; near-device makes the binding itself")
            continue
        for rank, cpus in enumerate(bound):
            _check_cpus(desk, keys, cpus, f"the binding of rank {rank}", key)
        if bound and len(bound) != node.devices:
            desk.error(
                keys,
                f"the binding is for {len(bound)} ranks, but nodes {key} have {node.devices} devices",
                "give one entry a device",
            )


def _check_cpus(desk: Desk, keys: tuple[str | int, ...], cpus: list[int], what: str, key: str) -> None:
    """CPUs beyond the cores are their further threads, in the same order."""
    node = desk.site.nodes[key]
    taken = {cpu % node.cores for cpu in cpus} & set(node.reserved_cores)
    if taken:
        desk.error(
            keys,
            f"{what} names reserved core {ranges(taken)} of nodes {key}; jobs do not get it",
            f"leave it out, or correct nodes.{key}.reserved_cores ({ranges(node.reserved_cores)})",
        )
    beyond = [cpu for cpu in cpus if cpu >= node.cores * node.threads_per_core]
    if beyond:
        desk.error(
            keys,
            f"{what} names CPU {ranges(beyond)}, but nodes {key} have {node.cores} cores with "
            f"{node.threads_per_core} thread{'s'[: node.threads_per_core > 1]} each",
            "correct it, or cores and threads_per_core",
        )


def _check_names(desk: Desk, key: str, node: NodeType) -> None:
    names = node.links.nic_names
    if names and len(names) != node.links.nics:
        desk.error(
            ("nodes", key, "links", "nic_names"),
            f"nic_names has {len(names)} names for {node.links.nics} NICs",
            "name each, or none",
        )


def _check_pairs(desk: Desk, key: str, node: NodeType) -> None:
    for pair in node.links.pairs:
        ends = pair.split("-")
        known = len(ends) == 2 and all(end.isdecimal() and int(end) < node.devices for end in ends)
        if not known or ends[0] == ends[1]:
            desk.error(
                ("nodes", key, "links", "pairs", pair),
                f"links.pairs names {pair!r}, which are no two of {node.devices} devices",
                f"write for example 0-1, up to {node.devices - 1}",
            )


def _check_peaks(desk: Desk, keys: tuple[str | int, ...], device: Device) -> None:
    place = (*keys, "peak_tflops")
    if device.model == UNKNOWN_MODEL:
        message = "the device was not recognised when this file was drafted: its figures are placeholders"
        desk.warning((*keys, "model"), message, "name the model, and correct memory, bandwidth and peaks")
    if not device.peak_tflops:
        desk.error(place, "peak_tflops is empty: no precision can be planned", "state at least fp32")
    sparse = next((peak for name, peak in _SPARSE.items() if name in device.model), None)
    card = next((peak for name, peak in _WHOLE_CARD.items() if name in device.model), None)
    for precision in ("bf16", "fp16", "tf32"):
        peak = device.peak_tflops.get(precision, 0.0)
        if sparse and peak > 0.95 * sparse / (2 if precision == "tf32" else 1):
            desk.warning(
                (*place, precision),
                f"{peak:g} TFLOP/s in {precision} is what {device.model} reaches with sparsity",
                f"state the dense figure: {peak / 2:g}",
            )
        if card and device.kind == "gcd" and peak > 0.95 * card:
            desk.warning(
                (*place, precision),
                f"{peak:g} TFLOP/s in {precision} is for the whole {device.model}, of which a gcd is half",
                f"state the figure of one: {peak / 2:g}",
            )
