"""Flux and LSF stood in for on one machine: each command reads its own options, ranks and jobs are processes.

They answer as manual pages and published output say, and remember jobs in the folder ``$STANDIN``. Started
by wrappers that ``install`` writes, as ``python standin.py PROGRAM ARGUMENTS``.
"""

# ruff: noqa: T201 - commands print

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

PROGRAMS = {"flux": ("flux",), "lsf": ("bsub", "bjobs", "bkill", "jsrun")}


def install(folder: Path, kind: str) -> str:
    """Put the commands of ``kind`` in front of PATH; returns that PATH."""
    place = folder / "standin"
    (place / "jobs").mkdir(parents=True)
    for name in PROGRAMS[kind]:
        words = shlex.join([sys.executable, __file__, name])
        (place / name).write_text(f'#!/bin/sh\nSTANDIN={shlex.quote(str(place))} exec {words} "$@"\n')
        (place / name).chmod(0o755)
    return f"{place}:{os.environ['PATH']}"


def jobs() -> Path:
    """The memory: a folder a job."""
    return Path(os.environ["STANDIN"]) / "jobs"


def enqueue(script: str, output: str) -> int:
    """Start a script beside us; what becomes of it is written down when it ends."""
    number = len(list(jobs().iterdir())) + 1
    job = jobs() / str(number)
    job.mkdir()
    (job / "script").write_text(script)
    watcher = [sys.executable, __file__, "watch", str(job), output]
    subprocess.Popen(
        watcher,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return number


def watch(job: str, output: str) -> int:
    with Path(output).open("ab") as log:
        running = subprocess.Popen(["bash", f"{job}/script"], stdout=log, stderr=log, start_new_session=True)
    Path(job, "pid").write_text(str(running.pid))
    code = running.wait()
    Path(job, "ended").write_text(str(128 - code if code < 0 else code))
    return 0


def end(job: Path) -> bool:
    """TERM to all of a job; whether it was still there."""
    if not (job / "pid").exists() or (job / "ended").exists():
        return False
    (job / "cancelled").touch()
    os.killpg(int((job / "pid").read_text()), signal.SIGTERM)
    return True


def ranks(
    count: int, per_node: int, command: list[str], names: tuple[str, str, str], env: dict[str, str]
) -> int:
    """Start the ranks; all end when one fails, and TERM goes on to them."""
    places = [
        dict(zip(names, map(str, (rank, rank % per_node, count)), strict=True)) for rank in range(count)
    ]
    running = [subprocess.Popen(command, env=env | place) for place in places]

    def end_all(*_: object) -> None:
        for process in running:
            process.terminate()

    signal.signal(signal.SIGTERM, end_all)
    worst = 0
    for _ in running:
        code = os.waitstatus_to_exitcode(os.wait()[1])
        worst = worst or (128 - code if code < 0 else code)
        if worst:
            end_all()
    return worst


def flux(verb: str, *arguments: str) -> int:
    return {"batch": flux_batch, "jobs": flux_jobs, "cancel": flux_cancel, "run": flux_run}[verb](*arguments)


def flux_batch(path: str) -> int:
    script = Path(path).read_text()
    found = re.search(r"^# flux: --output=(.*)$", script, re.MULTILINE)
    print("ƒ" + "A" * enqueue(script, found[1] if found else "/dev/null"))
    return 0


def flux_jobs(form: str, *job_ids: str) -> int:
    assert form == "--json"
    known = [job_id for job_id in job_ids if flux_job(job_id).is_dir()]
    told = [flux_state(flux_job(job_id)) | {"jobid": job_id.replace("f", "ƒ")} for job_id in known]
    for job_id in set(job_ids) - set(known):
        print(f"JobID {job_id} unknown", file=sys.stderr)
    if len(job_ids) > 1:
        print(json.dumps({"jobs": told}))
    elif told:
        print(json.dumps(told[0]))
    return int(len(known) < len(job_ids))


def flux_job(job_id: str) -> Path:
    return jobs() / str(len(job_id) - 1)


def flux_state(job: Path) -> dict[str, object]:
    if not (job / "ended").exists():
        return {"state": "RUN" if (job / "pid").exists() else "SCHED", "dependencies": [], "urgency": 16}
    code = int((job / "ended").read_text())
    cancelled = (job / "cancelled").exists()
    result = "CANCELED" if cancelled else "FAILED" if code else "COMPLETED"
    exception = (
        {"occurred": True, "severity": 0, "type": "cancel", "note": ""} if cancelled else {"occurred": False}
    )
    return {"state": "INACTIVE", "result": result, "waitstatus": code << 8, "exception": exception}


def flux_cancel(job_id: str) -> int:
    if end(flux_job(job_id)):
        return 0
    print(f"flux-cancel: ERROR: {job_id.replace('f', 'ƒ')}: unknown job id", file=sys.stderr)
    return 1


def flux_run(*arguments: str) -> int:
    words = list(arguments)
    options = {}
    while words[0].startswith("-"):
        name, _, value = words.pop(0).partition("=")
        options[name] = value
    count, names = int(options["--ntasks"]), ("FLUX_TASK_RANK", "FLUX_TASK_LOCAL_ID", "FLUX_JOB_SIZE")
    return ranks(count, count // int(options["--nodes"]), words, names, dict(os.environ))


def bsub(*files: str) -> int:
    """As where LSB_BSUB_PARSE_SCRIPT is not set: a script comes by standard input."""
    assert not files
    script = sys.stdin.read()
    found = re.search(r"^#BSUB -o (.*)$", script, re.MULTILINE)
    print(f"Job <{enqueue(script, found[1] if found else '/dev/null')}> is submitted to queue <normal>.")
    return 0


def bjobs(*arguments: str) -> int:
    *flags, fields = arguments[:4]
    assert flags == ["-a", "-noheader", "-o"]
    assert fields == "jobid jobindex stat exit_code exit_reason delimiter='|'"
    unknown = 0
    for job_id in arguments[4:]:
        if (jobs() / job_id).is_dir():
            print("|".join((job_id, "0", *lsf_state(jobs() / job_id))))
        else:
            print(f"Job <{job_id}> is not found", file=sys.stderr)
            unknown += 1
    return 255 if unknown else 0


def lsf_state(job: Path) -> tuple[str, str, str]:
    if not (job / "ended").exists():
        return ("RUN" if (job / "pid").exists() else "PEND", "-", "-")
    code = (job / "ended").read_text()
    reason = "TERM_OWNER: job killed by owner" if (job / "cancelled").exists() else "-"
    return ("DONE", "-", "-") if code == "0" else ("EXIT", code, reason)


def bkill(job_id: str) -> int:
    if end(jobs() / job_id):
        print(f"Job <{job_id}> is being terminated")
        return 0
    print(f"Job <{job_id}>: Job has already finished", file=sys.stderr)
    return 255


def jsrun(*arguments: str) -> int:
    """The ranks get what -E names, and else only what Python needs to be found."""
    words = list(arguments)
    options: dict[str, str] = {}
    env = {name: text for name, text in os.environ.items() if name in ("PATH", "PYTHONPATH")}
    while words[0].startswith("-"):
        name, value = words.pop(0), words.pop(0)
        options[name] = value
        if name == "-E":
            env[value] = os.environ[value]
    each, names = int(options["-a"]), ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE")
    return ranks(int(options["-n"]) * each, int(options["-r"]) * each, words, names, env)


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](*sys.argv[2:]))
