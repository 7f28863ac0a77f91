"""What happens to a rank before it trains is told: in its log, its exit record, or on the terminal."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from hpcdl.run_folder import RunFolder
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment, Rendezvous, ResolvedRun
from hpcdl.spec.job import Layout
from hpcdl.telemetry import read_exits

PACKAGE = Path(__file__).parents[2]
RANK_3 = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "HPCDL_ATTEMPT": "2"}


def engine(*arguments, **variables):
    launchers = ("PMI", "SLURM", "OMPI", "PALS", "FLUX", "RANK", "LOCAL_RANK", "WORLD_SIZE", "HPCDL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    return subprocess.run(
        [sys.executable, "-m", "hpcdl.engine", *map(str, arguments)],
        env=kept | {"PYTHONPATH": str(PACKAGE)} | variables,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A run of 8 ranks."""
    run = ResolvedRun(
        run="r",
        experiment=Experiment.model_validate(
            {
                "model": {"layers": 2, "hidden": 8, "heads": 2, "vocab": 256, "sequence": 8},
                "data": {"path": "corpus"},
            }
        ),
        decomposition=Decomposition(data=8),
        layout=Layout(nodes=1, ranks_per_node=8, cores_per_rank=1),
        device="cpu",
        device_per_rank=False,
        rendezvous=Rendezvous(address="loopback"),
        site="test",
        versions={},
    )
    (tmp_path / "resolved.json").write_text(run.model_dump_json())
    return RunFolder(tmp_path)


def test_a_rank_prints_to_its_log_and_leaves_its_record(folder):
    result = engine(folder.path, **RANK_3)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "")
    (record,) = read_exits(folder.exits(2))
    assert (record.rank, record.exception) == (3, "EngineError")
    assert "needs 8 ranks, but the environment started 4 (WORLD_SIZE=4)" in record.reason
    stamped, _, told = folder.rank_log(2, 3).read_text().partition(" ended by EngineError\n")
    assert abs(datetime.fromisoformat(stamped).timestamp() - record.time) < 1
    assert told.startswith(f"error: {record.reason}\n  ")


@pytest.mark.parametrize("content", [None, "{", json.dumps({"format": 1})])
def test_a_resolved_file_that_is_none_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "resolved.json").write_text(content)
    assert engine(tmp_path).returncode == 1
    (record,) = read_exits(RunFolder(tmp_path).exits(1))
    assert f"{tmp_path}/resolved.json cannot be used" in record.reason


def test_logs_of_a_repeated_attempt_are_kept(folder):
    engine(folder.path, **RANK_3)
    engine(folder.path, **RANK_3)
    assert folder.rank_log(2, 3).read_text().count("error:") == 2


TELLS = """
import json, os
def program():
    raise RuntimeError(json.dumps({name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")}))
"""


def test_models_of_ones_own_find_their_place_under_torchs_names_whatever_the_launcher(folder):
    """Here under MPICH's mpiexec, which sets none of them."""
    (folder.path / "tells.py").write_text(TELLS)
    told = json.loads(folder.resolved.read_text())
    told["experiment"] |= {"model": {"entry": "tells:program", "folder": str(folder.path)}}
    told["experiment"] |= {"data": {"source": "model"}}
    told["decomposition"]["data"] = told["layout"]["ranks_per_node"] = 1
    folder.resolved.write_text(json.dumps(told))
    engine(folder.path, PMI_RANK="0", MPI_LOCALRANKID="0", PMI_SIZE="1", OMP_NUM_THREADS="1")
    (record,) = read_exits(folder.exits(1))
    assert record.exception == "RuntimeError", folder.rank_log(1, 0).read_text()
    assert json.loads(record.reason) == {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
    }  # fmt: skip


def test_without_a_run_folder_the_usage_is_shown():
    result = engine()
    assert (result.returncode, result.stderr) == (1, "usage: python -m hpcdl.engine RUN_FOLDER\n")


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"HPCDL_ATTEMPT": "0"}, "HPCDL_ATTEMPT='0' is not the number of an attempt"),
        ({"RANK": "x", "LOCAL_RANK": "0"}, "RANK='x' is not a whole number"),
    ],
)
def test_what_has_no_log_yet_is_told_on_the_terminal(folder, variables, told):
    result = engine(folder.path, **variables)
    assert result.returncode == 1
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "logs").write_text("")
    result = engine(tmp_path)
    assert result.returncode == 1
    assert f"cannot write the log {tmp_path}/logs/attempt-1/rank-00000.log" in result.stderr


def test_nothing_heavy_is_loaded_before_output_is_redirected():
    """An import that fails must fail into the log."""
    loaded = "import sys, hpcdl.engine.__main__; print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules])"
    command = [sys.executable, "-c", loaded]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "[]\n"
