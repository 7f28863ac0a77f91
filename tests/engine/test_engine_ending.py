"""However a rank ends, it leaves a record that says so, and it does end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from disks import small_disk

from hpcdl.telemetry import read_exits

TESTS = str(Path(__file__).parents[1])
START = """
import sys, time, threading
from pathlib import Path
from hpcdl.engine.ending import Ending
from hpcdl.errors import EngineError
ending = Ending(Path(sys.argv[1]) / "rank-00003.json", 3)
ending.watch_sigterm()
"""


def run(folder, work, **options):
    command = [sys.executable, "-c", START + f"def work():\n    {work}\nending.guard(work)", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **options)


@pytest.mark.parametrize(
    ("work", "code", "exception"),
    [
        ("print('fine')", 0, None),
        ("raise ValueError('bad value')", 1, "ValueError"),
        ("raise EngineError('no text', 'give some')", 1, "EngineError"),
        ("sys.exit(7)", 7, None),
        ("sys.exit('words')", 1, None),
        ("sys.exit(-1)", 255, None),
        ("raise KeyboardInterrupt", 1, "KeyboardInterrupt"),
    ],
)
def test_every_end_leaves_its_record(tmp_path, work, code, exception):
    result = run(tmp_path, work)
    (record,) = read_exits(tmp_path)
    assert result.returncode == record.exit_code == code
    assert (record.rank, record.exception) == (3, exception)


def test_a_failure_is_no_success_because_its_code_has_more_than_eight_bits(tmp_path):
    """sys.exit(256) ended the process with 0, beside a record of 256: a script took the run for completed."""
    result = run(tmp_path, "sys.exit(256)")
    (record,) = read_exits(tmp_path)
    assert result.returncode == record.exit_code == 1


@pytest.mark.parametrize("letter", [r"\ud83d", r"\udce9"], ids=["half an emoji", "a byte of a Latin-1 name"])
def test_words_that_no_file_can_hold_do_not_cost_the_record(tmp_path, letter):
    """The rank ended without one and deaf to SIGTERM, and was told to have been killed by SIGKILL."""
    result = run(tmp_path, f"raise ValueError('bad sample: {letter}')")
    (record,) = read_exits(tmp_path)
    assert result.returncode == 1
    assert (record.exception, record.reason) == ("ValueError", f"bad sample: {letter}")


def test_a_record_that_cannot_be_made_keeps_no_process_from_ending(tmp_path):
    """Whatever was raised that was no OSError, the process was left without a way to end."""
    work = "import hpcdl.engine.ending as e; e.ExitFile.write = lambda *_: 1 / 0; sys.exit(7)"
    result = run(tmp_path, work)
    assert result.returncode == 7
    assert "rank-00003.json: division by zero" in result.stderr


def test_sigterm_is_not_said_by_a_rank_that_is_leaving_already(tmp_path):
    """Its peers had it ended for their own end, and the last line of the culprit's log was of that."""
    slowly = "lambda *_: os.kill(os.getpid(), 15) or time.sleep(0.5)"
    result = run(
        tmp_path, f"import os, hpcdl.engine.ending as e; e.ExitFile.write = {slowly}; raise ValueError('bad')"
    )
    assert (result.returncode, "SIGTERM" in result.stdout + result.stderr) == (1, False)


def test_a_failure_is_told_in_the_log(tmp_path):
    assert "ValueError: bad value" in run(tmp_path, "raise ValueError('bad value')").stderr
    told = run(tmp_path, "raise EngineError('no text', 'give some')").stderr
    assert "error: no text" in told
    assert "Traceback" not in told


def test_a_record_that_cannot_be_written_does_not_hide_the_end(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    assert run(blocker, "sys.exit(7)").returncode == 7


def test_who_closed_its_streams_leaves_its_record_all_the_same(tmp_path):
    assert run(tmp_path, "sys.stdout.close(); sys.stderr.close(); raise OSError('bad disk')").returncode == 1
    (record,) = read_exits(tmp_path)
    assert (record.exception, record.reason) == ("OSError", "bad disk")


def test_a_full_disk_does_not_swallow_the_record(tmp_path):
    """Room for it was taken at the start; without, a run that had ended so was told with srun's 143 and no culprit."""
    filling = f"sys.path.append({TESTS!r}); from disks import fill; fill(Path(sys.argv[1]) / 'ballast')"
    with small_disk(tmp_path / "disk") as disk:
        assert run(disk, f"{filling}; sys.exit(7)").returncode == 7
        (record,) = read_exits(disk)
    assert (record.rank, record.exit_code) == (3, 7)


def test_the_record_goes_along_with_a_folder_that_is_moved(tmp_path):
    """The ranks of a run that was moved made its old folder anew for their records, and nobody read them."""
    (tmp_path / "run").mkdir()
    assert (
        run(tmp_path / "run", "Path(sys.argv[1]).rename('moved'); sys.exit(7)", cwd=tmp_path).returncode == 7
    )
    (record,) = read_exits(tmp_path / "moved")
    assert record.exit_code == 7
    assert not (tmp_path / "run").exists()


def test_a_disk_that_was_full_at_the_start_has_room_for_the_record_later(tmp_path):
    work = "(Path(sys.argv[1]).parent / 'disk').unlink(); sys.exit(7)"
    (tmp_path / "disk").write_text("no folder")
    assert run(tmp_path / "disk", work).returncode == 7
    (record,) = read_exits(tmp_path / "disk")
    assert record.exit_code == 7


ON_FULL_DISK = (
    START
    + """
full = os.open("/dev/full", os.O_WRONLY)
for stream in (1, 2):
    os.dup2(full, stream)
"""
)
HANGS = """from hpcdl.engine import post, watchdog, timeline, pulse, ranks
    from hpcdl.run_folder import RunFolder
    from hpcdl.spec.experiment import Experiment
    shape = {"family": "gpt", "layers": 4, "hidden": 32, "heads": 4, "vocab": 256, "sequence": 32}
    told = {"model": shape, "data": {"path": "x"}, "training": {"global_batch": 8, "steps": 1}}
    now = pulse.Pulse(timeline.Timeline())
    now._steps.append(0.1)
    experiment = Experiment.model_validate(told | {"health": {"hang_seconds": 1}})
    files = post.Post(RunFolder(Path(sys.argv[1])), 1)
    with watchdog.Watchdog(experiment, ranks.Place(3, 0, 1, "n0"), files, now, ending.fail):
        time.sleep(60)"""


@pytest.mark.parametrize(
    ("work", "code", "exception"),
    [
        ("raise ValueError('bad value')", 1, "ValueError"),
        ("raise EngineError('no text', 'give some')", 1, "EngineError"),
        ("os.kill(os.getpid(), 15); time.sleep(60)", 143, None),
        (HANGS, 1, "HangError"),
    ],
    ids=["an error", "an error with words", "SIGTERM", "a hang"],
)
def test_a_full_disk_keeps_no_rank_from_ending_with_its_record(tmp_path, work, code, exception):
    """The thread that was to end it had died of what it could not print."""
    program = f"import os\n{ON_FULL_DISK}def work():\n    {work}\nending.guard(work)"
    command = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run(command, timeout=30, check=False).returncode == code
    (record,) = read_exits(tmp_path)
    assert (record.exit_code, record.exception) == (code, exception)


MPI_RANK = """
import sys, time
from pathlib import Path
from hpcdl.engine.ending import Ending

def work():
    from mpi4py import MPI
    rank = MPI.COMM_WORLD.rank
    MPI.COMM_WORLD.Barrier()
    MPI.Finalize()
    time.sleep(rank / 2)
    (Path(sys.argv[1]) / str(rank)).touch()

Ending(Path(sys.argv[1]) / "exit.json", 0).guard(work)
"""


@pytest.mark.mpi
def test_a_rank_that_has_left_mpi_does_not_take_the_others_with_it(tmp_path):
    """MPICH says good-bye to mpiexec in an exit handler, which os._exit skips.

    mpiexec then killed by -9 all that were still about to write, and reported 9 for a run that had succeeded.
    """
    mpiexec = Path(sys.executable).with_name("mpiexec")
    result = subprocess.run(
        [mpiexec, "-n", "3", sys.executable, "-c", MPI_RANK, tmp_path], timeout=60, check=False
    )
    assert result.returncode == 0
    assert {"0", "1", "2"} <= {path.name for path in tmp_path.iterdir()}


# The libc call keeps the interpreter's main thread away, as a collective does: a Python handler would never run.
STUCK = "import ctypes; print('stuck', flush=True); [ctypes.CDLL(None).sleep(100) for _ in range(100)]"
EARLY_THREAD = (
    "import threading, time\nthreading.Thread(target=time.sleep, args=(100,), daemon=True).start()\n"
)


@pytest.mark.parametrize("before", ["", EARLY_THREAD], ids=["alone", "beside a thread of a library"])
def test_sigterm_ends_a_process_whose_main_thread_is_stuck(tmp_path, before):
    """A thread that was there first does not block the signal; it must not die of it without a record."""
    program = before + START + f"def work():\n    {STUCK}\nending.guard(work)"
    command = [sys.executable, "-c", program, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "stuck\n"
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=10) == 143
    process.stdout.close()
    (record,) = read_exits(tmp_path)
    assert (record.exit_code, record.signal) == (143, signal.SIGTERM)
