"""The memory of the stand-in for PBS: one file with every job and every switch, changed under a lock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SERVER = "standin"
DELETED, ENDED_WELL, FAILED = 91, 92, 93

Job = dict[str, Any]
"""What qstat shows of a job; names that begin with _ are the server's own."""


@contextlib.contextmanager
def table(folder: Path) -> Iterator[dict[str, Any]]:
    """The whole memory, for reading and changing: ``switches``, ``jobs`` by id, ``last`` number given."""
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        memory = read(folder)
        before = json.dumps(memory)
        yield memory
        if json.dumps(memory) != before:
            part = folder / "table.part"
            part.write_text(json.dumps(memory, indent=1))
            part.rename(folder / "table.json")


def read(folder: Path) -> dict[str, Any]:
    """The memory as it was last left."""
    found: dict[str, Any] = json.loads((folder / "table.json").read_text())
    return found


def full_id(given: str) -> str:
    """An id with its server's name."""
    return given if "." in given else f"{given}.{SERVER}"


def elements(jobs: dict[str, Job], parent: str) -> list[Job]:
    """The subjobs of an array."""
    return [job for job in jobs.values() if job.get("array_id") == parent]


def ran(job: Job) -> bool:
    """Whether it was ever started."""
    return "run_count" in job


def delete_unstarted(memory: dict[str, Any], job_id: str) -> None:
    """qdel of a job that waits: it is over at once. Its children are not told, and wait for ever."""
    job = memory["jobs"][job_id]
    comment = f"{job.get('comment', '')} and terminated".strip()
    _over(memory, job_id, DELETED, comment)


def end(memory: dict[str, Any], job_id: str, status: int, substate: int, comment: str) -> None:
    """The end of a job that ran, and what follows for those that wait for it."""
    memory["jobs"][job_id]["Exit_status"] = status
    memory["jobs"][job_id].pop("_session", None)
    _over(memory, job_id, substate, f"{memory['jobs'][job_id].get('comment', '')} {comment}")
    if "array_id" not in memory["jobs"].get(job_id, {}):
        settle_children(memory, job_id, status)


def _over(memory: dict[str, Any], job_id: str, substate: int, comment: str) -> None:
    job = memory["jobs"][job_id]
    job |= {"job_state": "F", "substate": substate, "comment": comment, "_ended": time.time()}
    parent = job.get("array_id")
    if parent:
        job["job_state"] = "X"
        _settle_array(memory, parent)
    elif not memory["switches"]["history"]:
        for name in [name for name, one in memory["jobs"].items() if job_id in (name, one.get("array_id"))]:
            del memory["jobs"][name]


def _settle_array(memory: dict[str, Any], parent: str) -> None:
    """An array is over with its last element; till then ended elements are X."""
    members = elements(memory["jobs"], parent)
    if any(job["job_state"] != "X" for job in members):
        return
    codes = [job.get("Exit_status", 1) for job in members]
    for job in members:
        job["job_state"] = "F"
    # Recorded: no summary. 0 though one failed, 1 if all did; the substate tells.
    memory["jobs"][parent]["Exit_status"] = int(all(codes))
    _over(memory, parent, FAILED if any(codes) else ENDED_WELL, "Job Array Began and ended")
    settle_children(memory, parent, int(any(codes)))


def parents(job: Job) -> list[tuple[str, str]]:
    """What a job waits for: the kind of dependency, and the id."""
    found = []
    for clause in job.get("depend", "").split(","):
        kind, _, ids = clause.partition(":")
        if kind.startswith("after"):
            found += [(kind, full_id(name)) for name in re.split(r"@[^:]*:?|:", ids) if name]
    return found


def settle_children(memory: dict[str, Any], parent: str, status: int) -> None:
    """Release or delete what waits for a job that ran and is over."""
    for child_id, child in list(memory["jobs"].items()):
        kinds = [kind for kind, name in parents(child) if name == parent]
        if child["job_state"] == "H" and kinds:
            if all(fulfilled(kind, status) for kind in kinds):
                child["depend"] = ",".join(
                    f"{kind}:{name}" for kind, name in parents(child) if name != parent
                )
                if not child["depend"]:
                    release(child)
            else:
                delete_by_dependency(memory, child_id)


def fulfilled(kind: str, status: int) -> bool:
    """Whether an end of this status is what was waited for."""
    return {"afterok": status == 0, "afternotok": status != 0, "afterany": True}[kind]


def release(job: Job) -> None:
    """Let it be started."""
    job |= {"job_state": "Q", "substate": 10, "Hold_Types": "n"}
    job.pop("depend", None)


def delete_by_dependency(memory: dict[str, Any], job_id: str) -> None:
    """Recorded: over without Exit_status and comment, substate 92, and so is whatever waits for it."""
    memory["jobs"][job_id] |= {"job_state": "F", "substate": ENDED_WELL, "Hold_Types": "s"}
    for child_id, child in list(memory["jobs"].items()):
        if child["job_state"] == "H" and job_id in (name for _, name in parents(child)):
            delete_by_dependency(memory, child_id)
    if not memory["switches"]["history"]:
        memory["jobs"].pop(job_id, None)
