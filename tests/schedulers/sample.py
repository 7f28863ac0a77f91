"""Jobs to render scripts for, and what runs their scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hpcdl.run_folder import RunFolder
from hpcdl.schedulers.base import Job, Scheduler
from hpcdl.sites.site import Site
from hpcdl.spec.experiment import ResolvedRun

_NODE: dict[str, Any] = {
    "device": {
        "kind": "gpu",
        "model": "sample",
        "memory": "16GiB",
        "memory_bandwidth": 900,
        "peak_tflops": {"bf16": 100},
    },
    "devices": 4,
    "cores": 8,
    "host_memory": "64GiB",
    "links": {"intra_node": 50},
}


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def site(kind: str = "slurm", launcher: str = "srun", **changes: Any) -> Site:
    """A machine of four GPUs a node; ``changes`` are merged into it by section."""
    base = {
        "name": "sample",
        "scheduler": {"kind": kind, "gpu_request": "gpus-per-node"},
        "launch": {"launcher": launcher},
        "partitions": {"batch": {"node": "gpu"}},
        "default_partition": "batch",
        "nodes": {"gpu": _NODE},
    }
    return Site.model_validate(_merged(base, changes))


def job(
    folder: Path, machine: Site, *, nodes: int = 1, ranks_per_node: int = 2, python: str = sys.executable,
    environment: dict[str, str] | None = None, transport: str = "dist", run: str = "sample-1",
    checkpoint: dict[str, Any] | None = None, **resources: Any,
) -> Job:  # fmt: skip
    """A job of ``nodes`` × ``ranks_per_node`` ranks with one core each."""
    experiment = {
        "model": {"layers": 2, "hidden": 8, "heads": 2, "vocab": 256, "sequence": 8},
        "data": {"source": "stdlib"},
        "resources": {"nodes": nodes, **resources},
        "communication": {"transport": transport},
        "environment": environment or {},
        "checkpoint": checkpoint or {},
    }
    resolved = ResolvedRun.model_validate(
        {
            "run": run,
            "experiment": experiment,
            "decomposition": {"data": nodes * ranks_per_node},
            "layout": {"nodes": nodes, "ranks_per_node": ranks_per_node, "cores_per_rank": 1},
            "device": "cpu",
            "device_per_rank": False,
            "rendezvous": {},
            "site": machine.name,
            "versions": {},
        }
    )
    return Job(resolved, machine, folder, 1, python)


def head(backend: Scheduler, work: Job) -> list[str]:
    """The directives of a script, as its lines."""
    return [f"{backend.PREFIX} {directive.text}" for directive in backend.directives(work)]


def prepared(folder: Path) -> RunFolder:
    """The run folder with the folders that a launcher makes before it submits."""
    run = RunFolder(folder)
    run.logs(1).mkdir(parents=True)
    run.exits(1).mkdir(parents=True)
    run.request(1).parent.mkdir()
    run.request(1).touch()
    return run


def interpreter(folder: Path, body: str, verb: str = "exit 0") -> str:
    """A program that stands for the ranks' Python: called like it, and does ``body`` in bash.

    Where the script asks whether the run goes on (``-m hpcdl advance``), it does ``verb``.
    """
    path = folder / "interpreter"
    path.write_text(f'#!/bin/bash\n[ "$2" != hpcdl ] || {verb}\n{body}\n')
    path.chmod(0o755)
    return str(path)


def bash(script: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a rendered script as a scheduler would: by bash, from a file, in a plain environment."""
    path = folder / "job.sh"
    path.write_text(script, encoding="utf-8")
    plain = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    return subprocess.run(
        ["bash", str(path)],
        cwd=folder,
        env=plain,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )


HOSTILE_NAME = 'a run\'s "folder" $(touch pwned) `touch pwned2`; # & ünïcode 100%'
"""A folder name that is wrong everywhere a path is not quoted."""

HOSTILE = {
    "WORDS": "two  words\tand a tab",
    "QUOTES": 'it\'s a "quote" `touch pwned3`',
    "DOLLAR": "$HOME ${HOME} $(touch pwned4) $((1+1)) !!",
    "COMMAND": "; touch pwned5 & touch pwned6 | cat > pwned7",
    "LINES": "first\nsecond\r\nthird\n#SBATCH --nodes=99\nEOF\n",
    "BACKSLASH": "\\n \\\\ \\$HOME \\",
    "COMMA": "a,b=c,--export=NONE",
    "GLOB": "* ? [a-z] ~ {1..3}",
    "HASH": "#comment -t 3",
    "TEMPLATE": "{{ 7 * 7 }} {% for %} {# #}",
    "UNICODE": "größe 速度 🚀 \u202e",
    "CONTROL": "\x01\x1b[31m\x7f",
    "EMPTY": "",
    "DASH": "-n",
}
"""Values of variables that mean something to bash, sbatch, srun, qsub or jinja2."""
