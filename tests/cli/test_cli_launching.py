"""What ``hpcdl launch-info`` shows of where ranks were, and that it says when something was wrong."""

import json
import time

import pytest

from hpcdl.placement import Device, Finding, Host, Nic, Placement, Seat
from hpcdl.runs import store
from hpcdl.telemetry import ExitFile, ExitRecord, RunEvent, append
from hpcdl.workflow.studies import preparing, studying

SEATS = tuple(
    Seat(
        rank, rank % 2, f"n{rank // 2}", 100 + rank, "0-7", 8, (0,), "hsn0", devices=2,
        device=Device(rank % 2, "H100", f"GPU-{rank}", f"0000:1{rank % 2}:00", 80 << 30, 0),
        product_seconds=0.02 if rank == 3 else 0.01, host_seconds=0.002, link_seconds=0.005,
    )
    for rank in range(4)
)  # fmt: skip
HOSTS = (
    Host("n0", "n0.example.org", 16, (Nic("mlx5_0:1", 200.0), Nic("eth0"))),
    Host("n1", "n1", 16),
)
GOOD = Placement(2, HOSTS, SEATS, (), 8e12, 0.003, 256 << 20)
SLOW = Finding("product", "n1", (3,), "rank 3 took 0.02 s for matrix products", grave=False)
SHARED = Finding("device", "n0", (0, 1), "ranks 0-1 share one device", grave=True)


@pytest.fixture
def folder(tiny, tmp_path):
    study = studying.study(studying.Request(tiny, "local", []))
    return preparing.prepare(study, tmp_path / "runs")[0]


def written(folder, placement):
    path = folder.placement(placement.attempt)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(placement.to_json()))
    store.note(folder, "submitted", placement.attempt, job_id="7")


def test_every_rank_is_shown_below_its_node(hpcdl, folder):
    written(folder, GOOD)
    told = hpcdl("launch-info", "last")
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    assert lines[0] == (
        f"{folder.path.name}, attempt 2: 4 ranks on 2 nodes; an all-reduce of 256 MiB over all took 3 ms"
    )
    assert "n0 (n0.example.org): 16 hardware threads; mlx5_0:1 200 Gb/s, eth0" in lines
    assert "n1: 16 hardware threads; no network interface is up" in lines
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert rows[3] == [
        "3",
        "1",
        "H100",
        "0000:11:00",
        "80",
        "GiB",
        "0-7",
        "0",
        "hsn0",
        "400",
        "2",
        "ms",
        "5",
        "ms",
    ]


def test_a_slow_node_is_told_and_no_failure(hpcdl, folder):
    written(folder, GOOD.with_findings([SLOW]))
    told = hpcdl("launch-info", "last")
    assert told.code == 0
    assert f"  {SLOW.words}\n" in told.out


def test_a_wrong_placement_ends_with_5_and_its_words(hpcdl, folder):
    written(folder, GOOD.with_findings([SLOW, SHARED]))
    told = hpcdl("launch-info", "last")
    assert told.code == 5
    assert "attempt 2 cannot run as it was placed: n0: ranks 0-1 share one device" in told.err
    assert f"  {SHARED.words}\n" in told.out


def test_programs_get_all_of_it(hpcdl, folder):
    written(folder, GOOD.with_findings([SHARED]))
    detail = {"host": "n0", "why": SHARED.words}
    append(folder.engine_events, RunEvent("bad node", time.time(), 2, detail))
    result = hpcdl("launch-info", folder.path, "--attempt", 2, "--json")
    told = json.loads(result.out)
    assert result.code == 5
    assert (told["run"], told["attempt"]) == (folder.path.name, 2)
    assert [host["name"] for host in told["hosts"]] == ["n0", "n1"]
    assert [rank["flops_per_second"] for rank in told["ranks"]] == [8e14, 8e14, 8e14, 4e14]
    assert told["ranks"][1]["device"]["uuid"] == "GPU-1"
    assert told["findings"] == [
        {"kind": "device", "host": "n0", "ranks": [0, 1], "words": SHARED.words, "grave": True}
    ]
    assert told["bad_nodes"] == [{"host": "n0", "why": SHARED.words, "attempt": 2}]
    assert (told["exclude"], told["left_in"]) == ([], ["n0"])
    assert told["left_in_why"] == "there is one machine only"


def test_an_attempt_of_which_nothing_is_known_is_told_with_those_of_which_something_is(hpcdl, folder):
    written(folder, GOOD)
    told = hpcdl("launch-info", "last", "--attempt", 3)
    assert told.code == 2
    assert "attempt 3" in told.err
    assert "of 2 it is" in told.err
    assert "health.preflight" in told.err


def test_a_damaged_file_is_told_by_its_name(hpcdl, folder):
    written(folder, GOOD)
    folder.placement(2).write_text('{"attempt": 2}')
    told = hpcdl("launch-info", "last")
    assert told.code == 2
    assert str(folder.placement(2)) in told.err


def test_a_failure_tells_the_device_of_its_rank(hpcdl, folder):
    written(folder, GOOD)
    store.note(folder, "observed", 2, state="failed", exit_code=7, reason="")
    ExitFile(folder.rank_exit(2, 3)).write(ExitRecord(3, "n1", time.time(), 7))
    told = hpcdl("status", "last", "--json")
    assert json.loads(told.out)["first_failure"]["device"] == "1 (H100 GPU-3)"
    assert "first failure: rank 3 on n1, device 1 (H100 GPU-3): exit code 7" in hpcdl("status", "last").out
