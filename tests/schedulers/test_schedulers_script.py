"""The batch script: what a user writes reaches the ranks byte for byte, and none of it is run on the way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schedulers.sample import HOSTILE, HOSTILE_NAME, bash, head, interpreter, job, prepared, site

from hpcdl.errors import SchedulerError, SiteError, UsageError
from hpcdl.schedulers.known import SCHEDULERS
from hpcdl.schedulers.script import quote, render
from hpcdl.sites.access import SchedulerKind

KINDS = [
    ("slurm", "srun"),
    ("pbs", "mpiexec-pals"),
    ("pbs", "mpiexec-hydra"),
    ("pbs", "mpiexec-openmpi"),
    ("flux", "flux-run"),
    ("lsf", "jsrun"),
    ("lsf", "mpiexec-openmpi"),
    ("local", "fork"),
]
LOCAL = site("local", "fork", scheduler={"gpu_request": "none"}, nodes={"gpu": {"device": {"kind": "cpu"}}})
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@given(VALUES)
@settings(max_examples=60)
def test_quoted_text_is_one_word_of_bash_and_has_no_crlf(text):
    printed = subprocess.run(
        ["bash", "-c", f"printf %s {quote(text)}"], capture_output=True, check=True
    ).stdout
    assert printed == text.encode()
    assert "\r" not in quote(text)


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z][A-Z0-9]{3,8}", fullmatch=True).map("V_{}".format),
        VALUES,
        min_size=1,
        max_size=4,
    ),
    st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=20).map(
        "r{}".format
    ),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_environment_and_any_folder_arrive_in_every_local_rank(tmp_path_factory, environment, name):
    work = tmp_path_factory.mktemp("any")
    folder = prepared(work / name)
    body = f'for n in {" ".join(environment)}; do printf "%s=%s\\0" "$n" "${{!n}}"; done >{work}/seen-$RANK; printf %s "${{@: -1}}" >{work}/folder-$RANK'
    script = render(job(folder.path, LOCAL, python=interpreter(work, body), environment=environment))
    assert bash(script, folder.path).returncode == 0
    for rank in range(2):
        expected = "".join(f"{name}={value}\0" for name, value in environment.items()).encode()
        assert (work / f"seen-{rank}").read_bytes() == expected
        assert (work / f"folder-{rank}").read_bytes() == str(folder.path).encode()
    assert json.loads(folder.job_exit(1).read_text()) == {"exit_code": 0}


def test_hostile_text_arrives_in_every_local_rank_and_nothing_of_it_runs(tmp_path):
    folder = prepared(tmp_path / HOSTILE_NAME)
    body = f'for n in {" ".join(HOSTILE)}; do printf "%s=%s\\0" "$n" "${{!n}}"; done >"{tmp_path}/seen-$RANK"'
    script = render(job(folder.path, LOCAL, python=interpreter(tmp_path, body), environment=HOSTILE))
    assert bash(script, folder.path).returncode == 0
    for rank in range(2):
        seen = (tmp_path / f"seen-{rank}").read_bytes()
        assert seen == "".join(f"{name}={value}\0" for name, value in HOSTILE.items()).encode()
    assert not list(tmp_path.rglob("pwned*"))


def every_script(tmp_path: Path, kind: str, launcher: str) -> list[str]:
    """Scripts with every branch of a template."""
    rich = site(
        kind, launcher,
        launch={"device_order": [3, 2, 1, 0], "gpu_visibility": "one_per_task", "arguments": ["--verbose x"]},
        software={"modules": ["cuda/12", "a b"], "setup": ["export A=1"]},
        environment=[{"name": "NCCL_NET", "value": "AWS Libfabric"}],
    )  # fmt: skip
    folder = tmp_path / HOSTILE_NAME
    return [
        render(job(folder, site(kind, launcher))),
        render(job(folder, rich, environment=HOSTILE)),
        render(job(folder, rich, transport="mpi", ranks_per_node=4)),
    ]


@pytest.mark.parametrize(("kind", "launcher"), KINDS)
def test_script_is_sound_bash(tmp_path, kind, launcher):
    for script in every_script(tmp_path, kind, launcher):
        assert (
            subprocess.run(["bash", "-n"], input=script.encode(), capture_output=True, check=True).stderr
            == b""
        )


@pytest.mark.parametrize(("kind", "launcher"), KINDS)
def test_script_passes_shellcheck(tmp_path, kind, launcher):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    # SC1003, SC1112, SC2016: what stands in the user's text; SC1091: /etc/profile; SC2317: a trap's function.
    for script in every_script(tmp_path, kind, launcher):
        checked = subprocess.run(
            ["shellcheck", "--severity=info", "--exclude=SC1003,SC1091,SC1112,SC2016,SC2317", "-"],
            input=script.encode(), capture_output=True, check=False,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stdout.decode()


@pytest.mark.parametrize(("kind", "launcher"), KINDS[:-1])
def test_directives_stand_before_the_first_command(tmp_path, kind, launcher):
    """Schedulers read no further."""
    work = job(tmp_path, site(kind, launcher), environment=HOSTILE)
    wanted = head(SCHEDULERS[kind], work)
    assert len(wanted) >= 6
    assert render(work).split("\n")[: len(wanted) + 1] == ["#!/bin/bash", *wanted]


def test_rendering_is_repeatable(tmp_path):
    work = job(tmp_path, site(), environment=HOSTILE)
    assert render(work) == render(work)


def test_ranks_find_their_place_and_the_attempt_in_the_environment(tmp_path):
    folder = prepared(tmp_path / "run")
    python = interpreter(tmp_path, "echo $RANK $LOCAL_RANK $WORLD_SIZE $HPCDL_ATTEMPT $OMP_NUM_THREADS")
    assert bash(render(job(folder.path, LOCAL, ranks_per_node=3, python=python)), folder.path).returncode == 0
    assert sorted(folder.job_log(1).read_text().splitlines()) == [f"{n} {n} 3 1 1" for n in range(3)]


def test_srun_script_does_not_freeze_the_rank(tmp_path):
    """RANK exported in a batch script is the same in every task."""
    script = render(job(tmp_path, site()))
    assert "RANK" not in script.replace("OMP_NUM_THREADS", "")


def test_experiment_overrides_site_and_defaults(tmp_path):
    machine = site(
        "local", "fork", scheduler={"gpu_request": "none"},
        environment=[{"name": "OMP_NUM_THREADS", "value": "2"}, {"name": "A", "value": "theirs"}],
    )  # fmt: skip
    script = render(job(tmp_path, machine, environment={"A": "mine"}))
    assert "export OMP_NUM_THREADS=2\n" in script
    assert "export A=mine\n" in script
    assert "theirs" not in script


@pytest.mark.parametrize(("nodes", "present"), [(1, ["always", "single"]), (2, ["always", "several"])])
def test_site_variables_keep_their_condition(tmp_path, nodes, present):
    variables = [
        {"name": "X_1", "value": "always"},
        {"name": "X_2", "value": "single", "when": "nodes == 1"},
        {"name": "X_3", "value": "several", "when": "nodes > 1"},
    ]
    script = render(job(tmp_path, site(environment=variables), nodes=nodes))
    assert [value for value in ("always", "single", "several") if f"={value}\n" in script] == present


@pytest.mark.parametrize("name", ["UID", "RANDOM", "IFS", "RANK", "HPCDL_ATTEMPT", "BASH_VERSINFO"])
def test_variable_that_bash_or_hpcdl_sets_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match=f"environment.{name}"):
        render(job(tmp_path, site(), environment={name: "1"}))


def test_every_other_variable_that_bash_knows_can_be_set(tmp_path):
    """What the script's bash has set by itself is either refused or arrives."""
    known = subprocess.run(
        ["env", "-i", "bash", "-c", "compgen -v"], capture_output=True, text=True, check=True
    )
    folder, kept = prepared(tmp_path / "run"), []
    for name in known.stdout.split():
        try:
            render(job(folder.path, LOCAL, environment={name: "own value"}))
            kept.append(name)
        except UsageError:
            continue
    kept = [name for name in kept if name != "PATH"]
    python = str(tmp_path / "ranks")
    Path(python).write_text(
        f"#!{sys.executable}\nimport os\nfor pair in os.environ.items(): print(*pair, sep='=')\n"
    )
    Path(python).chmod(0o755)
    environment = dict.fromkeys(kept, "own value")
    script = render(job(folder.path, LOCAL, python=python, environment=environment, ranks_per_node=1))
    assert bash(script, folder.path).returncode == 0
    seen = folder.job_log(1).read_text()
    assert [name for name in kept if f"{name}=own value\n" not in seen] == []


def test_setup_may_use_variables_that_are_not_set(tmp_path):
    """Modules and conda's activate do; set -u comes after them."""
    machine = site(
        "local", "fork", scheduler={"gpu_request": "none"}, software={"setup": ['export SEEN="<$NOT_SET>"']}
    )
    folder = prepared(tmp_path / "run")
    script = render(job(folder.path, machine, python=interpreter(tmp_path, 'echo "$SEEN"'), ranks_per_node=1))
    assert bash(script, folder.path).returncode == 0
    assert folder.job_log(1).read_text() == "<>\n"


def test_module_that_cannot_be_loaded_ends_the_job_before_the_ranks_start(tmp_path):
    machine = site(
        "local", "fork", scheduler={"gpu_request": "none"},
        software={"setup": [], "modules": ["no-such-module-anywhere"]},
    )  # fmt: skip
    folder = prepared(tmp_path / "run")
    script = render(job(folder.path, machine, python=interpreter(tmp_path, f"touch {tmp_path}/ran")))
    assert bash(script, folder.path).returncode != 0
    assert json.loads(folder.job_exit(1).read_text())["exit_code"] != 0
    assert not (tmp_path / "ran").exists()


def test_users_own_template_comes_first(tmp_path):
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "slurm.sh.j2").write_text("mine: {{ run }} {{ folder | quote }}\n")
    script = render(job(Path("/a b"), site()), {"HPCDL_PATH": str(tmp_path), "HOME": "/nonexistent"})
    assert script == "mine: sample-1 '/a b'\n"


def test_a_job_makes_the_next_script_from_the_templates_of_its_own(tmp_path, monkeypatch):
    """PBS hands no environment on, and no job begins in the folder that a relative path is relative to."""
    monkeypatch.chdir(tmp_path)
    script = render(job(tmp_path / "run", site()), {"HPCDL_PATH": "mine o:/site", "HOME": "/nonexistent"})
    (line,) = [line for line in script.splitlines() if "HPCDL_PATH" in line]
    assert line.split("#")[0].strip() == f"export HPCDL_PATH='{tmp_path}/mine o:/site'"
    assert "HPCDL_PATH" not in render(job(tmp_path / "run", site()), {})


@pytest.mark.parametrize("text", ["{{ unknown }}", "{% if %}", '{% include "absent" %}'])
def test_users_template_that_is_wrong_is_named(tmp_path, text):
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "slurm.sh.j2").write_text(text)
    with pytest.raises(SiteError, match=r"template slurm.sh.j2"):
        render(job(tmp_path, site()), {"HPCDL_PATH": str(tmp_path)})


def test_every_scheduler_that_a_site_file_may_name_has_a_backend():
    assert set(SCHEDULERS) == set(get_args(SchedulerKind))


@pytest.mark.parametrize(("kind", "launcher"), KINDS)
def test_no_line_of_a_users_text_begins_a_line_of_the_script(tmp_path, kind, launcher):
    """bsub and flux batch read directives wherever they stand, also inside quotes."""
    text = "first\n#BSUB -q stolen\n# flux: --queue=stolen\n#SBATCH -p stolen\n#PBS -q stolen"
    folder = tmp_path / "run\n#BSUB -n 99\n# flux: -N99"
    script = render(job(folder, site(kind, launcher), environment={"LINES": text}))
    assert not [line for line in script.splitlines() if "stolen" in line and line.startswith("#")]
    assert not [line for line in script.splitlines() if "99" in line and line.startswith("#")]


@pytest.mark.parametrize(("kind", "launcher"), KINDS)
def test_queue_by_the_schedulers_own_name_is_the_one_of_that_key(tmp_path, kind, launcher):
    machine = site(kind, launcher, partitions={"big": {"node": "gpu", "name": "gpu_p", "directives": ["-x"]}})
    by_key, by_name = (render(job(tmp_path, machine, queue=queue)) for queue in ("big", "gpu_p"))
    assert by_key == by_name != render(job(tmp_path, machine)) or kind == "local"


@pytest.mark.parametrize(("kind", "launcher"), KINDS)
def test_run_id_that_is_no_word_is_refused_by_every_kind(tmp_path, kind, launcher):
    """It also stands in a comment, which a newline would end."""
    with pytest.raises(SchedulerError, match="cannot be a job name"):
        render(job(tmp_path, site(kind, launcher), run="a\ntouch x"))


def timed(folder, body, setup=(), **changes):
    """A script of a scheduler that warns of nothing, with a stand-in for its launcher."""
    machine = site(
        "pbs", "fork", scheduler={"gpu_request": "none"}, nodes={"gpu": {"device": {"kind": "cpu"}}},
        software={"setup": list(setup)},
    )  # fmt: skip
    return render(job(folder.path, machine, python=interpreter(folder.path.parent, body), **changes))


def test_script_asks_the_ranks_to_save_before_its_time_is_over(tmp_path):
    folder = prepared(tmp_path / HOSTILE_NAME)
    body = f"for i in {{1..80}}; do [ -s {quote(str(folder.request(1)))} ] && exit 0; sleep 0.1; done; exit 9"
    script = timed(folder, body, walltime="00:00:04", checkpoint={"before_limit_seconds": 3})
    assert bash(script, folder.path).returncode == 0
    assert folder.request(1).read_text() == "the walltime is nearly over\n"


@pytest.mark.parametrize("before", [None, "of an earlier start"])
def test_where_the_ranks_meet_is_a_file_before_they_look_for_it(tmp_path, before):
    """Ranks that came before rank 0 did not see what it wrote for up to a minute, on NFS."""
    folder = prepared(tmp_path / HOSTILE_NAME)
    meeting = folder.rendezvous(1)
    if before:
        meeting.parent.mkdir()
        meeting.write_text(before)
    body = f'[ "$(cat -- {quote(str(meeting))})" = {quote(before or "")} ] && [ -e {quote(str(meeting))} ]'
    assert bash(timed(folder, body), folder.path).returncode == 0


@pytest.mark.parametrize("seconds", [2, 4])
def test_what_setup_takes_of_the_walltime_is_not_forgotten(tmp_path, seconds):
    """The ranks ask within a second of their start; the warning was due 2 s after the script's."""
    folder = prepared(tmp_path / "run")
    body = f"for i in {{1..10}}; do [ -s {folder.request(1)} ] && exit 0; sleep 0.1; done; exit 9"
    checkpoint = {"before_limit_seconds": 58}
    script = timed(folder, body, [f"sleep {seconds}"], walltime="00:01:00", checkpoint=checkpoint)
    assert bash(script, folder.path).returncode == 0


def test_clock_of_a_script_ends_with_it(tmp_path):
    folder = prepared(tmp_path / "run")
    script = timed(folder, "exit 3", walltime="00:10:00")
    started = time.monotonic()
    assert bash(script, folder.path).returncode == 3  # its output is closed too, or this would wait
    assert time.monotonic() - started < 5
    assert folder.request(1).read_text() == ""


def test_no_clock_where_the_scheduler_warns_or_nobody_wants_it(tmp_path):
    assert "hpcdl_timer" not in render(job(tmp_path, site()))
    assert "hpcdl_timer" not in render(job(tmp_path, LOCAL))
    unasked = timed(prepared(tmp_path / "run"), "", checkpoint={"before_limit_seconds": 0})
    assert "hpcdl_timer" not in unasked


def test_script_that_gets_the_warning_writes_it_down_and_goes_on(tmp_path):
    folder = prepared(tmp_path / "run")
    body = f"read -r _ _ _ script _ </proc/$PPID/stat; kill -s USR1 $script; for i in {{1..50}}; do [ -s {folder.request(1)} ] && exit 0; sleep 0.1; done; exit 9"
    script = render(job(folder.path, LOCAL, python=interpreter(tmp_path, body), ranks_per_node=1))
    assert bash(script, folder.path).returncode == 0
