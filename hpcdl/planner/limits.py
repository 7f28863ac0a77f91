"""How large a question may be: beyond it nothing is a machine, and integers and searches would run away."""

from __future__ import annotations

from hpcdl.errors import UsageError
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment

MOST_DEVICES = 1 << 20
"""No machine has as many; the largest of the TOP500 has under a hundred thousand GPUs."""

_MOST = {
    "layers": 10_000,
    "hidden": 1 << 20,
    "heads": 1 << 20,
    "ffn": 1 << 22,
    "vocab": 1 << 24,
    "sequence": 1 << 24,
    "experts": 1 << 16,
}
_MOST_SEQUENCES = 1 << 31
_OF_A_DECOMPOSITION = ("expert", "microbatch", "interleave", "in_flight", "recompute_every")
"""Counts that its ranks do not bound."""


def check_sizes(experiment: Experiment, gpus: int) -> None:
    """Refuse at once what no plan can be made for.

    Raises:
        UsageError: a number that is too large, or no device at all.
    """
    if gpus < 1:
        raise UsageError(f"a plan needs at least one device, not {gpus}")
    shape = experiment.shape
    sizes = {
        "gpus": (gpus, MOST_DEVICES),
        "training.global_batch": (experiment.training.global_batch, _MOST_SEQUENCES),
        **{f"model.{name}": (getattr(shape, name), most) for name, most in _MOST.items()},
    }
    cut = experiment.parallelism
    if isinstance(cut, Decomposition):
        sizes["parallelism's product"] = cut.ranks, MOST_DEVICES
        counts = {name: getattr(cut, name) or 0 for name in _OF_A_DECOMPOSITION}
        sizes |= {f"parallelism.{name}": (count, _MOST_SEQUENCES) for name, count in counts.items()}
    for name, (value, most) in sizes.items():
        if value > most:
            raise UsageError(f"{name} {value} is more than the {most} that the planner looks at")
