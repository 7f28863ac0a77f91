"""All that a run left behind, read from its folder for whoever reports or compares."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpcdl.run_folder import RunFolder
from hpcdl.runs import shapes, store
from hpcdl.runs.failures.diagnosis import Diagnosis, diagnose
from hpcdl.runs.record import Attempt, attempts, up_to
from hpcdl.runs.reports.columns import Columns
from hpcdl.runs.spending import node_hours, written
from hpcdl.spec.experiment import ResolvedRun
from hpcdl.spec.reading import AnyRun
from hpcdl.telemetry import ExitRecord, RunEvent, StepRecord, read, read_exits, read_tail

_TAIL_BYTES = 1 << 18  # of a rank's records: some hundred steps


@dataclass(frozen=True)
class RankAccount:
    """What one rank did with its time in its newest steps, without its very first.

    Args:
        rank: which.
        host: where it ran last; empty if it left no word.
        steps: how many steps were looked at.
        seconds: of a mean step, by category.
        memory_peak: most bytes so far; None where it is not known.
        last: its newest step.
        time: Unix time at the end of that.
    """

    rank: int
    host: str = ""
    steps: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    memory_peak: int | None = None
    last: int = 0
    time: float = 0.0


@dataclass(frozen=True)
class Recorded:
    """One run as its folder tells it."""

    name: str  # by which it is told from others
    run: AnyRun
    experiment: str  # the text that the user gave
    planned: Mapping[str, Any] | None  # the candidate of plan.json that runs
    columns: Columns  # of rank 0
    since: int  # the first attempt in the shape that it has now
    ranks: tuple[RankAccount, ...]
    attempt: Attempt  # the newest
    history: tuple[Attempt, ...]  # all, that one last
    launcher: tuple[RunEvent, ...]
    engine: tuple[RunEvent, ...]
    exits: Mapping[int, list[ExitRecord]]  # by attempt
    ends: Mapping[int, float | None]  # when the file server has the end of each attempt's script
    diagnosis: Diagnosis
    node_hours: float | None  # of all attempts


def recorded(folder: RunFolder, attempt: Attempt, now: float) -> Recorded:
    """Read a run.

    Args:
        folder: the run.
        attempt: its newest, as it stands.
        now: Unix time, until which lasts what is still going on.

    Raises:
        UsageError: ``resolved.json`` is missing or damaged.
    """
    run, launcher = store.resolved(folder), store.events(folder)
    history, since = up_to(attempt, attempts(launcher)), shapes.since(launcher)
    columns = Columns(folder.rank_metrics(0))
    columns.update()
    exits = {each.number: read_exits(folder.exits(each.number)) for each in history}
    hosts = {record.rank: record.host for records in exits.values() for record in records}
    return Recorded(
        name=folder.path.name,
        run=run,
        experiment=_text(folder),
        planned=_planned(folder, run),
        columns=columns,
        since=since,
        ranks=tuple(account(folder, rank, hosts.get(rank, ""), since) for rank in range(run.layout.ranks)),
        attempt=attempt,
        history=tuple(history),
        launcher=tuple(launcher),
        engine=tuple(read(folder.engine_events, RunEvent)),
        exits=exits,
        ends={each.number: written(folder.job_exit(each.number)) for each in history},
        diagnosis=diagnose(folder, attempt) if history else Diagnosis(),
        node_hours=node_hours(folder, history, now),
    )


def _text(folder: RunFolder) -> str:
    try:
        return folder.experiment.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _planned(folder: RunFolder, run: AnyRun) -> Mapping[str, Any] | None:
    """The estimate of the decomposition that runs; None where there is none that can be read."""
    if not isinstance(run, ResolvedRun):
        return None
    wanted = run.decomposition.model_dump(mode="json")
    try:
        candidates = json.loads(folder.plan.read_text(encoding="utf-8"))["candidates"]
        fitting = [each for each in candidates if each["decomposition"] == wanted]
        return dict(fitting[0]) if fitting else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def account(folder: RunFolder, rank: int, host: str, since: int) -> RankAccount:
    """What a rank did lately, in this attempt or later ones, from the end of its records."""
    tail = read_tail(folder.rank_metrics(rank), StepRecord, _TAIL_BYTES)
    records = [each for each in tail if each.attempt >= since]
    if not records:
        return RankAccount(rank, host)
    looked = [each for each in records if each.step > 1] or records
    totals: dict[str, float] = defaultdict(float)
    for each in looked:
        for category, seconds in each.seconds.items():
            totals[category] += seconds / len(looked)
    newest = records[-1]
    return RankAccount(rank, host, len(looked), dict(totals), newest.memory_peak, newest.step, newest.time)
