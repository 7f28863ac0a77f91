"""Where runs live: one folder of run folders. Finding, naming and reading them."""

from __future__ import annotations

import difflib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from hpcdl.errors import UsageError
from hpcdl.paths import is_file, writable
from hpcdl.run_folder import RunFolder
from hpcdl.runs import claims
from hpcdl.runs.blame import Evidence
from hpcdl.runs.merging import merged
from hpcdl.runs.record import Attempt, RunState, attempts
from hpcdl.spec import reading
from hpcdl.spec.reading import AnyRun, Outline
from hpcdl.telemetry import RunEvent, append, open_file, parse, read, read_exits, read_heartbeat, write_whole

Specification = TypeVar("Specification", AnyRun, Outline)

DEFAULT_RUNS = "runs"
_NAMED = 5  # runs in a message
_UNSAFE = re.compile(r"[^a-z0-9]+")
_KEPT = re.compile(r"attempt-([1-9]\d*)\.json")


def runs_folder(given: Path | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of runs: as given, else ``$HPCDL_RUNS``, else ``runs`` here.

    Raises:
        UsageError: its name is not UTF-8.
    """
    return writable(given or Path(environment.get("HPCDL_RUNS") or DEFAULT_RUNS))


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
    _make(folder)
    return folder


def create_array(runs: Path, name: str, size: int) -> list[RunFolder]:
    """Make the new, empty run folders of an array, beside each other.

    Raises:
        UsageError: the folder of runs cannot be written.
    """
    first = RunFolder(runs / f"{run_id(name, time.time())}-0")
    made: list[RunFolder] = []
    try:
        for index in range(size):
            _make(folder := first.element(index))
            made.append(folder)
    except BaseException:
        for folder in made:
            discard(folder)
        raise
    return made


def _make(folder: RunFolder) -> None:
    try:
        folder.path.mkdir(parents=True)
    except OSError as error:
        raise UsageError(
            f"cannot create a run folder in {folder.path.parent}: {error.strerror or error}",
            "choose another folder with --runs DIR or $HPCDL_RUNS",
        ) from None


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
            folders = [RunFolder(Path(entry.path)) for entry in entries]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(
            f"cannot read the runs in {runs}: {error.strerror or error}",
            "choose another folder with --runs DIR or $HPCDL_RUNS",
        ) from None
    known = [folder for folder in folders if _is_run(folder)]
    return sorted(known, key=lambda folder: (_created(folder), folder.path.name))


def _is_run(folder: RunFolder) -> bool:
    """Whether it holds a run; not one of somebody else's that is closed to us."""
    try:
        return stat.S_ISREG(folder.resolved.stat().st_mode)
    except OSError:
        return False


def _created(folder: RunFolder) -> float:
    """When it was made: the first that was noted on the host where that was."""
    try:
        with open_file(folder.launcher_events) as file:
            noted = next(parse(file.readline(), RunEvent), None)
        return noted.time if noted else folder.resolved.stat().st_mtime
    except OSError:
        return 0.0  # it may not be read, or was deleted just now


def find(query: str, runs: Path) -> RunFolder:
    """The run that ``query`` names: its id, an unambiguous prefix of it, a path, or ``last``.

    Raises:
        UsageError: no run or several are meant.
    """
    as_path = RunFolder(Path(query).absolute())
    if is_file(as_path.resolved):
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
        more = f" and {len(matches) - _NAMED} more" if len(matches) > _NAMED else ""
        raise UsageError(
            f"{query!r} may mean any of {', '.join(matches[:_NAMED])}{more}", "give a longer prefix"
        )
    close = difflib.get_close_matches(query, known, n=3, cutoff=0.4) or list(known)[-3:]
    raise UsageError(f"there is no run {query!r} in {runs}; nearest: {', '.join(close)}")


def resolved(folder: RunFolder, attempt: int | None = None) -> AnyRun:
    """The run's specification as frozen before submission.

    Args:
        folder: the run.
        attempt: what this one ran with; by default what the next would run with, which is mostly the same.

    Raises:
        UsageError: its file is missing or damaged.
    """
    return _specification(folder.resolved if attempt is None else _resolved_of(folder, attempt), reading.run)


def outline(folder: RunFolder) -> Outline:
    """What a list shows of a run's specification; the rest of it is not checked, which takes longer.

    Raises:
        UsageError: its file is missing or damaged.
    """
    return _specification(folder.resolved, reading.outline)


def _specification(path: Path, parse: Callable[[str], Specification]) -> Specification:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not a run this version of hpcdl can read: {_wrong(error)}") from None


def _wrong(error: ValueError) -> str:
    """The first that is wrong with a file, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def _resolved_of(folder: RunFolder, attempt: int) -> Path:
    """The first file kept of this attempt or of a later one; where none is, nothing has changed since."""
    kept = folder.resolved_until(1).parent.glob("attempt-*.json")
    numbers = [int(match[1]) for path in kept if (match := _KEPT.fullmatch(path.name))]
    last = min((number for number in numbers if number >= attempt), default=None)
    return folder.resolved if last is None else folder.resolved_until(last)


def events(folder: RunFolder) -> list[RunEvent]:
    """What the launcher did with a run and saw of it, on every host; attempts in order, each as it lived.

    Claims and starts are links in the folder, and count as events.
    """
    noted = [read(path, RunEvent) for path in folder.all_launcher_events()]
    return merged([*noted, _links(folder)])


def _links(folder: RunFolder) -> list[RunEvent]:
    claimed = [
        RunEvent("claimed", _made(folder.claim(number)), number, {"by": by})
        for number, by in claims.claims(folder).items()
    ]
    started = [
        RunEvent("started", _made(folder.start(number)), number, {"job_id": job_id})
        for number, job_id in claims.starts(folder).items()
    ]
    return claimed + started


def _made(link: Path) -> float:
    try:
        return link.lstat().st_mtime
    except OSError:
        return 0.0  # the run was deleted just now


def history(folder: RunFolder) -> list[Attempt]:
    """The attempts of a run, oldest first, as last seen."""
    return attempts(events(folder))


def current(folder: RunFolder) -> Attempt:
    """The newest attempt as last seen."""
    known = history(folder)
    return known[-1] if known else Attempt(0)


def evidence(folder: RunFolder, attempt: int, expected_ranks: int) -> Evidence:
    """What an attempt left in the folder."""
    try:
        script_exit = int(json.loads(folder.job_exit(attempt).read_text(encoding="utf-8"))["exit_code"])
    except (OSError, ValueError, KeyError, TypeError):
        script_exit = None
    told, exits = _told(folder, attempt), read_exits(folder.exits(attempt))
    silent = set(range(expected_ranks)) - {record.rank for record in exits} if script_exit else set()
    signs = ((rank, read_heartbeat(folder.heartbeat(attempt, rank))) for rank in sorted(silent))
    return Evidence(
        script_exit,
        exits,
        expected_ranks,
        warned=told.get("warned", {}).get("signal"),
        paused=told.get("paused", {}).get("step"),
        signs={rank: sign for rank, sign in signs if sign},
    )


def _told(folder: RunFolder, attempt: int) -> dict[str, dict[str, Any]]:
    """What the ranks of an attempt told, by kind; of several alike the newest."""
    said = read(folder.engine_events, RunEvent)
    return {event.kind: event.detail for event in said if event.attempt == attempt}


def note(folder: RunFolder, kind: str, attempt: int = 0, **detail: Any) -> None:
    """Append one launcher event to the file of this host.

    Raises:
        UsageError: the run folder cannot be written.
    """
    path = _own_events(folder)
    with writing(path):
        append(path, RunEvent(kind, time.time(), attempt, detail))


def _own_events(folder: RunFolder) -> Path:
    """The file that belongs to this host: the first one where the run was made here."""
    first, here = read(folder.launcher_events, RunEvent)[:1], socket.gethostname()
    made_on = first[0].detail.get("host", here) if first else here
    return folder.launcher_events if made_on == here else folder.launcher_events_of(here)


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
    with writing(path):
        write_whole(path, content)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell in words why something of a run cannot be written.

    Raises:
        UsageError: the system refused.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
