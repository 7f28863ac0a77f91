"""Programs of the user's own as ranks: real processes under the engine's door, without torch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine_runs import environment, finished, wait_until

from hpcdl.placement import Placement
from hpcdl.run_folder import RunFolder
from hpcdl.spec.command import CommandRun
from hpcdl.telemetry import RunEvent, read, read_exits

TELL = "import json, os, sys; json.dump([sys.argv, dict(os.environ), os.getcwd()], open(f'{sys.argv[1]}/{os.environ[\"RANK\"]}', 'w'))"


class Program:
    """A run folder whose ranks are ``command``."""

    def __init__(self, path, *command, ranks=2, timeout=30, nodes=1, **more):
        self.folder, self.ranks = RunFolder(path / "run"), ranks
        self.folder.path.mkdir()
        run = CommandRun.model_validate(
            {
                "run": "r-1",
                "experiment": {"command": {"run": [*map(str, command)], "folder": str(path), **more}},
                "layout": {"nodes": nodes, "ranks_per_node": ranks // nodes, "cores_per_rank": 1},
                "rendezvous": {"address": "loopback", "timeout_seconds": timeout},
                "site": "test",
                "versions": {},
            }
        )
        self.folder.resolved.write_text(run.model_dump_json())

    def start(self, attempt=1, absent=(), **variables):
        return [
            subprocess.Popen(
                [sys.executable, "-m", "hpcdl.engine", self.folder.path],
                env=environment(
                    RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=self.ranks, HPCDL_ATTEMPT=attempt, **variables
                ),
            )
            for rank in range(self.ranks)
            if rank not in absent
        ]

    def exits(self, attempt=1):
        return {record.rank: record for record in read_exits(self.folder.exits(attempt))}

    def log(self, rank):
        return self.folder.rank_log(1, rank).read_text()


def script(path, body):
    """A program in bash."""
    file = path / "program.sh"
    file.write_text(f"#!/bin/bash\n{body}\n")
    file.chmod(0o755)
    return "./program.sh"


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def pids(path, count):
    """What programs wrote of themselves into files of the folder."""
    wait_until(lambda: len([file for file in path.glob("pid-*") if file.read_text().strip()]) == count)
    return {file.name: int(file.read_text()) for file in path.glob("pid-*")}


HOSTILE = [
    "", " ", "two  words", "-n", "*", "$HOME", "`touch pwned`", "$(touch pwned)", "; touch pwned", "it's", '"', "\\",
    "a\nb", "a\rb", "tab\t", "#", "größe 速度 🚀", "\x01\x1b[31m", "{{ 7 * 7 }}", "%s", "!!", "&& touch pwned",
]  # fmt: skip


def test_arguments_and_environment_arrive_as_they_were(tmp_path):
    run = Program(tmp_path, sys.executable, "-c", TELL, tmp_path, *HOSTILE)
    assert finished(run.start(HOSTILE="\n".join(HOSTILE))) == [0, 0]
    for rank in range(2):
        arguments, variables, folder = json.loads((tmp_path / str(rank)).read_text())
        assert arguments[2:] == HOSTILE
        assert variables["HOSTILE"] == "\n".join(HOSTILE)
        assert folder == str(tmp_path)
    assert not list(tmp_path.rglob("pwned"))


def test_a_rank_is_told_its_place_as_torchrun_tells_it(tmp_path):
    """Four ranks that stand for two nodes of two."""
    run = Program(tmp_path, sys.executable, "-c", TELL, tmp_path, ranks=4, nodes=2)
    assert finished(run.start(attempt=3)) == [0] * 4
    told = [json.loads((tmp_path / str(rank)).read_text())[1] for rank in range(4)]
    assert [each["RANK"] for each in told] == ["0", "1", "2", "3"]
    assert [each["GROUP_RANK"] for each in told] == ["0", "0", "1", "1"]
    assert {(each["WORLD_SIZE"], each["LOCAL_WORLD_SIZE"]) for each in told} == {("4", "2")}
    assert {each["MASTER_ADDR"] for each in told} == {"127.0.0.1"}
    assert len({each["MASTER_PORT"] for each in told}) == 1
    assert {each["HPCDL_RUN_FOLDER"] for each in told} == {str(run.folder.path)}
    assert {each["HPCDL_ATTEMPT"] for each in told} == {"3"}
    assert {each["HPCDL_SEED"] for each in told} == {"0"}
    assert {each["TORCHELASTIC_RUN_ID"] for each in told} == {"r-1"}


def test_several_runs_on_one_node_at_once_meet_apart_and_share_no_port(tmp_path):
    runs = []
    for number in range(4):
        path = tmp_path / str(number)
        path.mkdir()
        runs.append(Program(path, sys.executable, "-c", TELL, path))
    assert finished([process for run in runs for process in run.start()]) == [0] * 8
    ports = [
        {json.loads((tmp_path / str(number) / str(rank)).read_text())[1]["MASTER_PORT"] for rank in range(2)}
        for number in range(4)
    ]
    assert [len(each) for each in ports] == [1] * 4
    assert len(set.union(*ports)) == 4


def test_output_goes_to_the_ranks_log_as_it_comes(tmp_path):
    run = Program(tmp_path, sys.executable, "-c", "import time; print('begun'); time.sleep(100)", ranks=1)
    (process,) = run.start()
    wait_until(lambda: run.folder.rank_log(1, 0).exists() and "begun" in run.log(0))
    process.terminate()
    assert process.wait(timeout=20) == 143


def test_the_programs_own_exit_code_is_the_ranks(tmp_path):
    program = script(tmp_path, '[ "$RANK" = 1 ] && exit 7; exit 0')
    run = Program(tmp_path, program)
    assert finished(run.start()) == [0, 7]
    exits = run.exits()
    assert (exits[0].exit_code, exits[0].reason) == (0, None)
    assert (exits[1].exit_code, exits[1].signal, exits[1].reason) == (7, None, "exit code 7")
    assert "exit code 7" in run.log(1)


def test_what_torch_recorded_of_the_exception_is_in_the_ranks_record(tmp_path):
    """Programs like torchtitan's carry @record, whose file torchrun would show."""
    program = (
        "from torch.distributed.elastic.multiprocessing.errors import record\n"
        "@record\ndef main(): raise ValueError('no such shard')\nmain()"
    )
    run = Program(tmp_path, sys.executable, "-c", program, ranks=1)
    assert finished(run.start()) == [1]
    assert run.exits()[0].reason == "exit code 1: ValueError: no such shard"


def test_a_program_killed_from_outside_is_told_with_its_signal(tmp_path):
    program = script(tmp_path, "echo $$ >pid-$RANK; exec sleep 100")
    run = Program(tmp_path, program, ranks=1)
    (process,) = run.start()
    os.kill(pids(tmp_path, 1)["pid-0"], signal.SIGKILL)
    assert process.wait(timeout=20) == 137
    record = run.exits()[0]
    assert (record.exit_code, record.signal, record.reason) == (137, signal.SIGKILL, "killed by SIGKILL")


def test_what_a_program_leaves_behind_is_ended_with_it(tmp_path):
    program = script(tmp_path, "sleep 100 & echo $! >pid-child; exit 3")
    run = Program(tmp_path, program, ranks=1)
    assert finished(run.start()) == [3]
    wait_until(lambda: not alive(pids(tmp_path, 1)["pid-child"]), 10)


def test_a_rank_that_is_killed_takes_its_program_with_it(tmp_path):
    """A launcher's KILL reaches the process that it started, and nobody below it."""
    program = script(tmp_path, 'trap "" TERM; sleep 100 & echo $! >pid-child; echo $$ >pid-program; wait')
    run = Program(tmp_path, program, ranks=1)
    (process,) = run.start()
    left = pids(tmp_path, 2)
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(alive, left.values())), 10)


def test_sigterm_is_the_programs_and_its_consequence_is_no_failure_of_its_own(tmp_path):
    """A trainer that saves itself and leaves by some code did not fail first."""
    program = script(
        tmp_path, 'trap "echo saved; exit 9" TERM; echo $$ >pid-$RANK; while :; do sleep 0.1; done'
    )
    run = Program(tmp_path, program, ranks=1)
    (process,) = run.start()
    pids(tmp_path, 1)
    process.terminate()
    assert process.wait(timeout=20) == 9
    record = run.exits()[0]
    assert (record.exit_code, record.signal, record.reason) == (
        9,
        signal.SIGTERM,
        "ended with 9 after SIGTERM",
    )
    assert "saved" in run.log(0)


def test_sigterm_that_comes_twice_does_not_disturb_a_program_that_saves_itself(tmp_path):
    program = script(
        tmp_path,
        'trap "trap - TERM; echo term; sleep 1; echo saved; exit 0" TERM; echo $$ >pid-0; while :; do sleep 0.1; done',
    )
    run = Program(tmp_path, program, ranks=1)
    (process,) = run.start()
    pids(tmp_path, 1)
    process.terminate()
    wait_until(lambda: "term" in run.log(0))
    process.terminate()
    assert process.wait(timeout=20) == 0
    assert "saved" in run.log(0)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_other_signals_are_passed_on(tmp_path, number):
    program = script(
        tmp_path, f"trap 'exit 4' {number.name[3:]}; echo $$ >pid-$RANK; while :; do sleep 0.1; done"
    )
    run = Program(tmp_path, program, ranks=1)
    (process,) = run.start()
    pids(tmp_path, 1)
    process.send_signal(number)
    assert process.wait(timeout=20) == 4


def test_a_program_is_warned_before_the_walltime_ends_by_the_signal_it_takes(tmp_path):
    program = script(tmp_path, "trap 'exit 0' USR1; echo $$ >pid-$RANK; while :; do sleep 0.1; done")
    run = Program(tmp_path, program, warning={"signal": "USR1"})
    run.folder.request(1).parent.mkdir()
    run.folder.request(1).touch()
    processes = run.start()
    pids(tmp_path, 2)
    run.folder.request(1).write_text("the walltime is nearly over\n")
    assert finished(processes) == [0, 0]
    (event,) = read(run.folder.engine_events, RunEvent)
    assert (event.kind, event.attempt, event.detail) == ("warned", 1, {"signal": "SIGUSR1"})


def test_a_program_is_warned_where_that_cannot_be_noted(tmp_path):
    """On a full disk rank 0 alone was never told, and its program died with the walltime."""
    program = script(tmp_path, "trap 'exit 0' USR1; echo $$ >pid-$RANK; while :; do sleep 0.1; done")
    run = Program(tmp_path, program, ranks=1, warning={"signal": "USR1"})
    run.folder.engine_events.mkdir()
    run.folder.request(1).parent.mkdir()
    run.folder.request(1).write_text("the walltime is nearly over\n")
    assert finished(run.start(), 30) == [0]


def test_sigterm_while_the_others_are_awaited_ends_a_rank_with_its_record(tmp_path):
    run = Program(tmp_path, "true")
    (process,) = run.start(absent=(1,))
    wait_until(run.folder.rendezvous(1).exists)
    process.terminate()
    assert process.wait(timeout=20) == 143
    assert run.exits()[0].signal == signal.SIGTERM


def test_a_program_does_not_start_before_every_rank_is_there_and_the_missing_one_is_named(tmp_path):
    run = Program(tmp_path, script(tmp_path, "touch started"), ranks=3, timeout=6)
    assert finished(run.start(absent=(2,))) == [1, 1]
    assert "1 of 3 ranks never came within 6 s: 2" in run.exits()[0].reason
    assert not (tmp_path / "started").exists()


def test_an_address_of_an_earlier_start_of_the_attempt_is_not_used(tmp_path):
    """A job that the scheduler starts again has the number of its first start."""
    run = Program(tmp_path, sys.executable, "-c", TELL, tmp_path)
    assert finished(run.start()) == [0, 0]
    before = json.loads((tmp_path / "0").read_text())[1]["MASTER_PORT"]
    late = run.start(absent=(0,))
    time.sleep(0.5)  # it has read the address of the first start by now
    assert finished([*late, *run.start(absent=(1,))]) == [0, 0]
    ports = {json.loads((tmp_path / str(rank)).read_text())[1]["MASTER_PORT"] for rank in range(2)}
    assert len(ports) == 1
    assert ports != {before}


@pytest.mark.parametrize(
    ("name", "content", "mode", "words", "way_out"),
    [
        ("no-such-program", None, 0, "there is no program 'no-such-program' on", "software.modules"),
        ("./missing.sh", None, 0, "there is no program './missing.sh' on", "give its path"),
        ("./plain.sh", "#!/bin/bash\n", 0o644, "'./plain.sh' cannot be started on", "chmod +x ./plain.sh"),
        ("./odd.sh", "no interpreter\n", 0o755, "Exec format error", "#!/bin/bash"),
        ("./gone.sh", "#!/no/such/interpreter\n", 0o755, "there is no program './gone.sh'", "give its path"),
    ],
)
def test_a_program_that_cannot_be_started_is_told(tmp_path, name, content, mode, words, way_out):
    if content is not None:
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(mode)
    run = Program(tmp_path, name, ranks=1)
    assert finished(run.start()) == [1]
    record = run.exits()[0]
    assert record.exception == "EngineError"
    assert words in record.reason
    assert way_out in run.log(0)


def test_a_folder_is_no_program(tmp_path):
    run = Program(tmp_path, str(tmp_path), ranks=1)
    assert finished(run.start()) == [1]
    assert f"'{tmp_path}' is a folder on" in run.exits()[0].reason
    assert "chmod" not in run.log(0)


def test_a_folder_that_is_gone_is_told(tmp_path):
    run = Program(tmp_path, "true", ranks=1)
    told = json.loads(run.folder.resolved.read_text())
    told["experiment"]["command"]["folder"] = str(tmp_path / "gone")
    run.folder.resolved.write_text(json.dumps(told))
    assert finished(run.start()) == [1]
    assert f"command.folder {tmp_path / 'gone'} is no folder on" in run.exits()[0].reason


def test_a_rank_loads_no_torch_of_its_own(tmp_path):
    """hpcdl's interpreter need not have it; the program's own may be another."""
    run = Program(tmp_path, "true", ranks=1)
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    process = subprocess.run(
        [sys.executable, "-m", "hpcdl.engine", run.folder.path],
        env=environment(PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}"), timeout=60, check=False,
    )  # fmt: skip
    assert process.returncode == 0


def test_where_the_ranks_of_a_program_are_is_written_down_and_nothing_refused(tmp_path):
    """The layout says two nodes, and all ranks are on one: a program of one's own may not mind.

    Of a run that went well ``launch-info`` said that it cannot run so, and ended with 5.
    """
    run = Program(tmp_path, script(tmp_path, "exit 0"), ranks=2, nodes=2)
    told = json.loads(run.folder.resolved.read_text())
    told["rendezvous"] = {"address": "interface", "interface": "lo", "timeout_seconds": 60}
    run.folder.resolved.write_text(json.dumps(told))
    assert finished(run.start(SLURMD_NODENAME="n1")) == [0, 0], run.log(0)
    placement = Placement.from_json(json.loads(run.folder.placement(1).read_text()))
    assert [(seat.rank, seat.host, seat.device) for seat in placement.seats] == [
        (0, "n1", None),
        (1, "n1", None),
    ]
    (finding,) = placement.findings
    assert (finding.kind, finding.host, finding.grave) == ("placement", "n1", False)
    assert f"pre-flight: n1: {finding.words}" in run.log(0)
