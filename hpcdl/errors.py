"""The kinds of failure a user can meet, and the exit code of each."""

from __future__ import annotations


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


class SiteError(HpcdlError):
    """A site that is unknown, or whose file is wrong."""

    exit_code = 2


class InfeasibleError(HpcdlError):
    """No decomposition satisfies the request."""

    exit_code = 3


class SchedulerError(HpcdlError):
    """The scheduler is missing, refused, or answered nonsense."""

    exit_code = 4


class EngineError(HpcdlError):
    """The run itself failed."""

    exit_code = 5


class PeerLostError(EngineError):
    """A rank could not go on because another one went away: a consequence, never the cause."""
