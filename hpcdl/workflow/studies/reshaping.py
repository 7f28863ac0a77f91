"""A run that goes on in another shape: planned anew, and written beside what its attempts ran with so far.

Nothing is written before all of it is known to work, and only what leaves the loss as it is may change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hpcdl.errors import InfeasibleError, SiteError, UsageError
from hpcdl.planner.layout import check_precision, layout
from hpcdl.run_folder import RunFolder
from hpcdl.runs import shapes, store
from hpcdl.schedulers.base import Job
from hpcdl.sites.load import load_site
from hpcdl.sites.site import Site
from hpcdl.spec import load, reading
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment, ResolvedRun
from hpcdl.spec.job import Layout
from hpcdl.spec.reading import AnyExperiment, AnyRun
from hpcdl.workflow.states.following import site_of
from hpcdl.workflow.studies.nearest import nearest, scaled
from hpcdl.workflow.studies.preparing import job, resolve
from hpcdl.workflow.studies.studying import Inputs, Request, Study, change, planned

_FREE = (
    "parallelism", "resources", "communication", "checkpoint", "health", "chain", "trace", "metrics",
    "evaluation",
)  # fmt: skip
_START = "checkpoint.start"
_OTHER_REASONS = {
    "name": "a run keeps its name",
    "environment": "a variable may change what is computed",
    "command": "another program, or another seed of it, is another run",
    _START: "a run goes on from its own checkpoints",
}
_REASON = "it decides what is learned, and the loss would no longer be that of the same run"


@dataclass(frozen=True)
class Change:
    """What a user typed beside the run: settings, a size, the site's file as it is now."""

    settings: Sequence[str] = ()
    gpus: int | None = None
    nodes: int | None = None
    site: str | None = None

    def __bool__(self) -> bool:
        return bool(self.settings or self.gpus or self.nodes or self.site)


@dataclass(frozen=True)
class Reshaped:
    """What was wanted, and the run as it would go on with it."""

    wanted: Change
    study: Study


def reshaped(folder: RunFolder, wanted: Change) -> Reshaped:
    """The run as it would go on; nothing is written.

    The decomposition stays where neither its place nor ``parallelism`` changes; ``auto`` is chosen anew
    otherwise.

    Raises:
        UsageError, SiteError: a setting that is none, or that would change what is learned.
        InfeasibleError: too many devices, or no decomposition for so many, with the nearest that work.
    """
    former = store.resolved(folder)
    inputs = _inputs(folder, wanted)
    _refuse_other_learning(former.experiment, inputs.experiment)
    place = _place(inputs)
    _refuse_misfit(inputs, place.ranks)
    try:
        study = planned(inputs, place, _kept(former, inputs.experiment, place))
    except InfeasibleError as error:
        raise InfeasibleError(error.message, error.hint and f"{error.hint}, which takes a new run") from None
    if study.plan and study.plan.infeasible:
        raise InfeasibleError(study.plan.infeasible, _way_out(inputs.experiment))
    return Reshaped(wanted, study)


def _inputs(folder: RunFolder, wanted: Change) -> Inputs:
    """What the run was, with what is wanted in its place."""
    document = load.below(load.read(folder.resolved), "experiment")
    change(document, Request(folder.resolved, settings=wanted.settings, gpus=wanted.gpus, nodes=wanted.nodes))
    experiment = reading.experiment(document)
    site = _site(folder, wanted)
    if isinstance(experiment, Experiment):
        check_precision(experiment.training.precision, experiment.resources.queue, site, document)
    return Inputs(folder.experiment.read_bytes(), document, experiment, site)


def _site(folder: RunFolder, wanted: Change) -> Site:
    """As it was when the run was prepared, or as its file is now if that is asked for."""
    former = site_of(folder)
    if wanted.site is None:
        return former
    site = load_site(wanted.site)
    if site.scheduler.kind != former.scheduler.kind:
        raise SiteError(
            f"--site {wanted.site}: it has {site.scheduler.kind}, but {folder.path.name} was submitted to "
            f"{former.scheduler.kind} on {former.name}",
            "submit the experiment there; checkpoint.start takes the weights of this run's checkpoints along",
        )
    return site


def _refuse_other_learning(before: AnyExperiment, after: AnyExperiment) -> None:
    for key in _differences(before.model_dump(mode="json"), after.model_dump(mode="json")):
        if key == _START or key.split(".")[0] not in _FREE:
            reason = _OTHER_REASONS.get(key) or _OTHER_REASONS.get(key.split(".")[0], _REASON)
            raise UsageError(
                f"{key} of a run that goes on cannot change: {reason}",
                f"what can: {', '.join(_FREE)}; for anything else submit a new run, and let its {_START} "
                "name a checkpoint of this one",
            )


def _differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """The keys, as dotted paths, whose values are not the same."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        if before != after:
            yield path
        return
    for key in {**before, **after}:
        yield from _differences(before.get(key), after.get(key), f"{path}.{key}".removeprefix("."))


def _kept(former: AnyRun, experiment: AnyExperiment, place: Layout) -> Decomposition | None:
    """The decomposition that the run has, where nothing asks for another."""
    if not (isinstance(former, ResolvedRun) and isinstance(experiment, Experiment)):
        return None
    same = place == former.layout and experiment.parallelism == former.experiment.parallelism
    return former.decomposition if same else None


def _place(inputs: Inputs) -> Layout:
    """Where the ranks lie.

    Raises:
        InfeasibleError: the site takes no such job, with the nearest that it takes and the experiment fits.
    """
    resources = inputs.experiment.resources
    try:
        return layout(resources, inputs.site, inputs.document)
    except InfeasibleError as error:
        asked = resources.gpus or (resources.nodes or 1) * inputs.site.node(resources.queue).devices
        near = _counts(nearest(inputs, asked))
        raise InfeasibleError(error.message, "; ".join(filter(None, (error.hint, near)))) from None


def _counts(near: Sequence[int]) -> str:
    return f"the nearest device counts that work: {', '.join(map(str, near))}" if near else ""


def _refuse_misfit(inputs: Inputs, ranks: int) -> None:
    """Refuse an explicit decomposition that does not make the ranks there are."""
    experiment = inputs.experiment
    if not isinstance(experiment, Experiment) or experiment.parallelism == "auto":
        return
    d = experiment.parallelism
    if d.ranks == ranks:
        return
    ways = " or ".join(scaled(experiment, d, ranks))
    otherwise = "; ".join(filter(None, ("all degrees anew", _counts(nearest(inputs, ranks)))))
    raise InfeasibleError(
        f"parallelism is given as {d}, which makes {d.ranks} ranks, but {ranks} devices are asked for",
        f"give --set parallelism=auto, or {ways or otherwise}",
    )


def _way_out(experiment: AnyExperiment) -> str:
    if isinstance(experiment, Experiment) and experiment.parallelism != "auto":
        return "give --set parallelism=auto to let the planner choose"
    return "give another --gpus to have the decomposition chosen anew"


def draft(folder: RunFolder, new: Reshaped | None) -> Job:
    """The next attempt as it would be submitted; nothing is written."""
    run, site, number = store.resolved(folder), site_of(folder), store.current(folder).number + 1
    if new is not None:
        run, site = _resolved(new, run), new.study.site
    return job(folder, run, site, number)


def _resolved(new: Reshaped, former: AnyRun) -> AnyRun:
    """What is new, paid by who paid before where nothing asks for another."""
    run = resolve(new.study, former.run)
    if run.experiment.resources.account != former.experiment.resources.account:
        return run
    return run.model_copy(update={"account_variable": former.account_variable})


def rewrite(folder: RunFolder, new: Reshaped, last: int) -> None:
    """Let the attempts after ``last`` run what is new; what came before stays readable.

    Whatever step this is broken off after, the run can be resumed, in its former shape or the new one.

    Raises:
        UsageError: the run folder cannot be written.
    """
    study, wanted = new.study, new.wanted
    run = _resolved(new, store.resolved(folder))
    shapes.keep_former(folder, last)
    if study.plan:
        store.write(folder.plan, json.dumps(study.plan.to_json(), indent=2) + "\n")
    store.write(folder.resolved, run.model_dump_json(indent=2) + "\n")
    asked = {name: value for name, value in asdict(wanted).items() if value}
    store.note(folder, shapes.RESHAPED, since=last + 1, what=study.what, **asked)
