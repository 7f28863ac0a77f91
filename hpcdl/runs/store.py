"""Where runs live: one folder of run folders. Finding, naming and reading them."""

from __future__ import annotations

import difflib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcdl.errors import UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs.record import Attempt, Evidence, RunState, attempts, first_failure
from hpcdl.spec.experiment import ResolvedRun
from hpcdl.telemetry import ExitRecord, RunEvent, append, read, read_exits, write_whole

DEFAULT_RUNS = "runs"
_UNSAFE = re.compile(r"[^a-z0-9]+")


def runs_folder(given: Path | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of runs: as given, else ``$HPCDL_RUNS``, else ``runs`` here."""
    return (given or Path(environment.get("HPCDL_RUNS") or DEFAULT_RUNS)).absolute()


def run_id(name: str, now: float) -> str:
    """A name for a run that is safe everywhere: letters, digits and dashes, unique, sorted by time."""
    slug = _UNSAFE.sub("-", name.lower()).strip("-")[:40].strip("-") or "run"
    return f"{slug}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{secrets.token_hex(2)}"


def create(runs: Path, name: str) -> RunFolder:
    """Make a new, empty run folder.

    Raises:
        UsageError: the folder of runs cannot be written.
    """
    folder = RunFolder(runs / run_id(name, time.time()))
    try:
        folder.path.mkdir(parents=True)
    except OSError as error:
        raise UsageError(
            f"cannot create a run folder in {runs}: {error.strerror or error}",
            "choose another folder with --runs DIR or $HPCDL_RUNS",
        ) from None
    return folder


def discard(folder: RunFolder) -> None:
    """Remove a run folder whose preparation failed; nothing was submitted from it."""
    shutil.rmtree(folder.path, ignore_errors=True)


def all_runs(runs: Path) -> list[RunFolder]:
    """Every run in ``runs``, oldest first.

    Raises:
        UsageError: the folder exists but cannot be read.
    """
    try:
        with os.scandir(runs) as entries:
            folders = [RunFolder(Path(entry.path)) for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(
            f"cannot read the runs in {runs}: {error.strerror or error}",
            "choose another folder with --runs DIR or $HPCDL_RUNS",
        ) from None
    known = [folder for folder in folders if folder.resolved.is_file()]
    return sorted(known, key=lambda folder: (_created(folder), folder.path.name))


def _created(folder: RunFolder) -> float:
    events = read(folder.launcher_events, RunEvent)
    return events[0].time if events else folder.resolved.stat().st_mtime


def find(query: str, runs: Path) -> RunFolder:
    """The run that ``query`` names: its id, an unambiguous prefix of it, a path, or ``last``.

    Raises:
        UsageError: no run or several are meant.
    """
    as_path = RunFolder(Path(query).absolute())
    if as_path.resolved.is_file():
        return as_path
    known = {folder.path.name: folder for folder in all_runs(runs)}
    if not known:
        raise UsageError(f"there are no runs in {runs}", "name their folder with --runs DIR or $HPCDL_RUNS")
    if query == "last":
        return list(known.values())[-1]
    if query in known:
        return known[query]
    matches = [name for name in known if name.startswith(query)]
    if len(matches) == 1:
        return known[matches[0]]
    if matches:
        raise UsageError(f"{query!r} may mean any of {', '.join(matches)}", "give a longer prefix")
    close = difflib.get_close_matches(query, known, n=3, cutoff=0.4) or list(known)[-3:]
    raise UsageError(f"there is no run {query!r} in {runs}; nearest: {', '.join(close)}")


def resolved(folder: RunFolder) -> ResolvedRun:
    """The run's specification as frozen before submission.

    Raises:
        UsageError: its file is missing or damaged.
    """
    try:
        return ResolvedRun.model_validate_json(folder.resolved.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder.resolved} is not a run this version of hpcdl can read: {error}") from None


def current(folder: RunFolder) -> Attempt:
    """The newest attempt as the events tell it."""
    history = attempts(read(folder.launcher_events, RunEvent))
    return history[-1] if history else Attempt(0)


def evidence(folder: RunFolder, attempt: int, expected_ranks: int) -> Evidence:
    """What an attempt left in the folder."""
    try:
        script_exit = int(json.loads(folder.job_exit(attempt).read_text(encoding="utf-8"))["exit_code"])
    except (OSError, ValueError, KeyError, TypeError):
        script_exit = None
    return Evidence(script_exit, read_exits(folder.exits(attempt)), expected_ranks)


def culprit(folder: RunFolder, attempt: Attempt) -> ExitRecord | None:
    """The rank that failed first, if the attempt failed and a rank is to blame."""
    if not attempt.state.failed:
        return None
    return first_failure(evidence(folder, attempt.number, resolved(folder).layout.ranks))


def note(folder: RunFolder, kind: str, attempt: int = 0, **detail: Any) -> None:
    """Append one launcher event.

    Raises:
        UsageError: the run folder cannot be written.
    """
    try:
        append(folder.launcher_events, RunEvent(kind, time.time(), attempt, detail))
    except OSError as error:
        raise UsageError(f"cannot write {folder.launcher_events}: {error.strerror or error}") from None


def note_change(folder: RunFolder, before: Attempt, after: Attempt) -> None:
    """Record what was observed, if it is news."""
    if after != before:
        fields = {name: value for name, value in asdict(after).items() if name in ("exit_code", "reason")}
        note(folder, "observed", after.number, state=after.state.value, **fields)


def is_settled(attempt: Attempt) -> bool:
    """Whether asking again cannot change the answer. A lost run may still be found."""
    return attempt.state.over and attempt.state is not RunState.LOST


def write(path: Path, content: str) -> None:
    """Write one file of a run folder whole.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
