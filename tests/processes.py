"""Programs that tests start and do not wait for at once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A program that runs on beside a test, and no longer than the block: however that ends, nothing is left.

    One that was never waited for would fail whatever test runs when Python finds it.
    """
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()
