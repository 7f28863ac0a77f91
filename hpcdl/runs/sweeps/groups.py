"""Runs that belong together: the points of a sweep. One small file a group, written once, beside the runs.

Another one is there while nobody is to submit points of the group that were not submitted yet.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdl.errors import UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs.record import RunState
from hpcdl.telemetry import write_whole

_FOLDER = ".groups"
_FORMAT = 1


@dataclass(frozen=True)
class Group:
    """The points of one sweep.

    Args:
        runs: the folder of runs, absolute.
        name: what the ids of its runs begin with.
        site: where they run.
        at_once: most of them that may run at a time; None for no limit.
        points: run id → swept key → value, in the order of the sweep.
        after: what a point that never had a job waits for, as ``--after`` says it; None for nothing.
    """

    runs: Path
    name: str
    site: str
    at_once: int | None
    points: Mapping[str, Mapping[str, Any]]
    after: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The swept keys."""
        return tuple(next(iter(self.points.values()), {}))

    @property
    def folders(self) -> list[RunFolder]:
        """The runs that are still there."""
        found = (RunFolder(self.runs / run) for run in self.points)
        return [folder for folder in found if folder.resolved.is_file()]

    @property
    def place(self) -> Path:
        """The folder of the links, a folder an array."""
        return self.runs / _FOLDER / self.name

    @property
    def called_off(self) -> Path:
        """There while what was not submitted yet is not to be."""
        return self.runs / _FOLDER / f"{self.name}.cancelled"

    def link(self, folders: Sequence[RunFolder]) -> Path:
        """Make links by which the elements of a new array find their folders.

        Returns:
            What the paths of the links begin with; a dash and the index follow.

        Raises:
            UsageError: they cannot be made.
        """
        with _writing(self.place):
            place = self._numbered()
            common = place / f"{self.name}-a{place.name}"
            for index, folder in enumerate(folders):
                common.with_name(f"{common.name}-{index}").symlink_to(folder.path)
        return common

    def _numbered(self) -> Path:
        """A new folder, named by the next number; only one process can make it."""
        self.place.mkdir(exist_ok=True)
        number = sum(1 for _ in self.place.iterdir())
        while True:
            try:
                (self.place / str(number)).mkdir()
            except FileExistsError:
                number += 1
            else:
                return self.place / str(number)


def write(group: Group) -> None:
    """Keep a group whose run folders are complete.

    Raises:
        UsageError: its file cannot be written.
    """
    points = [{"run": run, "point": dict(values)} for run, values in group.points.items()]
    content = {"format": _FORMAT, "site": group.site, "at_once": group.at_once, "after": group.after}
    path = _file(group.runs, group.name)
    with _writing(path):
        write_whole(path, json.dumps(content | {"points": points}, ensure_ascii=False) + "\n")


def call_off(group: Group) -> None:
    """Let nobody who waits for a group submit what was not submitted yet.

    Raises:
        UsageError: that cannot be written.
    """
    with _writing(group.called_off):
        group.called_off.touch()


def call_on(group: Group) -> None:
    """Let points be submitted again.

    Raises:
        UsageError: that cannot be written.
    """
    with _writing(group.called_off):
        group.called_off.unlink(missing_ok=True)


def is_called_off(group: Group) -> bool:
    """Whether what was not submitted yet is not to be."""
    with suppress(OSError):  # asks the file server anew what is there
        os.utime(group.called_off.parent)
    return group.called_off.exists()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None


def _file(runs: Path, name: str) -> Path:
    return runs / _FOLDER / f"{name}.json"


def names(runs: Path) -> list[str]:
    """The groups there are, by name."""
    return sorted(path.stem for path in (runs / _FOLDER).glob("*.json") if not path.name.startswith("."))


def read(runs: Path, name: str) -> Group:
    """A group by its name.

    Raises:
        UsageError: its file cannot be read.
    """
    path = _file(runs, name)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["format"] != _FORMAT:
            raise ValueError(f"its format is {told['format']}, not {_FORMAT}")  # noqa: TRY301 - as what follows
        points = {entry["run"]: entry["point"] for entry in told["points"]}
        return Group(runs, name, told["site"], told["at_once"], points, told.get("after"))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{path} is not a group this version of hpcdl can read: {error}") from None


def find(query: str, runs: Path) -> Group | None:
    """The group that ``query`` names: its name, or a prefix that fits nothing but the group and its runs.

    None where it names something else, perhaps one run.
    """
    known = names(runs)
    if query in known:
        return read(runs, query)
    fitting = [name for name in known if name.startswith(query)]
    if len(fitting) != 1:
        return None
    others = [name for name in _run_names(runs) if name.startswith(query)]
    return read(runs, fitting[0]) if all(run.startswith(f"{fitting[0]}-") for run in others) else None


def _run_names(runs: Path) -> list[str]:
    return [path.name for path in runs.iterdir() if not path.name.startswith(".")]


def of_run(folder: RunFolder) -> Group | None:
    """The group that a run belongs to."""
    runs, run = folder.path.parent, folder.path.name
    name = run.rpartition("-")[0]
    group = read(runs, name) if _file(runs, name).is_file() else None
    return group if group and run in group.points else None


def number(run: str) -> int:
    """The place of a run in its sweep, as its id tells: runs before it may have been removed."""
    return int(run.rpartition("-")[2])


def missing(query: str, runs: Path) -> UsageError:
    """What to say where a group is wanted and ``query`` names none."""
    known = names(runs)
    if not known:
        return UsageError(
            f"there are no sweeps in {runs}", "name their folder with --runs DIR or $HPCDL_RUNS"
        )
    close = difflib.get_close_matches(query, known, n=3, cutoff=0.4) or known[-3:]
    return UsageError(f"{query!r} is no sweep in {runs}; nearest: {', '.join(close)}")


_RANKED = (
    RunState.RUNNING, RunState.QUEUED, RunState.UNKNOWN, RunState.FAILED, RunState.OUT_OF_MEMORY,
    RunState.NODE_FAILED, RunState.TIMEOUT, RunState.PREEMPTED, RunState.LOST, RunState.REFUSED,
    RunState.PREPARED, RunState.PAUSED, RunState.CANCELLED, RunState.COMPLETED,
)  # fmt: skip


def overall(states: Iterable[RunState]) -> RunState:
    """One state for many: what is still at work first, then what went wrong, then what is left to do."""
    present = set(states)
    return next((state for state in _RANKED if state in present), RunState.PREPARED)


def counts(states: Iterable[RunState]) -> dict[str, int]:
    """How many runs are in which state, those that have completed first."""
    listed = list(states)
    order = sorted(set(listed), key=lambda state: (state is not RunState.COMPLETED, _RANKED.index(state)))
    return {state.value: listed.count(state) for state in order}
