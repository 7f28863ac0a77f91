"""A job of a minute that lets a compute node say what only it knows."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from hpcdl import shell
from hpcdl.errors import NoAnswerError, SchedulerError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.logs.reading import last_lines
from hpcdl.schedulers.base import Job
from hpcdl.schedulers.directives import job_name
from hpcdl.schedulers.known import scheduler
from hpcdl.schedulers.script import quote
from hpcdl.sites.site import Site
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment, ResolvedRun
from hpcdl.spec.job import Layout, Resources
from hpcdl.survey.node import Node, parse
from hpcdl.workflow.states import asking
from hpcdl.workflow.states.recognising import named

_REPORT = "node.json"
_LOOK_S = 0.5
_LATE_S = 10.0  # a shared file system may show a file later to another node


def observe(site: Site, asked: Resources, runs: Path) -> Node:
    """What a compute node says of itself: submit, wait, read. Ctrl-C cancels the job.

    Args:
        site: the machine, as far as it is known.
        asked: queue, account and walltime of the job; it takes one whole node.
        runs: where the job's folder is made; it stays if the job fails.

    Raises:
        SchedulerError: the job was refused, or ended without a report.
    """
    folder = store.create(runs, "site-init")
    backend = scheduler(site.scheduler.kind)
    folder.logs(1).mkdir(parents=True)
    job, job_id = Job(_run(site, asked, folder), site, folder.path, 1, sys.executable), ""
    store.write(folder.script, render(job))
    try:
        job_id = backend.submitted(shell.run(backend.submit(folder.script), cwd=folder.path))
        _wait(site, job_id, folder.path / _REPORT)
    except BaseException as error:
        refused = isinstance(error, SchedulerError) and not isinstance(error, NoAnswerError)
        if job_id or not refused:
            _withdraw(job, folder, job_id)
        raise
    node = parse(_report(folder, job_id))
    store.discard(folder)
    return node


def render(job: Job) -> str:
    """The job's script: the head that any job here has, and one program."""
    backend = scheduler(job.site.scheduler.kind)
    head = [f"{backend.PREFIX} {line.text}" for line in backend.directives(job)]
    report = quote(str(job.folder / _REPORT))
    return "\n".join(
        ["#!/bin/bash", *head, f"exec {quote(job.python)} -m hpcdl.survey.reporting {report}", ""]
    )


def _run(site: Site, asked: Resources, folder: RunFolder) -> ResolvedRun:
    """A run of one whole node, as backends take it; of its experiment only the resources matter."""
    node = site.node(asked.queue)
    experiment = Experiment.model_validate({"model": {"entry": "hpcdl.survey:node"}, "resources": asked})
    return ResolvedRun(
        run=folder.path.name,
        experiment=experiment,
        decomposition=Decomposition(data=node.devices),
        layout=Layout(
            nodes=1, ranks_per_node=node.devices, cores_per_rank=max(1, node.usable_cores // node.devices)
        ),
        device="cpu",
        rendezvous=site.rendezvous,
        device_per_rank=False,
        site=site.name,
        versions={},
    )


def _wait(site: Site, job_id: str, report: Path) -> None:
    """Until the report is there or the job is over; one that nobody knows any more is over too.

    The scheduler is asked no more often than its site allows.
    """
    asked = time.monotonic()
    while not report.exists():
        time.sleep(_LOOK_S)
        if time.monotonic() - asked >= site.scheduler.poll_seconds:
            asked = time.monotonic()
            seen = asking.ask(site, [job_id], asking.Outside()).get(job_id)
            if seen is None or seen.state.over:
                return


def _withdraw(job: Job, folder: RunFolder, job_id: str) -> None:
    """Cancel the job; where no answer to its submission came, whatever the scheduler has under its name.

    Raises:
        SchedulerError: nobody can tell whether there is one.
    """
    backend, name = scheduler(job.site.scheduler.kind), job_name(job)
    try:
        for each in [job_id] if job_id else named(folder, name, job.site, asking.Outside()):
            backend.cancelled(shell.run(backend.cancel(each)))
    except SchedulerError as error:
        hint = f"job {job_id or name} may be left: look for it there, and cancel it"
        raise SchedulerError(error.message, hint) from None


def _report(folder: RunFolder, job_id: str) -> str:
    path, deadline = folder.path / _REPORT, time.monotonic() + _LATE_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    if path.exists():
        return path.read_text(encoding="utf-8")
    said = " / ".join(last_lines(folder.job_log(1), 3)) or "it printed nothing"
    raise SchedulerError(
        f"job {job_id} ended without a report: {said}",
        f"its script and log are in {folder.path}; without --job no job is needed",
    )
