"""How ranks find rank 0: it publishes an address of its own in the run folder, which all of them share.

A port chosen beforehand, on another node or from a job id, can be taken. Here nothing is chosen by anybody
but rank 0, on its own node. What an earlier try of the same attempt may have left in the file is recognised
by a key: who listens there must know the one that was published with the address, because the port may by
now belong to another run.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from hpcdl.engine.nodelist import allocated, host_of_first, suspects, whereabouts
from hpcdl.engine.ranks import Place
from hpcdl.errors import EngineError, RanksMissingError
from hpcdl.spec.experiment import Rendezvous
from hpcdl.telemetry import write_whole
from hpcdl.units import ranges

POLL_S = 0.05
_LOOKS_A_SECOND = 1000  # of all ranks together, as each is one more request to the file system
CONNECT_S = 5.0  # one try to reach a published address; it may be stale
_CHECK_ADDRESS = "check rendezvous.address, suffix and interface in the site file"
_SIOCGIFADDR = 0x8915  # asks Linux for an interface's IPv4 address, netdevice(7)

Connection = TypeVar("Connection")


@dataclass(frozen=True)
class Address:
    """Where rank 0 listens."""

    address: str
    port: int
    key: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True)
class Meeting:
    """What a rank knows before it has met the others.

    Args:
        place: this rank.
        rules: how rank 0 finds its address, and how long to wait.
        file: where rank 0 publishes it.
    """

    place: Place
    rules: Rendezvous
    file: Path
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float:
        """Until the others have waited long enough; negative from then on."""
        return self.began + self.rules.timeout_seconds - time.monotonic()

    def publish(self, port: int) -> Address:
        """Tell the others, as rank 0, that they find it at this port of its own address.

        Raises:
            EngineError: the site's rule gives no address that this node itself can look up.
        """
        mine = Address(own_address(self.rules), port)
        try:
            socket.getaddrinfo(mine.address, port)
        except OSError as error:
            raise EngineError(
                f"rank 0 runs on {self.place.host}, whose address by the site's rule "
                f"({words(self.rules)}) is {mine.address!r}; that name is not known there: "
                f"{error.strerror}",
                "correct rendezvous.suffix in the site file, or use address: interface",
            ) from None
        write_whole(self.file, json.dumps(asdict(mine)) + "\n")
        return mine

    def find(self, connect: Callable[[Address], Connection]) -> Connection:
        """Reach rank 0 where it says that it is, as soon as it says so.

        The script has made the file, empty: of a name that was looked for before it was there, NFS may say
        for a minute more that it is not.

        Args:
            connect: raises OSError or RuntimeError where the rank 0 of this key is not to be found.

        Raises:
            RanksMissingError: it said nothing in time.
            EngineError: it was not found where it says that it is.
        """
        reason = ""
        while self.seconds_left > 0:
            published = _read(self.file)
            if published is not None:
                try:
                    return connect(published)
                except (OSError, RuntimeError) as error:
                    reason = (
                        f"{self.file} says {published.address}:{published.port} ({words(self.rules)}), where "
                        f"rank 0 cannot be reached from {self.place.host}: {error}"
                    )
            time.sleep(max(POLL_S, self.place.world_size / _LOOKS_A_SECOND))
        if not reason:
            raise self._leaderless()
        raise EngineError(self._not_found(reason), _CHECK_ADDRESS)

    def _not_found(self, reason: str) -> str:
        return f"rank {self.place.rank} did not find rank 0 within {self.rules.timeout_seconds} s: {reason}"

    def _leaderless(self) -> RanksMissingError:
        """Rank 0 never came; as it cannot note that itself, the first rank of the second node does."""
        host = host_of_first(self.place, nodes := allocated())
        elsewhere = f" on {host}" if host else ""
        reason = f"{self.file} says nothing; rank 0 did not start{elsewhere}, or the run folder is not shared"
        notes = host is not None and self.place.rank * len(nodes) == self.place.world_size
        return RanksMissingError(
            self._not_found(reason), _CHECK_ADDRESS, {host: "rank 0 never came"} if host and notes else {}
        )

    def never_came(self, missing: Sequence[int], came: Mapping[int, str]) -> RanksMissingError:
        """What rank 0 says of ranks that did not find it in time.

        Args:
            missing: those.
            came: the nodes of the others, by rank.
        """
        where = whereabouts(missing, came, allocated())
        hosts = f" (on {', '.join(where)})" if where else ""
        return RanksMissingError(
            f"{len(missing)} of {self.place.world_size} ranks never came within "
            f"{self.rules.timeout_seconds} s: {', '.join(map(str, missing[:16]))}"
            f"{' …' if len(missing) > 16 else ''}{hosts}",
            "look at their logs; with transport mpi also check the --mpi= flag of srun",
            {
                host: f"rank{'s' if len(ranks) > 1 else ''} {ranges(ranks)} never came"
                for host, ranks in suspects(where, came.values()).items()
            },
        )

    def waited(self) -> EngineError:
        """What the other ranks say then."""
        return EngineError(
            f"rank {self.place.rank} waited {self.rules.timeout_seconds} s for the others in vain",
            "rank 0's log names the ranks that never came",
        )


def _read(file: Path) -> Address | None:
    """What the newest rank 0 published, or an earlier one; None as long as there is only the empty file."""
    try:
        return Address(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def choose_interface(rules: Rendezvous, environment: MutableMapping[str, str] = os.environ) -> None:
    """Tell Gloo and NCCL which network interface to use, unless the environment already does."""
    interface = "lo" if rules.address == "loopback" else rules.interface
    if interface:
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)
        environment.setdefault("NCCL_SOCKET_IFNAME", interface)


def words(rules: Rendezvous) -> str:
    """The site's rule for rank 0's address, as its file says it."""
    if rules.address == "interface":
        return f"rendezvous.interface: {rules.interface}"
    suffix = f", suffix: {rules.suffix}" if rules.address == "hostname" and rules.suffix else ""
    return f"rendezvous.address: {rules.address}{suffix}"


def own_address(rules: Rendezvous) -> str:
    """The address under which other nodes reach this one, by the site's rule.

    Raises:
        EngineError: the interface does not exist here.
    """
    if rules.address == "loopback":
        return "127.0.0.1"
    if rules.address == "hostname" or rules.interface is None:
        return socket.gethostname() + rules.suffix
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", rules.interface.encode()[:15])
        try:
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
        except OSError as error:
            known = ", ".join(name for _, name in socket.if_nameindex())
            raise EngineError(
                f"interface {rules.interface!r} has no IPv4 address on {socket.gethostname()}: "
                f"{error.strerror}",
                f"interfaces here: {known}; correct rendezvous.interface in the site file",
            ) from None
