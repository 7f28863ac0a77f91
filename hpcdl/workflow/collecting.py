"""What goes into an archive beside the files of a run: versions, site files, the scheduler's own words."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from hpcdl import shell
from hpcdl.errors import HpcdlError, NoAnswerError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.archive import packing
from hpcdl.runs.archive.packing import Entry, Progress
from hpcdl.runs.archive.secrets import Cleaner, secrets_of
from hpcdl.schedulers.known import scheduler
from hpcdl.sites.load import lineage
from hpcdl.units import sayable
from hpcdl.workflow.states.following import site_of
from hpcdl.workflow.studies.interpreter import torch_versions


def collect(folder: RunFolder, target: Path, status: Any, progress: Progress) -> list[Entry]:
    """Write an archive of a run, without the secrets that this process knows or that look like some.

    Args:
        folder: the run.
        target: the archive.
        status: what ``hpcdl status --json`` tells of it.
        progress: told files done and files in all.

    Raises:
        UsageError: it cannot be written.
    """
    added = {
        "status.json": json.dumps(sayable(status), indent=1, allow_nan=False) + "\n",
        "versions.json": json.dumps(_versions(folder), indent=1) + "\n",
        "scheduler.txt": "".join(_scheduler_words(folder)),
        **_site_files(folder),
    }
    return packing.pack(folder, target, Cleaner(secrets_of(os.environ)), added, progress)


def _versions(folder: RunFolder) -> dict[str, Any]:
    """Of what collects, and of what the run was submitted with."""
    python = site_of(folder).software.python or sys.executable
    here = {
        "hpcdl": version("hpcdl"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "host": platform.node(),
        "ranks": {"python": python, **torch_versions(python)},
    }
    return {"collected": here, "submitted": store.resolved(folder).versions}


def _site_files(folder: RunFolder) -> dict[str, str]:
    """The files of the site as they are now, numbered: each counts before those that it extends.

    As they were is in ``resolved.json``. A file may be gone.
    """
    site, found = site_of(folder), {}
    with suppress(HpcdlError):
        for number, path in enumerate(lineage(site.file or site.name), start=1):
            with suppress(OSError):
                found[f"site/{number}-{path.name}"] = path.read_text(
                    encoding="utf-8", errors="surrogateescape"
                )
    return found


def _scheduler_words(folder: RunFolder) -> Iterator[str]:
    """What the scheduler's programs print of the jobs of the run, where they are at hand."""
    for command in _questions(folder):
        if not shutil.which(command[0]):
            continue
        yield f"$ {shlex.join(command)}\n"
        try:
            said = shell.run(command)
        except NoAnswerError as error:
            yield f"{error.message}; nothing else was asked\n"
            return
        except HpcdlError as error:
            yield f"{error.message}\n"
        else:
            yield f"{said.stdout}{said.stderr}\n"


def _questions(folder: RunFolder) -> Iterator[list[str]]:
    """A command for all jobs of one controller, in each way of asking that the site allows."""
    site = site_of(folder)
    backend = scheduler(site.scheduler.kind)
    jobs: dict[str | None, list[str]] = defaultdict(list)
    for attempt in store.history(folder):
        if attempt.job_id and attempt.job_id not in jobs[backend.controller(attempt.job_id)]:
            jobs[backend.controller(attempt.job_id)].append(attempt.job_id)
    for job_ids, query in product(jobs.values(), backend.QUERIES):
        if site.scheduler.accounting or not query.accounting:
            yield query.command(job_ids)
