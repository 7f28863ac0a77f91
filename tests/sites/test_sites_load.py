import re

import pytest

from hpcdl import resources
from hpcdl.errors import SiteError
from hpcdl.sites.load import available, load_site
from hpcdl.sites.profile import default_profile
from hpcdl.units import parse_bytes

SHIPPED = sorted(resources.bundled("site_configs").glob("[!_]*.yaml"))


@pytest.fixture
def perlmutter(tmp_path):
    """A copy to break, and its text."""
    text = (resources.bundled("site_configs") / "perlmutter.yaml").read_text()

    def write(old, new):
        assert old in text
        path = tmp_path / "broken.yaml"
        path.write_text(text.replace(old, new, 1))
        return str(path)

    return write


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_site_is_valid_and_named_after_its_file(path):
    site = load_site(str(path))
    assert site.name == path.stem
    assert site.identity.status in ("draft", "retired")
    assert site.identity.unverified
    assert site.identity.sources
    for node in site.nodes.values():
        assert default_profile(node.device).source
        assert parse_bytes(node.device.memory) > 2**30


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_unverified_field_exists(path):
    """A path such as ``nodes.*.links.pairs`` must lead somewhere; * stands for any key."""
    dump = load_site(str(path)).model_dump()
    for entry in dump["identity"]["unverified"]:
        found = [dump]
        for key in entry.split("."):
            found = [
                value
                for one in found
                if isinstance(one, dict)
                for name, value in one.items()
                if key in ("*", name)
            ]
        assert found, entry


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_walltime_limits_grow_with_the_nodes_they_cover(path):
    for partition in load_site(str(path)).partitions.values():
        bounds = [entry.max_nodes or 10**9 for entry in partition.walltime]
        assert bounds == sorted(bounds)


def test_a_wrong_key_is_shown_with_its_place_and_the_closest_match(perlmutter):
    path = perlmutter("    host_memory: 256GiB", "    host_memry: 256GiB")
    with pytest.raises(SiteError) as caught:
        load_site(path)
    assert re.search(
        r"broken\.yaml:\d+:5: unknown key .*host_memry'; did you mean 'host_memory'", caught.value.message
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("host_memory: 256GiB", "host_memory: lots", "is not a size"),
        ("default_partition: debug", "default_partition: debgu", "default_partition 'debgu' is not among"),
        (
            "{node: gpu40, kind: qos",
            "{node: gpu41, kind: qos",
            "names node type 'gpu41'; known: gpu40, gpu80",
        ),
        ("kind: slurm", "kind: slrum", "scheduler.kind is 'slrum'"),
        ("    cores: 64\n", f"    cores: {10**21}\n", "must be less than or equal to 65536"),
        ("device_cores: [48-63, 32-47, 16-31, 0-15]", "device_cores: [48-63]", "has 1 entries for 4 devices"),
    ],
)
def test_a_wrong_value_is_refused_with_its_way_out(perlmutter, old, new, words):
    with pytest.raises(SiteError, match=re.escape(words)):
        load_site(perlmutter(old, new))


def test_an_unknown_name_gets_the_closest_ones():
    with pytest.raises(SiteError, match="there is no site 'perlmuter'; did you mean perlmutter"):
        load_site("perlmuter")


def test_a_machine_is_known_by_its_other_names():
    assert load_site("clariden").name == "alps-clariden"
    names = [name for site in map(load_site, available()) for name in (site.name, *site.identity.aliases)]
    assert len(set(names)) == len(names)


def test_a_wrong_file_hides_no_other_name(tmp_path, monkeypatch):
    (tmp_path / "site_configs").mkdir()
    (tmp_path / "site_configs" / "aaa.yaml").write_text("names: aaa\n")
    monkeypatch.setenv("HPCDL_PATH", str(tmp_path))
    assert load_site("clariden").name == "alps-clariden"
    with pytest.raises(SiteError, match=r"aaa\.yaml"):
        load_site("aaa")


def test_a_name_like_no_other_gets_all_of_them():
    with pytest.raises(SiteError, match=f"known sites: local, {', '.join(available())}"):
        load_site("xyzzy")


def test_a_missing_path_is_named():
    with pytest.raises(SiteError, match=r"none/site\.yaml: there is no such file"):
        load_site("none/site.yaml")


def test_a_users_own_file_hides_a_bundled_one(tmp_path, monkeypatch):
    own = tmp_path / "site_configs"
    own.mkdir()
    (own / "polaris.yaml").write_text(
        (resources.bundled("site_configs") / "generic-pbs.yaml").read_text().replace("generic-pbs", "polaris")
    )
    monkeypatch.setenv("HPCDL_PATH", str(tmp_path))
    assert available()["polaris"] == own / "polaris.yaml"
    assert "workq" in load_site("polaris").partitions
    assert "perlmutter" in available()


def test_local_is_this_machine():
    site = load_site("local")
    assert site.scheduler.kind == "local"
    assert site.launch.launcher == "fork"
    assert site.rendezvous.address == "loopback"
    assert site.node(None).cores >= 1


def test_arguments_that_cannot_be_taken_apart_are_refused_at_their_place(tmp_path):
    text = 'extends: generic-slurm\nname: mine\nlaunch: {arguments: ["--foo=\'a b"]}\n'
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SiteError, match=r"mine.yaml:3:22: launch.arguments.0: .* No closing quotation"):
        load_site(str(tmp_path / "mine.yaml"))
