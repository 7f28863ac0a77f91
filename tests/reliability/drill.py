"""One run to which something happens: started, disturbed, looked at, and brought to its end."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.slurm import step_daemon
from processes import running
from reliability.rows import Row

from hpcdl.errors import SchedulerError
from hpcdl.run_folder import RunFolder
from hpcdl.runs import store
from hpcdl.runs.failures.diagnosis import diagnose
from hpcdl.runs.record import RunState, attempts
from hpcdl.telemetry import RunEvent, StepRecord, read, read_exits
from hpcdl.workflow.states import following

STEPS, EVERY, HELD = 12, 3, 7
"""A run has so many steps, saves itself after every third, and is held in the step after the seventh."""

SPEC = """
name: drill
model: {{entry: "trainee:program", arguments: {{control: {control}}}}}
training: {{global_batch: 8, steps: 12, precision: fp32, optimizer: {{lr: 1.0e-2}}}}
parallelism: {{data: {ranks}, microbatch: {share}}}
resources: {{gpus: {ranks}, nodes: {nodes}, walltime: "00:30:00"}}
checkpoint: {{every: 3}}
"""
PATIENCE_S = 400.0


class Drill:
    """One run, and what is known of it.

    Args:
        place: an empty folder for the experiment and its run.
        variables: under which ``hpcdl`` finds the scheduler and its site.
        ranks: how many, on two nodes.
    """

    def __init__(self, place: Path, variables: dict[str, str], ranks: int = 2, nodes: int = 2) -> None:
        self.control, self.runs, self.ranks = place / "control", place / "runs", ranks
        self.control.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("trainee.py"), place)
        self.spec = place / "drill.yaml"
        self.spec.write_text(SPEC.format(control=self.control, ranks=ranks, nodes=nodes, share=8 // ranks))
        self.variables = variables | {"HPCDL_RUNS": str(self.runs)}
        self.shape: tuple[str, ...] = ()  # settings of which its curve may depend
        self.clock = ""  # of the node where commands are typed, against this machine's: +5m
        self.folder = RunFolder(place)
        self.seen: list[str] = []  # what was reported: state, who, exit code, cause
        self.done = 0  # steps, by then

    def hpcdl(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Type a command."""
        clock = ["faketime", "-f", self.clock] if self.clock else []
        command = [*clock, sys.executable, "-m", "hpcdl", *map(str, arguments)]
        return subprocess.run(
            command, env=os.environ | self.variables, capture_output=True, text=True, timeout=200, check=False
        )

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, (
                f"{what} did not happen within {PATIENCE_S:.0f} s\n{self.last_words()}"
            )
            time.sleep(0.1)

    def last_words(self) -> str:
        """How it stands, and the ends of its logs."""
        logs = sorted(self.folder.path.glob("logs/*/*.log"))
        return "\n".join([str(self.status()), *(f"{log}\n{log.read_text()[-2000:]}" for log in logs)])

    # --- before

    def submit(self, *settings: str) -> None:
        """Submit it; it will be held in its eighth step."""
        self.hold()
        wanted = [word for setting in (*self.shape, *settings) for word in ("--set", setting)]
        answer = self.hpcdl("submit", self.spec, *wanted, "--json")
        assert answer.returncode == 0, answer.stderr
        self.folder = RunFolder(Path(json.loads(answer.stdout)["path"]))

    def submit_in_vain(self, words: str) -> None:
        """Submit it to a scheduler that is away."""
        answer = self.hpcdl("submit", self.spec)
        assert answer.returncode == 4
        assert words in answer.stderr
        (path,) = self.runs.glob("drill-*")
        self.folder = RunFolder(path)

    def hold(self, after: int = HELD, seconds: float = 1e9) -> None:
        """After so many steps of a process, each takes so long, or until it is let go."""
        part = self.control / "pace.part"
        part.write_text(f"{after} {seconds}")
        part.rename(self.control / "pace")

    def let_go(self) -> None:
        (self.control / "pace").unlink(missing_ok=True)

    def trains(self, *settings: str) -> None:
        """Submit it and wait until every rank is in its eighth step, and the sixth is saved."""
        self.submit(*settings)
        self.reaches(HELD)
        self.wait(lambda: self.saved() == HELD - HELD % EVERY, "the checkpoint of step 6")

    def saves(self) -> None:
        """Submit it and wait until it is in its eighth step, and saves the sixth: rank 0 has, rank 1 does not end."""
        self.submit()
        self.hold(after=5)
        self.reaches(5)
        self.wait(lambda: self.saved() == EVERY, "the checkpoint of step 3")
        (self.control / "shard-1").touch()
        self.hold()
        self.reaches(HELD)
        self.wait(lambda: any(self.folder.checkpoints.glob(".6*/rank-00000.json")), "the part of rank 0")

    def reaches(self, step: int) -> None:
        """Wait until every rank has done a step."""

        def reached() -> bool:
            assert not self.over(), f"it ended before step {step}\n{self.last_words()}"
            return all(self.newest(rank) >= step for rank in range(self.ranks))

        self.wait(reached, f"step {step}")

    # --- what is done to it

    def order(self, rank: int, fault: str) -> None:
        """Have a rank do something in its step."""
        part = self.control / f"part-{rank}"
        part.write_text(fault)
        part.rename(self.control / f"rank-{rank}")

    def kill(self, *ranks: int) -> None:
        for rank in ranks:
            os.kill(self.process(rank), signal.SIGKILL)

    def process(self, rank: int) -> int:
        """The process of a rank."""
        (pid,) = self.processes_of(rank)
        return pid

    def processes_of(self, rank: int) -> list[int]:
        """The processes of a rank: none before it is started, one of each attempt that is not over."""
        return [pid for pid, variables in self.processes().items() if rank_of(variables) == rank]

    def move(self) -> None:
        """Rename the run folder."""
        self.folder = RunFolder(self.folder.path.rename(self.runs / "moved"))

    def kill_node(self, node: str) -> None:
        """Kill the ranks on a node, and what started them there."""
        ranks = [pid for pid, variables in self.processes().items() if variables["SLURMD_NODENAME"] == node]
        daemons = {daemon for pid in ranks for daemon in step_daemon(pid)}
        for pid in (*daemons, *ranks):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> dict[int, dict[str, str]]:
        """The ranks, with their variables."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if {"hpcdl.engine", str(self.folder.path)} <= set(words) and "python" in words[0]:
                    pairs = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                    found[int(entry.name)] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        return found

    def first_is_gone(self) -> bool:
        """Whether no rank of the first attempt is left; one that is let go may still come to its last step."""
        return all(variables.get("HPCDL_ATTEMPT") != "1" for variables in self.processes().values())

    def outlast_answers(self) -> None:
        """Wait until what the scheduler last said is too old to be told again."""
        time.sleep(following.site_of(self.folder).scheduler.poll_seconds)

    # --- what is seen

    def records(self, rank: int = 0) -> list[StepRecord]:
        """All that a rank wrote, repeated steps too."""
        return read(self.folder.rank_metrics(rank), StepRecord)

    def newest(self, rank: int = 0) -> int:
        """The last step that a rank did."""
        return max((record.step for record in self.records(rank)), default=0)

    def saved(self) -> int:
        """The newest checkpoint."""
        folder = self.folder.checkpoints
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return max((int(name) for name in names if name.isdigit()), default=0)

    def events(self, kind: str) -> list[RunEvent]:
        return [event for event in read(self.folder.engine_events, RunEvent) if event.kind == kind]

    def over(self) -> bool:
        """Whether it is, as who watches it sees."""
        if self.clock:
            return self.status()["state"] not in ("queued", "running")
        return self.state().over

    def first_to_end(self) -> int:
        """The rank of the newest attempt whose record is the earliest."""
        exits = read_exits(self.folder.exits(store.current(self.folder).number))
        return min(exits, key=lambda record: record.time).rank

    def state(self) -> RunState:
        """Of the run; as last seen, where nobody answers."""
        try:
            return following.refresh([self.folder])[0].state
        except SchedulerError:
            return store.current(self.folder).state

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.hpcdl("status", self.folder.path, "--json").stdout)
        return told

    def job_id(self) -> str:
        return (store.current(self.folder).job_id or "").partition(";")[0]

    def reports(self, state: str, **expected: Any) -> dict[str, Any]:
        """Wait until the run is over; it must be told so, as ``stands`` has it."""
        self.wait(self.over, f"the end: {state}")
        return self.stands(state, **expected)

    def stands(self, state: str, **expected: Any) -> dict[str, Any]:
        """The run must be told to stand so now: its state, and who, exit_code and cause, if any."""
        told = self.status()
        culprit = told["first_failure"] or {}
        found = {
            "who": culprit.get("rank"),
            "exit_code": told["attempts"][-1]["exit_code"],
            "cause": told["cause"] and told["cause"]["kind"],
        }
        assert (told["state"], found) == (state, dict.fromkeys(found) | expected), told
        self._saw(state, found)
        self.done = self.newest()
        return told

    def _saw(self, state: str, found: dict[str, Any]) -> None:
        who = "" if found["who"] is None else f"rank {found['who']}"
        code = "" if found["exit_code"] is None else str(found["exit_code"])
        self.seen = [state, who, code, found["cause"] or ""]

    # --- how it goes on

    def resumes(self, *, lost: int) -> Row:
        """Submit it again by hand: so many steps are done again, and the curve is the undisturbed one."""
        self.undo()
        answer = self.hpcdl("resume", self.folder.path)
        assert answer.returncode == 0, answer.stderr
        return self.completes(lost=lost, then="`hpcdl resume`")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Somebody follows its logs to the end of all its attempts."""
        command = [sys.executable, "-m", "hpcdl", "logs", str(self.folder.path), "--follow"]
        with running(command, env=os.environ | self.variables, stdout=subprocess.DEVNULL) as watcher:
            yield
            assert watcher.wait(PATIENCE_S) == 0

    def undo(self) -> None:
        """No more faults, and no more waiting."""
        for path in self.control.iterdir():
            path.unlink()

    def goes_on(self, state: str, *, lost: int, then: str, **expected: Any) -> Row:
        """It goes on without a word of anybody after an attempt that ended so, as ``reports`` has it."""
        row = self.completes(lost=lost, then=then)
        first = attempts(store.events(self.folder))[0]
        told = diagnose(self.folder, first)
        found = {
            "who": told.culprit and told.culprit.rank,
            "exit_code": first.exit_code,
            "cause": told.cause and told.cause.kind,
        }
        assert (first.state.value, found) == (state, dict.fromkeys(found) | expected), first
        self._saw(state, found)
        self.done = self.first_came_to()
        return replace(
            row,
            **dict(zip(("state", "who", "exit_code", "cause"), self.seen, strict=True)),
            lost=f"{lost} of {self.done}",
        )

    def first_came_to(self) -> int:
        """The last step that the first attempt did."""
        later = [event.time for event in self.events("started") if event.attempt > 1]
        steps = [record.step for record in self.records() if record.time < min(later, default=math.inf)]
        return max(steps, default=0)

    def completes(self, *, lost: int = 0, then: str) -> Row:
        """Let it come to its end, with the curve of a run to which nothing happened."""
        self.let_go()
        self.wait(self.completed, "the end")
        curve = undisturbed(self.ranks, *self.shape)
        for rank in range(self.ranks):
            exact = [(record.step, record.loss.hex()) for record in self.records(rank)]
            assert set(exact) == curve, f"rank {rank}"
        assert self.repeated() == lost, [record.step for record in self.records()]
        if not self.seen:
            self.seen, self.done = ["completed", "", "0", ""], STEPS
        return Row(*self.seen, f"{lost} of {self.done}", f"{then}, same curve")

    def completed(self) -> bool:
        """Whether it has; it must not end otherwise, unless it goes on by itself."""
        state = self.state()
        assert state not in (RunState.FAILED, RunState.CANCELLED, RunState.LOST), self.last_words()
        return state is RunState.COMPLETED

    def repeated(self) -> int:
        """How many steps were done more than once."""
        steps = [record.step for record in self.records()]
        return len(steps) - len(set(steps))


@cache
def undisturbed(ranks: int, *shape: str) -> set[tuple[int, str]]:
    """Every step and its loss, to the last bit, of such a run on this machine without a scheduler."""
    with TemporaryDirectory() as place:
        drill = Drill(Path(place), {"HPCDL_SITE": "local"}, ranks, nodes=1)
        drill.shape = shape
        drill.submit()
        drill.let_go()
        drill.wait(drill.completed, "the end")
        return {(record.step, record.loss.hex()) for record in drill.records()}


def rank_of(variables: dict[str, str]) -> int | None:
    own = variables.get("SLURM_PROCID", variables.get("RANK"))
    return None if own is None else int(own)
