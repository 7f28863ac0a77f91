"""Where the ranks of an attempt found themselves, and how fast they are there: one file of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Nic:
    """A network interface that is up."""

    name: str
    gbits: float | None = None  # a second; None where the system does not say


@dataclass(frozen=True)
class Host:
    """One node, as its first rank found it."""

    name: str  # what the scheduler calls it
    hostname: str  # what it calls itself
    cpus: int  # hardware threads of the whole node
    nics: tuple[Nic, ...] = ()


@dataclass(frozen=True)
class Device:
    """What a rank computes on, if not on cores."""

    index: int  # among those that the rank sees
    name: str
    uuid: str = ""
    pci: str = ""  # domain:bus:device
    memory: int = 0  # bytes
    numa: int | None = None  # the NUMA node that it is near to

    @property
    def identity(self) -> str:
        """What no other device of the node has; empty where the runtime does not say."""
        return self.uuid or self.pci


@dataclass(frozen=True)
class Seat:
    """One rank and what it has. Seconds are the best of several tries."""

    rank: int
    local_rank: int
    host: str
    pid: int
    cpus: str  # hardware threads that it may run on, as ranges: 0-7,64-71
    cpu_count: int
    numa: tuple[int, ...] = ()  # NUMA nodes of those
    interface: str = ""  # the network interface that libraries are told to use
    devices: int | None = None  # how many it sees; None: it was not looked for any
    device: Device | None = None
    product_seconds: float | None = None  # of the matrix products that each rank did
    host_seconds: float | None = None  # of an all-reduce among the ranks of its node
    link_seconds: float | None = None  # of one with a rank of another node


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    kind: str  # device, cores, placement, nic, product, host, link
    host: str
    ranks: tuple[int, ...]
    words: str
    grave: bool = False  # whether the bundled engine does not go on so


@dataclass(frozen=True)
class Placement:
    """All ranks of one attempt."""

    attempt: int
    hosts: tuple[Host, ...]
    seats: tuple[Seat, ...]
    findings: tuple[Finding, ...] = ()
    product_flops: float | None = None  # of all products of a rank that were timed together
    all_reduce_seconds: float | None = None  # over all ranks
    all_reduce_bytes: int | None = None

    def with_findings(self, findings: Sequence[Finding]) -> Placement:
        """The same, with what else was found."""
        return replace(self, findings=(*self.findings, *findings))

    def flops_per_second(self, seat: Seat) -> float | None:
        """How fast a rank multiplied matrices, in FLOP/s; None where nobody measured it."""
        if not self.product_flops or not seat.product_seconds:
            return None
        return self.product_flops / seat.product_seconds

    def to_json(self) -> dict[str, Any]:
        """For a file; ``from_json`` reads it."""
        return asdict(self)

    @staticmethod
    def from_json(told: Mapping[str, Any]) -> Placement:
        """What ``to_json`` wrote.

        Raises:
            LookupError, TypeError, ValueError: it is something else.
        """
        return Placement(
            **{
                **told,
                "hosts": tuple(host_from(each) for each in told["hosts"]),
                "seats": tuple(seat_from(each) for each in told["seats"]),
                "findings": tuple(
                    Finding(**{**each, "ranks": tuple(each["ranks"])}) for each in told["findings"]
                ),
            }
        )


def host_from(told: Mapping[str, Any]) -> Host:
    """A node as JSON tells it."""
    return Host(**{**told, "nics": tuple(Nic(**nic) for nic in told["nics"])})


def seat_from(told: Mapping[str, Any]) -> Seat:
    """A rank as JSON tells it."""
    device = Device(**told["device"]) if told["device"] else None
    return Seat(**{**told, "numa": tuple(told["numa"]), "device": device})


def line(seat: Seat, host: Host) -> str:
    """A rank and its node as one line of text; ``from_line`` reads it."""
    return json.dumps([asdict(seat), asdict(host)])


def from_line(text: str) -> tuple[Seat, Host]:
    """What ``line`` wrote.

    Raises:
        LookupError, TypeError, ValueError: it is something else.
    """
    seat, host = json.loads(text)
    return seat_from(seat), host_from(host)
