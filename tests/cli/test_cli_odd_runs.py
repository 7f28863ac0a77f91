"""One folder of runs that cannot be read hides none of the others."""

from __future__ import annotations

import json

import pytest
from runs.written import chained

from hpcdl.runs import store
from hpcdl.runs.record import RunState


@pytest.fixture
def good(tiny, tmp_path):
    return chained(tmp_path)


def listed(hpcdl):
    result = hpcdl("list", "--json")
    assert result.code == 0
    return [row["run"] for row in json.loads(result.out)], result.err


@pytest.mark.parametrize("content", ["", "{", "{}", '{"site": "local"', '{"site": "local", "experiment": 3}'])
def test_a_run_whose_specification_is_torn_is_left_out_and_named(hpcdl, good, content):
    torn = store.create(good.path.parent, "torn")
    torn.resolved.write_text(content)
    names, warned = listed(hpcdl)
    assert names == [good.path.name]
    assert f"{torn.path.name} is left out" in warned
    assert "pydantic" not in warned
    assert hpcdl("slow-nodes").code == 0


def test_what_may_not_be_looked_at_is_no_run_of_ours(hpcdl, good):
    """As a colleague's private run in a shared folder; a link that leads nowhere serves where root looks."""
    private = store.create(good.path.parent, "private")
    private.resolved.symlink_to(private.resolved)
    (good.path.parent / "circle").symlink_to(good.path.parent / "circle")
    assert listed(hpcdl)[0] == [good.path.name]
    assert hpcdl("status", "last").code == 0


def test_a_dry_run_of_resume_promises_nothing_that_resume_refuses(hpcdl, good):
    for how in ((), ("--dry-run",)):
        done = hpcdl("resume", good.path, *how)
        assert (done.code, "there is nothing to resume" in done.err, done.out) == (2, True, "")


def test_a_state_of_a_later_version_is_shown_until_somebody_knows_more(hpcdl, good):
    store.note(good, "observed", 2, state="lost")  # from another end no word leads back
    store.note(good, "observed", 2, state="hibernating")
    assert store.current(good).state is RunState.UNKNOWN
    assert "'hibernating', which this version" in store.current(good).reason
    (row,) = json.loads(hpcdl("list", "--json").out)
    assert row["state"] == "completed"
