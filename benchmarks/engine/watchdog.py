"""What watching over a rank costs: processor time of a sign of life, and how often it is given.

usage: python benchmarks/engine/watchdog.py
"""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NoReturn

from hpcdl.engine.pulse import Pulse
from hpcdl.engine.ranks import Place
from hpcdl.engine.suspecting import pace
from hpcdl.engine.timeline import COMPUTE, PHASE, Timeline
from hpcdl.engine.watchdog import Watchdog
from hpcdl.errors import HpcdlError
from hpcdl.run_folder import RunFolder
from hpcdl.spec.experiment import Experiment
from hpcdl.telemetry import Blamed

BEATS = 200
ROUNDS = 5
RANKS = (8, 512, 4096, 32768)
USUAL = 600.0  # seconds that a rank may stand still, if nothing is asked for
MODEL = {"family": "gpt", "layers": 4, "hidden": 32, "heads": 4, "vocab": 256, "sequence": 32}


def never(_: HpcdlError, __: Blamed | None) -> NoReturn:
    """Nobody hangs here."""
    raise AssertionError


def seconds_a_beat(folder: RunFolder) -> float:
    """Processor time of the whole process, the threads that a beat starts included; the best round."""
    told = {"model": MODEL, "data": {"path": "x"}, "training": {"global_batch": 8, "steps": 1}}
    timeline = Timeline()
    files = partial(folder.heartbeat, 1)
    place = Place(0, 0, 8, "here")
    watchdog = Watchdog(Experiment.model_validate(told), place, files, Pulse(timeline), never)
    rounds = []
    with timeline.span(PHASE, "pipeline"), timeline.span(COMPUTE, "forward", microbatch=3):
        for _ in range(ROUNDS):
            start = time.process_time()
            for _ in range(BEATS):
                watchdog._beat(time.monotonic())  # noqa: SLF001 - what its thread does
            rounds.append((time.process_time() - start) / BEATS)
    watchdog.__exit__()
    return min(rounds)


def main() -> None:
    """A line for a beat, and one for each size of a run."""
    with tempfile.TemporaryDirectory() as path:
        beat = seconds_a_beat(RunFolder(Path(path)))
    print(f"{beat * 1e6:.0f} us of processor time a sign of life")
    for ranks in RANKS:
        every = pace(USUAL, ranks)
        files, share = ranks / every, beat / every
        print(f"{ranks:6d} ranks: every {every:.0f} s, {files:.0f} files/s, {share:.0e} of a core")


if __name__ == "__main__":
    main()
