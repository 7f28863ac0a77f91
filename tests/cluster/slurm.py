"""A throw-away Slurm cluster on one machine, with as many nodes and fake GPUs as a test wants.

Nodes are slurmd daemons on ports of their own; GPUs are character devices in the cluster's own folder, so
Slurm hands them out without there being any. Everything lies in one folder and listens on ports of its
own, so two clusters can run at once. Starting it needs root, slurmctld, slurmd and munged.

By hand, until Ctrl-C: ``python -m tests.cluster.slurm --nodes 4 DIR``
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

CPUS = 8
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
# Below the range the system takes ports of outgoing connections from (net.ipv4.ip_local_port_range).
_PORTS = range(20000, 32000)

_CONFIGURATION = """
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/{task_plugin}
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
# Lets a node claim more cores than the machine has.
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MinJobAge={min_job_age}
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} RealMemory=1000 Gres=gpu:{gpu_type}{gpus}
PartitionName=batch Nodes=ALL Default=YES MaxTime=1:00:00 PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=1:00:00 PriorityTier=2
{dialect}
"""

_SITE = """# A throw-away cluster of the tests: {nodes} nodes with {gpus} fake GPUs each, all on one machine.
name: test-cluster
description: a throw-away Slurm cluster on one machine

scheduler:
  kind: slurm
  gpu_request: gpus-per-node
  poll_seconds: 0.5
  accounting: false

launch: {{launcher: srun, mpi: pmi2}}

partitions:
  batch: {{node: fake, max_nodes: {nodes}, preemptible: true, walltime: [{{limit: "01:00:00"}}]}}
  urgent: {{node: fake, max_nodes: {nodes}, walltime: [{{limit: "01:00:00"}}]}}
default_partition: batch

nodes:
  fake:
    device: {{kind: cpu, model: one core, memory: 2GiB, memory_bandwidth: 10, peak_tflops: {{fp32: 0.05, bf16: 0.05}}}}
    devices: {gpus}
    cores: {cpus}
    host_memory: 8GiB
    links: {{intra_node: 2, nics: 1, nic_bandwidth: 2}}

# Every node is this machine: ranks of all nodes meet on its loopback and share its few cores.
environment: [{{name: OMP_NUM_THREADS, value: "1", why: threads of ranks that share a core wait for each other}}]
rendezvous: {{address: loopback, timeout_seconds: 300}}
"""


class SlurmCluster:
    """A running cluster: ``with SlurmCluster(folder) as cluster``.

    Attributes:
        env: the variables that point Slurm's commands to this cluster.
        site: a complete site file of hpcdl for it.
    """

    def __init__(
        self, folder: Path, nodes: int = 4, gpus: int = 4, min_job_age: int = 300, task_plugin: str = "none",
        gpu_type: str = "", dialect: str = "",
    ) -> None:  # fmt: skip
        self.folder, self.nodes, self.gpus, self.min_job_age = folder.absolute(), nodes, gpus, min_job_age
        self.task_plugin, self.gpu_type, self.dialect = task_plugin, gpu_type, dialect
        self.env = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self.site = self.folder / "cluster.yaml"
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Write the configuration, start the daemons and wait until every node is idle."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write()
        self._munged()
        self._daemon("slurmctld", "-D", "-i", "-f", self.env["SLURM_CONF"])
        self._await("slurmctld", lambda: self.run("scontrol", "ping").returncode == 0)
        for number in range(1, self.nodes + 1):
            self._daemon("slurmd", "-D", "-N", f"n{number}", "-f", self.env["SLURM_CONF"])
        self._await("the nodes", self._all_idle)

    def stop(self) -> None:
        """End the jobs and the daemons this object started, and nothing else."""
        if len(self._daemons) > 1:
            self.run("scancel", "--partition=batch,urgent")
            self.run("scancel", "--user=root")
            until(lambda: not self.run("squeue", "-h").stdout.strip(), 10)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        # A step whose slurmd ended at the wrong moment stays behind.
        for pid in step_processes(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands on this cluster."""
        return subprocess.run(
            command, env=os.environ | self.env, capture_output=True, text=True, check=False, timeout=60
        )

    def _write(self) -> None:
        (self.folder / "state").mkdir(exist_ok=True)
        port = _free_ports(1 + self.nodes)
        first = port + 1
        text = _CONFIGURATION.format(
            name=f"test{secrets.token_hex(4)}", host=socket.gethostname(), port=port, folder=self.folder, nodes=self.nodes,
            first=first, last=first + self.nodes - 1, cpus=CPUS, gpus=self.gpus, min_job_age=self.min_job_age,
            task_plugin=self.task_plugin, gpu_type=f"{self.gpu_type}:" if self.gpu_type else "",
            dialect=self.dialect,
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(text)
        for number in range(1, self.nodes + 1):
            (self.folder / f"spool-n{number}").mkdir(exist_ok=True)
        for number in range(self.gpus):
            device = self.folder / f"gpu{number}"
            if not device.exists():
                os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        kind = f" Type={self.gpu_type}" if self.gpu_type else ""
        (self.folder / "gres.conf").write_text(f"Name=gpu{kind} File={self.folder}/gpu[0-{self.gpus - 1}]\n")
        self.site.write_text(_SITE.format(nodes=self.nodes, gpus=self.gpus, cpus=CPUS))

    def _munged(self) -> None:
        key = self.folder / "munge.key"
        if not key.exists():
            key.touch(mode=0o400)
            key.write_bytes(secrets.token_bytes(128))
        place = {name: f"{self.folder}/munge.{name}" for name in ("socket", "pid", "log", "seed")}
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={place['socket']}",
            f"--pid-file={place['pid']}", f"--log-file={place['log']}", f"--seed-file={place['seed']}",
        )  # fmt: skip
        self._await("munged", Path(place["socket"]).exists)

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("ab") as output:
            # A session of its own: Ctrl-C at the terminal is for whoever started the cluster.
            self._daemons.append(
                subprocess.Popen(
                    command, env=os.environ | self.env, stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )
            )  # fmt: skip

    def _all_idle(self) -> bool:
        states = self.run("sinfo", "-h", "-N", "-p", "batch", "-o", "%T").stdout.split()
        if "idle" not in states:
            # With config_overrides a node comes up drained, as it has fewer cores than it claims.
            self.run("scontrol", "update", f"nodename=n[1-{self.nodes}]", "state=resume")
        return states == ["idle"] * self.nodes

    def _await(self, what: str, ready: Callable[[], bool]) -> None:
        def ended() -> list[str]:
            return [str(daemon.args[0]) for daemon in self._daemons if daemon.poll() is not None]

        if not until(lambda: bool(ended()) or ready(), 60) or ended():
            logs = "\n".join(_tails(self.folder))
            raise RuntimeError(f"{what} did not come up; ended: {ended() or 'none'}\n{logs}")


def step_processes(folder: Path) -> list[int]:
    """Step daemons of the cluster in ``folder`` and what they run, known by their environment."""
    mark = f"SLURM_CONF={folder}/slurm.conf".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            inside = any(variable.startswith(b"SLURM_JOB_ID=") for variable in environment)
            if mark in environment and (inside or (entry / "comm").read_text().startswith("slurmstepd")):
                found.append(int(entry.name))
        except OSError:
            continue  # it ended, or is no process
    return found


def step_daemon(pid: int) -> list[int]:
    """The slurmstepd that started a process, if one did."""
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        name = Path(f"/proc/{parent}/comm").read_text()
    except OSError:
        return []
    return [parent] if name.startswith("slurmstepd") else []


def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def _tails(folder: Path) -> Iterator[str]:
    for path in sorted((*folder.glob("*.out"), *folder.glob("*.log"))):
        yield f"--- {path.name}"
        yield from path.read_text(errors="replace").splitlines()[-8:]


def _free_ports(count: int) -> int:
    """The first of ``count`` consecutive ports that are free now."""
    for _ in range(200):
        first = random.randrange(_PORTS.start, _PORTS.stop - count)
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise RuntimeError(f"no {count} consecutive free ports in {_PORTS}")


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        try:
            candidate.bind(("", port))
        except OSError:
            return False
    return True


def missing() -> str | None:
    """Why no cluster can be started here; None if it can."""
    absent = [program for program in _PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: slurm-wlm, munge)"
    if os.geteuid() != 0:
        return "slurmd and the fake GPUs need root"
    return None


def main() -> None:
    """Start a cluster by hand and keep it until Ctrl-C."""
    parser = argparse.ArgumentParser(description="start a throw-away Slurm cluster")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--gpus", type=int, default=4, help="fake GPUs a node")
    parser.add_argument("--min-job-age", type=int, default=300, help="seconds an ended job stays known")
    given = parser.parse_args()
    if reason := missing():
        sys.exit(f"no cluster here: {reason}")
    with SlurmCluster(given.folder, given.nodes, given.gpus, given.min_job_age) as cluster:
        sys.stdout.write(
            f"export SLURM_CONF={cluster.env['SLURM_CONF']}\n"
            f"# hpcdl submit EXP --site {cluster.site}\n"
            f"# Ctrl-C ends it\n"
        )
        sys.stdout.flush()
        for ending in (signal.SIGINT, signal.SIGTERM):  # a shell lets what it starts with & ignore the first
            signal.signal(ending, signal.default_int_handler)
        try:
            signal.pause()
        except KeyboardInterrupt:
            sys.stdout.write("stopping\n")


if __name__ == "__main__":
    main()
