"""The look at every node before the first step, by real ranks: what it names, whom it refuses, what it leaves."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_runs import Run, environment, finished
from quick import first_of

from hpcdl.engine.preflight import observing
from hpcdl.engine.ranks import Place
from hpcdl.placement import Placement
from hpcdl.runs.blame import Evidence, first_failure
from hpcdl.runs.failures.causes import Clues, cause_of
from hpcdl.runs.nodes.bad_nodes import named
from hpcdl.runs.record import Attempt, RunState
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Rendezvous
from hpcdl.spec.job import Layout

AS_NODE = Path(__file__).with_name("as_node.py")
QUICK = {"global_batch": 12, "steps": 2, "precision": "fp32", "optimizer": {"lr": 1e-2}}


class Nodes(Run):
    """A run on nodes that are this machine under several names, as far as its ranks can know."""

    def __init__(self, path, nodes, each=1, *, cores=1, device="cpu", transport="dist", health=None):
        super().__init__(
            path, Decomposition(data=nodes * each), training=QUICK, health=health or {},
            communication={"transport": transport},
        )  # fmt: skip
        self.each = each
        self.resolved = self.resolved.model_copy(
            update={
                "layout": Layout(nodes=nodes, ranks_per_node=each, cores_per_rank=cores),
                "rendezvous": Rendezvous(address="interface", interface="lo", timeout_seconds=60),
                "device": device,
            }
        )
        self.write()

    def write(self, **changes):
        self.resolved = self.resolved.model_copy(update=changes)
        self.folder.resolved.write_text(self.resolved.model_dump_json())

    def start(self, ranks=None, bound=(), **variables):
        """The processes of ``ranks``; those in ``bound`` may use one core only."""
        return [
            subprocess.Popen(
                [*(["taskset", "-c", "0"] if rank in bound else []), sys.executable, AS_NODE, self.folder.path],
                env=environment(
                    RANK=rank, LOCAL_RANK=rank % self.each, WORLD_SIZE=self.ranks, HPCDL_ATTEMPT=1,
                    HPCDL_TEST_EACH=self.each, **variables,
                ),
            )
            for rank in (range(self.ranks) if ranks is None else ranks)
        ]  # fmt: skip

    @property
    def placement(self):
        return Placement.from_json(json.loads(self.folder.placement(1).read_text()))

    def told(self, kind):
        return [event.detail for event in self.events() if event.kind == kind]

    def blamed(self):
        """How the rank ended that is to blame, and the cause that a status would tell."""
        exits = self.exits()
        culprit = first_failure(Evidence(1, list(exits.values()), self.ranks))
        attempt = Attempt(1, state=RunState.FAILED, exit_code=1)
        return culprit, cause_of(Clues(attempt, culprit, list(exits.values())))


def ends(run):
    return {rank: record.exception for rank, record in run.exits().items()}


def test_all_that_is_known_of_four_ranks_on_two_nodes_is_written_down(tmp_path):
    run = Nodes(tmp_path / "run", 2, 2)
    assert finished(run.start()) == [0] * 4, run.log(0)
    placement = run.placement
    assert [host.name for host in placement.hosts] == ["n0", "n1"]
    assert {host.cpus for host in placement.hosts} == {os.cpu_count()}
    assert [(seat.rank, seat.local_rank, seat.host) for seat in placement.seats] == [
        (0, 0, "n0"), (1, 1, "n0"), (2, 0, "n1"), (3, 1, "n1")
    ]  # fmt: skip
    assert {seat.cpu_count for seat in placement.seats} == {len(os.sched_getaffinity(0))}
    assert {seat.interface for seat in placement.seats} == {"lo"}
    assert len({seat.pid for seat in placement.seats}) == 4
    for seat in placement.seats:
        assert 0 < seat.product_seconds < 60
        assert 0 < seat.host_seconds < 60
        assert 0 < seat.link_seconds < 60
        assert 1e6 < placement.flops_per_second(seat) < 1e14
    assert placement.all_reduce_seconds > 0
    (placed,) = run.told("placed")
    assert (placed["hosts"], placed["ranks"]) == (2, 4)
    kinds = [event.kind for event in run.events()]
    assert kinds.index("placed") < kinds.index("started")


def test_a_run_learns_the_same_whether_it_was_looked_at_or_not(tmp_path):
    looked, not_looked = (Nodes(tmp_path / mode, 2, health={"preflight": mode}) for mode in ("warn", "off"))
    assert finished(looked.start() + not_looked.start()) == [0] * 4
    assert looked.losses() == not_looked.losses()
    assert looked.folder.placement(1).exists()
    assert not not_looked.folder.placement(1).exists()
    assert not_looked.told("placed") == []


def test_the_node_whose_rank_may_use_one_core_only_is_refused_and_named(tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("NOT TESTED: this machine has one core")
    run = Nodes(tmp_path / "run", 3, cores=2)
    assert finished(run.start(bound=[1])) == [1] * 3
    assert ends(run) == {0: "PeerLostError", 1: "BadNodeError", 2: "PeerLostError"}
    (bad,) = named(run.folder)
    assert (bad.host, bad.attempt) == ("n1", 1)
    assert "1 core to run on (0), where the layout gives 2" in bad.why
    culprit, cause = run.blamed()
    assert (culprit.rank, culprit.host, cause.kind) == (1, "n1", "bad node")
    assert culprit.reason == f"node n1 is bad: {bad.why}"
    assert run.told("started") == []
    (finding,) = run.placement.findings
    assert (finding.host, finding.ranks, finding.grave) == ("n1", (1,), True)


def test_what_is_so_on_every_node_is_the_launchers_doing(tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("NOT TESTED: this machine has one core")
    run = Nodes(tmp_path / "run", 2, cores=2)
    assert finished(run.start(bound=[0, 1])) == [1] * 2
    assert ends(run) == {0: "PlacementError", 1: "PlacementError"}
    assert named(run.folder) == []
    assert run.blamed()[1].kind == "wrong placement"


def test_ranks_on_another_node_than_the_layout_says_are_refused(tmp_path):
    run = Nodes(tmp_path / "run", 2, 2)
    run.each = 3  # as a launcher that fills the first node
    assert finished(run.start()) == [1] * 4
    assert set(ends(run).values()) == {"PlacementError"}
    assert "on n0: 3 ranks here, and the layout puts 2 on each of 2 nodes" in run.exits()[0].reason
    assert named(run.folder) == []


def test_nodes_that_are_one_machine_by_the_sites_own_word_may_have_any_names(tmp_path):
    run = Nodes(tmp_path / "run", 2, 2)
    run.write(rendezvous=Rendezvous(address="loopback", timeout_seconds=60))
    run.each = 3
    assert finished(run.start()) == [0] * 4, run.log(0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that is to be missing")
def test_a_device_that_is_not_there_is_told_before_anything_waits_for_it(tmp_path):
    run = Nodes(tmp_path / "run", 1, 2, device="cuda")
    assert finished(run.start()) == [1] * 2
    assert ends(run) == {0: "PlacementError", 1: "PlacementError"}  # of all ranks: perhaps no node's fault
    assert "ranks 0-1: no devices to be seen, where 2 should be" in run.exits()[1].reason
    assert named(run.folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(("at", "kind"), [("product", "product"), ("link", "link")])
def test_a_slow_node_is_told_of_and_training_goes_on(tmp_path, at, kind):
    run = Nodes(tmp_path / "run", 4)
    assert finished(run.start(HPCDL_TEST_SLOW="n2", HPCDL_TEST_AT=at)) == [0] * 4, run.log(0)
    (slow,) = run.told("slow node")
    assert slow["host"] == "n2"
    (finding,) = run.placement.findings
    assert (finding.kind, finding.host, finding.ranks, finding.grave) == (kind, "n2", (2,), False)
    assert f"pre-flight: n2: {slow['why']}" in run.log(0)
    assert named(run.folder) == []


@pytest.mark.slow
def test_a_slow_node_is_refused_where_that_is_asked_for(tmp_path):
    run = Nodes(tmp_path / "run", 3, health={"preflight": "refuse"})
    assert finished(run.start(HPCDL_TEST_SLOW="n1")) == [1] * 3
    assert ends(run) == {0: "PeerLostError", 1: "BadNodeError", 2: "PeerLostError"}
    assert [node.host for node in named(run.folder)] == ["n1"]
    assert run.blamed()[1].kind == "bad node"
    assert "times the median of all ranks" in run.blamed()[0].reason


@pytest.mark.mpi
@pytest.mark.parametrize("transport", first_of("mixed", "mpi"))
def test_other_runtimes_are_measured_too(tmp_path, transport):
    run = Nodes(tmp_path / "run", 2, 2, transport=transport)
    mpiexec = Path(sys.executable).with_name("mpiexec")
    program = [sys.executable, "-m", "mpi4py", AS_NODE, run.folder.path]
    told = environment(MPIR_CVAR_ENABLE_HEAVY_YIELD=1, HPCDL_TEST_EACH=2)
    ranks = subprocess.Popen([mpiexec, "-n", "4", *program], env=told)
    assert finished([ranks]) == [0], run.log(0)
    assert all(seat.link_seconds and seat.host_seconds for seat in run.placement.seats)


@pytest.mark.slow
def test_ranks_that_never_come_are_told_with_their_node_which_is_noted(tmp_path):
    run = Nodes(tmp_path / "run", 3)
    run.write(rendezvous=Rendezvous(address="interface", interface="lo", timeout_seconds=15))
    ranks = run.start(ranks=[0, 1], SLURM_JOB_NODELIST="n[0-2]")
    assert finished(ranks) == [1, 1]
    assert "1 of 3 ranks never came within 15 s: 2 (on n2)" in run.exits()[0].reason
    assert [(node.host, node.why) for node in named(run.folder)] == [("n2", "rank 2 never came")]
    assert run.blamed()[1].kind == "rank never came"


@pytest.mark.slow
def test_a_rank_that_hangs_in_the_look_is_named_with_its_node(tmp_path):
    """Its first product never ended, and rank 0 said that it, too, had gone away."""
    run = Nodes(tmp_path / "run", 3, health={"hang_seconds": 0})
    run.write(rendezvous=Rendezvous(address="interface", interface="lo", timeout_seconds=15))
    ranks = run.start(HPCDL_TEST_SLOW="n2", HPCDL_TEST_S="1000")
    assert finished(ranks[:1]) == [1]
    for rank in ranks[1:]:
        rank.terminate()  # as a launcher does
    assert finished(ranks[1:]) == [143, 143]
    why = "rank 2 {}did not come to the end of the pre-flight (first times) within 15 s"
    culprit, cause = run.blamed()
    assert (culprit.exception, culprit.reason, cause.kind) == ("HangError", why.format("(on n2) "), "hang")
    assert [(node.host, node.why) for node in named(run.folder)] == [("n2", why.format(""))]


@pytest.mark.slow
@pytest.mark.mpi
def test_a_hang_in_the_look_ends_over_mpi_too(tmp_path):
    """There nobody's patience ended, and the allocation burned to its walltime."""
    run = Nodes(tmp_path / "run", 2, transport="mpi", health={"hang_seconds": 5})
    mpiexec = Path(sys.executable).with_name("mpiexec")
    told = environment(
        MPIR_CVAR_ENABLE_HEAVY_YIELD=1, HPCDL_TEST_EACH=1, HPCDL_TEST_SLOW="n1", HPCDL_TEST_S="1000"
    )
    program = [sys.executable, "-m", "mpi4py", AS_NODE, run.folder.path]
    (code,) = finished([subprocess.Popen([mpiexec, "-n", "2", *program], env=told)])
    assert code != 0
    culprit, cause = run.blamed()
    assert (culprit.rank, culprit.exception, cause.kind) == (1, "HangError", "hang")
    assert re.search(r"before its first step, pre-flight, at .*as_node\.py:\d+ in late$", culprit.reason)
    assert re.search(r'as_node\.py", line \d+ in late', run.log(1))


def test_a_place_knows_what_the_scheduler_calls_its_node(monkeypatch):
    """What a later job is told to leave out must be a name that the scheduler knows."""
    seat = observing.seat(Place(3, 1, 4, "nid0042"), {"NCCL_SOCKET_IFNAME": "hsn0", "NCCL_IB_HCA": "mlx5_0"})
    assert (seat.host, seat.interface) == ("nid0042", "mlx5_0")
