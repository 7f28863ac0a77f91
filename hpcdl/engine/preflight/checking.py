"""The look at every node before the first step: gather, judge, tell everybody, refuse where it must be."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch.distributed.distributed_c10d import Store

from hpcdl.engine.ending import end_after_culprit
from hpcdl.engine.metrics import Recorder
from hpcdl.engine.preflight import observing, pairing
from hpcdl.engine.preflight.council import Council
from hpcdl.engine.preflight.devices import with_device
from hpcdl.engine.preflight.judging import Plan, Rule, Slow, crowded, laggards, misplaced, slow
from hpcdl.engine.preflight.pairing import Way
from hpcdl.engine.preflight.probing import Probe
from hpcdl.engine.preflight.recording import gathered, with_told, write
from hpcdl.engine.preflight.verdict import Verdict, verdict
from hpcdl.engine.pulse import PREFLIGHT
from hpcdl.engine.ranks import Place
from hpcdl.engine.timeline import PHASE, Timeline
from hpcdl.engine.transport.observed import Observed
from hpcdl.placement import Placement, Seat, line, seat_from
from hpcdl.run_folder import RunFolder
from hpcdl.spec.experiment import ResolvedRun


@dataclass(frozen=True)
class Subject:
    """What is looked at."""

    run: ResolvedRun
    folder: RunFolder
    place: Place
    recorder: Recorder

    @property
    def plan(self) -> Plan:
        """What the launcher was told."""
        run = self.run
        one_machine = run.rendezvous.address == "loopback"
        return Plan(run.layout, one_machine, run.device == "cuda", run.device_per_rank)


class Preflight:
    """One rank's part in it.

    Args:
        subject: the run and this rank.
        store: where the ranks met.
    """

    def __init__(self, subject: Subject, store: Store) -> None:
        self._subject, self._store = subject, store
        self._council = self._convened(Timeline())
        self._began = time.monotonic()
        self._placement = Placement(subject.recorder.attempt, (), ())  # known to rank 0 alone
        self._seat = observing.seat(subject.place)

    def _convened(self, timeline: Timeline) -> Council:
        subject = self._subject
        return Council(self._store, subject.place, timeline, subject.run.rendezvous.timeout_seconds)

    def look(self) -> None:
        """Refuse ranks that are not where they should be, or lack what they should have.

        Raises:
            BadNodeError, PlacementError: on the ranks concerned.
            PeerLostError: on the others.
            HangError: on rank 0; some did not come so far.
        """
        subject = self._subject
        if subject.plan.devices:
            index = 0 if subject.run.device_per_rank else subject.place.local_rank
            self._seat = with_device(self._seat, index)
        told = self._council.tell("seat", line(self._seat, observing.host(subject.place)))
        if told:
            placement = gathered(subject.recorder.attempt, told)
            self._placement = with_told(placement, misplaced(placement, subject.plan))
        self._judge("placement")

    def measure(self, transport: Observed, device: torch.device) -> None:
        """Time products and all-reduces; tell of nodes that are slow, or refuse them.

        Raises:
            BadNodeError: on the ranks of a slow node.
            PeerLostError: on the others.
            HangError: on rank 0; some did not come to the end.
        """
        self._council = self._convened(transport.timeline)
        with transport.timeline.span(PHASE, PREFLIGHT):
            self._measure(transport, device)
            transport.barrier()  # the store goes with rank 0's way out of here, and others may still read it
        transport.timeline.take()  # no step's time

    def _measure(self, transport: Observed, device: torch.device) -> None:
        """Who was slow is measured once more: what disturbed a node for a moment only is no finding."""
        run = self._subject.run
        ranks, precision = self._subject.place.world_size, run.experiment.training.precision
        probe = Probe(transport, device, precision, ranks)
        rule = Rule(run.experiment.health.slow_factor, probe.sizes.floor)
        first = self._timed(probe, pairing.first_ways(self._placement.seats), "first")
        self._placement = replace(probe.world(self._placement), seats=first or self._placement.seats)
        late = laggards(first, rule) if self._comparable() else {}
        suspect = any(late.values())
        again = pairing.second_ways(first, late.get("link", ())) if suspect else []
        second = self._timed(probe, again, "second")
        probe.close()
        if second:
            grave = run.experiment.health.preflight == "refuse"
            late = _both(late, laggards(second, rule, fleet=first))
            self._placement = with_told(self._placement, slow(first, late, rule, grave=grave))
        self._judge("speed")

    def _comparable(self) -> bool:
        """Whether times say something of nodes.

        Ranks that share cores slow each other down, and so do processes of one machine that compute on them.
        """
        plan = self._subject.plan
        alone = len(self._placement.hosts) < 2 and not plan.devices
        return not alone and not crowded(self._placement, plan)

    def _timed(self, probe: Probe, ways: Sequence[Way], name: str) -> tuple[Seat, ...]:
        """All ranks with their times, on rank 0; nothing is measured if it has no ways for them."""
        count = self._subject.place.world_size
        words = [json.dumps(asdict(way)) for way in ways] or [""] * count
        mine = self._council.hear_each(name, words)
        if not mine:
            return ()
        way = json.loads(mine)
        self._seat = probe.timed(self._seat, Way(tuple(way["together"]), tuple(way["partners"])), name)
        told = self._council.tell(f"{name} times", json.dumps(asdict(self._seat)))
        return tuple(seat_from(json.loads(each)) for each in told)

    def _judge(self, what: str) -> None:
        """Write down what is known; end this rank where the attempt cannot go on."""
        place, words = self._subject.place, ""
        if place.rank == 0:
            reached = verdict(self._placement)
            self._write(reached, last=what == "speed" or bool(reached.ranks))
            words = reached.to_line()
        told = Verdict.from_line(self._council.hear(f"verdict {what}", words))
        if not told.ranks:
            return
        self._council.await_heard()
        if place.rank in told.ranks:
            raise told.error(place.host)
        end_after_culprit(f"the pre-flight refused {told.words}", "the logs of those ranks say the same")

    def _write(self, reached: Verdict, *, last: bool) -> None:
        found, event = self._placement, self._subject.recorder.event
        write(self._subject.folder, found)
        if not last:
            return
        event(
            "placed",
            hosts=len(found.hosts),
            ranks=len(found.seats),
            findings=len(found.findings),
            all_reduce_seconds=found.all_reduce_seconds,
            seconds=time.monotonic() - self._began,
        )
        for host, why in reached.refused.items() if not reached.everywhere else ():
            event("bad node", host=host, why=why)
        for finding in found.findings:
            if finding.kind in ("product", "host", "link", "nic") and not finding.grave:
                event("slow node", host=finding.host, why=finding.words)


def _both(late: Slow, again: Slow) -> Slow:
    """Who was late twice, at the same."""
    return {kind: ranks & again.get(kind, frozenset()) for kind, ranks in late.items()}
