"""What a submission says about variables, and what it keeps to itself."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

SECRET = "hf_5ecre7"


@pytest.fixture
def accepting(tmp_path, monkeypatch):
    """A machine whose sbatch takes every job, which then runs, and notes the environment it was called in."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, does in (
        ("sbatch", f"env >{tmp_path}/handed-on; echo 77"),
        ("squeue", "echo '77|RUNNING|-2|None'"),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{does}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    site = tmp_path / "mine.yaml"
    site.write_text(
        "extends: generic-slurm\nname: mine\nsoftware: {python: python3}\n"
        "environment: [{name: NCCL_PROTO, value: Simple, when: cuda >= 12}]\n"
        "scheduler: {preflight: false}\n"
    )
    return site


def test_a_variable_that_nobody_can_decide_about_is_told_once(hpcdl, tiny, accepting):
    submitted = hpcdl("submit", tiny, "--site", accepting)
    assert submitted.code == 0, submitted.err
    told = " ".join(submitted.err.split())
    assert told.count("NCCL_PROTO is left out: cuda >= 12 asks for a version that cannot be read here") == 1
    assert "mine.yaml:4:" in told
    shown = hpcdl("submit", tiny, "--site", accepting, "--dry-run")
    assert "NCCL_PROTO" in shown.err
    assert "NCCL_PROTO" not in shown.out


def test_a_secret_of_the_shell_is_handed_on_and_stands_in_no_file(
    hpcdl, tiny, accepting, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert hpcdl("submit", tiny, "--site", accepting).code == 0
    assert f"HF_TOKEN={SECRET}" in (tmp_path / "handed-on").read_text()
    (run,) = (tmp_path / "runs").iterdir()
    names = {path.name for path in run.iterdir()}
    assert {"resolved.json", "plan.json", "job.sh", "experiment.yaml", "events.launcher.jsonl"} <= names
    collected = tmp_path / "collected.tar.gz"
    assert hpcdl("collect", run, "--output", collected).code == 0
    with tarfile.open(collected) as archive:
        texts = [archive.extractfile(entry).read() for entry in archive if entry.isfile()]
    assert len(texts) >= 5
    texts += [path.read_bytes() for path in Path(run).rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in text for text in texts)
