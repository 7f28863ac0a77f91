"""What a rank is at is seen from another thread, while it is at it."""

import faulthandler
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from engine_worlds import in_threads
from exercise_transport import exercise

from hpcdl.engine import stacks
from hpcdl.engine.post import Post
from hpcdl.engine.pulse import Pulse
from hpcdl.engine.ranks import Place
from hpcdl.engine.timeline import COMPUTE, IDLE, OPTIMIZER, PHASE, Timeline
from hpcdl.engine.transport.base import Done
from hpcdl.engine.transport.memory import MemoryTransport, World
from hpcdl.engine.transport.observed import Observed
from hpcdl.engine.watchdog import Watchdog
from hpcdl.errors import PeerLostError
from hpcdl.run_folder import NOBODY, RunFolder
from hpcdl.spec.experiment import Experiment
from hpcdl.telemetry import StepRecord, read_heartbeat

MODEL = {"family": "gpt", "layers": 4, "hidden": 32, "heads": 4, "vocab": 256, "sequence": 32}
TOLD = {"model": MODEL, "data": {"path": "x"}, "training": {"global_batch": 8, "steps": 1}}


def record(step, seconds):
    return StepRecord(step, 1.0, 8, seconds, 8 / seconds)


def test_phase_operation_and_step_are_told_as_they_change():
    timeline = Timeline()
    pulse = Pulse(timeline)
    assert (pulse.now().phase, pulse.now().at, pulse.now().waiting) == ("start", "", False)
    with timeline.span(PHASE, "pipeline"):
        assert (pulse.now().phase, pulse.now().at) == ("pipeline", "")
        with timeline.span(COMPUTE, "forward", chunk=0, microbatch=3):
            before = pulse.now()
            assert (before.at, before.waiting) == ("forward of microbatch 3", False)
        with timeline.span(IDLE, "message"), timeline.span(IDLE, "first"):
            now = pulse.now()
            assert (now.phase, now.at, now.waiting) == ("pipeline", "waiting for a message", True)
            assert now.moves > before.moves
    pulse.step(record(5, 2.0))
    assert (pulse.now().step, pulse.now().phase) == (5, "between")


@pytest.mark.parametrize("category", [COMPUTE, OPTIMIZER])
def test_a_host_that_fills_a_device_may_wait_for_others_anywhere(category):
    """NCCL's waits only order streams: when the queue was full, a healthy peer stood still in its forward."""
    timeline = Timeline()
    with timeline.span(category, "forward", microbatch=0):
        assert Pulse(timeline, on_device=True).now().waiting
        assert not Pulse(timeline).now().waiting


def test_how_long_a_step_takes_is_the_median_of_the_last_ones():
    pulse = Pulse(Timeline())
    assert pulse.step_seconds is None
    for step, seconds in enumerate([900.0, *[1.0] * 10, *[3.0] * 12], start=1):
        pulse.step(record(step, seconds))
    assert pulse.step_seconds == 3.0


class Blocks(MemoryTransport):
    """To start any operation, or to make a group, takes until somebody lets it; as NCCL's first of a group."""

    def __init__(self, rank, entered, free):
        super().__init__(World(2), rank)
        self.entered, self.free = entered, free

    def _block(self, *_, **__):
        self.entered.set()
        assert self.free.wait(60)
        return Done()

    all_reduce = all_gather = reduce_scatter = broadcast = send = receive = group = connect = barrier = _block


BUFFER = torch.zeros(2)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (lambda door, group: door.all_reduce(BUFFER, group), "all_reduce over 2 ranks"),
        (lambda door, group: door.all_gather(BUFFER, BUFFER, group), "all_gather over 2 ranks"),
        (lambda door, group: door.reduce_scatter(BUFFER, BUFFER, group), "reduce_scatter over 2 ranks"),
        (lambda door, group: door.broadcast(BUFFER, group), "broadcast over 2 ranks"),
        (lambda door, _: door.send(BUFFER, 1, tag=0), "send to rank 1"),
        (lambda door, _: door.receive(BUFFER, 1, tag=0), "receive from rank 1"),
        (lambda door, _: door.group((0, 1)), "making a group of 2 ranks"),
        (lambda door, _: door.connect([1]), "connecting"),
        (lambda door, _: door.barrier(), "barrier"),
    ],
)
def test_who_cannot_even_start_without_others_waits_for_them(start, words):
    timeline, entered, free = Timeline(), threading.Event(), threading.Event()
    group = MemoryTransport(World(2), 0).group((0, 1))
    door = Observed(Blocks(0, entered, free), timeline)
    worker = threading.Thread(target=start, args=(door, group))
    with timeline.span(COMPUTE, "forward", microbatch=0):
        worker.start()
        assert entered.wait(60)
        now = Pulse(timeline).now()
        free.set()
        worker.join(60)
        assert (now.at, now.waiting) == (words, True)
        assert Pulse(timeline).now().at == "forward of microbatch 0"


def test_after_everything_that_a_transport_does_a_rank_is_at_nothing():
    def work(transport):
        observed = Observed(transport, Timeline())
        exercise(observed)
        return observed.timeline

    for timeline in in_threads(4, work):
        assert timeline.opened == []
        assert timeline.moves > 20


# --- where in the code -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "thread", "expected"),
    [
        ("data", "prefetch_0", r"test_engine_pulse\.py:\d+ in reading$"),
        ("checkpoint", "checkpoint_0", r"test_engine_pulse\.py:\d+ in reading$"),
        ("pipeline", "prefetch_0", r"test_engine_pulse\.py:\d+ in test_the_place"),
        ("data", "other", r"test_engine_pulse\.py:\d+ in test_the_place"),
    ],
)
def test_the_place_is_that_of_who_does_the_work_and_not_of_who_waits_for_it(phase, thread, expected):
    """Both threads are deep in the standard library, which says nothing."""
    entered, free = threading.Event(), threading.Event()

    def reading():
        entered.set()
        assert free.wait(60)

    worker = threading.Thread(target=reading, name=thread)
    worker.start()
    assert entered.wait(60)
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="watchdog") as asks:
            assert re.search(expected, asks.submit(stacks.place, phase).result(60))
    finally:
        free.set()
        worker.join(60)


FOREIGN = """
import threading
from hpcdl.engine import stacks
told = []
timer = threading.Timer(0.2, lambda: told.append(stacks.place("pipeline")))
timer.start()
timer.join()
print(told[0])
"""


def test_where_all_is_foreign_the_innermost_is_told():
    """A program that is not in a file is frozen code to Python; nothing else of it is known."""
    told = subprocess.run(
        [sys.executable, "-c", FOREIGN], capture_output=True, text=True, timeout=60, check=True
    )
    assert re.search(r":\d+ in (_wait_for_tstate_lock|join|wait|<module>)$", told.stdout.strip())


# --- the thread --------------------------------------------------------------------------------------------------


def watched(tmp_path, pulse, ended, **health):
    return Watchdog(
        Experiment.model_validate(TOLD | {"health": health}),
        Place(0, 0, 2, "n0"),
        Post(RunFolder(tmp_path), 1),
        pulse,
        lambda error, blamed: ended.append((error, blamed)),
    )


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_signs_of_life_go_on_until_the_watch_is_over_and_no_timer_is_left(tmp_path, monkeypatch):
    wound = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: wound.append("up"))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: wound.append("off"))
    timeline, ended = Timeline(), []
    with watched(tmp_path, Pulse(timeline), ended, hang_seconds=1) as watchdog:
        until(lambda: (beat := read_heartbeat(RunFolder(tmp_path).heartbeat(1, 0))) and beat.beat > 2)
    watchdog._beat(time.monotonic())  # its thread may have been about to
    assert wound[-1] == "off"
    assert "up" in wound
    assert ended == []


def test_a_rank_ends_when_another_job_goes_on_with_its_run(tmp_path):
    """Slurm gives up a node that it cannot reach, and what lives on there would write beside the next attempt."""
    folder, ended = RunFolder(tmp_path), []
    folder.start(1).parent.mkdir()
    for attempt, job in ((1, "70"), (2, NOBODY)):  # of the second nothing came
        folder.start(attempt).symlink_to(job)
    with watched(tmp_path, Pulse(Timeline()), ended, hang_seconds=1):
        until(lambda: (beat := read_heartbeat(folder.heartbeat(1, 0))) and beat.beat > 2)
        assert ended == []
        folder.start(3).symlink_to("72")
        until(lambda: ended)
    error, blamed = ended[0]
    assert isinstance(error, PeerLostError)
    assert (error.message.partition(" of the run")[0], blamed) == ("attempt 3", None)


ALONE = """
import sys, time
from pathlib import Path
from hpcdl.engine.post import Post
from hpcdl.engine.pulse import Pulse
from hpcdl.engine.ranks import Place
from hpcdl.engine.timeline import COMPUTE, Timeline
from hpcdl.engine.watchdog import Watchdog
from hpcdl.run_folder import RunFolder
from hpcdl.spec.experiment import Experiment
timeline = Timeline()
pulse = Pulse(timeline)
pulse._steps.append(0.1)
post = Post(RunFolder(Path(sys.argv[1])), 1)
with Watchdog(Experiment.model_validate_json(sys.argv[2]), Place(0, 0, 1, "n0"), post, pulse, sys.exit):
    for number in range(60):
        with timeline.span(COMPUTE, "forward"):
            time.sleep(0.05)
        print(number, flush=True)
"""


def test_a_rank_alone_that_is_suspended_goes_on_when_it_is_let(tmp_path):
    """The timer that was to end it where it holds the interpreter runs on while nothing else does."""
    told = Experiment.model_validate(TOLD | {"health": {"hang_seconds": 1}}).model_dump_json()
    command = [sys.executable, "-c", ALONE, tmp_path, told]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout.readline() == "0\n"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2.5)
    os.kill(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=60)[0].endswith("59\n")
    assert process.returncode == 0


def test_a_disk_without_room_does_not_end_the_watch(tmp_path, monkeypatch):
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: None)
    blocker = tmp_path / "file"
    blocker.write_text("")
    watchdog = watched(blocker, Pulse(Timeline()), [], hang_seconds=1)
    watchdog._beat(time.monotonic())
    watchdog._beat(time.monotonic())
    assert watchdog._last.beat == 2


def test_time_in_which_the_process_did_not_run_is_no_standstill(tmp_path, monkeypatch):
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: None)
    pulse, ended = Pulse(Timeline()), []
    watchdog = watched(tmp_path, pulse, ended, hang_seconds=8)
    pulse.step(record(1, 1.0))
    now = time.monotonic()
    for later in (0, 2, 3600, 3602):  # a beat is due every two seconds
        watchdog._beat(now + later)
    assert watchdog._last.still == pytest.approx(8)
    assert ended == []
    for later in range(3604, 3630, 2):
        watchdog._beat(now + later)
    assert ended[0][0].message.startswith("stood still for 14 s after step 1, between, at ")
