"""Which attempt of a run comes next, and who may submit it: one process, of all that try at once.

docs/design/017-exactly-one-submission.md gives the reasons.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpcdl.errors import ClaimedError, UsageError
from hpcdl.run_folder import NOBODY, RunFolder
from hpcdl.runs import claims
from hpcdl.runs.claimant import claimant, this_process
from hpcdl.runs.record import Attempt, RunState
from hpcdl.runs.store import current, writing

CLAIM_EXPIRES_S = 180.0
"""After this a claim of a process that cannot be seen from here counts as abandoned: what it does between
its claim and the scheduler's answer takes two programs, of 60 s each at most."""


def take(folder: RunFolder, attempt: int) -> None:
    """Claim an attempt.

    Raises:
        ClaimedError: somebody else has it.
        UsageError: the run folder cannot be written.
    """
    with writing(folder.path):
        mine = claims.claim(folder, attempt, this_process().mark)
    if not mine:
        raise ClaimedError(
            f"{folder.path.name}: attempt {attempt} has been claimed by {who(folder, attempt)}",
            f"nothing was submitted here; hpcdl status {folder.path.name} tells what becomes of it",
        )


def who(folder: RunFolder, attempt: int) -> str:
    """Who claimed an attempt, and how long ago, in words."""
    mark = claims.claims(folder).get(attempt)
    if mark is None:
        return "nobody"
    return f"{claimant(mark) or mark}, {claims.age(folder, attempt):.0f} s ago"


def is_under_way(folder: RunFolder, attempt: Attempt) -> bool:
    """Whether whoever claimed an attempt may still be about to submit it."""
    if not attempt.claimed_by or attempt.given_up:
        return False
    who = claimant(attempt.claimed_by)
    if who == this_process():
        return False  # it asks, so it does not submit
    alive = who.is_alive if who else None
    return alive if alive is not None else claims.age(folder, attempt.number) < CLAIM_EXPIRES_S


def check_over(folder: RunFolder, attempt: Attempt) -> None:
    """Make sure that a run may have another attempt.

    Raises:
        UsageError: it is going, or has finished.
    """
    run = folder.path.name
    if attempt.state is RunState.COMPLETED:
        raise UsageError(f"{run} has completed all its steps, there is nothing to resume")
    if attempt.state is RunState.UNKNOWN and attempt.cancel_requested:
        return  # nobody here may ever learn of its end
    if attempt.state is not RunState.PREPARED and not attempt.state.over:
        raise UsageError(f"{run} is {attempt.state.value}; cancel it first, or wait for its end")


def next_attempt(folder: RunFolder, attempt: Attempt) -> int:
    """Claim the attempt after ``attempt``, which is the newest as just refreshed; return its number.

    Raises:
        ClaimedError: it is being submitted by somebody else.
        UsageError: the run is going, has finished, or its folder cannot be written.
    """
    check_over(folder, attempt)
    _leave_behind(folder, attempt)
    take(folder, attempt.number + 1)
    return attempt.number + 1


_NEVER_RAN = (RunState.PREPARED, RunState.REFUSED)
_OUT_OF_SIGHT = (RunState.LOST, RunState.CANCELLED, RunState.UNKNOWN)
"""States in which nobody may see the job: it may wait in a queue that does not show it to everybody."""


def _leave_behind(folder: RunFolder, attempt: Attempt) -> None:
    """Make sure that no job of an attempt comes in any more, where one still could.

    Raises:
        ClaimedError: its submission goes on, or a job of it has started although none was known.
        UsageError: the run folder cannot be written.
    """
    run, number = folder.path.name, attempt.number
    if attempt.state is RunState.PREPARED and _is_somebodys(folder, attempt):
        raise ClaimedError(
            f"{run}: attempt {number} is being submitted by {who(folder, number)}",
            f"nothing was submitted here; hpcdl status {run} tells what becomes of it",
        )
    if not number or attempt.state not in _NEVER_RAN + _OUT_OF_SIGHT:
        return
    with writing(folder.path):
        given_up = claims.give_up(folder, number)
    if not given_up and attempt.state in _NEVER_RAN:
        raise ClaimedError(f"{run} has just started; see hpcdl status {run}")


def _is_somebodys(folder: RunFolder, attempt: Attempt) -> bool:
    """Whether whoever claimed an attempt may still submit it, or has done so since one looked, and ended."""
    if is_under_way(folder, attempt):
        return True
    now = current(folder)
    return (now.number, now.state) != (attempt.number, RunState.PREPARED)


def check_mine(folders: Sequence[RunFolder], attempt: int) -> None:
    """Make sure that nobody gave up, meanwhile, the attempt that this process is about to submit.

    Raises:
        UsageError: somebody took this process for dead.
    """
    for folder in folders:
        if claims.starts(folder).get(attempt) == NOBODY:
            raise UsageError(
                f"{folder.path.name}: attempt {attempt} was given up, as its submission took so long",
                f"hpcdl status {folder.path.name} tells what came after it",
            )
