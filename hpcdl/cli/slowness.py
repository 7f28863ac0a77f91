"""``hpcdl slow-nodes``, and what ``status`` says of ranks and hosts that are slow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcdl.cli import render
from hpcdl.cli.asking import legible
from hpcdl.runs import store
from hpcdl.runs.failures.alike import spans
from hpcdl.runs.nodes.stragglers import LIMIT, HostHistory, Straggler, Work, histories
from hpcdl.runs.nodes.working import works
from hpcdl.units import format_seconds

_SHOWN = 4  # lines of a status; the rest is counted
_AGAIN = 2  # slow in so many runs is no accident


def record(straggler: Straggler) -> dict[str, Any]:
    """One straggler as ``--json`` has it."""
    return {"host": straggler.host, "ranks": list(straggler.ranks), **asdict(straggler.slowness)}


def lines(stragglers: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What a status says of them."""
    for each in stragglers[:_SHOWN]:
        own, others = format_seconds(each["seconds"]), format_seconds(each["others"])
        yield (
            f"slow: {spans(each['ranks'])} on {each['host']}: {each['times']:.2f} times as long as others "
            f"for the same work ({own} against {others} a step, {each['steps']} steps)"
        )
    if len(stragglers) > _SHOWN:
        yield f"slow: {len(stragglers) - _SHOWN} more; status --json has all"


def show(runs: Path | None, *, json: bool) -> None:
    """Hosts that were slow in the runs of a folder."""
    where = store.runs_folder(runs)
    done = _works(where)
    found = histories(done)
    if json:
        render.print_json([asdict(each) for each in found])
    elif found:
        _table(found)
    else:
        compared = sum(len({work.rank for work in each}) > 1 for each in done.values())
        render.plain(
            f"no host was more than {LIMIT - 1:.0%} slower than others in {compared} runs of several ranks "
            f"in {where}"
        )


def _works(where: Path) -> dict[str, list[Work]]:
    folders = list(legible(store.all_runs(where)))
    with render.progress_of("reading step records") as progress:
        found = {}
        for number, folder in enumerate(folders, start=1):
            found[folder.path.name] = works(folder)
            progress(number, len(folders))
    return found


def _table(found: Sequence[HostHistory]) -> None:
    columns: dict[str, render.Side] = {
        "host": "left", "slow in": "right", "of runs": "right", "times": "right", "worst": "right",
        "worst run": "left",
    }  # fmt: skip
    render.table(columns, (render.Row(_cells(each), _colour(each)) for each in found))


def _cells(each: HostHistory) -> list[str]:
    return [
        each.host,
        str(each.slow),
        str(each.runs),
        f"{each.times:.2f}",
        f"{each.worst:.2f}",
        each.worst_run,
    ]


def _colour(each: HostHistory) -> str:
    """Red where it is slow again and again."""
    return "red" if each.slow >= _AGAIN and each.slow > each.runs / 2 else "yellow"
