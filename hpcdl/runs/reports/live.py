"""A run at one moment, as whoever watches it wants to see it; looked at again and again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.logs.reading import last_lines
from hpcdl.runs.record import Attempt, RunState
from hpcdl.runs.reports.columns import Columns
from hpcdl.runs.reports.signs import Sign, signs, troubles
from hpcdl.runs.reports.timeline import first_running
from hpcdl.spec.experiment import ResolvedRun
from hpcdl.telemetry import RunEvent, read
from hpcdl.units import parse_walltime

_RECENT = 20  # steps that a rate is the median of
_LINES = 60  # of a log


@dataclass(frozen=True)
class Moment:
    """All that one screen shows of a run; None is what is not known."""

    name: str
    what: str
    site: str
    attempt: Attempt
    at_most: int  # attempts
    ranks: int
    nodes: int
    steps: int | None
    step: int = 0
    losses: Sequence[float] = ()
    first_step: int = 0
    validation_loss: float | None = None
    tokens_per_second: float | None = None
    step_seconds: float | None = None
    mfu: float | None = None
    left: float | None = None  # seconds until the last step, at the present rate
    ran: float | None = None  # seconds of this attempt
    walltime_left: float | None = None  # seconds of this attempt; None also where nothing ends it
    signs: Sequence[Sign] = ()
    troubles: Sequence[str] = ()
    job_log: Sequence[str] = ()  # how what the script printed ends
    log: Sequence[str] = ()  # how the log of rank 0 ends


class Watcher:
    """Looks at a run; what does not change is read once, what grows from where it was read last.

    Args:
        folder: the run.
        limited: whether anybody ends its jobs at their walltime.

    Raises:
        UsageError: ``resolved.json`` is missing or damaged.
    """

    def __init__(self, folder: RunFolder, *, limited: bool = True) -> None:
        self._folder, self._limited = folder, limited
        self._run = store.resolved(folder)
        self._columns = Columns(folder.rank_metrics(0))

    def look(self, attempt: Attempt, now: float) -> Moment:
        """The run as it is now.

        Args:
            attempt: the newest one, with its state.
            now: Unix time.
        """
        run, columns = self._run, self._columns
        columns.update()
        rate, step = _recent(columns, "step_seconds"), columns.step[-1] if columns.step else 0
        steps = run.experiment.steps
        ran = self._ran(attempt, now)
        walltime = parse_walltime(run.experiment.resources.walltime)
        running = attempt.state is RunState.RUNNING
        ranks = signs(self._folder, attempt.number, run.layout.ranks) if running else []
        return Moment(
            name=self._folder.path.name,
            what=str(run.decomposition if isinstance(run, ResolvedRun) else run.experiment.command),
            site=run.site,
            attempt=attempt,
            at_most=run.experiment.chain.attempts,
            ranks=run.layout.ranks,
            nodes=run.layout.nodes,
            steps=steps,
            step=step,
            losses=columns.numbers["loss"],
            first_step=columns.step[0] if columns.step else 0,
            validation_loss=columns.validation[max(columns.validation)] if columns.validation else None,
            tokens_per_second=_recent(columns, "tokens_per_second"),
            step_seconds=rate,
            mfu=_recent(columns, "mfu"),
            left=(steps - step) * rate if steps and rate else None,
            ran=ran,
            walltime_left=max(0.0, walltime - ran) if self._limited and ran is not None else None,
            signs=ranks,
            troubles=troubles(ranks, rate),
            job_log=last_lines(self._folder.job_log(attempt.number), _LINES),
            log=last_lines(self._folder.rank_log(attempt.number, 0), _LINES),
        )

    def _ran(self, attempt: Attempt, now: float) -> float | None:
        if attempt.state is not RunState.RUNNING:
            return None
        launcher = [event for event in store.events(self._folder) if event.attempt == attempt.number]
        told = read(self._folder.engine_events, RunEvent)
        began = first_running(launcher, [event for event in told if event.attempt == attempt.number])
        return None if began is None else max(0.0, now - began)


def _recent(columns: Columns, name: str) -> float | None:
    known = [value for value in columns.numbers[name][1:][-_RECENT:] if math.isfinite(value)]
    return median(known) if known else None
