"""``hpcdl submit`` of a sweep, and ``hpcdl resume`` of its points."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from hpcdl.cli import render
from hpcdl.cli.screens import words
from hpcdl.cli.submitting import Again, Ask, Watch, queueing
from hpcdl.cli.sweeps.groups import counted, meant
from hpcdl.errors import EngineError, NoAnswerError, UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.record import RunState
from hpcdl.runs.sweeps import groups
from hpcdl.runs.sweeps.groups import Group
from hpcdl.schedulers.base import Job
from hpcdl.schedulers.environment import undecided
from hpcdl.workflow.states import following
from hpcdl.workflow.states.asking import pause
from hpcdl.workflow.studies import preparing
from hpcdl.workflow.studies.chaining import Awaited
from hpcdl.workflow.sweeps import arrays, dispatching, sweeping
from hpcdl.workflow.sweeps.arrays import Batch
from hpcdl.workflow.sweeps.dispatching import Sent
from hpcdl.workflow.sweeps.staying import Stay
from hpcdl.workflow.sweeps.sweeping import Swept

Drafts = Sequence[tuple[Batch, Job]]


def submit(ask: Ask, runs: Path | None, *, watch: Watch, json: bool) -> None:
    """Plan every point, prepare and submit them; then wait for all, if asked.

    Raises:
        UsageError: they are to be followed.
        InfeasibleError: points cannot run, and are not to be skipped.
        EngineError: a point that was waited for did not complete.
    """
    _check_watch(watch, "a sweep")
    where = store.runs_folder(runs)
    swept, _, awaited = drafted(ask, where)
    group = sweeping.prepare(swept, where, awaited)
    members = dispatching.chosen(group.folders, dispatching.WAITING)
    sent = dispatching.send(group, members)
    if not json:
        _submitted(group, sent)
    if watch is Watch.WAIT:
        _stay(Stay(group, sent.left), quiet=json)
    elif not json:
        render.next_commands(RunFolder(where / group.name), ("status", "results", "cancel"))
    if json:
        render.print_json([_record(group, folder) for folder in group.folders])


def _check_watch(watch: Watch, what: str) -> None:
    if watch is Watch.FOLLOW:
        raise UsageError(f"--follow shows one run, not {what}", "use --wait, or hpcdl logs RUN --follow")


def drafted(ask: Ask, where: Path) -> tuple[Swept, Drafts, Awaited | None]:
    """The sweep, what would be submitted, and what that would wait for, with nothing written.

    Raises:
        UsageError: flags that do not go together.
        InfeasibleError: points cannot run, and are not to be skipped.
    """
    request = ask.request
    if ask.repeat is not None:
        raise UsageError(
            f"--repeat {ask.repeat}: {request.file} sweeps already",
            "sweep the seed: grid: {training.seed: [0, 1, 2]}",
        )
    if ask.at_once is not None:
        request = replace(request, settings=[*request.settings, f"sweep.at_once={ask.at_once}"])
    with render.progress_of("planning") as told:
        swept = sweeping.understand(request, told)
    _judge(swept, skip=ask.skip_infeasible)
    awaited = queueing(ask, swept.site, where).awaited
    drafts = arrays.drafts(swept, where, awaited.after if awaited else None)
    for _, work in drafts:
        preparing.render(work)  # what cannot be brought together is refused here
    _warn(swept, drafts)
    return swept, drafts, awaited


def _judge(swept: Swept, *, skip: bool) -> None:
    """Refuse points that cannot run, or say which are left out.

    Raises:
        InfeasibleError: all of them.
    """
    refusal = swept.refusal
    if refusal is None:
        return
    if not (skip and swept.feasible):
        raise refusal
    for line in refusal.message.splitlines():
        render.warning(f"left out: {line}", None)


def _warn(swept: Swept, drafts: Drafts) -> None:
    """What will matter later, each thing once."""
    said = [line for _, work in drafts for line in undecided(work)]
    said += [line for each in swept.feasible if each.study.plan for line in each.study.plan.warnings]
    if swept.alike:
        said.append(f"{swept.alike} points are the same as others, and run once")
    for line in dict.fromkeys(said):
        render.warning(line, None)


_NAMED = 4  # jobs that are named after a submission


def _submitted(group: Group, sent: Sent) -> None:
    named = [f"{job} ({count})" if count > 1 else job for job, count in sent.jobs.items()]
    jobs = ", ".join(named[:_NAMED]) + (f" and {len(named) - _NAMED} more" if len(named) > _NAMED else "")
    points = "1 point" if sent.points == 1 else f"{sent.points} points"
    name, word = f"[bold]{escape(group.name)}[/]", "job" if len(sent.jobs) == 1 else "jobs"
    if sent.jobs:
        render.line(f"submitted {name}", f" on {group.site}: {points} as {word} {jobs}")
    else:
        render.line(f"[yellow]nothing was submitted[/] of {name}")
    if sent.taken:
        render.line(f"[yellow]{sent.taken} points are being submitted by somebody else[/]")
    if sent.left:
        later = dispatching.again(group, {member.before.state for member in sent.left})
        render.line(f"[yellow]{len(sent.left)} points wait for room[/]", f", until {later}")


def _record(group: Group, folder: RunFolder) -> dict[str, Any]:
    attempt = store.current(folder)
    return {
        "run": folder.path.name,
        "path": str(folder.path),
        "job_id": attempt.job_id,
        "state": attempt.state.value,
        "group": group.name,
        "point": group.points[folder.path.name],
    }


@dataclass(frozen=True)
class Which:
    """Which points are resumed; neither flag: those that were not submitted yet, or that paused."""

    failed: bool = False
    cancelled: bool = False
    dry_run: bool = False  # which shows one run only

    @property
    def flags(self) -> str:
        """The flags as typed."""
        return " ".join(["--failed"] * self.failed + ["--cancelled"] * self.cancelled)

    @property
    def states(self) -> frozenset[RunState]:
        """How those points stand."""
        failed = dispatching.FAILED if self.failed else frozenset()
        cancelled = dispatching.CANCELLED if self.cancelled else frozenset()
        return failed | cancelled or dispatching.WAITING


def resumed(again: Again, which: Which, watch: Watch, *, json: bool) -> bool:
    """Resume points of the sweep that is named; False if none is.

    Raises:
        UsageError: flags for a sweep, and it is none; or no point stands so.
        EngineError: a point that was waited for did not complete.
    """
    group = meant(again.run, store.runs_folder(again.runs))
    if group is None:
        if which.flags:
            raise UsageError(f"{which.flags} is for sweeps, and {again.run} is none", "leave it out")
        return False
    if again.wanted or which.dry_run:
        raise UsageError(
            f"{group.name} is a sweep; --gpus, --nodes, --set, --site and --dry-run are for one run",
            f"name one, for example {next(iter(group.points))}",
        )
    _check_watch(watch, "a sweep")
    _resume(group, which, wait=watch is Watch.WAIT, quiet=json)
    if json:
        render.print_json([_record(group, folder) for folder in group.folders])
    return True


def _resume(group: Group, which: Which, *, wait: bool, quiet: bool) -> None:
    members = dispatching.chosen(group.folders, which.states)
    if not members and not wait:
        raise UsageError(
            f"no point of {group.name} is {_or(which.states)}: {words(counted(group))}",
            "--failed submits those that failed again, --cancelled those that were cancelled",
        )
    groups.call_on(group)
    sent = dispatching.send(group, members) if members else Sent()
    if members and not quiet:
        _submitted(group, sent)
    if wait:
        only = [member.folder for member in members] if which.flags else None
        _stay(Stay(group, sent.left, only), quiet=quiet)


def _or(states: frozenset[RunState]) -> str:
    words = [state.value for state in RunState if state in states]
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _stay(stay: Stay, *, quiet: bool) -> None:
    """Wait until every point is over, and submit those that wait for room as there is some.

    Raises:
        EngineError: how many points did not complete.
    """
    group = stay.group
    try:
        with render.progress_of("points over") as told:
            _wait(stay, told)
    except KeyboardInterrupt:
        render.plain(f"\ndetached: what is in the queue goes on; hpcdl status {group.name}")
        return
    found = counted(group)
    if set(found) != {RunState.COMPLETED.value}:
        again = dispatching.again(group, {RunState(state) for state in found})
        hint = "; ".join(filter(None, (f"hpcdl status {group.name}", again)))
        raise EngineError(f"{group.name}: {words(found)}", hint)
    if not quiet:
        render.line(f"[green]{words(found)}[/]", f"; hpcdl results {group.name}")


def _wait(stay: Stay, told: sweeping.Progress) -> None:
    """Look again and again; a scheduler that is away is asked less and less often, and that is said once."""
    site, failures = following.site_of(stay.group.folders[0]), 0
    while True:
        try:
            seen = stay.look()
            over = stay.go_on(seen)
        except NoAnswerError as error:
            if not failures:
                render.warning(error.message, "asked again until it answers")
            failures += 1
        else:
            failures = 0
            told(over, len(seen.points))
            if over == len(seen.points):
                return
        time.sleep(pause(site, failures))
