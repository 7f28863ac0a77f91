"""What goes wrong with a cluster of tests for a while: each of these breaks something, and mends it at its end."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from cluster.slurm import SlurmCluster, until


@contextmanager
def without_controller(cluster: SlurmCluster) -> Iterator[None]:
    """slurmctld is down; afterwards it remembers what it knew.

    It writes that down as it is told to end. One that was killed had not yet done so, and gave the id of a
    job that still ran to the next one.
    """
    _stop(cluster, "slurmctld", by=signal.SIGTERM)
    try:
        yield
    finally:
        cluster._daemon("slurmctld", "-D", "-i", "-f", cluster.env["SLURM_CONF"])
        cluster._await("slurmctld", lambda: cluster.run("scontrol", "ping").returncode == 0)
        for number in range(
            1, cluster.nodes + 1
        ):  # which it must have heard of before it takes jobs for them
            cluster._await(f"the node n{number}", partial(_answers, cluster, f"n{number}"))


@contextmanager
def without_daemon_of(cluster: SlurmCluster, node: str) -> Iterator[None]:
    """The slurmd of a node is dead; afterwards the node is idle again, if nothing runs there."""
    _stop(cluster, "slurmd", node)
    try:
        yield
    finally:
        cluster._daemon("slurmd", "-D", "-N", node, "-f", cluster.env["SLURM_CONF"])
        cluster._await(f"the node {node}", lambda: _answers(cluster, node))


def _answers(cluster: SlurmCluster, node: str) -> bool:
    state = cluster.run("sinfo", "-h", "-n", node, "-o", "%T").stdout.split()
    if state and state[0].startswith(("down", "drain")):
        cluster.run("scontrol", "update", f"nodename={node}", "state=resume")
    return bool(state) and state[0] in {"idle", "mixed", "allocated", "completing"}


def _stop(cluster: SlurmCluster, *words: str, by: signal.Signals = signal.SIGKILL) -> None:
    """End one daemon, by default at once, as a crash does."""
    (daemon,) = [each for each in cluster._daemons if set(words) <= set(map(str, _arguments(each)))]
    daemon.send_signal(by)
    daemon.wait()
    cluster._daemons.remove(daemon)


def _arguments(daemon: subprocess.Popen[bytes]) -> list[str]:
    assert isinstance(daemon.args, tuple)
    return list(map(str, daemon.args))


@contextmanager
def configured(cluster: SlurmCluster, **settings: object) -> Iterator[None]:
    """Lines of slurm.conf as given, such as ``MinJobAge=2``; afterwards as they were."""
    path = Path(cluster.env["SLURM_CONF"])
    before = path.read_text()
    names = "|".join(settings)
    kept = [line for line in before.splitlines() if not re.match(rf"({names})=", line)]
    path.write_text("\n".join([*kept, *(f"{name}={value}" for name, value in settings.items())]) + "\n")
    try:
        _reread(cluster)
        yield
    finally:
        path.write_text(before)
        _reread(cluster)


def _reread(cluster: SlurmCluster) -> None:
    answer = cluster.run("scontrol", "reconfigure")
    assert answer.returncode == 0, answer.stderr


@contextmanager
def nothing_starts(cluster: SlurmCluster) -> Iterator[None]:
    """Jobs wait, as when the machine is full."""
    _partitions(cluster, "down")
    try:
        yield
    finally:
        _partitions(cluster, "up")


def _partitions(cluster: SlurmCluster, state: str) -> None:
    for name in ("batch", "urgent"):
        cluster.run("scontrol", "update", f"partitionname={name}", f"state={state}")


def mended(cluster: SlurmCluster) -> bool:
    """Wait until every node is idle."""
    return until(cluster._all_idle, 60)
