"""``extends:`` copies the values of another file; each value remembers the file it was read in."""

import pytest

from hpcdl import resources
from hpcdl.errors import SiteError
from hpcdl.sites.load import available, lineage, load_site

BASE = """
name: base
identity: {facility: BASE, hostnames: [base.*], sources: {nodes: somewhere 2026}, unverified: [policy]}
scheduler: {kind: slurm, directives: [--exclusive]}
launch: {launcher: srun}
partitions: {short: {node: a}, long: {node: a}}
default_partition: short
nodes:
  a:
    device: {kind: gpu, model: NVIDIA V100, memory: 16GiB, memory_bandwidth: 900, peak_tflops: {fp16: 125}}
    devices: 4
    cores: 40
    host_memory: 256GiB
    links: {intra_node: 75}
"""


@pytest.fixture
def files(tmp_path):
    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return lambda name: load_site(str(tmp_path / f"{name}.yaml"))

    return write


def test_child_keeps_what_it_does_not_say(files):
    load = files(base=BASE, child="name: child\nextends: base\nnodes: {a: {device: {memory: 32GiB}}}\n")
    node = load("child").nodes["a"]
    assert (node.device.memory, node.device.model, node.devices) == ("32GiB", "NVIDIA V100", 4)
    assert load("base").nodes["a"].device.memory == "16GiB"


def test_null_takes_out_and_lists_are_replaced(files):
    child = "name: child\nextends: base\npartitions: {long: null}\nscheduler: {directives: [--mem=0]}\n"
    site = files(base=BASE, child=child)("child")
    assert list(site.partitions) == ["short"]
    assert site.scheduler.directives == ["--mem=0"]


def test_several_bases_are_laid_one_over_another(files):
    part = "identity: {unverified: [launch]}\nnodes: {b: {cores: 8}}\nscheduler: {directives: [--x]}\n"
    whole = BASE.replace("name: base", "name: base\nidentity: {}").replace(
        "identity: {facility", "# {facility"
    )
    load = files(base=whole, _part=part, child="name: child\nextends: [base, _part]\nnodes: {b: null}\n")
    site = load("child")
    assert site.nodes["a"].cores == 40
    assert site.scheduler.directives == ["--x"]
    assert site.identity.unverified == ["launch"]
    assert site.place("scheduler", "directives").split("/")[-1].startswith("_part.yaml:3:")


def test_how_the_base_is_recognised_is_not_inherited(files):
    identity = files(base=BASE, child="name: child\nextends: base\nidentity: {unverified: [network]}\n")(
        "child"
    ).identity
    assert identity.hostnames == []
    assert identity.facility is None
    assert identity.sources == {"nodes": "somewhere 2026"}
    assert identity.unverified == ["policy", "network"]


@pytest.mark.parametrize(
    ("base", "identity", "told"),
    [
        (BASE, "identity: foo", r"child.yaml:3:11: identity is 'foo', but must be a mapping"),
        (BASE, "identity: [foo]", r"child.yaml:3:11: identity is \['foo'\], but must be a mapping"),
        (BASE, "identity: {unverified: foo}", r"child.yaml:3:24: identity.unverified is 'foo', but must be a list"),
        (BASE, "identity: {unverified: [1]}", r"child.yaml:3:25: identity.unverified.1 is 1, but must be a valid string"),
        (BASE.replace("[policy]", "foo"), "", r"base.yaml:3:\d+: identity.unverified is 'foo', but must be a list"),
        ("identity: 5\n", "", r"base.yaml:1:11: identity is 5, but must be a mapping"),
        ("- a\n", "", r"base.yaml:1:1: the file is \['a'\], but must be a mapping"),
        ("~\n", "", r"base.yaml:1:1: the file is null, but must be a mapping"),
    ],
)  # fmt: skip
def test_wrong_identity_or_base_is_refused_at_its_place(files, base, identity, told):
    """Once it was a crash, and one such file among a user's broke every verb that looks at all of them."""
    load = files(base=base, child=f"name: child\nextends: base\n{identity}\n")
    with pytest.raises(SiteError, match=told):
        load("child")


@pytest.mark.parametrize("identity", ["identity:", "identity: null"])
def test_identity_left_empty_takes_out_what_is_said_of_the_base(files, identity):
    """Once it was a crash, as the doubts of the base were to be put back into it."""
    found = files(base=BASE, child=f"name: child\nextends: base\n{identity}\n")("child").identity
    assert (found.sources, found.unverified) == ({}, [])


def test_doubts_taken_out_are_those_of_the_base_alone(files):
    """``unverified: null`` did nothing once."""
    child = "name: child\nextends: base\nidentity: {unverified: null}\n"
    found = files(base=BASE, child=child)("child").identity
    assert (found.sources, found.unverified) == ({"nodes": "somewhere 2026"}, [])


def test_a_base_whose_name_no_file_can_have_is_missing(files):
    with pytest.raises(SiteError, match=r"child.yaml:2:10: '(xxx)+"):  # was a crash
        files(child=f"name: child\nextends: {'x' * 5000}\n")("child")


def test_every_doubt_knows_its_file_and_line(files, tmp_path):
    child = "name: child\nextends: base\nidentity:\n  unverified:\n    - network\n"
    site = files(base=BASE, child=child)("child")
    assert site.place("identity", "unverified", 0).startswith(f"{tmp_path}/base.yaml:3:")
    assert site.place("identity", "unverified", 1) == f"{tmp_path}/child.yaml:5:7"


def test_every_value_knows_its_file_and_line(files, tmp_path):
    child = "name: child\nextends: base\nnodes:\n  a:\n    cores: 44\n"
    site = files(base=BASE, child=child)("child")
    assert site.place("nodes", "a", "cores") == f"{tmp_path}/child.yaml:5:12"
    assert site.place("nodes", "a", "devices").startswith(f"{tmp_path}/base.yaml:11:")
    # What no file says stands where the thing around it stands.
    assert site.place("partitions", "short", "max_nodes").startswith(f"{tmp_path}/base.yaml:6:")


def test_wrong_inherited_value_is_told_where_it_was_read(files, tmp_path):
    load = files(base=BASE.replace("devices: 4", "devices: four"), child="name: child\nextends: base\n")
    with pytest.raises(SiteError, match=rf"{tmp_path}/base.yaml:11:14: nodes.a.devices is 'four'"):
        load("child")


def test_base_that_is_not_there_is_told_with_its_line(files, tmp_path):
    with pytest.raises(SiteError, match=rf"{tmp_path}/child.yaml:2:10: 'bsae' is not among the site files"):
        files(child="name: child\nextends: bsae\n")("child")


def test_base_that_is_nearly_there_is_guessed(files):
    with pytest.raises(
        SiteError, match=r"'perlmuter' is not among the site files; did you mean 'perlmutter'\?"
    ):
        files(child="name: child\nextends: perlmuter\n")("child")


def test_files_that_extend_each_other_are_refused(files):
    load = files(one="name: one\nextends: two\n", two="name: two\nextends: one\n")
    with pytest.raises(SiteError, match=r"'one' extends this file in its turn"):
        load("one")


def test_own_file_may_extend_the_bundled_one_of_its_name(files):
    site = files(perlmutter="name: perlmutter\nextends: perlmutter\nscheduler: {poll_seconds: 60}\n")(
        "perlmutter"
    )
    assert site.scheduler.poll_seconds == 60
    assert site.nodes == load_site(str(resources.bundled("site_configs") / "perlmutter.yaml")).nodes


def test_a_group_and_a_user_may_both_extend_the_bundled_file_of_one_name(tmp_path, monkeypatch):
    """The user's was found to extend the group's in its turn, as the first of its name that is not itself."""
    for folder, line in (("group", "poll_seconds: 60"), ("config/hpcdl", "max_array: 7")):
        file = tmp_path / folder / "site_configs" / "perlmutter.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(f"name: perlmutter\nextends: perlmutter\nscheduler: {{{line}}}\n")
    monkeypatch.setenv("HPCDL_PATH", str(tmp_path / "group"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    site = load_site("perlmutter")
    assert (site.scheduler.poll_seconds, site.scheduler.max_array) == (60, 7)
    assert [path.parents[1].name for path in lineage("perlmutter")[:2]] == ["group", "hpcdl"]
    assert site.nodes == load_site(str(resources.bundled("site_configs") / "perlmutter.yaml")).nodes


def test_a_file_that_extends_its_own_name_alone_is_told_so(files):
    with pytest.raises(
        SiteError, match=r"child.yaml:2:10: 'child' is the name of this file, and there is no"
    ):
        files(child="name: child\nextends: child\n")("child")


def test_part_of_a_site_is_no_site(tmp_path, monkeypatch):
    folder = tmp_path / "site_configs"
    folder.mkdir()
    (folder / "_part.yaml").write_text("nodes: {}\n")
    monkeypatch.setenv("HPCDL_PATH", str(tmp_path))
    assert "_part" not in available()
