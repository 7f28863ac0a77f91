"""A thread in each rank that tells of its life, and ends a run that stands still.

It writes the rank's heartbeat. When the rank has stood still for longer than it may, it dumps the stacks of
all threads into the log. A rank that waits for nobody then ends by itself. One that waits looks at the others
(see ``inquest`` and ``suspecting``) and ends the run when it knows whom it waits for in vain.

Code that holds the interpreter stops this thread too. Its peers then see no sign of life; and a timer of
the interpreter's own, which this thread winds up with every beat, has printed the stacks. A rank that is
alone has no peers: there the walltime ends it.

A scheduler that cannot reach a node any more gives the job up, and what runs there may live on. So each rank
also looks whether a later attempt of its run has begun, and ends then: two may not write one run.
"""

from __future__ import annotations

import faulthandler
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import NoReturn, Self

from hpcdl.engine import stacks, suspecting
from hpcdl.engine.inquest import Inquest
from hpcdl.engine.post import Post
from hpcdl.engine.pulse import Moment, Pulse
from hpcdl.engine.ranks import Place
from hpcdl.engine.suspecting import Finding, Sight
from hpcdl.errors import HangError, HpcdlError, PeerLostError
from hpcdl.spec.experiment import Experiment
from hpcdl.telemetry import Blamed, Heartbeat, read_heartbeat, write_heartbeat

Fail = Callable[[HpcdlError, Blamed | None], NoReturn]
"""Ends this process with its record."""

# Beats after its patience until a rank ends that waits for nobody: the others dump their stacks meanwhile.
_OWN_BEATS = 2
_PEERS_BEATS = 4  # likewise of one that waits: whom it waits for speaks first
_LEFT = "the scheduler gave its job up, as it does with a node that it cannot reach; nothing is to be done"
_HINT = "the stacks of all threads are in the log of each rank; health.hang_seconds says how long to wait"


class Watchdog:
    """Watches over one rank while it trains; a context.

    Args:
        experiment: says how long a rank may stand still.
        place: this rank.
        post: where the attempt is watched from.
        pulse: what this rank is at.
        fail: ends this process.
    """

    def __init__(self, experiment: Experiment, place: Place, post: Post, pulse: Pulse, fail: Fail) -> None:
        self._asked = experiment.health.hang_seconds
        self._timeout = experiment.communication.timeout_seconds
        alone = place.world_size == 1 or experiment.communication.transport == "mpi"  # nobody gives up
        self._most = math.inf if alone else suspecting.OF_TIMEOUT * self._timeout
        self._place = place
        self._post = post
        self._pulse = pulse
        self._fail = fail
        self._interval = suspecting.pace(self._patience, place.world_size)
        self._beaten = time.monotonic()
        self._last = self._first_sign()
        self._inquest: Inquest | None = None
        self._timer = threading.Lock()
        self._stopped = threading.Event()

    def _first_sign(self) -> Heartbeat:
        moment = Moment(0, "", "", waiting=False, moves=-1)
        return Heartbeat(
            self._place.rank, self._place.host, beat=0, still=0.0, patience=None, **asdict(moment)
        )

    @property
    def _patience(self) -> float | None:
        """For how long this rank may stand still within a step."""
        return suspecting.patience(self._asked, self._pulse.step_seconds, self._timeout)

    def __enter__(self) -> Self:
        with suppress(OSError):  # whoever cannot write there shows no sign of life
            self._post.heartbeat(self._place.rank).parent.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._timer:
            self._stopped.set()
            faulthandler.cancel_dump_traceback_later()

    def _run(self) -> None:
        while True:
            self._beat(time.monotonic())
            if self._stopped.wait(self._interval):
                return

    def _beat(self, now: float) -> None:
        """Tell what this rank is at, and act if it has stood still for too long, or is on a lost post."""
        self._leave_to_successor()
        self._last, self._beaten = self._sign(self._pulse.now(), now - self._beaten), now
        self._wind()
        with suppress(OSError):  # a disk that is full for a while is no reason to end
            write_heartbeat(self._post.heartbeat(self._place.rank), self._last)
        if suspecting.is_stuck(self._last):
            self._suspect(self._last, now)
        else:
            self._inquest = None

    def _leave_to_successor(self) -> None:
        """End if another job goes on with the run: whoever submitted it took this one for dead."""
        later = self._post.successor()
        if later is not None:
            words = f"attempt {later} of the run has begun, although this rank was still alive"
            self._fail(PeerLostError(words, _LEFT), None)

    def _sign(self, moment: Moment, passed: float) -> Heartbeat:
        """What is told; a process that was stopped for a while has not stood still all that time."""
        last = self._last
        still = last.still + min(passed, 2 * self._interval) if moment.moves == last.moves else 0.0
        sign = replace(last, **asdict(moment), place=stacks.place(moment.phase))
        return replace(sign, beat=last.beat + 1, still=still, patience=self._room(moment.phase))

    def _room(self, phase: str) -> float | None:
        step_done = self._pulse.step_seconds is not None
        return suspecting.room(self._patience, phase, self._most, step_done=step_done)

    def _wind(self) -> None:
        """Have the stacks printed should this thread not run for so long.

        They only are: the timer also runs out while a scheduler has suspended the job.
        """
        seconds = self._patience
        with self._timer:
            if seconds is not None and not self._stopped.is_set():
                faulthandler.dump_traceback_later(seconds)

    def _suspect(self, mine: Heartbeat, now: float) -> None:
        if self._inquest is None:
            stacks.dump(f"no progress: {suspecting.standstill(mine)}")
            self._inquest = Inquest(
                self._place, lambda rank: read_heartbeat(self._post.heartbeat(rank)), self._longest_silence
            )
        beats = (mine.still - (mine.patience or 0.0)) / self._interval
        if mine.waiting and self._place.world_size > 1:
            others = self._inquest.look(now)
            if others is not None and beats > _PEERS_BEATS:
                self._judge([*others, Sight(mine.rank, mine, 0.0)])
        elif beats > _OWN_BEATS:
            self._fail(HangError(suspecting.standstill(mine), _HINT), None)

    @property
    def _longest_silence(self) -> float:
        return suspecting.silence(self._patience or 0.0, self._interval)

    def _judge(self, sights: list[Sight]) -> None:
        """End the run if it is known for whom it stands still."""
        verdict = suspecting.judge(sights, self._longest_silence)
        if verdict.finding is Finding.DEADLOCK:
            self._fail(HangError(suspecting.deadlock(sights), _HINT), None)
        elif verdict.finding is Finding.BLAME:
            lost = suspecting.blamed(verdict.culprits)
            words = f"waited in vain for rank {lost.rank} on {lost.host}: {lost.reason}"
            self._fail(PeerLostError(words, _HINT), lost)
