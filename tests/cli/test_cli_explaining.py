"""``hpcdl submit --dry-run --explain``: what the screen and the JSON say of a script that is not submitted."""

import json

import pytest

ASK = ("--site", "perlmutter", "--set", "resources.account=m1", "--set", "training.precision=bf16")


def test_each_line_stands_above_who_asked_for_it(hpcdl, tiny):
    result = hpcdl("submit", tiny, *ASK, "--dry-run", "--explain", "--gpus", 2)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[lines.index("#SBATCH --account=m1") + 1] == (
        "    flag resources.account, --set resources.account=m1"
    )
    assert lines[lines.index("#SBATCH --nodes=1") + 1] == "    flag resources.gpus, --gpus 2"
    assert lines[lines.index("#SBATCH --time=0-00:05:00") + 1] == (
        f"    spec resources.walltime, {tiny}:7:32"
    )
    assert "perlmutter.yaml:" in lines[lines.index("#SBATCH --qos=debug") + 1]


def test_a_line_is_shown_as_it_will_stand_in_the_script(hpcdl, tiny):
    """``:x:`` was shown as a cross, ``[0:100:2]`` with a picture of 100, one backslash at the end as two."""
    values = {"FOO": "a:x:b", "SEL": "d[0:100:2]", "END": "one\\"}
    tiny.write_text(tiny.read_text() + f"environment: {json.dumps(values)}\n")
    script = hpcdl("submit", tiny, *ASK, "--dry-run").out.splitlines()
    exported = [line for line in script if any(f"export {name}=" in line for name in values)]
    assert len(exported) == 3
    assert set(exported) <= set(hpcdl("submit", tiny, *ASK, "--dry-run", "--explain").out.splitlines())


def test_json_has_one_object_a_line(hpcdl, tiny):
    result = hpcdl("submit", tiny, *ASK, "--dry-run", "--explain", "--json")
    told = json.loads(result.out)
    assert all(set(each) == {"line", "text", "origin", "key", "place", "note"} for each in told)
    assert {each["line"] for each in told} == {"directive", "variable", "launch"}
    script = hpcdl("submit", tiny, *ASK, "--dry-run").out
    shown = [each["text"] for each in told if each["line"] == "directive"]
    assert shown == [line for line in script.splitlines() if line.startswith("#SBATCH")]


def test_a_dry_run_writes_nothing_and_prints_nothing_but_the_script(hpcdl, tiny):
    result = hpcdl("submit", tiny, *ASK, "--dry-run")
    assert result.out.startswith("#!/bin/bash\n#SBATCH --job-name=dry-run\n")
    assert not (tiny.parent / "runs").exists()


def test_a_dry_run_of_an_array_shows_its_elements(hpcdl, tiny):
    result = hpcdl("submit", tiny, *ASK, "--dry-run", "--repeat", 4, "--at-once", 2)
    assert "#SBATCH --array=0-3%2\n" in result.out
    assert "#SBATCH --job-name=dry-run\n" in result.out
    assert "#SBATCH --output=../RUN-%a/logs/attempt-1/job.log\n" in result.out
    assert f'hpcdl_folder={tiny.parent}/runs/RUN-"${{SLURM_ARRAY_TASK_ID:?}}"\n' in result.out


def test_a_script_that_is_submitted_is_not_explained(hpcdl, tiny):
    result = hpcdl("submit", tiny, "--explain")
    assert result.code == 2
    assert "add --dry-run" in result.err
    assert not (tiny.parent / "runs").exists()


def test_following_several_runs_is_refused(hpcdl, tiny):
    result = hpcdl("submit", tiny, "--repeat", 2, "--follow")
    assert result.code == 2
    assert "--follow shows one run" in result.err
    assert not (tiny.parent / "runs").exists()


@pytest.mark.slow
def test_runs_of_a_repetition_are_listed_and_waited_for_together(hpcdl, tiny):
    told = json.loads(hpcdl("submit", tiny, "--repeat", 2, "--wait", "--json").out)
    assert [run["state"] for run in told] == ["completed", "completed"]
    listed = json.loads(hpcdl("list", "--json").out)
    assert [run["run"] for run in listed] == [run["run"] for run in told]
    assert listed[0]["last_loss"] != listed[1]["last_loss"]
    after = hpcdl("submit", tiny, "--after", f"{told[0]['run']},{told[1]['run']}:failed")
    assert after.code == 2
    assert "it is already over, and completed" in after.err
    assert hpcdl("submit", tiny, "--after", told[0]["run"], "--wait").code == 0


def test_a_script_is_not_printed_where_json_is_promised(hpcdl, tiny):
    result = hpcdl("submit", tiny, "--dry-run", "--json")
    assert (result.code, result.out) == (2, "")
    assert "add --explain" in result.err
