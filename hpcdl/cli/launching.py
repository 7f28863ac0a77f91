"""``hpcdl launch-info``: where the ranks of an attempt found themselves, and how fast they are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcdl.cli import render
from hpcdl.cli.sweeps.groups import one_run
from hpcdl.errors import EngineError
from hpcdl.placement import Finding, Host, Placement, Seat
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.nodes import bad_nodes
from hpcdl.runs.nodes.placements import placement
from hpcdl.units import TERA, format_seconds
from hpcdl.workflow.states.following import site_of
from hpcdl.workflow.studies.excluding import Exclusion, exclusion

_COLUMNS: dict[str, render.Side] = {
    "rank": "right", "device": "left", "memory": "right", "cores": "left", "NUMA": "left",
    "interface": "left", "TFLOP/s": "right", "node": "right", "others": "right",
}  # fmt: skip


def launch_info(run: str, runs: Path | None, attempt: int | None, *, json: bool) -> None:
    """Show every rank of an attempt, by node.

    Raises:
        EngineError: something is wrong with where they are.
    """
    folder = one_run(run, store.runs_folder(runs))
    found = placement(folder, attempt or store.current(folder).number)
    bad = bad_nodes.named(folder)
    chosen = exclusion(store.resolved(folder).experiment.resources, bad, site_of(folder))
    if json:
        render.print_json(_record(folder, found, bad, chosen))
    else:
        _show(folder, found, bad, chosen)
    grave = [finding for finding in found.findings if finding.grave]
    if grave:
        words = "; ".join(f"{each.host}: {each.words}" for each in grave)
        raise EngineError(f"attempt {found.attempt} cannot run as it was placed: {words}")


def _record(
    folder: RunFolder, found: Placement, bad: Sequence[bad_nodes.BadNode], chosen: Exclusion
) -> dict[str, Any]:
    return {
        "run": folder.path.name,
        "attempt": found.attempt,
        "hosts": [asdict(host) for host in found.hosts],
        "ranks": [asdict(seat) | {"flops_per_second": found.flops_per_second(seat)} for seat in found.seats],
        "findings": [asdict(finding) for finding in found.findings],
        "all_reduce_seconds": found.all_reduce_seconds,
        "all_reduce_bytes": found.all_reduce_bytes,
        "bad_nodes": [asdict(node) for node in bad],
        "exclude": list(chosen.nodes),
        "left_in": list(chosen.left_in),
        "left_in_why": chosen.why,
    }


def _show(folder: RunFolder, found: Placement, bad: Sequence[bad_nodes.BadNode], chosen: Exclusion) -> None:
    ranks, hosts = len(found.seats), len(found.hosts)
    render.plain(
        f"{folder.path.name}, attempt {found.attempt}: {ranks} rank{'s' * (ranks > 1)} on {hosts} "
        f"node{'s' * (hosts > 1)}{_all_reduce(found)}"
    )
    for host in found.hosts:
        render.plain(f"\n{_node(host)}", "bold")
        own = [finding for finding in found.findings if finding.host == host.name]
        render.table(_COLUMNS, _rows(found, host, own))
        for finding in own:
            render.plain(f"  {finding.words}", _style(finding))
    for text, style in _outlook(bad, chosen):
        render.plain(text, style)


def _all_reduce(found: Placement) -> str:
    if found.all_reduce_seconds is None or not found.all_reduce_bytes:
        return ""
    size = found.all_reduce_bytes / 2**20
    return f"; an all-reduce of {size:g} MiB over all took {format_seconds(found.all_reduce_seconds)}"


def _node(host: Host) -> str:
    also = f" ({host.hostname})" if host.hostname != host.name else ""
    nics = ", ".join(nic.name + (f" {nic.gbits:g} Gb/s" if nic.gbits else "") for nic in host.nics)
    return f"{host.name}{also}: {host.cpus} hardware threads; {nics or 'no network interface is up'}"


def _rows(found: Placement, host: Host, own: Sequence[Finding]) -> Iterator[render.Row]:
    for seat in found.seats:
        if seat.host == host.name:
            worst = sorted((each for each in own if seat.rank in each.ranks), key=lambda each: each.grave)
            yield render.Row(_cells(found, seat), _style(worst[-1]) if worst else None)


def _cells(found: Placement, seat: Seat) -> list[str]:
    flops, device = found.flops_per_second(seat), seat.device
    named = f"{device.index} {device.name} {device.pci or device.uuid}".rstrip() if device else "-"
    return [
        str(seat.rank),
        named,
        f"{device.memory / 2**30:.0f} GiB" if device else "-",
        seat.cpus,
        ",".join(map(str, seat.numa)) or "-",
        seat.interface or "-",
        "-" if flops is None else f"{flops / TERA:.3g}",
        _seconds(seat.host_seconds),
        _seconds(seat.link_seconds),
    ]


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else format_seconds(seconds)


def _style(finding: Finding) -> str:
    return "red" if finding.grave else "yellow"


def _outlook(bad: Sequence[bad_nodes.BadNode], chosen: Exclusion) -> Iterator[tuple[str, str]]:
    """What later attempts make of it."""
    for node in bad:
        yield f"bad node {node.host} (attempt {node.attempt}): {node.why}", "red"
    if chosen.nodes:
        yield f"later attempts leave out {', '.join(chosen.nodes)}", ""
    if chosen.left_in:
        yield f"later attempts may get {', '.join(chosen.left_in)} again: {chosen.why}", "yellow"
