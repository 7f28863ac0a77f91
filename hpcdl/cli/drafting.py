"""``hpcdl site init``: a first site file, drafted from what the machine says."""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from hpcdl.cli import render
from hpcdl.errors import SchedulerError, UsageError
from hpcdl.runs import store
from hpcdl.sites.site import NAME, Site
from hpcdl.spec import load
from hpcdl.spec.job import Resources
from hpcdl.survey import asking
from hpcdl.survey.draft import Reported, Wish, draft, slug
from hpcdl.survey.drafting_nodes import DeviceKind
from hpcdl.survey.node import parse
from hpcdl.survey.reporting import report
from hpcdl.survey.seen import Machine
from hpcdl.telemetry import write_whole
from hpcdl.workflow.surveying import observe


@dataclass(frozen=True)
class Request:
    """What a user typed."""

    scheduler: str | None = None
    name: str | None = None
    device: DeviceKind | None = None
    job: Resources | None = None  # None: no job is submitted
    runs: Path | None = None


def job(queue: str | None, account: str | None, walltime: str) -> Resources:
    """What the job asks for.

    Raises:
        UsageError: a flag that no directive can hold.
    """
    document = load.Document("site init --job", {"queue": queue, "account": account, "walltime": walltime})
    return load.validate(document, Resources)


def init(request: Request, output: Path | None, *, force: bool) -> None:
    """Draft a site file and print it, or write it whole.

    Raises:
        UsageError: the file exists, or no site may have that name.
        SchedulerError: no scheduler is here, it or the job gave no answer, or one that makes no site file.
    """
    if request.name is not None and not re.fullmatch(NAME, request.name):
        raise UsageError(
            f"--name {request.name!r} is no name of a site: a-z, 0-9 and -, of which - is not the first",
            f"for example --name {slug(request.name)}",
        )
    if output is not None and output.exists() and not force:
        raise UsageError(
            f"{output} exists already", "choose another file with --output, or overwrite it with --force"
        )
    kind = asking.chosen(request.scheduler)
    with render.busy(f"asking {kind}"):
        machine = asking.ask(kind)
        text = _drafted(machine, request, output)
        _site(text)
    if output is None:
        render.raw(text)
        return
    write_whole(output, text)
    render.plain(f"wrote {output}", "green")
    render.plain(f"next: correct what identity.unverified lists, then  hpcdl site check {output}")


def _drafted(machine: Machine, request: Request, output: Path | None) -> str:
    name = request.name or (slug(output.stem) if output else None)
    wish = Wish(
        name, request.device, asking.launcher(machine.kind), socket.gethostname(), time.strftime("%Y-%m-%d")
    )
    first = draft(machine, None, wish)
    if request.job is not None:
        return draft(machine, _reported_by_job(_site(first), request.job, request.runs), wish)
    reported = _reported_here(machine)
    return draft(machine, reported, wish) if reported else first


def _site(text: str) -> Site:
    """The site that a draft describes.

    Raises:
        SchedulerError: it describes none, as what was said of the machine is beyond what a site file can say.
    """
    try:
        return load.validate(load.parse(text, "the draft"), Site)
    except UsageError as error:
        raise SchedulerError(
            f"what the machine says of itself makes no site file: {error.message}",
            "copy generic-slurm or generic-pbs (hpcdl site show prints them) and correct it by hand",
        ) from None


def _reported_by_job(site: Site, job: Resources, runs: Path | None) -> Reported:
    queue = job.queue or site.default_partition
    if queue not in site.partitions:
        raise UsageError(
            f"--partition {queue} is not among {', '.join(site.partitions)}", "choose one of them"
        )
    asked = job.model_copy(update={"queue": queue})
    return Reported(observe(site, asked, store.runs_folder(runs)), queue)


def _reported_here(machine: Machine) -> Reported | None:
    """What this host says, if it is itself a compute node."""
    host = socket.gethostname().split(".")[0]
    queues = [queue for queue in machine.queues if any(each.name == host for each in machine.hosts_of(queue))]
    return Reported(parse(json.dumps(report())), queues[0].name) if queues else None
