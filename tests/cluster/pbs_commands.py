"""The programs of the stand-in for PBS: qsub, qstat, qselect, qdel, qrerun. They print and exit as was recorded of OpenPBS."""

from __future__ import annotations

import getopt
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent))
import pbs_table as memory_of

FOLDER = Path(os.environ.get("STANDIN_PBS", ""))
SERVER = memory_of.SERVER
_RESOURCES = {"ncpus", "mpiprocs", "ngpus", "mem", "host", "ompthreads"}


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def refuse(code: int, *lines: str) -> NoReturn:
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    sys.exit(code)


def reach_server(program: str, code: int) -> None:
    """Hang or fail, where the server is frozen or away."""
    while memory_of.read(FOLDER)["switches"]["frozen"]:
        time.sleep(0.1)
    if memory_of.read(FOLDER)["switches"]["away"]:
        refuse(code, "Connection refused", f"{program}: cannot connect to server {SERVER} (errno=15010)")


# --- qsub


def directives(script: Path) -> list[str]:
    """The words of the directives, which end at the first command."""
    words = []
    text = script.read_bytes().decode(errors="replace")
    if "\r\n" in text:
        refuse(1, "qsub: script contains cr, lf")
    for line in text.split("\n"):
        if line.lstrip().startswith("#PBS "):
            option, _, value = line.lstrip()[5:].strip().partition(" ")
            words += [option, value.strip()] if value else [option]
        elif line.strip() and not line.startswith("#"):
            break
    return words


def qsub(arguments: list[str]) -> None:
    script = Path(arguments[0])
    if not script.is_file():
        refuse(1, "qsub: script file:: No such file or directory")
    try:
        pairs, _ = getopt.getopt(directives(script), "N:l:q:A:P:j:k:o:W:J:r:v:")
    except getopt.GetoptError as error:
        refuse(1, f"qsub: invalid option -- '{error.opt}'", f"qsub: directive error: -{error.opt}")
    reach_server("qsub", 162)
    with memory_of.table(FOLDER) as memory:
        say(accept(memory, script, pairs))


def accept(memory: dict[str, Any], script: Path, pairs: list[tuple[str, str]]) -> str:
    options = {name: value for name, value in pairs if name not in ("-l", "-W")}
    if options.get("-q", "workq") != "workq":
        refuse(170, "qsub: Unknown queue")
    if "-J" in options and options.get("-r") == "n":
        refuse(2, "qsub:  cannot submit non-rerunable Array Job")
    number = memory["last"] = memory["last"] + 1
    copy = FOLDER / "scripts" / f"{number}.SC"
    copy.write_bytes(script.read_bytes())
    copy.chmod(0o700)
    log = Path.cwd() / options.get("-o", f"{options.get('-N', script.name)}.o{number}")
    job = {
        "Job_Name": options.get("-N", script.name), "job_state": "Q", "queue": "workq", "server": SERVER,
        "Output_Path": f"{SERVER}:{log}", "Hold_Types": "n", "substate": 10, "Resource_List": resources(pairs),
        "Variable_List": {"PBS_O_WORKDIR": str(Path.cwd()), "PBS_O_QUEUE": "workq"},
        "project": options.get("-P", "_pbs_project_default"), "_script": str(copy),
        "Rerunable": "False" if options.get("-r") == "n" else "True",
    }  # fmt: skip
    if "-J" in options:
        return accept_array(memory, number, job, options["-J"])
    memory["jobs"][f"{number}.{SERVER}"] = job
    for name, value in pairs:
        if name == "-W" and value.startswith("depend="):
            depend(memory, f"{number}.{SERVER}", value.removeprefix("depend="))
    return f"{number}.{SERVER}"


def resources(pairs: list[tuple[str, str]]) -> dict[str, str]:
    asked = dict(value.split("=", 1) for name, value in pairs if name == "-l")
    if not re.fullmatch(r"\d+|\d+:\d\d:\d\d", asked.get("walltime", "1:00:00")):
        refuse(166, "qsub: Illegal attribute or resource value Resource_List.walltime")
    for part in asked.get("select", "1:ncpus=1").split(":")[1:]:
        name, _, value = part.partition("=")
        if name not in _RESOURCES:
            refuse(187, f"qsub: Unknown resource: {name}")
        if not re.fullmatch(r"\d+([kmg]b)?", value):
            refuse(166, f"qsub: Illegal attribute or resource value select.{name}")
    return {"place": "free", "select": "1:ncpus=1", "walltime": "01:00:00"} | asked


def accept_array(memory: dict[str, Any], number: int, job: dict[str, Any], asked: str) -> str:
    found = re.fullmatch(r"(\d+)-(\d+)(?:%(\d+))?", asked)
    if not found or int(found[1]) >= int(found[2]):
        refuse(2, "qsub: illegal -J value")
    parent = f"{number}[].{SERVER}"
    memory["jobs"][parent] = job | {"array": "True", "_at_once": int(found[3] or 10**6)}
    for index in range(int(found[1]), int(found[2]) + 1):
        path = job["Output_Path"].replace("^array_index^", str(index))
        memory["jobs"][f"{number}[{index}].{SERVER}"] = job | {
            "Output_Path": path, "array_id": parent, "array_index": index,
        }  # fmt: skip
    return parent


def depend(memory: dict[str, Any], job_id: str, text: str) -> None:
    """Act at once on parents that are over; one that nobody knows deletes the job, and qsub is silent."""
    job = memory["jobs"][job_id]
    job |= {"depend": text, "job_state": "H", "substate": 22, "Hold_Types": "s"}
    for kind, name in memory_of.parents(job):
        parent = memory["jobs"].get(name)
        over = parent is None or parent["job_state"] == "F"
        if over and not (parent and memory_of.fulfilled(kind, parent.get("Exit_status", 0))):
            memory_of.delete_by_dependency(memory, job_id)
            return
    if all(memory["jobs"][name]["job_state"] == "F" for _, name in memory_of.parents(job)):
        memory_of.release(job)


# --- qdel


def qdel(arguments: list[str]) -> None:
    reach_server("qdel", 162)
    code = 0
    with memory_of.table(FOLDER) as memory:
        for given in arguments:
            code = delete(memory, memory_of.full_id(given)) or code
    sys.exit(code)


def delete(memory: dict[str, Any], job_id: str) -> int:
    job = memory["jobs"].get(job_id)
    if job is None:
        sys.stderr.write(f"qdel: Unknown Job Id {job_id}\n")
        return 153
    if job["job_state"] in "FX":
        sys.stderr.write(f"qdel: Job has finished {job_id}\n")
        return 35
    for name, one in list(memory["jobs"].items()):
        if one.get("array_id") == job_id and one["job_state"] not in "FX":
            delete(memory, name)
    if job.get("array") == "True":
        return 0
    if "_session" in job:
        job["_delete"] = True
    else:
        memory_of.delete_unstarted(memory, job_id)
    return 0


# --- qrerun


def qrerun(arguments: list[str]) -> None:
    """As an operator: the owner is refused."""
    reach_server("qrerun", 162)
    with memory_of.table(FOLDER) as memory:
        for job_id in map(memory_of.full_id, arguments):
            if memory["jobs"][job_id]["Rerunable"] == "False":
                refuse(190, f"qrerun: job is not rerunnable {job_id}")
            memory["jobs"][job_id]["_rerun"] = True


# --- qselect


def qselect(arguments: list[str]) -> None:
    """Of one user, who has all jobs."""
    options = dict(getopt.getopt(arguments, "xu:N:")[0])
    reach_server("qselect", 162)
    shown, _ = chosen(memory_of.read(FOLDER), [], options)
    for name, job in shown.items():
        if job["Job_Name"] == options["-N"]:
            say(name)


# --- qstat


def qstat(arguments: list[str]) -> None:
    pairs, ids = getopt.getopt(arguments, "xftF:")
    options = dict(pairs)
    as_json = options.get("-F") == "json"
    if as_json and memory_of.read(FOLDER)["switches"]["away"]:
        print_json({})
    reach_server("qstat", 255)
    memory = memory_of.read(FOLDER)
    shown, code = chosen(memory, ids, options)
    if as_json:
        # Recorded of the main branch: of several that are asked for by id, only the first.
        print_json(dict(list(shown.items())[:1]) if ids else shown)
    else:
        print_text(shown)
    sys.exit(code)


def chosen(memory: dict[str, Any], ids: list[str], options: dict[str, str]) -> tuple[dict[str, Any], int]:
    jobs, history = memory["jobs"], "-x" in options
    if history and not memory["switches"]["history"]:
        for name in ids or [""]:
            sys.stderr.write(f"{sys.argv[1]}: PBS is not configured to maintain job history {name}\n")
        return {}, 0
    if not ids:
        return {
            name: job for name, job in jobs.items()
            if (history or job["job_state"] != "F") and ("array_id" not in job or "-t" in options)
        }, 0  # fmt: skip
    shown, code = {}, 0
    for name in map(memory_of.full_id, ids):
        if name not in jobs:
            code = 153
            sys.stderr.write(f"qstat: Unknown Job Id {name}\n")
        elif jobs[name]["job_state"] == "F" and not history:
            code = 35
            words = "Job has finished, use -x or -H to obtain historical job information"
            sys.stderr.write(f"qstat: {name} {words}\n")
        else:
            shown[name] = jobs[name]
    return shown, code


def visible(job: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in job.items() if not name.startswith("_")}


def print_json(jobs: dict[str, Any]) -> None:
    answer: dict[str, Any] = {"timestamp": int(time.time()), "pbs_version": "23.06.06", "pbs_server": SERVER}
    if jobs:
        answer["Jobs"] = {name: visible(job) for name, job in jobs.items()}
    say(json.dumps(answer, indent="\t"))


def print_text(jobs: dict[str, Any]) -> None:
    for name, job in jobs.items():
        say(f"Job Id: {name}")
        for key, value in visible(job).items():
            lines = value.items() if key == "Resource_List" else [("", value)]
            for below, one in lines:
                text = ",".join(f"{a}={b}" for a, b in one.items()) if isinstance(one, dict) else str(one)
                say(folded(f"    {key}{'.' if below else ''}{below} = {text}"))
        say("")


def folded(line: str) -> str:
    """At 79 columns; what follows begins with a tab."""
    parts = [line[:79]] + [line[start : start + 71] for start in range(79, len(line), 71)]
    return "\n\t".join(parts)


if __name__ == "__main__":
    {"qsub": qsub, "qstat": qstat, "qselect": qselect, "qdel": qdel, "qrerun": qrerun}[sys.argv[1]](
        sys.argv[2:]
    )
