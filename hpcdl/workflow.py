"""The use cases: study, prepare, submit, refresh, watch, cancel, resume, collect. No screen, no flags."""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hpcdl import shell
from hpcdl.errors import HpcdlError, InfeasibleError, SchedulerError, SiteError, UsageError
from hpcdl.planner.layout import layout, spread
from hpcdl.planner.plan import Plan, plan
from hpcdl.run_folder import RunFolder
from hpcdl.runs import metrics, store
from hpcdl.runs.record import Attempt, RunState, Sighting, verdict
from hpcdl.schedulers.base import Job, Report, Scheduler
from hpcdl.schedulers.known import scheduler
from hpcdl.sites.load import load_site
from hpcdl.sites.site import Site
from hpcdl.spec import load
from hpcdl.spec.decomposition import Decomposition, violations
from hpcdl.spec.entry import EntryModel
from hpcdl.spec.experiment import Experiment, ResolvedRun
from hpcdl.spec.job import Layout
from hpcdl.telemetry import StepRecord


@dataclass(frozen=True)
class Request:
    """What a user typed: an experiment file, a site, and changes to the experiment."""

    file: Path
    site: str = "local"
    settings: Sequence[str] = ()
    gpus: int | None = None
    nodes: int | None = None


@dataclass(frozen=True)
class Inputs:
    """A request read and checked: what is to be trained, and where."""

    source: bytes
    experiment: Experiment
    site: Site


@dataclass(frozen=True)
class Study:
    """A request understood: everything that is known before a node-hour is spent."""

    source: bytes
    experiment: Experiment
    site: Site
    layout: Layout
    plan: Plan | None  # None for a model of the user's own, which the planner knows nothing of
    decomposition: Decomposition


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment, for whoever watches."""

    attempt: Attempt
    progress: metrics.Progress
    steps: int


def read(request: Request) -> Inputs:
    """The experiment and the site that a request names.

    Raises:
        UsageError, SiteError: a file that is not there or is wrong.
    """
    document = load.read(request.file)
    source = request.file.read_bytes()
    load.override(document, [*request.settings, *_size(request)])
    experiment = _anchored(load.validate(document, Experiment), request.file.absolute().parent)
    return Inputs(source, experiment, load_site(request.site))


def study(request: Request) -> Study:
    """Read, check and plan.

    Raises:
        UsageError, SiteError, InfeasibleError: what stands in the way.
    """
    inputs = read(request)
    source, experiment, site = inputs.source, inputs.experiment, inputs.site
    place = spread(experiment.resources, site)
    if isinstance(experiment.model, EntryModel):
        return Study(source, experiment, site, place, None, unplanned(experiment, place.ranks))
    found = plan(experiment, site, place.ranks)
    return Study(source, experiment, site, place, found, found.best.decomposition)


def unplanned(experiment: Experiment, ranks: int) -> Decomposition:
    """What a model of the user's own runs with: what was given, or one replica a device.

    Raises:
        InfeasibleError: it breaks a rule, or does not make the devices there are.
    """
    batch = experiment.training.global_batch
    asked = experiment.parallelism
    chosen = Decomposition(data=ranks, microbatch=max(1, batch // ranks)) if asked == "auto" else asked
    broken = [*violations(chosen, experiment.model, batch).values()]
    if chosen.ranks != ranks:
        broken.append(f"{chosen} makes {chosen.ranks} ranks, but the job has {ranks} devices")
    if broken:
        raise InfeasibleError("\n".join(f"parallelism: {line}" for line in broken))
    return chosen


def _size(request: Request) -> list[str]:
    """``--gpus`` and ``--nodes`` replace what the file says about size, both of it."""
    if request.gpus is None and request.nodes is None:
        return []
    return [
        f"resources.{key}={'null' if value is None else value}"
        for key, value in (("gpus", request.gpus), ("nodes", request.nodes))
    ]


def _anchored(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with its paths absolute: relative ones are relative to the file."""
    changes: dict[str, Any] = {"data": experiment.data.anchored(folder)}
    if isinstance(experiment.model, EntryModel):
        where = _absolute(experiment.model.folder, folder)
        changes["model"] = experiment.model.model_copy(update={"folder": where})
    if experiment.checkpoint.start is not None:
        start = _absolute(experiment.checkpoint.start, folder)
        changes["checkpoint"] = experiment.checkpoint.model_copy(update={"start": start})
    return experiment.model_copy(update=changes)


def _absolute(path: str, folder: Path) -> str:
    return str((folder / Path(path).expanduser()).absolute())


def prepare(study: Study, runs: Path) -> RunFolder:
    """Write the run folder of a study, complete but for the submission.

    Raises:
        UsageError: the data are not there, or the folder cannot be written.
        SiteError: the bundled engine cannot run on this site.
    """
    check_ready(study)
    folder = store.create(runs, study.experiment.name)
    try:
        _fill(folder, study)
    except HpcdlError:
        store.discard(folder)
        raise
    return folder


def _fill(folder: RunFolder, study: Study) -> None:
    run = resolve(study, folder.path.name)
    store.write(folder.experiment, study.source.decode("utf-8"))
    if study.plan:
        store.write(folder.plan, json.dumps(study.plan.to_json(), indent=2) + "\n")
    _write_attempt(folder, run, study.site, attempt=1)
    # Written last: a folder with this file is a run.
    store.write(folder.resolved, run.model_dump_json(indent=2) + "\n")
    store.note(folder, "created", site=study.site.name)


def check_ready(study: Study) -> None:
    """Refuse before anything is written what would fail after waiting in a queue.

    Raises:
        UsageError, InfeasibleError, SiteError: the data, a limit of the queue, or the engine's libraries.
    """
    layout(study.experiment.resources, study.site)
    for key, path in study.experiment.data.paths.items():
        _check_there(key, path)
    _check_there("checkpoint.start", study.experiment.checkpoint.start)
    if _python(study.site) == sys.executable and importlib.util.find_spec("torch") is None:
        raise SiteError(
            f"the engine needs torch, which this Python ({sys.executable}) does not have",
            "install it with: pip install 'hpcdl[engine]'",
        )


def _check_there(key: str, path: str | None) -> None:
    if path is not None and not Path(path).exists():
        raise UsageError(
            f"{key} {path} does not exist",
            f"paths are relative to the experiment file; check {key} in it",
        )


def resolve(study: Study, run: str) -> ResolvedRun:
    """The engine's input for a study."""
    site, node = study.site, study.site.node(study.experiment.resources.queue)
    kind = node.device.kind
    if kind == "tile":
        raise SiteError(
            f"site {site.name} has {kind} devices; the bundled engine runs on CUDA, ROCm and CPU only"
        )
    return ResolvedRun(
        run=run,
        experiment=study.experiment,
        decomposition=study.decomposition,
        layout=study.layout,
        device="cpu" if kind == "cpu" else "cuda",
        device_per_rank=site.launch.gpu_visibility == "one_per_task",
        rendezvous=site.rendezvous,
        peak_flops=node.nominal_flops(study.experiment.training.precision, study.layout.ranks_per_node),
        site=site.name,
        site_file=site.model_dump(mode="json", exclude_defaults=True),
        versions={"hpcdl": version("hpcdl"), "python": platform.python_version()},
    )


def _python(site: Site) -> str:
    return site.software.python or sys.executable


def _write_attempt(folder: RunFolder, run: ResolvedRun, site: Site, attempt: int) -> None:
    for place in (folder.logs(attempt), folder.exits(attempt), folder.metrics):
        place.mkdir(parents=True, exist_ok=True)
    store.write(folder.script, render(run, site, folder.path, attempt))


def render(run: ResolvedRun, site: Site, folder: Path, attempt: int = 1) -> str:
    """The batch script of one attempt."""
    from hpcdl.schedulers import script  # noqa: PLC0415 - jinja2 takes longer to import than to plan

    return script.render(Job(run, site, folder, attempt, _python(site)))


def submit(folder: RunFolder, attempt: int = 1) -> str:
    """Hand an attempt to the scheduler; return its job id.

    Raises:
        SchedulerError: with the scheduler's own words when it refused.
    """
    site = site_of(folder)
    backend = scheduler(site.scheduler.kind)
    store.note(folder, "submitting", attempt)
    try:
        job_id = backend.submitted(shell.run(backend.submit(folder.script), cwd=folder.path))
    except SchedulerError as error:
        store.note(folder, "refused", attempt, reason=error.message)
        raise
    store.note(folder, "submitted", attempt, job_id=job_id, scheduler=site.scheduler.kind)
    return job_id


def site_of(folder: RunFolder) -> Site:
    """The site of a run as it was when the run was prepared."""
    return Site.model_validate(store.resolved(folder).site_file)


def refresh(folders: Sequence[RunFolder]) -> list[Attempt]:
    """The newest attempt of each run, with one question to each scheduler for all of its jobs."""
    before = [store.current(folder) for folder in folders]
    open_jobs: dict[str, list[str]] = defaultdict(list)
    kinds = {}
    for folder, attempt in zip(folders, before, strict=True):
        if attempt.job_id and not store.is_settled(attempt):
            kinds[folder.path] = site_of(folder).scheduler.kind
            open_jobs[kinds[folder.path]].append(attempt.job_id)
    seen = {kind: ask(scheduler(kind), jobs) for kind, jobs in open_jobs.items()}
    return [
        _settle(folder, attempt, seen[kinds[folder.path]]) if folder.path in kinds else attempt
        for folder, attempt in zip(folders, before, strict=True)
    ]


def ask(backend: Scheduler, job_ids: Sequence[str]) -> dict[str, Report]:
    """What a scheduler says of jobs, each way of asking used for what the earlier left open."""
    reports: dict[str, Report] = {}
    for query in backend.QUERIES:
        missing = [job_id for job_id in job_ids if job_id not in reports]
        if not missing:
            break
        reports.update(query.parse(shell.run(query.command(missing))))
    return reports


def _settle(folder: RunFolder, before: Attempt, reports: dict[str, Report]) -> Attempt:
    report = reports.get(before.job_id or "")
    sighting = report and Sighting(RunState(report.state.value), report.words, report.exit_code)
    # Evidence is read after the scheduler was asked: a job that ends between the two has left it.
    evidence = store.evidence(folder, before.number, store.resolved(folder).layout.ranks)
    after = verdict(before, sighting or None, evidence, time.time())
    store.note_change(folder, before, after)
    return after


def _snapshot(folder: RunFolder, attempt: Attempt) -> Snapshot:
    records: list[StepRecord] = metrics.steps(folder)
    return Snapshot(attempt, metrics.progress(records), store.resolved(folder).experiment.training.steps)


def watch(folder: RunFolder, interval_s: float = 0.5) -> Iterator[Snapshot]:
    """Snapshots until the run is over.

    The scheduler is asked no more often than its site allows, and once more when the script has ended.
    """
    poll_s = max(interval_s, site_of(folder).scheduler.poll_seconds)
    asked, ended = float("-inf"), False
    while True:
        attempt = store.current(folder)
        news = not ended and _script_ended(folder, attempt)
        if news or time.monotonic() - asked >= poll_s:
            asked, ended = time.monotonic(), ended or news
            attempt = _look(folder)
        yield _snapshot(folder, attempt)
        if attempt.state.over:
            return
        time.sleep(interval_s)


def _look(folder: RunFolder) -> Attempt:
    """The run now. A scheduler that is away for a while ends no watching; the script's own record does."""
    try:
        (attempt,) = refresh([folder])
    except SchedulerError:
        attempt = store.current(folder)
        if _script_ended(folder, attempt):
            attempt = _settle(folder, attempt, {})
    return attempt


def _script_ended(folder: RunFolder, attempt: Attempt) -> bool:
    return store.evidence(folder, attempt.number, 0).script_exit is not None


def cancel(folder: RunFolder) -> Attempt:
    """Ask the scheduler to end a run; a run that is over stays as it is.

    Raises:
        UsageError: it was never submitted.
        SchedulerError: with the scheduler's own words when it refused.
    """
    (attempt,) = refresh([folder])
    if attempt.state.over:
        return attempt
    if attempt.job_id is None:
        raise UsageError(f"{folder.path.name} was never submitted, there is nothing to cancel")
    backend = scheduler(site_of(folder).scheduler.kind)
    store.note(folder, "cancel requested", attempt.number)
    backend.cancelled(shell.run(backend.cancel(attempt.job_id)))
    return replace(attempt, cancel_requested=True)


def resume(folder: RunFolder) -> str:
    """Submit a run again; training continues from its newest checkpoint. Returns the job id.

    Raises:
        UsageError: it is still going, or has finished.
    """
    (attempt,) = refresh([folder])
    if not attempt.state.over:
        raise UsageError(f"{folder.path.name} is {attempt.state.value}; cancel it first, or wait for its end")
    if attempt.state is RunState.COMPLETED:
        raise UsageError(f"{folder.path.name} has completed all its steps, there is nothing to resume")
    number = attempt.number + 1
    _write_attempt(folder, store.resolved(folder), site_of(folder), number)
    return submit(folder, number)
