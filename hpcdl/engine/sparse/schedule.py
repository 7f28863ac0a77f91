"""How sparse a network is after which step, and when masks are drawn. Pure: no torch."""

from __future__ import annotations

from hpcdl.spec.training import Pruning


def sparsity_after(settings: Pruning, step: int) -> float:
    """What share of the pruned matrices shall be gone once pruning after ``step`` is done.

    Of ``cubic`` it is s·(1 - (1 - (t - begin) / (end - begin))³) (Zhu and Gupta, 2017, equation 1, with an
    initial sparsity of 0). The others know nothing between none and all.
    """
    if settings.schedule != "cubic":
        return settings.sparsity if step >= settings.begin else 0.0
    assert settings.end is not None  # noqa: S101 - the spec sees to it
    done = (step - settings.begin) / (settings.end - settings.begin)
    return settings.sparsity * (1 - (1 - min(max(done, 0.0), 1.0)) ** 3)


def due(settings: Pruning, step: int) -> bool:
    """Whether masks are drawn after ``step``, and weights pruned by them if the schedule says so.

    ``once`` does after ``begin``. The others do each ``every`` steps from there, and after ``end``; at
    ``begin`` itself the cubic sparsity is still 0.
    """
    if settings.schedule == "once":
        return step == settings.begin
    if settings.end is not None and step >= settings.end:
        return step == settings.end
    since = step - settings.begin
    first = settings.every if settings.schedule == "cubic" else 0
    return since >= first and since % settings.every == 0


def missed(settings: Pruning, step: int) -> bool:
    """Whether a network must have been pruned by the time that ``step`` is done, however its masks went."""
    last = settings.begin if settings.schedule == "once" else settings.end
    return last is not None and step >= last
