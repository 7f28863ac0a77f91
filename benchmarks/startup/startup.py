"""How long `hpcdl --help` takes from a cold process, beside other launchers on the same machine.

usage: python benchmarks/startup/startup.py ['PEER --help' ...]

Commands take turns, so a machine that slows down slows all of them; the median of each is printed with
its share of it that ours takes.
"""

import shlex
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 15


def seconds(command: list[str]) -> float:
    """Wall time of one whole process."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Time all commands in turn and print a row each."""
    ours = shutil.which("hpcdl", path=str(Path(sys.executable).parent)) or "hpcdl"
    commands = [[ours, "--help"], *map(shlex.split, sys.argv[1:])]
    for command in commands:
        seconds(command)  # fills the file cache
    times = [[seconds(command) for command in commands] for _ in range(ROUNDS)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    for command, median, column in zip(commands, medians, zip(*times, strict=True), strict=True):
        spread = f"{min(column) * 1e3:.0f} to {max(column) * 1e3:.0f}"
        share = f"ours takes {medians[0] / median:.2f} of it"
        print(f"{median * 1e3:7.0f} ms ({spread})  {share}  {shlex.join(command)}")


if __name__ == "__main__":
    main()
