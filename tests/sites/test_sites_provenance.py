"""Where a value comes from: the file that won, its source, and whether anybody verified it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.errors import SiteError, UsageError
from hpcdl.sites.load import hidden, lineage, load_site
from hpcdl.sites.provenance import covers, doubts, field, paths, unverified

KEY = st.text("abc", min_size=1, max_size=2)
PERLMUTTER = load_site("perlmutter")
TRUSTED = load_site("generic-slurm")


@given(st.lists(KEY, min_size=1, max_size=5), st.data())
def test_a_name_stands_for_itself_and_all_below_it(path, data):
    depth = data.draw(st.integers(1, len(path)))
    pattern = [data.draw(st.sampled_from([key, "*"])) for key in path[:depth]]
    assert covers(".".join(pattern), tuple(path))
    assert covers(".".join(path), tuple(path))
    assert not covers(".".join([*path, "more"]), tuple(path))


def test_what_the_file_doubts_is_unverified_with_all_below():
    doubted = TRUSTED.identity.model_copy(update={"unverified": ["partitions.*.walltime", "nodes.gpu.cores"]})
    site = TRUSTED.model_copy(update={"identity": doubted})
    assert unverified(site, ("partitions", "batch", "walltime", "0", "limit"))
    assert not unverified(site, ("partitions", "batch", "node"))
    assert doubts(site) == ["partitions.batch.walltime", "nodes.gpu.cores"]


def test_a_field_stands_where_it_was_read():
    found = field(PERLMUTTER, "nodes.gpu40.device_cores.1")
    assert (found.value, found.given, found.unverified) == ("32-47", True, True)
    file, line, column = found.place.rsplit(":", 2)
    text = Path(file).read_text().splitlines()[int(line) - 1]
    assert text[int(column) - 1 :].startswith("32-47")


def test_a_default_is_told_as_one():
    found = field(PERLMUTTER, "scheduler.poll_seconds")
    assert (found.value, found.given) == (10.0, False)


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("nodes.gpu40.corez", "nodes.gpu40.cores"),
        ("scheduler.kynd", "scheduler.kind"),
        ("xyzzy", "without --field"),
    ],
)
def test_an_unknown_field_gets_the_closest(name, close):
    with pytest.raises(UsageError, match=f"site perlmutter has no field '{name}'") as refused:
        field(PERLMUTTER, name)
    assert close in refused.value.message


def test_every_field_can_be_asked_for():
    for path in paths(PERLMUTTER)[::7]:
        file = field(PERLMUTTER, ".".join(path)).place.rsplit(":", 2)[0]
        assert Path(file) in lineage("perlmutter")


def test_the_file_that_wins_hides_the_others_and_extends_the_bundled(tmp_path, monkeypatch):
    folder = tmp_path / "site_configs"
    folder.mkdir()
    own = folder / "perlmutter.yaml"
    own.write_text("name: perlmutter\nextends: perlmutter\nnodes: {gpu40: {cores: 65}}\n")
    bundled = lineage("perlmutter")[0]
    monkeypatch.setenv("HPCDL_PATH", str(tmp_path))
    assert lineage("perlmutter")[:2] == [own, bundled.resolve()]
    assert [path.resolve() for path in hidden(own)] == [bundled.resolve()]
    assert hidden(tmp_path / "elsewhere.yaml") == []
    site = load_site("perlmutter")
    assert field(site, "nodes.gpu40.cores").place == f"{own}:3:24"
    assert field(site, "default_partition").place.startswith(f"{bundled.resolve()}:")


@pytest.fixture
def mine(tmp_path):
    """A file of the user's own that extends perlmutter."""

    def read(text):
        (tmp_path / "mine.yaml").write_text(f"name: mine\nextends: perlmutter\n{text}")
        return load_site(str(tmp_path / "mine.yaml"))

    return read


def test_a_corrected_value_has_not_the_source_of_the_one_before(mine):
    """Once the page that tells of 256 GiB was shown as the source of 250."""
    site = mine("nodes: {gpu40: {host_memory: 250GiB}}\n")
    assert field(site, "nodes.gpu40.host_memory").source is None
    assert (
        field(site, "nodes.gpu80.host_memory").source == field(PERLMUTTER, "nodes.gpu80.host_memory").source
    )


def test_a_corrected_value_is_no_longer_doubted(mine):
    """Once it was unverified for ever, also with a source of its own."""
    assert unverified(PERLMUTTER, ("launch", "mpi"))
    for sources in ("", 'identity: {sources: {launch.mpi: "support, 2026-11"}}\n'):
        assert not unverified(mine(f"{sources}launch: {{mpi: pmix}}\n"), ("launch", "mpi"))


def test_a_source_verifies_a_value_that_a_file_below_doubts_in_the_same_words(mine):
    site = mine('identity: {sources: {launch.mpi: "support, 2026-11"}}\n')
    found = field(site, "launch.mpi")
    assert (found.source, found.unverified) == ("support, 2026-11", False)


def test_a_doubt_counts_for_values_of_files_below(mine):
    site = mine("identity: {unverified: [nodes.gpu40.devices]}\n")
    assert field(site, "nodes.gpu40.devices").unverified
    assert not field(site, "nodes.gpu80.devices").unverified


def test_a_machine_is_found_by_its_other_names(tmp_path, monkeypatch):
    folder = tmp_path / "site_configs"
    folder.mkdir()
    (folder / "alps.yaml").write_text("name: alps\nextends: generic-slurm\nidentity: {aliases: [clariden]}\n")
    monkeypatch.setenv("HPCDL_PATH", str(tmp_path))
    assert load_site("clariden").name == "alps"
    assert lineage("clariden")[0] == folder / "alps.yaml"


def test_this_machine_has_no_file():
    assert lineage("local") == []


def test_an_unknown_site_has_no_lineage():
    with pytest.raises(SiteError, match="there is no site 'perlmuter'"):
        lineage("perlmuter")
