"""The file and the log lines of what was found, and the nodes of ranks that never came."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hpcdl.errors import HangError, RanksMissingError
from hpcdl.placement import Finding, Placement, from_line
from hpcdl.run_folder import RunFolder
from hpcdl.telemetry import RunEvent, append, write_whole


@contextmanager
def noting_suspects(folder: RunFolder, attempt: int) -> Iterator[None]:
    """Note the nodes that may be to blame if ranks do not come; of all ranks one hears of them."""
    try:
        yield
    except (RanksMissingError, HangError) as error:
        for host, why in error.suspects.items():
            detail = {"host": host, "why": why}
            append(folder.engine_events, RunEvent("bad node", time.time(), attempt, detail))
        raise


def gathered(attempt: int, told: Sequence[str]) -> Placement:
    """What the ranks told, one line a rank, as one placement; each node as its first rank found it."""
    seats, hosts = zip(*map(from_line, told), strict=True)
    first = {host.name: host for host in reversed(hosts)}
    return Placement(attempt, tuple(reversed(first.values())), seats)


def write(folder: RunFolder, placement: Placement) -> None:
    """Write the file of the attempt, as rank 0."""
    write_whole(folder.placement(placement.attempt), json.dumps(placement.to_json()) + "\n")


def with_told(placement: Placement, findings: Sequence[Finding]) -> Placement:
    """The placement with findings, which are also said in rank 0's log."""
    for finding in findings:
        print(f"pre-flight: {finding.host}: {finding.words}", flush=True)  # noqa: T201 - the log
    return placement.with_findings(findings)
