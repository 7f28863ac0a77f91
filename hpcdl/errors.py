"""The kinds of failure a user can meet, and the exit code of each."""

from __future__ import annotations

from collections.abc import Mapping


class HpcdlError(Exception):
    """A failure the user can act on: what is wrong, and the way out.

    Args:
        message: names the value, the limit and the place (file:line:column where one is known).
        hint: the next thing to do; shown on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(HpcdlError):
    """A command line or an experiment file that cannot be understood."""

    exit_code = 2


class ClaimedError(UsageError):
    """Somebody else submits an attempt, or has just done so."""


class SiteError(HpcdlError):
    """A site that is unknown, or whose file is wrong."""

    exit_code = 2


class InfeasibleError(HpcdlError):
    """No decomposition satisfies the request."""

    exit_code = 3


class SchedulerError(HpcdlError):
    """The scheduler is missing, refused, or answered nonsense."""

    exit_code = 4


class NoAnswerError(SchedulerError):
    """The scheduler was not reached, or its answer was not heard: what it was asked to do may yet be done."""


class EngineError(HpcdlError):
    """The run itself failed."""

    exit_code = 5


class HangError(EngineError):
    """A rank stands still, for longer than it may.

    Args:
        message: as of every error.
        hint: likewise.
        suspects: the nodes that may be to blame, and why.
    """

    def __init__(self, message: str, hint: str, suspects: Mapping[str, str] | None = None) -> None:
        super().__init__(message, hint)
        self.suspects = suspects or {}


class PeerLostError(EngineError):
    """A rank could not go on because another one went away: a consequence, never the cause."""


class RanksMissingError(EngineError):
    """Ranks did not come to the meeting in time.

    Args:
        message: as of every error.
        hint: likewise.
        suspects: the nodes that may be to blame, and why.
    """

    def __init__(self, message: str, hint: str, suspects: Mapping[str, str]) -> None:
        super().__init__(message, hint)
        self.suspects = suspects


class BadNodeError(EngineError):
    """A node does not have what the run needs of it; another node would do."""


class PlacementError(EngineError):
    """The launcher put ranks where they cannot run; another node would not help."""
