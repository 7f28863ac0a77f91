"""A sweep understood and prepared: every point planned, and a run folder for each."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcdl.errors import HpcdlError, InfeasibleError, SiteError, UsageError
from hpcdl.planner.layout import check_precision, layout
from hpcdl.planner.plan import Plan, plan
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.sweeps import groups
from hpcdl.runs.sweeps.groups import Group
from hpcdl.sites.load import load_site
from hpcdl.sites.site import Site
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.points import Point, Problems, is_swept, points, sweep_of
from hpcdl.spec.reading import AnyExperiment
from hpcdl.workflow.studies import studying
from hpcdl.workflow.studies.chaining import Awaited
from hpcdl.workflow.studies.preparing import check_ready, resolve
from hpcdl.workflow.studies.repeating import ALONE
from hpcdl.workflow.studies.studying import Inputs, Request, Study

Progress = Callable[[int, int], None]
"""Told how many of how many are done."""


@dataclass(frozen=True)
class Planned:
    """One point that can run."""

    values: Mapping[str, Any]
    study: Study


@dataclass(frozen=True)
class Swept:
    """A sweep with its points planned."""

    name: str
    source: bytes
    site: Site
    at_once: int | None
    alike: int  # points that are left out because they are the same experiment as another
    feasible: Sequence[Planned]
    infeasible: Problems = field(default_factory=Problems)

    @property
    def refusal(self) -> HpcdlError | None:
        """Every point that cannot run, and why; None if all can."""
        if not self.infeasible:
            return None
        count = len(self.feasible)
        others = f"--skip-infeasible submits the other {count}" if count else "no point can run"
        return self.infeasible.error(InfeasibleError, 0, others)


def is_sweep(request: Request) -> bool:
    """Whether a request is for many experiments."""
    return is_swept(studying.opened(request)[1])


def understand(request: Request, told: Progress) -> Swept:
    """Read, check and plan every point.

    Args:
        request: what was typed.
        told: hears how many points are planned.

    Raises:
        UsageError, SiteError: everything that is wrong with the file, the sweep or any point.
    """
    source, document = studying.opened(request)
    sweep, site = sweep_of(document), load_site(request.site)
    found = points(document, sweep)
    planner, wrong, infeasible, feasible = _Remembering(), Problems(), Problems(), []
    for number, point in enumerate(found):
        told(number, len(found))
        try:
            own = _understood(Inputs(source, point.document, _anchored(point, request), site), planner)
        except InfeasibleError as error:
            infeasible.add(error.message.splitlines()[:1], point.values)
        except (UsageError, SiteError) as error:
            wrong.add([error.message], point.values, error.hint)
        else:
            feasible.append(Planned(point.values, own))
    if wrong:
        raise wrong.error(UsageError, len(found))
    name, alike = found[0].experiment.name, sweep.size - len(found)
    return Swept(name, source, site, sweep.at_once, alike, feasible, infeasible)


def _anchored(point: Point, request: Request) -> AnyExperiment:
    return point.experiment.anchored(request.file.absolute().parent)


def _understood(inputs: Inputs, planner: _Remembering) -> Study:
    """One point, planned and ready.

    Raises:
        InfeasibleError: it cannot run.
        UsageError, SiteError: it is wrong.
    """
    experiment = inputs.experiment
    if isinstance(experiment, Experiment):
        check_precision(
            experiment.training.precision, experiment.resources.queue, inputs.site, inputs.document
        )
    place = layout(experiment.resources, inputs.site, inputs.document)
    study = studying.planned(inputs, place, planner=planner)
    if study.plan and study.plan.infeasible:
        raise InfeasibleError(study.plan.infeasible)
    check_ready(study, ALONE)
    return study


_UNPLANNED = (
    "name",
    "environment",
    "data",
    "checkpoint",
    "evaluation",
    "trace",
    "metrics",
    "health",
    "chain",
)
_UNPLANNED_TRAINING = ("seed", "steps", "loss_scale")
_PLANNED_OPTIMIZER = ("name", "clip")


class _Remembering:
    """The planner, asked once for experiments that are the same to it."""

    def __init__(self) -> None:
        self._answers: dict[str, Plan | InfeasibleError] = {}

    def __call__(self, experiment: Experiment, site: Site, gpus: int) -> Plan:
        key = f"{gpus} {planned_part(experiment)}"
        if key not in self._answers:
            self._answers[key] = self._asked(experiment, site, gpus)
        answer = self._answers[key]
        if isinstance(answer, InfeasibleError):
            raise answer
        return replace(answer, experiment=experiment.name)

    @staticmethod
    def _asked(experiment: Experiment, site: Site, gpus: int) -> Plan | InfeasibleError:
        try:
            return plan(experiment, site, gpus)
        except InfeasibleError as error:
            return error


def planned_part(experiment: Experiment) -> str:
    """What the planner looks at, as text: experiments that agree in it have the same plan."""
    told = experiment.model_dump(mode="json", exclude=set(_UNPLANNED))
    training = {key: value for key, value in told["training"].items() if key not in _UNPLANNED_TRAINING}
    training["optimizer"] = {key: training["optimizer"][key] for key in _PLANNED_OPTIMIZER}
    return json.dumps(told | {"training": training}, sort_keys=True)


def prepare(swept: Swept, runs: Path, awaited: Awaited | None = None) -> Group:
    """Write a run folder for each point, complete but for its script, and the group.

    Args:
        swept: the sweep.
        runs: the folder of runs.
        awaited: runs that must be over before any point.

    Raises:
        UsageError: they cannot be written.
        SiteError: the bundled engine cannot run on this site.
    """
    folders = store.create_array(runs, swept.name, len(swept.feasible))
    name = folders[0].path.name.removesuffix("-0")
    values = {folder.path.name: each.values for folder, each in zip(folders, swept.feasible, strict=True)}
    after = awaited.given(runs) if awaited else None
    group = Group(runs, name, swept.site.name, swept.at_once, values, after)
    try:
        for folder, planned in zip(folders, swept.feasible, strict=True):
            _fill(folder, planned, group)
        groups.write(group)
    except BaseException:  # Ctrl-C too: what is half there belongs to no sweep
        for folder in folders:
            store.discard(folder)
        raise
    return group


def _fill(folder: RunFolder, planned: Planned, group: Group) -> None:
    study = planned.study
    store.write(folder.experiment, study.source.decode("utf-8"))
    if study.plan:
        store.write(folder.plan, json.dumps(study.plan.to_json(), indent=2) + "\n")
    host, values = socket.gethostname(), dict(planned.values)
    store.note(folder, "created", site=study.site.name, host=host, group=group.name, point=values)
    # Written last: a folder with this file is a run.
    store.write(folder.resolved, resolve(study, folder.path.name).model_dump_json(indent=2) + "\n")
