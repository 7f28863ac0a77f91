"""``hpcdl site``: what is known of machines, whether it is right, and a first file for a new one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from survey.recorded import slurm_answers

from hpcdl.sites.load import load_site
from hpcdl.sites.site import Site
from hpcdl.spec import load

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of the user's own site files, looked at first."""
    folder = tmp_path / "mine" / "site_configs"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HPCDL_PATH", str(tmp_path / "mine"))
    return folder


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A stand-in that answers what a real slurmctld answered; ``say`` makes it answer something else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def say(script):
        (folder / "scontrol").write_text(f"#!/bin/bash\n{script}\n")
        (folder / "scontrol").chmod(0o755)

    for name, answer in zip(("config", "partition", "node"), slurm_answers("slurm-mixed"), strict=True):
        (tmp_path / name).write_text(answer)
    say(f'cat "{tmp_path}/$2"')
    return say


@pytest.fixture
def no_scheduler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))


# --- list and show -------------------------------------------------------------------------------


def test_list_counts_what_nobody_verified(hpcdl):
    rows = {row["name"]: row for row in json.loads(hpcdl("site", "list", "--json").out)}
    assert set(rows["perlmutter"]) == {
        "name", "scheduler", "device", "devices_per_node", "partitions", "status", "last_verified", "unverified",
    }  # fmt: skip
    assert rows["perlmutter"]["unverified"] > 0
    (line,) = [line for line in hpcdl("site", "list").out.splitlines() if line.startswith("perlmutter ")]
    cells = re.split(" {2,}", line)
    assert cells[5] == str(rows["perlmutter"]["unverified"])


def test_a_field_is_shown_with_its_line_its_source_and_its_file(hpcdl):
    shown = hpcdl("site", "show", "polaris", "--field", "partitions.debug.max_nodes").out
    file = ROOT / "site_configs" / "polaris.yaml"
    assert f"stands at    {file}:" in shown
    assert "source       docs/polaris" in shown
    facts = json.loads(hpcdl("site", "show", "polaris", "--field", "default_partition", "--json").out)
    assert (facts["value"], facts["given"], facts["files"][0]) == ("debug", True, str(file))
    assert facts["place"].startswith(f"{file}:")


def test_of_two_files_of_a_name_the_users_own_is_shown_to_hide_the_other(hpcdl, own):
    (own / "polaris.yaml").write_text(
        "name: polaris\nextends: polaris\npartitions: {debug: {max_nodes: 1}}\n"
    )
    bundled = ROOT / "site_configs" / "polaris.yaml"
    facts = json.loads(
        hpcdl("site", "show", "polaris", "--field", "partitions.debug.max_nodes", "--json").out
    )
    assert facts["place"] == f"{own / 'polaris.yaml'}:3:33"
    assert facts["files"][:2] == [str(own / "polaris.yaml"), str(bundled)]
    assert facts["hides"] == [str(bundled)]
    shown = hpcdl("site", "show", "polaris").out
    assert shown.startswith(f"# from {own / 'polaris.yaml'}\n# extends {bundled}\n")
    assert f"# hides {bundled}\n" in shown


def test_an_unknown_field_gets_the_closest_and_exit_code_2(hpcdl):
    result = hpcdl("site", "show", "polaris", "--field", "partitions.debug.max_node")
    assert result.code == 2
    assert "did you mean partitions.debug.max_nodes" in result.err


def test_the_whole_file_marks_what_nobody_verified_and_is_a_site_file(hpcdl):
    shown = hpcdl("site", "show", "perlmutter").out
    assert "    cores: 64  # unverified\n" in shown
    assert "    devices: 4\n" in shown
    again = Site.model_validate(yaml.safe_load(shown))
    assert again.model_dump() == load_site("perlmutter").model_dump()


# --- detect --------------------------------------------------------------------------------------


def test_detect_names_the_machine_and_why(hpcdl, monkeypatch):
    monkeypatch.setenv("NERSC_HOST", "perlmutter")
    shown = hpcdl("site", "detect").out
    assert shown.splitlines()[:2] == ["perlmutter", "  NERSC_HOST=perlmutter"]
    facts = json.loads(hpcdl("site", "detect", "--json").out)
    assert facts == {"site": "perlmutter", "because": ["NERSC_HOST=perlmutter"], "nearly": []}


def test_detect_on_no_known_machine_names_what_comes_near_and_the_way_out(hpcdl, monkeypatch):
    monkeypatch.delenv("NERSC_HOST", raising=False)
    monkeypatch.setattr("socket.gethostname", lambda: "login1")
    result = hpcdl("site", "detect")
    assert result.code == 2
    assert "host login1 is no machine that has a site file" in result.err
    assert "nearly perlmutter: host name login1 fits" in result.err
    assert "hpcdl site init" in result.err
    assert json.loads(hpcdl("site", "detect", "--json").out)["site"] is None


def test_site_auto_is_the_machine_this_is_and_says_so(hpcdl, tiny, monkeypatch):
    monkeypatch.setenv("NERSC_HOST", "perlmutter")
    result = hpcdl("submit", tiny, "--site", "auto", "--dry-run", "--set", "resources.account=m1")
    assert "#SBATCH --qos=debug" in result.out
    assert "note: site perlmutter: NERSC_HOST=perlmutter" in result.err
    monkeypatch.delenv("NERSC_HOST")
    assert hpcdl("plan", tiny, "--site", "auto").code == 2


# --- check ---------------------------------------------------------------------------------------


@pytest.fixture
def drafted(hpcdl, scontrol, tmp_path):
    path = tmp_path / "drafted.yaml"
    assert hpcdl("site", "init", "--output", path).code == 0
    return path


def test_shipped_sites_have_no_errors(hpcdl, no_scheduler):
    result = hpcdl("site", "check")
    assert (result.code, result.err) == (0, "")
    assert "perlmutter: 0 errors" in result.out


def test_a_wrong_key_is_a_finding_with_its_line_and_the_closest_name(hpcdl, tmp_path, no_scheduler):
    path = tmp_path / "wrong.yaml"
    path.write_text(
        (ROOT / "site_configs" / "generic-slurm.yaml").read_text().replace("gpu_request", "gpu_requst")
    )
    result = hpcdl("site", "check", path)
    assert result.code == 2
    assert (
        f"error: {path}:12:3: unknown key 'scheduler.gpu_requst'; did you mean 'gpu_request'?" in result.out
    )
    (report,) = json.loads(hpcdl("site", "check", path, "--json").out)
    assert report["findings"][0]["where"] == f"{path}:12:3"


def test_a_mask_that_names_a_reserved_core_is_an_error_at_its_line(hpcdl, tmp_path, no_scheduler):
    path = tmp_path / "wrong.yaml"
    sound = (ROOT / "site_configs" / "generic-slurm.yaml").read_text()
    path.write_text(
        sound.replace("launcher: srun", 'launcher: srun\n  cpu_bind: "mask_cpu:0x3,0xc,0x30,0xc0"').replace(
            "    cores: 64", "    cores: 64\n    reserved_cores: [4]"
        )
    )
    result = hpcdl("site", "check", path)
    assert result.code == 2
    assert f"error: {path}:16:13: the binding of rank 2 names reserved core 4 of nodes gpu" in result.out


def test_a_draft_differs_from_its_machine_in_nothing_wrong(hpcdl, drafted):
    result = hpcdl("site", "check", drafted, "--probe")
    assert result.code == 0
    assert "compared with summit-2, slurm 22.05.8, 17 nodes" in result.out


def test_planted_differences_are_found(hpcdl, drafted):
    drafted.write_text(drafted.read_text().replace("2-00:00:00", "4-00:00:00").replace("  big:", "  large:"))
    result = hpcdl("site", "check", drafted, "--probe", "--json")
    assert result.code == 2
    (report,) = json.loads(result.out)
    assert report["machine"] == {
        "name": "summit-2", "scheduler": "slurm", "version": "22.05.8", "nodes": 17, "max_array": 10001,
        "queues": ["gpu", "debug", "big", "cpu", "closed"],
    }  # fmt: skip
    errors = [finding for finding in report["findings"] if finding["severity"] == "error"]
    assert [(finding["field"], finding["about"]) for finding in errors] == [
        ("partitions.gpu.walltime", "machine"),
        ("partitions.large", "machine"),
    ]
    assert all(finding["where"].startswith(f"{drafted}:") and finding["hint"] for finding in errors)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo nonsense", "'nonsense'"),
        ("echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1", "Unable to contact"),
    ],
)
def test_a_scheduler_that_refuses_or_babbles_is_exit_code_4_after_what_the_file_says(
    hpcdl, drafted, scontrol, script, words
):
    scontrol(script)
    result = hpcdl("site", "check", drafted, "--probe")
    assert result.code == 4
    assert words in result.err
    assert "not compared with a machine: the scheduler gave no answer" in result.out


def test_a_scheduler_that_hangs_is_exit_code_4(hpcdl, drafted, scontrol, monkeypatch):
    scontrol("exec sleep 30")
    monkeypatch.setattr("hpcdl.survey.asking.ask.__defaults__", (0.3,))
    result = hpcdl("site", "check", drafted, "--probe")
    assert result.code == 4
    assert "'scontrol' gave no answer" in result.err


def test_another_machines_file_is_compared_only_when_asked_for(hpcdl, scontrol):
    assert "this is another, as far as its host name" in hpcdl("site", "check", "perlmutter").out
    result = hpcdl("site", "check", "perlmutter", "--probe")
    assert result.code == 2
    assert "no node has the feature" not in hpcdl("site", "check", "perlmutter", "--no-probe").out
    assert "max_nodes is 1536, but regular gives up to 4" in result.out


def test_probing_without_a_scheduler_is_exit_code_4(hpcdl, no_scheduler):
    result = hpcdl("site", "check", "perlmutter", "--probe")
    assert result.code == 4
    assert "'scontrol'" in result.err


# --- init ----------------------------------------------------------------------------------------


def test_init_prints_a_draft_that_is_a_site_file(hpcdl, scontrol):
    result = hpcdl("site", "init", "--name", "here")
    assert result.code == 0
    assert load.validate(load.parse(result.out, "draft"), Site).name == "here"
    assert result.out.startswith("# yaml-language-server: $schema=site.schema.json\n")


def test_init_without_a_scheduler_is_exit_code_4(hpcdl, no_scheduler):
    result = hpcdl("site", "init")
    assert result.code == 4
    assert "no scheduler's programs are on PATH here" in result.err


def test_init_overwrites_nothing_without_force(hpcdl, scontrol, tmp_path):
    path = tmp_path / "kept.yaml"
    path.write_text("precious")
    result = hpcdl("site", "init", "--output", path)
    assert (result.code, path.read_text()) == (2, "precious")
    assert "--force" in result.err
    assert hpcdl("site", "init", "--output", path, "--force").code == 0
    assert load_site(str(path)).name == "kept"


def test_a_refused_init_leaves_no_file(hpcdl, scontrol, tmp_path):
    scontrol("exit 1")
    assert hpcdl("site", "init", "--output", tmp_path / "new.yaml").code == 4
    assert not (tmp_path / "new.yaml").exists()


def test_a_name_that_no_site_may_have_is_refused_before_anything_is_asked(hpcdl, no_scheduler, tmp_path):
    """Once it was written into a file that no verb could read."""
    result = hpcdl("site", "init", "--name", "My_Cluster", "--output", tmp_path / "new.yaml")
    assert result.code == 2
    assert "--name 'My_Cluster' is no name of a site" in result.err
    assert "--name my-cluster" in result.err


def test_a_draft_that_would_be_no_site_file_is_not_written(hpcdl, scontrol, tmp_path):
    """Only what goes before a job was held against the schema once; the rest was written, and then refused."""
    nodes = tmp_path / "node"
    nodes.write_text(nodes.read_text().replace("CoreSpecCount=2", "CoreSpecCount=64"))
    result = hpcdl("site", "init", "--output", tmp_path / "new.yaml")
    assert result.code == 4
    assert "what the machine says of itself makes no site file: the draft:" in result.err
    assert "64 reserved cores leave none of 64" in result.err
    assert "copy generic-slurm" in result.err
    assert not (tmp_path / "new.yaml").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--partition", "gup"), "--partition gup is not among gpu, debug, big"),
        (("--account", "a b"), "'a b' may hold only"),
        (("--walltime", "1h"), "'1h' is not a walltime"),
    ],
)
def test_a_wrong_flag_of_the_job_is_refused_before_anything_is_submitted(hpcdl, scontrol, flags, words):
    result = hpcdl("site", "init", "--job", *flags)
    assert result.code == 2
    assert words in result.err


def test_a_job_that_is_refused_is_told_in_the_schedulers_words(hpcdl, scontrol, tmp_path):
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(
        "#!/bin/sh\necho 'sbatch: error: Batch job submission failed: Invalid account' >&2\nexit 1\n"
    )
    sbatch.chmod(0o755)
    result = hpcdl("site", "init", "--job", "--runs", tmp_path / "runs")
    assert result.code == 4
    assert "Invalid account" in result.err


# --- a shell completes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("hpcdl site show perl", "perlmutter"),
        ("hpcdl site check pol", "polaris"),
        ("hpcdl plan exp.yaml --site au", "auto"),
        ("hpcdl site init --scheduler s", "slurm"),
    ],
)
def test_a_shell_completes_names(typed, offered):
    environment = os.environ | {
        "_HPCDL_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "hpcdl"], env=environment, capture_output=True, text=True, check=False
    )
    assert offered in done.stdout.split()


def test_a_file_that_is_a_list_or_that_is_missing_is_told_plainly(hpcdl, tmp_path):
    file = tmp_path / "list.yaml"
    file.write_text("- a\n")
    told = hpcdl("site", "check", file)
    assert f"error: {file}:1:1: the file is ['a'], but must be a mapping" in told.out
    assert "error: there is no site 'nowhere'" in hpcdl("site", "check", "nowhere").out


def test_auto_is_the_machine_this_is_for_show_and_check_too(hpcdl):
    for verb in ("show", "check"):
        result = hpcdl("site", verb, "auto")
        assert result.code == 2
        assert "is no machine that has a site file" in result.err
