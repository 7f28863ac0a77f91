"""On which numbers of devices an experiment could run instead, and what to type for it."""

from __future__ import annotations

from collections.abc import Iterator

from hpcdl.errors import HpcdlError
from hpcdl.planner.advice import Sizes
from hpcdl.planner.layout import find_partition, layout
from hpcdl.planner.plan import build_case
from hpcdl.spec.decomposition import Decomposition, violations
from hpcdl.spec.entry import EntryModel
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.job import Layout
from hpcdl.workflow.studies.studying import Inputs, unplanned

_AXES = ("data", "pipeline", "x", "y", "z")
_FURTHEST = 33  # numbers of devices that are tried on either side


def scaled(experiment: Experiment, d: Decomposition, ranks: int) -> Iterator[str]:
    """Settings that change one degree of ``d``, and its microbatch where it must, to make ``ranks`` ranks."""
    batch = experiment.training.global_batch
    for axis in _AXES:
        degree, rest = divmod(ranks, d.ranks // getattr(d, axis))
        if rest or not degree:
            continue
        other = d.model_copy(update={axis: degree})
        settings = f"--set parallelism.{axis}={degree}"
        if 0 < (share := batch // other.batch_shards) < d.microbatch:
            other = other.model_copy(update={"microbatch": share})
            settings += f" --set parallelism.microbatch={share}"
        if not violations(other, experiment.model, batch):
            yield settings


def nearest(inputs: Inputs, asked: int) -> list[int]:
    """The nearest numbers of devices below and above ``asked`` that the site takes and the experiment fits.

    Fewer than 33 away, or as many below what the queue takes.
    """
    partition = find_partition(inputs.experiment.resources.queue, inputs.site, inputs.document)[1]
    devices = inputs.site.nodes[partition.node].devices
    most = asked if partition.max_nodes is None else min(asked, partition.max_nodes * devices + 1)
    sides = (range(most - 1, max(0, most - _FURTHEST), -1), range(asked + 1, asked + _FURTHEST))
    found = (next((count for count in side if _works(inputs, count)), None) for side in sides)
    return [count for count in found if count]


def _works(inputs: Inputs, gpus: int) -> bool:
    experiment, site = inputs.experiment, inputs.site
    resources = experiment.resources.model_copy(update={"gpus": gpus, "nodes": None})
    try:
        place = layout(resources, site)
        return not isinstance(experiment, Experiment) or _fits(experiment, inputs, place)
    except HpcdlError:
        return False


def _fits(experiment: Experiment, inputs: Inputs, place: Layout) -> bool:
    """Whether a decomposition is there; a given one may change in one degree.

    Raises:
        InfeasibleError: there is none for a model of the user's own.
    """
    if experiment.parallelism != "auto":
        return any(scaled(experiment, experiment.parallelism, place.ranks))
    if isinstance(experiment.model, EntryModel):
        return unplanned(experiment, place.ranks).ranks == place.ranks
    return Sizes(experiment, inputs.site, build_case(experiment, inputs.site, place)).work(place.ranks)
