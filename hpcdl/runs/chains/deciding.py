"""Whether a run goes on as another attempt: from how its attempts ended. Pure.

It goes on by itself after what is nobody's fault, as long as it gets anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcdl.runs.record import RunState
from hpcdl.spec.chain import Chain

AFTER_STATES = {
    RunState.PAUSED: "it saved itself before its walltime was over",
    RunState.TIMEOUT: "its walltime was over",
    RunState.PREEMPTED: "a job of higher priority took its nodes",
    RunState.NODE_FAILED: "a node of its job failed",
}
"""Ends after which a run goes on, and why it ended."""

AFTER_CAUSES = {
    "communication": "a message or a collective was not finished",
    "rank never came": "the ranks did not all meet",
    "hang": "a rank made no progress any more",
    "bad node": "a node was found to be bad",
}
"""Causes of a failure (keys of ``runs.causes.KINDS``) after which a run goes on all the same."""

_STOPS = {
    RunState.COMPLETED: "it has completed",
    RunState.CANCELLED: "it was cancelled",
    RunState.REFUSED: "the scheduler did not take it",
    RunState.LOST: "nobody knows how it ended",
    RunState.OUT_OF_MEMORY: "another attempt would need as much memory",
}
_NEVER_RAN = (RunState.PREPARED, RunState.REFUSED)


@dataclass(frozen=True)
class Link:
    """One attempt, as far as it counts for whether there is another.

    Args:
        state: how it ended, or stands.
        saved: whether it saved a step that it did not begin with; None where only the program knows.
        cause: why it failed, as a key of ``runs.causes.KINDS``; empty if that is not known.
        stopped: whether somebody wanted it to stop: cancelled it, or asked it by hand to save itself.
    """

    state: RunState
    saved: bool | None = None
    cause: str = ""
    stopped: bool = False


@dataclass(frozen=True)
class GoOn:
    """There is to be another attempt."""

    why: str


@dataclass(frozen=True)
class Stop:
    """There is not."""

    why: str


def decide(links: Sequence[Link], chain: Chain) -> GoOn | Stop:
    """Whether there is to be another attempt after the newest.

    Args:
        links: the attempts, oldest first. If the newest is not over yet, the answer is for the case that
            its walltime ends it.
        chain: how far the run is to be carried.
    """
    ran = [link for link in links if link.state not in _NEVER_RAN]
    known = [link for link in links if link.state is not RunState.PREPARED]
    newest = known[-1] if known else Link(RunState.PREPARED)
    ended = _after(newest)
    if isinstance(ended, Stop):
        return ended
    if chain.attempts == 1:
        return Stop("chain.attempts is 1, so that no attempt is submitted by itself")
    if len(ran) >= chain.attempts:
        return Stop(f"it has come to {len(ran)} attempts, and chain.attempts is {chain.attempts}")
    in_vain = _in_vain(ran)
    if newest.state.over and in_vain >= chain.without_progress:
        return Stop(
            f"its newest {in_vain} attempts saved no step, and chain.without_progress is "
            f"{chain.without_progress}"
        )
    return ended


def _after(newest: Link) -> GoOn | Stop:
    state = newest.state
    if state in _STOPS:
        return Stop(_STOPS[state])
    if newest.stopped:
        return Stop("somebody wanted it to stop")
    if not state.over:
        return GoOn("it is not over")
    why = AFTER_STATES.get(state) or (state is RunState.FAILED and AFTER_CAUSES.get(newest.cause))
    return GoOn(why) if why else Stop("what ended it would end another attempt too")


def _in_vain(ran: Sequence[Link]) -> int:
    """How many of the newest attempts, one after the other, saved no step."""
    count = 0
    for link in reversed(ran):
        if link.saved is not False:
            break
        count += 1
    return count
