"""A bucket whose state lies on the host is updated as one beside its weights, wherever the step is made."""

from types import SimpleNamespace

import pytest
import torch
from engine_transparency import experiment
from engine_worlds import GPT, in_threads

from hpcdl.engine.host_memory import HostMemory
from hpcdl.engine.learner import Learner
from hpcdl.engine.optim import choosing
from hpcdl.engine.optim.adamw import AdamW
from hpcdl.engine.optim.bucket import Bucket
from hpcdl.engine.optim.offload import Device, Host, Room
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.training import Optimizer

CPU = torch.device("cpu")
LENGTHS = [640, 64, 640, 192, 320]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
STEPS = 3


def bucket_of(length, dtype, host=None):
    """The same values whether its state lies on the ``host`` or beside it."""
    parameter = torch.randn(length, generator=torch.Generator().manual_seed(length)).to(dtype)
    if host is None:
        master = parameter if dtype == torch.float32 else parameter.float()
        state = master, torch.zeros_like(master), torch.zeros_like(master), torch.zeros(())
    else:
        state = host.copy(parameter, torch.float32), host.zeros(length), host.zeros(length), host.zeros()
    return Bucket(parameter, torch.zeros_like(parameter), *state, decay=length > 64, runs=())


def stepped(stepping, buckets, divisor):
    """All ``buckets`` after some steps whose gradients are wide apart in size."""
    for step in range(STEPS):
        for place, bucket in enumerate(buckets):
            seed = torch.Generator().manual_seed(100 * step + place)
            exponents = torch.randn(len(bucket.parameter), generator=seed)
            bucket.gradient.copy_(torch.randn(len(exponents), generator=seed) * 10**exponents)
            stepping.update(bucket, 1e-2, divisor)
        stepping.join()
    return buckets


@pytest.mark.parametrize("divisor", [None, 0.3, 2.0**16])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", ["device", "host"])
def test_every_way_gives_what_a_step_in_place_gives(way, dtype, divisor):
    adamw, host = AdamW(Optimizer()), HostMemory(CPU)
    buckets = [bucket_of(length, dtype, host) for length in LENGTHS]
    room = Room.of(buckets)
    stepping = Device(adamw, CPU, room) if way == "device" else Host(adamw, host, room)
    found = stepped(stepping, buckets, divisor)
    wanted = stepped(adamw, [bucket_of(length, dtype) for length in LENGTHS], divisor)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.parameter, other.parameter)
        for kind in ("master", "exp_avg", "exp_avg_sq", "updates"):
            assert torch.equal(getattr(one, kind), getattr(other, kind)), kind
        assert one.updates.item() == STEPS


@pytest.mark.parametrize("threads", [1, 2])
def test_one_pass_over_a_line_and_many_over_its_buckets_agree_to_the_bit(threads):
    """Kernels work in vectors and split over threads; a bucket is a multiple of 64, so it has no odd end."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        adamw, length = AdamW(Optimizer()), 64 * 3001
        whole, cut = bucket_of(length, torch.float32), bucket_of(length, torch.float32)
        gradient = torch.randn(length)
        whole.gradient.copy_(gradient)
        adamw.update(whole, 1e-2, 0.7)
        for piece in range(0, length, 64 * 1000):
            span = slice(piece, piece + 64 * 1000)
            state = [tensor[span] for tensor in (cut.master, cut.exp_avg, cut.exp_avg_sq)]
            part = Bucket(cut.parameter[span], gradient[span], *state, torch.zeros(()), decay=True, runs=())
            adamw.update(part, 1e-2, 0.7)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(whole.master, cut.master)
    assert torch.equal(whole.exp_avg_sq, cut.exp_avg_sq)


def test_room_is_for_the_largest_bucket_and_for_no_more_buckets_than_there_are():
    one, two = (bucket_of(length, torch.bfloat16) for length in (128, 256))
    assert Room.of([one, two, one]) == Room(256, 2, torch.bfloat16)
    assert Room.of([one]) == Room(128, 1, torch.bfloat16)


# The choice


def learner_of(transport, decomposition, settings):
    return Learner(settings, decomposition, transport, CPU)


def learners(decomposition, settings):
    """Of all ranks, with their state made, for which they must come together."""

    def made(transport):
        learner = learner_of(transport, decomposition=decomposition, settings=settings)
        learner.counters()
        return learner

    return in_threads(decomposition.ranks, made)


@pytest.mark.parametrize("way", ["device", "host"])
def test_a_way_that_is_asked_for_is_taken_without_measuring(way):
    decomposition = Decomposition(offload="optimizer", data=2)
    for learner in learners(decomposition, experiment(GPT, offload_step=way)):
        assert learner.offload == {"step": way}


def test_nothing_is_said_of_a_state_beside_its_weights():
    assert learners(Decomposition(), experiment(GPT))[0].offload == {}


def test_the_faster_way_is_chosen_by_the_slowest_rank_and_all_are_told(monkeypatch):
    """Each rank measures other times; at the host, one rank is slower than any is at the device."""
    taken = iter([1.0, 0.5, 2.0, 3.0])
    measured = {}

    def seconds(stepping, buckets, host):
        assert not any(bucket.parameter.any() for bucket in buckets)
        key = id(host), type(stepping).__name__
        measured[key] = next(taken) if type(stepping) is Host else 1.5
        return measured[key]

    monkeypatch.setattr(choosing, "_seconds", seconds)
    told = [
        learner.offload for learner in learners(Decomposition(offload="optimizer", data=4), experiment(GPT))
    ]
    assert told == [{"step": "device", "device_seconds": 1.5, "host_seconds": 3.0}] * 4
    assert len(measured) == 8


def test_what_is_measured_takes_time():
    told = learners(Decomposition(offload="optimizer"), experiment(GPT))[0].offload
    assert 0 < told["device_seconds"] < 1
    assert 0 < told["host_seconds"] < 1
    faster = min(("device", "host"), key=lambda way: told[f"{way}_seconds"])
    assert told["step"] == faster


# Bad input


def test_a_bucket_larger_than_the_parameters_is_warned_of_with_numbers(capsys):
    settings = experiment(GPT, bucket_mib=6.25, offload_step="device")
    learner = learners(Decomposition(offload="optimizer"), settings)[0]
    said = capsys.readouterr().out
    elements = sum(len(chunk.parameter) for chunk in learner._flat.chunks)
    assert f"bucket_mib 6.25 is a bucket of 1638400 elements, more than the {elements} of this rank" in said
    assert "offload_step: host" in said
    assert sum(len(bucket.parameter) for bucket in learner._flat.buckets) == elements


@pytest.mark.parametrize("change", [{"bucket_mib": 0.002}, {"offload_step": "host"}], ids=str)
def test_a_bucket_that_costs_nothing_is_not_warned_of(change, capsys):
    settings = experiment(GPT, **{"bucket_mib": 6.25, "offload_step": "device"} | change)
    learners(Decomposition(offload="optimizer"), settings)
    assert "warning" not in capsys.readouterr().out


def test_page_locked_memory_that_the_system_refuses_is_done_without(monkeypatch, capsys):
    """As next to a GPU, where the system gives some and no more."""
    given = iter([True, False])
    empty = torch.empty

    def refusing(*shape, pin_memory=False, **how):
        if pin_memory and not next(given):
            raise RuntimeError("CUDA error: out of memory\nmore of it")
        return empty(*shape, **how)

    host = HostMemory(SimpleNamespace(type="cuda"))
    monkeypatch.setattr(torch, "empty", refusing)
    rooms = [host.empty((1024,), torch.float32) for _ in range(3)]
    said = capsys.readouterr().out
    assert said.count("warning") == 1, "it is said once, and not asked for again"
    assert "4.0 KiB asked, 4.0 KiB held: CUDA error: out of memory)" in said
    assert "slower" in said
    assert "ulimit -l" in said
    assert all(host.holds(room) for room in rooms)
    assert host.held == 3 * 4096
