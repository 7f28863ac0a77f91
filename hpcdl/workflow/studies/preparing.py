"""The run folder of a study, complete but for the submission."""

from __future__ import annotations

import importlib.util
import json
import platform
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hpcdl.errors import SiteError, UsageError
from hpcdl.paths import exists
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.nodes import bad_nodes
from hpcdl.schedulers.base import Array, Job
from hpcdl.schedulers.directives import account_here
from hpcdl.schedulers.explain import Line
from hpcdl.sites.site import Site
from hpcdl.spec.command import CommandExperiment, CommandRun
from hpcdl.spec.experiment import BaseRun, Experiment, ResolvedRun
from hpcdl.spec.reading import AnyExperiment, AnyRun
from hpcdl.workflow.studies.excluding import exclusion
from hpcdl.workflow.studies.interpreter import torch_versions
from hpcdl.workflow.studies.repeating import ALONE, Queueing, check_repeat, elements, seeded
from hpcdl.workflow.studies.studying import Study


def prepare(study: Study, runs: Path, queueing: Queueing = ALONE) -> list[RunFolder]:
    """Write the run folders of a study, complete but for the submission.

    Raises:
        UsageError: the data are not there, or a folder cannot be written.
        SiteError: the bundled engine cannot run on this site.
        InfeasibleError: more repetitions than the site takes.
    """
    check_ready(study, queueing)
    size, name = queueing.repeat, study.experiment.name
    folders = [store.create(runs, name)] if size is None else store.create_array(runs, name, size)
    try:
        _fill(study, folders, queueing)
    except BaseException:  # Ctrl-C too
        for folder in folders:
            store.discard(folder)
        raise
    return folders


def _fill(study: Study, folders: Sequence[RunFolder], queueing: Queueing) -> None:
    works = jobs(study, folders, queueing)
    one_script = render(works[0]) if works[0].array else None
    for folder, work in zip(folders, works, strict=True):
        store.write(folder.experiment, study.source.decode("utf-8"))
        if study.plan:
            store.write(folder.plan, json.dumps(study.plan.to_json(), indent=2) + "\n")
        write_attempt(work, one_script or render(work))
        store.note(folder, "created", site=study.site.name, host=socket.gethostname())
        # Written last: a folder with this file is a run.
        store.write(folder.resolved, work.run.model_dump_json(indent=2) + "\n")


def jobs(study: Study, folders: Sequence[RunFolder], queueing: Queueing) -> list[Job]:
    """What is submitted for each folder; of an array, what its script is rendered from for any of them."""
    array = None
    if elements(study.site, len(folders)):
        array = Array(tuple(folder.path for folder in folders), queueing.at_once)
    after = queueing.awaited.after if queueing.awaited else None
    runs = [resolve(seeded(study, index), folder.path.name) for index, folder in enumerate(folders)]
    first = replace(job(folders[0], runs[0], study.site, attempt=1), after=after, array=array)
    return [replace(first, run=run, folder=folder.path) for run, folder in zip(runs, folders, strict=True)]


def draft(study: Study, runs: Path, queueing: Queueing) -> Job:
    """What a submission would hand to the scheduler first, with nothing written."""
    names = ["RUN"] if queueing.repeat is None else [f"RUN-{index}" for index in range(queueing.repeat)]
    first = jobs(study, [RunFolder(runs / name) for name in names], queueing)[0]
    return replace(first, run=first.run.model_copy(update={"run": names[0].replace("RUN", "dry-run")}))


def check_ready(study: Study, queueing: Queueing) -> None:
    """Refuse before anything is written what would fail after waiting in a queue.

    Raises:
        UsageError, SiteError, InfeasibleError: the data, the engine's libraries, or too many repetitions.
    """
    check_repeat(study, queueing)
    for key, path in study.experiment.paths.items():
        _check_there(key, path)
    if isinstance(study.experiment, Experiment):
        _check_engine(study.site)


def _check_engine(site: Site) -> None:
    if _python(site) == sys.executable and importlib.util.find_spec("torch") is None:
        raise SiteError(
            f"the engine needs torch, which this Python ({sys.executable}) does not have",
            "install it with: pip install 'hpcdl[engine]'",
        )


def _check_there(key: str, path: str) -> None:
    if not exists(Path(path)):
        raise UsageError(
            f"{key} {path} does not exist",
            f"paths are relative to the experiment file; check {key} in it",
        )


@cache  # each point of a sweep says it
def _version() -> str:
    return version("hpcdl")


def resolve(study: Study, run: str) -> AnyRun:
    """What the ranks read of a study; also what later attempts need that are made elsewhere."""
    experiment, variable = _paid(study.experiment, study.site)
    same: dict[str, Any] = {
        "run": run,
        "layout": study.layout,
        "account_variable": variable,
        "rendezvous": study.site.rendezvous,
        "site": study.site.name,
        "site_file": study.site.model_dump(mode="json", exclude_defaults=True),
        "site_path": study.site.file,
        "versions": {"hpcdl": _version(), "python": platform.python_version()},
    }
    if isinstance(experiment, CommandExperiment):
        return CommandRun(experiment=experiment, **same)
    return _trained(study, experiment, same)


def _paid(experiment: AnyExperiment, site: Site) -> tuple[AnyExperiment, str]:
    """The experiment with who pays, and the variable that said so; empty where none did.

    Jobs and cron, which carry a run on, do not have the variable.
    """
    payer = account_here(site) if experiment.resources.account is None else None
    if payer is None:
        return experiment, ""
    resources = experiment.resources.model_copy(update={"account": payer})
    return experiment.model_copy(update={"resources": resources}), site.scheduler.account_variable or ""


def _trained(study: Study, experiment: Experiment, same: dict[str, Any]) -> ResolvedRun:
    """What the bundled engine reads."""
    site, node = study.site, study.site.node(experiment.resources.queue)
    kind = node.device.kind
    if kind == "tile":
        raise SiteError(
            f"site {site.name} has {kind} devices; the bundled engine runs on CUDA, ROCm and CPU only",
            "an engine of your own can be started there: see command: in docs/own-engine.md",
        )
    assert study.decomposition is not None  # noqa: S101 - for mypy: only a command has none
    return ResolvedRun(
        experiment=experiment,
        decomposition=study.decomposition,
        device="cpu" if kind == "cpu" else "cuda",
        device_per_rank=site.launch.gpu_visibility == "one_per_task",
        peak_flops=node.nominal_flops(experiment.training.precision, study.layout.ranks_per_node),
        **same,
    )


def _python(site: Site) -> str:
    return site.software.python or sys.executable


def job(folder: RunFolder, run: BaseRun, site: Site, attempt: int) -> Job:
    """One attempt of one run."""
    python = _python(site)
    # A container's interpreter may stand at the same path, with another torch.
    versions = {} if site.software.container else torch_versions(python)
    nodes = exclusion(run.experiment.resources, bad_nodes.named(folder), site)
    return Job(run, site, folder.path, attempt, python, versions, exclude=nodes.nodes)


def write_attempt(work: Job, script: str) -> None:
    """Make the folders of an attempt and write its script.

    Raises:
        UsageError: they cannot be written.
    """
    folder = RunFolder(work.folder)
    for place in (folder.logs(work.attempt), folder.exits(work.attempt), folder.metrics):
        with store.writing(place):
            place.mkdir(parents=True, exist_ok=True)
    store.write(folder.request(work.attempt), "")
    store.write(folder.script, script)


def render(work: Job) -> str:
    """The batch script of a job."""
    from hpcdl.schedulers import script  # noqa: PLC0415 - jinja2 takes longer to import than to plan

    return script.render(work)


def explained(work: Job, study: Study) -> list[Line]:
    """Every directive, variable and launch of the script, with its origin."""
    from hpcdl.schedulers import script  # noqa: PLC0415 - as above

    return script.explained(work, study.document)
