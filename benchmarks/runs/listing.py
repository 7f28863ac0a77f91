"""How long `hpcdl list` takes with many runs in one folder, each command a process of its own.

usage: python benchmarks/runs/listing.py [RUNS [STEPS]]

Four runs are really submitted here, on two ranks: two decompositions that are trained to their end, one that
is cancelled on its way, and a command that fails. The folder is then filled with copies of them under ids of
their own, which is what so many runs would have left.
"""

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 9
TRAINED = """name: {name}
model: {{family: gpt, layers: 2, hidden: 32, heads: 4, vocab: 256, sequence: 32}}
data: {{source: text, path: corpus.txt}}
training: {{global_batch: 8, steps: {steps}, precision: fp32, optimizer: {{lr: 1.0e-2}}}}
parallelism: {parallelism}
checkpoint: {{every: 100, keep: 1}}
resources: {{gpus: 2, walltime: "00:10:00"}}
"""
FAILING = """name: fails
command: [sh, -c, "echo about to fail; exit 7"]
resources: {gpus: 2, walltime: "00:05:00"}
"""


def hpcdl(*arguments: object) -> subprocess.CompletedProcess[str]:
    """One command, as a process."""
    command = [sys.executable, "-m", "hpcdl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def make(folder: Path, steps: int) -> list[Path]:
    """Run folders of runs that are over."""
    (folder / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    done = {"steps": steps, "parallelism": "{data: 2}"}
    texts = {
        "data": TRAINED.format(name="data", **done),
        "stages": TRAINED.format(name="stages", **done | {"parallelism": "{pipeline: 2}"}),
        "endless": TRAINED.format(name="endless", **done | {"steps": 10**6}),
        "fails": FAILING,
    }
    for name, text in texts.items():
        file = folder / f"{name}.yaml"
        file.write_text(text)
        answer = hpcdl("submit", file, "--json", "--runs", folder / "made")
        if answer.returncode:
            raise SystemExit(answer.stderr)
        run = Path(json.loads(answer.stdout)["path"])
        while recorded(run) < steps and not (run / "exits/attempt-1/job.json").exists():
            time.sleep(0.2)
        hpcdl("cancel", run)
        while state(run) in ("queued", "running"):
            time.sleep(0.2)
    return sorted((folder / "made").glob("*-*"))


def state(run: Path) -> str:
    """As the command line tells it."""
    return str(json.loads(hpcdl("status", run, "--json").stdout)["state"])


def recorded(run: Path) -> int:
    """Steps that rank 0 has recorded."""
    file = run / "metrics/rank-00000.jsonl"
    return len(file.read_bytes().splitlines()) if file.exists() else 0


def fill(runs: Path, made: list[Path], count: int) -> None:
    """Copy ``made`` in turn until there are ``count``."""
    for index in range(count):
        source = made[index % len(made)]
        target = runs / f"{source.name[:-4]}{index:04x}"
        shutil.copytree(source, target, symlinks=True)
        resolved = json.loads((target / "resolved.json").read_text())
        (target / "resolved.json").write_text(json.dumps(resolved | {"run": target.name}, indent=2))


def cost(*arguments: object) -> tuple[float, float]:
    """Seconds of the processor and of the wall that one whole process takes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    answer = hpcdl(*arguments)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if answer.returncode:
        raise SystemExit(answer.stderr)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    """Make the runs, time the commands in turn, print a row each."""
    given = [int(word) for word in sys.argv[1:]]
    count, steps = [*given, *(1000, 300)[len(given) :]]
    with tempfile.TemporaryDirectory(prefix="listing-") as place:
        folder = Path(place)
        made, runs, none = make(folder, steps), folder / "runs", folder / "none"
        fill(runs, made, count)
        rows = json.loads(hpcdl("list", "--json", "--runs", runs).stdout)
        assert len(rows) == count
        for run in made:
            print(f"{run.name}: {state(run)}, {recorded(run)} steps recorded by rank 0")
        print(f"{count} runs like these")
        commands = {
            "hpcdl list": ("list", "--runs", runs),
            "hpcdl list --json": ("list", "--json", "--runs", runs),
            "hpcdl status last": ("status", "last", "--runs", runs),
            "hpcdl list of no runs": ("list", "--runs", none),
        }
        times = [[cost(*command) for command in commands.values()] for _ in range(ROUNDS)]
        for name, column in zip(commands, zip(*times, strict=True), strict=True):
            processor, wall = (sorted(each) for each in zip(*column, strict=True))
            print(f"| `{name}` | {said(processor)} | {said(wall)} |")


def said(ordered: list[float]) -> str:
    """Median, fastest and slowest."""
    return f"{statistics.median(ordered):.2f} s ({ordered[0]:.2f} to {ordered[-1]:.2f})"


if __name__ == "__main__":
    main()
