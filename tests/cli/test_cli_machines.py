"""The machines that ship, from the command line: what a user of each meets first."""

import pytest

PLAIN = (
    *("--set", "resources.account=physics", "--set", "training.global_batch=24"),
    *("--set", "parallelism=auto"),
)


@pytest.mark.parametrize(
    ("machine", "gpus"), [("lonestar6", 6), ("summit", 12), ("aurora", 24), ("vista", 2), ("frontier", 16)]
)
def test_two_nodes_are_planned_whatever_number_of_devices_they_have(hpcdl, tiny, machine, gpus):
    shape = ("--set", "model.heads=12", "--set", "model.hidden=48", "--set", "model.layers=6")
    result = hpcdl("plan", tiny, "--site", machine, *PLAIN, *shape, "--gpus", gpus)
    assert result.code == 0, result.err
    assert f"(2 nodes x {gpus // 2})" in result.out


def test_tiles_are_planned_for_but_not_run_on(hpcdl, tiny):
    result = hpcdl("submit", tiny, "--site", "aurora", "--dry-run", *PLAIN, "--gpus", 12)
    assert result.code == 2
    assert "site aurora has tile devices; the bundled engine runs on CUDA, ROCm and CPU only" in result.err


def test_bf16_on_a_v100_is_refused_with_what_to_do(hpcdl, tiny):
    result = hpcdl("plan", tiny, "--site", "bridges2", *PLAIN, "--set", "training.precision=bf16")
    assert result.code == 2
    assert "training.precision bf16 is not supported by NVIDIA V100-SXM2" in result.err
    assert "_v100.yaml:" in result.err
    assert "choose fp32 or fp16" in result.err


def test_a_machine_answers_to_its_other_name(hpcdl):
    assert hpcdl("site", "show", "clariden", "--field", "name").out.startswith("name: alps-clariden\n")


def test_a_walltime_that_is_too_short_is_refused_with_the_place_of_the_limit(hpcdl, tiny):
    result = hpcdl(
        "submit", tiny, "--site", "narval", "--dry-run", *PLAIN, "--set", "resources.walltime=00:10:00"
    )
    assert result.code == 3
    told = " ".join(result.err.split())
    assert "resources.walltime 00:10:00 is under the 01:00:00 that a job in queue gpu must ask for" in told
    assert "narval.yaml:" in result.err
