"""One screen of ``hpcdl watch``, for a terminal of any size. Pure: a moment in, lines out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from hpcdl.cli import braille, render
from hpcdl.runs.record import RunState
from hpcdl.runs.reports.live import Moment
from hpcdl.runs.reports.signs import Sign
from hpcdl.units import format_count, format_seconds, format_walltime

_LABEL = 9  # columns beside the curve
_LEAST_CURVE, _MOST_CURVE = 3, 16  # lines
_RANKS = 8  # that are named one by one
_JOB_LINES = 3


@dataclass(frozen=True)
class Size:
    """Columns and lines of a terminal."""

    width: int
    height: int


def frame(moment: Moment, size: Size, *, plain: bool = False) -> list[Text]:
    """At most ``size.height`` lines of at most ``size.width`` columns.

    Args:
        moment: the run.
        size: of the terminal.
        plain: whether it is printed once, so that nothing is said of keys.
    """
    head = [*_head(moment), Text(), *_progress(moment, size)]
    ranks = list(_ranks(moment))
    foot = [] if plain else [Text("q detaches, the run goes on", style="dim")]
    room = size.height - len(head) - len(ranks) - len(foot)
    curve = _curve(moment, size, min(_MOST_CURVE, (room - 2) * 3 // 5))
    room -= len(curve)
    lines = [*head, *curve, *ranks, *_log(moment, room), *foot]
    for line in lines:
        line.plain = render.printable(line.plain)  # what a program or a scheduler said may be anything
        line.truncate(size.width, overflow="ellipsis")
    return lines[: size.height]


def _head(moment: Moment) -> Iterator[Text]:
    attempt = moment.attempt
    state = attempt.state.value
    number = f"attempt {attempt.number} of at most {moment.at_most}" if attempt.number else "not submitted"
    title = Text.assemble((moment.name, "bold"), "  ", (f"● {state}", render.colour(state)), f"  {number}")
    yield title.append(f", job {attempt.job_id}" if attempt.job_id else "")
    nodes = f"{moment.nodes} nodes" if moment.nodes > 1 else "1 node"
    ranks = f"{moment.ranks} ranks on {nodes}" if moment.ranks > 1 else "1 rank"
    yield Text(f"{moment.what}, {ranks} of {moment.site}", style="dim")
    if attempt.state is RunState.QUEUED:
        said = [
            attempt.wait and f"waits {attempt.wait}",
            attempt.reason and f"the scheduler says: {attempt.reason}",
        ]
        start = attempt.expected_start and f"expected to start: {attempt.expected_start}"
        yield Text("; ".join(filter(None, [*said, start])) or "waits for its turn", style="yellow")
    elif attempt.reason:
        yield Text(attempt.reason, style=render.colour(state))
    elif moment.ran is not None:
        yield _time(moment.ran, moment.walltime_left)


def _time(ran: float, left: float | None) -> Text:
    told = f"runs for {format_walltime(int(ran))}"
    if left is None:
        return Text(told)
    return Text(f"{told}, walltime left {format_walltime(int(left))}", style="bold red" if left < 300 else "")


def _progress(moment: Moment, size: Size) -> Iterator[Text]:
    if moment.steps:
        share = min(1.0, moment.step / moment.steps)
        told = f"step {moment.step}/{moment.steps} {share:4.0%}"
        left = (
            f"  {format_seconds(moment.left)} left" if moment.left and not moment.attempt.state.over else ""
        )
        wide = max(4, min(50, size.width - len(told) - len(left) - 2))
        done = round(share * wide)
        yield Text.assemble(told, " ", ("━" * done, "cyan"), ("━" * (wide - done), "dim"), left)
    parts = [
        f"loss {moment.losses[-1]:.4f}" if moment.losses else "",
        f"validation {moment.validation_loss:.4f}" if moment.validation_loss is not None else "",
        f"{format_count(moment.tokens_per_second)} tokens/s" if moment.tokens_per_second else "",
        f"{format_seconds(moment.step_seconds)} a step" if moment.step_seconds else "",
        f"MFU {moment.mfu:.1%}" if moment.mfu is not None else "",
    ]
    if told := "   ".join(filter(None, parts)):
        yield Text(told, style="bold")


def _curve(moment: Moment, size: Size, height: int) -> list[Text]:
    """The loss over all steps, between its highest and its lowest value."""
    known = [value for value in moment.losses if math.isfinite(value)]
    if height < _LEAST_CURVE or len(known) < 2:
        return []
    lines = braille.curve(moment.losses, size.width - _LABEL - 1, height)
    labels = [f"{max(known):.4g}", *[""] * (height - 2), f"{min(known):.4g}"]
    drawn = [
        Text.assemble((f"{label:>{_LABEL}} ", "dim"), (line, "cyan"))
        for label, line in zip(labels, lines, strict=True)
    ]
    return [Text(), *drawn]


def _ranks(moment: Moment) -> Iterator[Text]:
    """What is wrong with ranks, or that nothing is; of few ranks also what each is at.

    A program of the user's own gives no signs, and nothing is said of its ranks.
    """
    if not any(math.isfinite(sign.silent) for sign in moment.signs):
        return
    yield Text()
    for trouble in moment.troubles:
        yield Text(f"! {trouble}", style="yellow")
    if not moment.troubles:
        last = max(sign.step for sign in moment.signs)
        yield Text(
            f"{len(moment.signs)} ranks, none behind step {last}" if last else "ranks start", style="green"
        )
    shown = moment.signs if len(moment.signs) <= _RANKS else _worst(moment.signs)
    for sign in shown:
        if sign.where:
            still = f" for {format_seconds(sign.still)}" if sign.still >= 1 else ""
            yield Text(f"  rank {sign.rank} on {sign.host}: {sign.where}{still}", style="dim")


def _worst(signs: Sequence[Sign]) -> list[Sign]:
    """Those that are furthest behind, or have stood still for longest."""
    return sorted(signs, key=lambda sign: (sign.step, -sign.silent, -sign.still))[: _RANKS // 2]


def _log(moment: Moment, room: int) -> Iterator[Text]:
    """How the logs end: a little of the job's, and of rank 0's what there is room for."""
    job = [("job", line) for line in moment.job_log[-_JOB_LINES:]]
    lines = [*job, *(("rank 0", line) for line in moment.log[-max(1, room - 1 - len(job)) :])]
    if room < 2 or not lines:
        return
    yield Text()
    for source, line in lines[-(room - 1) :]:
        yield Text(f"{source:>6} | {line}", style="dim")
