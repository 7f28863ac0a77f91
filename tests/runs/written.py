"""Run folders with any past: prepared by the code that prepares runs, with records written as ranks write them."""

from __future__ import annotations

import os
from pathlib import Path

from hpcdl.run_folder import RunFolder
from hpcdl.telemetry import ExitFile, ExitRecord, Heartbeat, RunEvent, StepRecord, append, write_heartbeat
from hpcdl.workflow.studies import preparing, studying

TINY = Path(__file__).parents[1] / "tiny.yaml"
BEGAN = 1_800_000_000.0


def prepared(folder: Path, *settings: str, text: str | None = None, site: str = "local") -> RunFolder:
    """A run of the tiny experiment, or of another, that nobody has submitted."""
    (folder / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    (folder / "tiny.yaml").write_text(text or TINY.read_text())
    study = studying.study(studying.Request(folder / "tiny.yaml", site, settings))
    (made,) = preparing.prepare(study, folder / "runs")
    return made


def lived(folder: RunFolder, number: int, begin: float, end: float, state: str) -> None:
    """An attempt that waited ten seconds, ran, and ended in ``state``; times are seconds after the first."""
    for kind, when, detail in (
        ("submitted", begin - 10, {"job_id": str(70 + number)}),
        ("observed", begin, {"state": "running"}),
        ("observed", end + 5, {"state": state, "exit_code": 0 if state == "completed" else 1}),
    ):
        append(folder.launcher_events, RunEvent(kind, BEGAN + when, number, detail))
    append(folder.engine_events, RunEvent("started", BEGAN + begin, number, {"ranks": 2}))
    if state == "running":
        return
    code = 0 if state in ("completed", "paused") else 1
    folder.exits(number).mkdir(parents=True, exist_ok=True)
    folder.job_exit(number).write_text(f'{{"exit_code": {code}}}\n')
    os.utime(folder.job_exit(number), (BEGAN + end, BEGAN + end))
    for rank in range(2):
        ExitFile(folder.rank_exit(number, rank)).write(ExitRecord(rank, f"n{rank}", BEGAN + end, code))


def trained(
    folder: RunFolder,
    losses: list[float],
    first: int = 1,
    begin: float = 0.0,
    *,
    tokens: int = 256,
    attempt: int = 1,
    slower: float = 1.0,
) -> None:
    """A step record a second for each loss, of both ranks; the time of a step may be ``slower`` as long."""
    for rank in range(2):
        shares = {"compute": 0.3, "idle": 0.1 * rank, "all_reduce": 0.1, "other": 0.1 - 0.1 * rank}
        for place, loss in enumerate(losses):
            append(
                folder.rank_metrics(rank),
                StepRecord(
                    first + place, loss, tokens, 0.5 * slower, 2.0 * tokens / slower, grad_norm=1.0, learning_rate=1e-2,
                    time=BEGAN + begin + 2 + place, mfu=0.25, memory_peak=2**30 * (rank + 1),
                    seconds={name: slower * share for name, share in shares.items()}, attempt=attempt,
                ),
            )  # fmt: skip


def chained(folder: Path) -> RunFolder:
    """A run of two attempts: paused after step 20, repeated from 16 on, and completed with 40."""
    run = prepared(folder)
    lived(run, 1, 0, 30, "paused")
    trained(run, [5 - 0.1 * step for step in range(1, 21)])
    lived(run, 2, 100, 140, "completed")
    trained(run, [5 - 0.1 * step for step in range(16, 41)], first=16, begin=100, attempt=2)
    return run


def signed(folder: RunFolder, attempt: int, sign: Heartbeat) -> Path:
    """The file of a sign of life that a rank left."""
    path = folder.heartbeat(attempt, sign.rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_heartbeat(path, sign)
    return path
