"""Every line of a script knows who asked for it, and the place it names holds what asked for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from schedulers.sample import job, site

from hpcdl.schedulers.base import After, Array, Job, Origin
from hpcdl.schedulers.explain import Line, head
from hpcdl.schedulers.known import SCHEDULERS, scheduler
from hpcdl.schedulers.script import explained, render
from hpcdl.sites.load import available, load_site
from hpcdl.sites.site import Site
from hpcdl.spec import load

SPEC = """\
name: sample
resources:
  nodes: 2
  walltime: "00:10:00"
  queue: {queue}
  account: physics
environment:
  MINE: a b
"""
SHIPPED = [load_site(str(path)) for path in available().values()]
WAYS_IN = [
    (machine, queue)
    for machine in SHIPPED
    if machine.scheduler.kind in SCHEDULERS
    for queue in machine.partitions
]


def spec(tmp_path: Path, text: str = SPEC, queue: str = "batch") -> load.Document:
    path = tmp_path / "exp.yaml"
    path.write_text(text.replace("{queue}", queue))
    return load.read(path)


def asked(document: load.Document, folder: Path, machine: Site, **given) -> Job:
    """The job of an experiment file that says the same."""
    wanted = {**document.content.get("resources", {}), **given}
    return job(folder, machine, environment=document.content.get("environment"), **wanted)


def shown(place: str) -> str:
    """The text that stands at a place."""
    path, line, column = place.rsplit(":", 2)
    return Path(path).read_text().splitlines()[int(line) - 1][int(column) - 1 :]


def only(lines: list[Line], part: str) -> Line:
    (found,) = [line for line in lines if part in line.text]
    return found


@pytest.mark.parametrize(("machine", "queue"), WAYS_IN, ids=lambda value: getattr(value, "name", value))
def test_every_line_of_every_shipped_site_has_an_origin(tmp_path, machine, queue):
    document = spec(tmp_path, queue=queue)
    ranks = machine.node(queue).devices
    work = asked(document, tmp_path / "sample-0", machine, ranks_per_node=ranks)
    works = [work, replace(work, after=After("ok", ("72",)))]
    if scheduler(machine.scheduler.kind).ELEMENTS:
        works.append(replace(work, array=Array(tuple(tmp_path / f"sample-{index}" for index in range(3)))))
    for each in works:
        lines = explained(each, document)
        directives = [line.text for line in lines if line.kind == "directive"]
        prefix = scheduler(machine.scheduler.kind).PREFIX
        text = render(each)
        assert directives == [line for line in text.split("\n") if prefix and line.startswith(prefix)]
        after_setup = text.split("\nset -u\n", 1)[1].split("\n")
        own = ("export PATH=", "export PBS_NODEFILE=")  # how a script finds its programs and its hosts
        exports = [line for line in after_setup if line.startswith("export ") and not line.startswith(own)]
        assert len([line for line in lines if line.kind == "variable"]) == len(exports)
        for line in lines:
            assert line.origin.kind != "template", line
            assert line.place if line.origin.kind != "default" else line.note not in ("", "hpcdl's own"), line
            if line.origin.kind in ("spec", "site"):
                assert shown(line.place), line


def test_a_line_of_the_spec_names_the_place_of_its_value(tmp_path):
    document = spec(tmp_path)
    lines = explained(asked(document, tmp_path, site()), document)
    for part, key, text in (
        ("--nodes=2", "resources.nodes", "2"),
        ("--time=", "resources.walltime", '"00:10:00"'),
        ("--partition=batch", "resources.queue", "batch"),
        ("--account=physics", "resources.account", "physics"),
        ("export MINE", "environment.MINE", "a b"),
    ):
        line = only([each for each in lines if each.kind != "launch"], part)
        assert line.origin == Origin("spec", key)
        assert shown(line.place) == text


def test_a_value_from_the_command_line_names_its_flag(tmp_path):
    document = spec(tmp_path)
    load.override(document, ["resources.walltime=00:20:00", "environment={OTHER: x}"])
    load.assign(document, ("resources", "nodes"), 4, "--nodes 4")
    lines = explained(asked(document, tmp_path, site()), document)
    time, nodes = only(lines, "--time=0-00:20:00"), only(lines, "#SBATCH --nodes=4")
    assert (time.origin, time.place) == (
        Origin("flag", "resources.walltime"),
        "--set resources.walltime=00:20:00",
    )
    assert (nodes.origin.kind, nodes.place) == ("flag", "--nodes 4")
    assert only(lines, "export OTHER").place == "--set environment={OTHER: x}"


def test_what_nobody_asked_for_is_a_default_with_its_reason(tmp_path):
    document = spec(tmp_path, "name: sample\nresources: {nodes: 1}\n")
    lines = explained(asked(document, tmp_path, site()), document)
    assert only(lines, "--time=").note == "the experiment does not set resources.walltime"
    assert only(lines, "--no-requeue").note == "site sample does not set policy.requeue"
    assert only(lines, "--output=").note == "the log lies in the run folder"
    assert {only(lines, part).origin.kind for part in ("--time=", "--no-requeue", "--output=")} == {"default"}


MACHINE = """\
name: odd
identity:
  sources: {scheduler.directives: "the manual, 2026-01"}
  unverified: [partitions, environment]
scheduler:
  kind: slurm
  directives:
    - --exclusive
    - --comment=mine
launch: {launcher: srun}
partitions:
  a.b:
    node: n
    constraint: big&fast
    directives: [--reservation=r]
default_partition: a.b
environment:
  - {name: ALWAYS, value: "1", why: it must}
  - {name: OFTEN, value: "2", when: nodes > 1}
nodes:
  n:
    device: {kind: cpu, model: core, memory: 1GiB, memory_bandwidth: 1, peak_tflops: {fp32: 1}}
    devices: 4
    cores: 8
    host_memory: 8GiB
    links: {intra_node: 1}
"""


@pytest.fixture
def odd(tmp_path) -> Site:
    path = tmp_path / "odd.yaml"
    path.write_text(MACHINE)
    return load_site(str(path))


def test_a_line_of_the_site_names_its_place_its_source_and_its_doubt(tmp_path, odd):
    document = spec(tmp_path, queue="a.b")
    lines = explained(asked(document, tmp_path, odd), document)
    for part, text in (
        ("--exclusive", "--exclusive"),
        ("--comment=mine", "--comment=mine"),
        ("--reservation=r", "--reservation=r]"),
        ("--constraint=", "big&fast"),
        ("export OFTEN", '{name: OFTEN, value: "2", when: nodes > 1}'),
    ):
        line = only(lines, part)
        assert line.origin.kind == "site"
        assert shown(line.place) == text
    assert only(lines, "--comment=mine").note == "source: the manual, 2026-01"
    assert only(lines, "--constraint=").note == "unverified"
    assert only(lines, "export ALWAYS").note == "it must; unverified"
    assert only(lines, "export OFTEN").note == "when nodes > 1; unverified"


def test_the_launch_names_the_launcher(tmp_path, odd):
    document = spec(tmp_path, queue="a.b")
    (line,) = [each for each in explained(asked(document, tmp_path, odd), document) if each.kind == "launch"]
    assert line.text.startswith("srun ")
    assert shown(line.place) == "srun}"


def test_a_users_template_shows_as_what_it_adds_and_changes(tmp_path):
    (tmp_path / "templates").mkdir()
    own = tmp_path / "templates" / "slurm.sh.j2"
    own.write_text(
        "#!/bin/bash\n"
        "{% for line in directives %}\n"
        "{{ line | replace('--no-requeue', '--requeue') }}\n"
        "{% endfor %}\n"
        "#SBATCH --mail-type=END\n"
        "true\n"
        "#SBATCH --after-the-first-command\n"
    )
    document, environment = spec(tmp_path), {"HPCDL_PATH": str(tmp_path), "HOME": "/nonexistent"}
    lines = explained(asked(document, tmp_path, site()), document, environment)
    added, changed = only(lines, "--mail-type"), only(lines, "--requeue")
    assert added.origin == changed.origin == Origin("template", "slurm.sh.j2")
    assert (added.place, changed.place) == (f"{own}:5:1", str(own))
    assert only(lines, "#SBATCH --nodes=2").origin.kind == "spec"
    assert not [line for line in lines if "after-the-first" in line.text]


def test_the_head_ends_at_the_first_command():
    script = "#!/bin/bash\n#SBATCH -a\n# said\n\n#SBATCH -b\n#SBATCHED\ntrue\n#SBATCH -c\n"
    assert head(script, "#SBATCH") == ["#SBATCH -a", "#SBATCH -b"]
    assert head(script, "") == []
