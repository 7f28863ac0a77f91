"""A stand-in for OpenPBS on one machine: its commands with a memory, and hosts that are processes.

It behaves as was recorded of a real OpenPBS (``tests/schedulers/recordings``): a script is started by a login
shell in the home directory, with nothing of the submitter's environment; qdel and the walltime send TERM to
every process of a job and KILL later; the shell above the script dies of it, and its death is the Exit_status.
It is no proof that a real one does the same: where the two differ, the recordings are right.

By hand, until Ctrl-C: ``python -m tests.cluster.pbs --hosts 3 DIR``
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Container
from pathlib import Path
from typing import Any, Self

sys.path.insert(0, str(Path(__file__).parent))
import pbs_table as memory_of

CPUS = 8
_TURN_S = 0.05
_ALL = range(1000)  # hosts
_MODULES = {
    "qsub": "pbs_commands",
    "qstat": "pbs_commands",
    "qselect": "pbs_commands",
    "qdel": "pbs_commands",
    "qrerun": "pbs_commands",
    "pbsdsh": "pbs_dsh",
}

_SITE = """# A stand-in for PBS of the tests: {hosts} hosts of two slots each, all of them processes of one machine.
name: pbs-standin

scheduler: {{kind: pbs, place: scatter, poll_seconds: 0.5}}
launch: {{launcher: pbsdsh}}

partitions:
  workq: {{node: fake, kind: queue, max_nodes: {hosts}, walltime: [{{limit: "01:00:00"}}]}}
default_partition: workq

nodes:
  fake:
    device: {{kind: cpu, model: one core, memory: 2GiB, memory_bandwidth: 10, peak_tflops: {{fp32: 0.05, bf16: 0.05}}}}
    devices: 2
    cores: {cpus}
    host_memory: 8GiB
    links: {{intra_node: 2, nics: 1, nic_bandwidth: 2}}

environment: [{{name: OMP_NUM_THREADS, value: "1", why: ranks of all hosts share the cores of one machine}}]
rendezvous: {{address: loopback, timeout_seconds: 300}}
"""


class PbsCluster:
    """A running stand-in: ``with PbsCluster(folder) as cluster``.

    Attributes:
        env: the variables under which qsub and the others are this stand-in's.
        site: a complete site file of hpcdl for it.
        kill_delay_s: between TERM and KILL, as the queue attribute of PBS.
    """

    def __init__(self, folder: Path, hosts: int = 3, kill_delay_s: float = 10.0) -> None:
        self.folder, self.kill_delay_s = folder.absolute(), kill_delay_s
        self.hosts = [f"cn{number:02d}" for number in range(1, hosts + 1)]
        self.site = self.folder / "cluster.yaml"
        self.env = {
            "STANDIN_PBS": str(self.folder),
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
        }
        self._shells: dict[str, subprocess.Popen[bytes]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="pbs", daemon=True)

    def __enter__(self) -> Self:
        for name in ("bin", "home", "scripts", "aux"):
            (self.folder / name).mkdir(parents=True)
        for name, module in _MODULES.items():
            program = self.folder / "bin" / name
            source = Path(__file__).with_name(f"{module}.py")
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{source}" {name} "$@"\n')
            program.chmod(0o755)
        self.site.write_text(_SITE.format(hosts=len(self.hosts), cpus=CPUS))
        memory = '{"last": 0, "jobs": {}, "switches": {"history": true, "away": false, "frozen": false, "full": false}}'
        (self.folder / "table.json").write_text(memory)
        # The profile of this stand-in's user: programs and packages are found as a site's are.
        (self.folder / "home" / ".bash_profile").write_text(
            f"export STANDIN_PBS='{self.folder}' PATH='{self.folder}/bin:'$PATH\n"
            f"export PYTHONPATH='{os.environ.get('PYTHONPATH', '')}'\n"
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for job_id, shell in self._shells.items():
            self._signal(job_id, signal.SIGKILL)
            shell.wait()

    def switch(self, **switches: bool) -> None:
        """Turn history, away, frozen or full on or off."""
        with memory_of.table(self.folder) as memory:
            memory["switches"] |= switches
            if not memory["switches"]["history"]:
                jobs = memory["jobs"].items()
                memory["jobs"] = {name: job for name, job in jobs if job["job_state"] != "F"}

    def job(self, job_id: str) -> dict[str, Any]:
        """What the server knows of a job, its own notes included."""
        found: dict[str, Any] = memory_of.read(self.folder)["jobs"][job_id]
        return found

    def qdel(self, job_id: str) -> None:
        """End a job by hand."""
        subprocess.run(["qdel", job_id], env=os.environ | self.env, check=True)

    def qrerun(self, job_id: str) -> None:
        """Have a job run again, as an operator."""
        subprocess.run(["qrerun", job_id], env=os.environ | self.env, check=True)

    def lose_host(self, job_id: str, number: int) -> None:
        """All processes that a job has on one of its hosts are gone; of the first, the server notices."""
        with memory_of.table(self.folder) as memory:
            memory["jobs"][job_id]["_lost"] = number == 0
            lost = list(self._processes(job_id, hosts={number}))
            for sign in (signal.SIGSTOP, signal.SIGKILL):  # so that none sees another die
                for pid in lost:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, sign)

    def _serve(self) -> None:
        while not self._ended.wait(_TURN_S):
            with memory_of.table(self.folder) as memory:
                for job_id, job in list(memory["jobs"].items()):
                    if job_id in self._shells:
                        self._watch(memory, job_id, job)
                    elif job["job_state"] == "Q" and job.get("array") != "True":
                        self._try_to_start(memory, job_id, job)

    def _try_to_start(self, memory: dict[str, Any], job_id: str, job: dict[str, Any]) -> None:
        chunks, ncpus, mpiprocs = _select(job["Resource_List"]["select"])
        parent = memory["jobs"].get(job.get("array_id"), {})
        running = [one for one in memory["jobs"].values() if "_session" in one]
        if parent and sum(one.get("array_id") == job["array_id"] for one in running) >= parent["_at_once"]:
            return
        busy = {host: sum(one["_cpus"].get(host, 0) for one in running) for host in self.hosts}
        free = [host for host in self.hosts if busy[host] + ncpus <= CPUS]
        if chunks > len(self.hosts):
            job["comment"] = "Can Never Run: Insufficient amount of resource: host"
        elif len(free) < chunks or memory["switches"]["full"]:
            job["comment"] = "Not Running: Insufficient amount of resource: host"
        elif not Path(job["Output_Path"].partition(":")[2]).parent.is_dir():
            # Recorded with -k oed: 21 attempts within four seconds, then held for ever.
            job |= {"job_state": "H", "substate": 20, "Hold_Types": "s", "run_count": 21, "Exit_status": -3}
            job["comment"] = "job held, too many failed attempts to run"
        else:
            self._start(job_id, job, free[:chunks], ncpus, mpiprocs)
            parent |= {"job_state": "B", "substate": 70} if parent else {}

    def _start(self, job_id: str, job: dict[str, Any], hosts: list[str], ncpus: int, mpiprocs: int) -> None:
        node_file, home = self.folder / "aux" / job_id, self.folder / "home"
        node_file.write_text("".join(f"{host}\n" * mpiprocs for host in hosts))
        environment = {
            "HOME": str(home), "LOGNAME": "user", "USER": "user", "SHELL": "/bin/bash", "PATH": "/usr/bin:/bin",
            "ENVIRONMENT": "BATCH", "PBS_ENVIRONMENT": "PBS_BATCH", "PBS_JOBID": job_id, "PBS_JOBDIR": str(home),
            "PBS_JOBNAME": job["Job_Name"], "PBS_NODEFILE": str(node_file), "PBS_NODENUM": "0", "PBS_TASKNUM": "1",
            "PBS_QUEUE": "workq", "NCPUS": str(ncpus), "OMP_NUM_THREADS": str(ncpus),
        } | job["Variable_List"]  # fmt: skip
        if "array_index" in job:
            environment |= {"PBS_ARRAY_INDEX": str(job["array_index"]), "PBS_ARRAY_ID": job["array_id"]}
        with Path(job["Output_Path"].partition(":")[2]).open("ab") as log:
            # A login shell that reads the script's name, as the server's daemon starts it.
            shell = subprocess.Popen(
                ["-bash"], executable="/bin/bash", cwd=home, env=environment, stdin=subprocess.PIPE, stdout=log,
                stderr=log, start_new_session=True, umask=0o077,
            )  # fmt: skip
        assert shell.stdin
        shell.stdin.write(f"{job['_script']}\n".encode())
        shell.stdin.close()
        self._shells[job_id] = shell
        job |= {
            "job_state": "R", "substate": 42, "run_count": job.get("run_count", 0) + 1, "exec_host": "+".join(f"{host}/0*{ncpus}" for host in hosts),
            "comment": f"Job run on ({'+'.join(hosts)})", "_session": shell.pid, "_began": time.time(),
            "_cpus": dict.fromkeys(hosts, ncpus), "stime": time.ctime(),
        }  # fmt: skip

    def _watch(self, memory: dict[str, Any], job_id: str, job: dict[str, Any]) -> None:
        ended, now = self._shells[job_id].poll() is not None, time.time()
        late = now - job["_began"] > _seconds(job["Resource_List"]["walltime"])
        if "_rerun" in job:
            self._signal(job_id, signal.SIGKILL)
            if ended and not self._processes(job_id):
                self._put_back(job_id, job)
        elif ended and ("_term" not in job or not self._processes(job_id)):
            self._signal(job_id, signal.SIGKILL)
            self._end(memory, job_id, job)
        elif (late or "_delete" in job) and "_term" not in job:
            job |= {"_term": now, "_late": late}
            self._signal(job_id, signal.SIGTERM)
        elif "_term" in job and now - job["_term"] > self.kill_delay_s:
            self._signal(job_id, signal.SIGKILL)

    def _put_back(self, job_id: str, job: dict[str, Any]) -> None:
        """Recorded: the id stays, and run_count counts on."""
        del self._shells[job_id]
        for name in ("_rerun", "_session", "_began", "_cpus", "_term", "_late"):
            job.pop(name, None)
        job |= {"job_state": "Q", "substate": 10, "comment": "Job was rerun"}

    def _end(self, memory: dict[str, Any], job_id: str, job: dict[str, Any]) -> None:
        code = self._shells.pop(job_id).returncode
        status = 256 - code if code < 0 else code
        if job.get("_lost"):  # recorded of a job that may not be run again, with the comment it had
            memory_of.end(memory, job_id, -20, memory_of.FAILED, "")
        elif job.get("_late"):
            memory_of.end(memory, job_id, -29, memory_of.FAILED, "and exceeded resource walltime")
        elif "_delete" in job:
            memory_of.end(memory, job_id, status, memory_of.DELETED, "and terminated by user@standin")
        elif status:
            memory_of.end(memory, job_id, status, memory_of.FAILED, "and failed")
        else:
            memory_of.end(memory, job_id, 0, memory_of.ENDED_WELL, "and finished")

    def _processes(self, job_id: str, hosts: Container[int] = _ALL) -> list[int]:
        """On some of its hosts, those of the job's own session and of the tasks that pbsdsh started for it."""
        sessions, found = {self._shells[job_id].pid} if 0 in hosts else set(), []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / "aux" / f"{job_id}.tasks").read_text().splitlines():
                host, pid = map(int, line.split())
                sessions |= {pid} if host in hosts else set()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) in sessions and fields[0] != "Z":
                    found.append(int(entry.name))
        return found

    def _signal(self, job_id: str, number: signal.Signals) -> None:
        """KILL reaches all hosts; of TERM only the first is known to get it."""
        for pid in self._processes(job_id, {0} if number == signal.SIGTERM else _ALL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _select(text: str) -> tuple[int, int, int]:
    """Chunks, and what each has of ncpus and mpiprocs."""
    chunks, *parts = text.split(":")
    asked = dict(part.split("=") for part in parts)
    return int(chunks), int(asked.get("ncpus", 1)), int(asked.get("mpiprocs", 1))


def _seconds(walltime: str) -> int:
    total = 0
    for field in re.split(":", walltime):
        total = 60 * total + int(field)
    return total


def main() -> None:
    """Start a stand-in by hand and keep it until Ctrl-C."""
    parser = argparse.ArgumentParser(description="start a stand-in for PBS")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--hosts", type=int, default=3)
    given = parser.parse_args()
    with PbsCluster(given.folder, given.hosts) as cluster:
        for name, value in cluster.env.items():
            sys.stdout.write(f"export {name}='{value}'\n")
        sys.stdout.write(f"# hpcdl submit EXP --site {cluster.site}\n# Ctrl-C ends it\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
