"""Bad nodes are left out of later jobs, in the words of each scheduler, where it has some and the site lets it."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from schedulers.sample import head, job, site

from hpcdl.errors import SchedulerError, SiteError, UsageError
from hpcdl.run_folder import RunFolder
from hpcdl.runs.nodes.bad_nodes import BadNode, named
from hpcdl.schedulers.known import scheduler
from hpcdl.spec.job import Resources
from hpcdl.telemetry import RunEvent, append
from hpcdl.workflow.jobs import submitting
from hpcdl.workflow.studies import preparing
from hpcdl.workflow.studies.excluding import MOST, Exclusion, exclusion

SLURM = site()


def bad(*hosts):
    return [BadNode(host, "no devices", 1) for host in hosts]


def test_a_run_without_bad_nodes_leaves_out_none():
    assert exclusion(Resources(), (), SLURM) == Exclusion()


@given(st.lists(st.integers(0, 30), unique=True), st.sets(st.integers(0, 30), max_size=12))
def test_all_that_the_user_names_and_at_most_some_of_the_others_newest_first(found, asked):
    wished = tuple(f"n{node}" for node in sorted(asked))
    told = exclusion(Resources(exclude=wished), bad(*(f"n{node}" for node in found)), SLURM)
    own = [f"n{node}" for node in found if node not in asked]
    assert told.nodes == (*wished, *own[-MOST:])
    assert told.left_in == tuple(own[:-MOST])
    assert bool(told.why) == (len(own) > MOST)


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        (site("pbs", "mpiexec-pals"), "PBS has no word"),
        (site("local", "fork"), "there is one machine only"),
        (site(policy={"node_exclusion": False}), "site sample takes no job that names nodes"),
    ],
)
def test_where_no_job_can_be_told_it_is_said_and_a_users_wish_refused(machine, why):
    told = exclusion(Resources(), bad("n1", "n2"), machine)
    assert (told.nodes, told.left_in) == ((), ("n1", "n2"))
    assert told.why.startswith(why)
    with pytest.raises(UsageError, match=why) as refused:
        exclusion(Resources(exclude=("n7",)), (), machine)
    assert "resources.exclude: n7 cannot be left out" in refused.value.message


def test_a_run_that_is_told_to_takes_its_bad_nodes_again():
    """Of a partition of four nodes a run of four could never come back from one that once came too late."""
    told = exclusion(Resources(exclude=("n7",), exclude_bad=False), bad("n1"), SLURM)
    assert told == Exclusion(("n7",), ("n1",), "resources.exclude_bad is false")


def test_a_refusal_of_a_job_that_leaves_out_nodes_of_its_own_names_the_way_back(terminal):
    terminal.answer(
        "sbatch", '[ "$1" = --test-only ] || { echo "sbatch: error: too many nodes" >&2; exit 1; }'
    )
    (folder,) = preparing.prepare(terminal.study(), terminal.runs)
    append(folder.engine_events, RunEvent("bad node", time.time(), 1, {"host": "n3", "why": "never came"}))
    with pytest.raises(SchedulerError, match="too many nodes") as refused:
        submitting.resume(folder)
    assert "without n3 " in refused.value.hint
    assert "--set resources.exclude_bad=false" in refused.value.hint


@pytest.mark.parametrize(
    ("kind", "launcher", "line"),
    [
        ("slurm", "srun", "#SBATCH --exclude=n1,nid-002"),
        ("flux", "flux-run", "# flux: --requires=-host:n1,nid-002"),
        ("lsf", "jsrun", """#BSUB -R "select[hname!='n1' && hname!='nid-002']\""""),
    ],
)
def test_each_scheduler_is_told_in_its_words(tmp_path, kind, launcher, line):
    work = job(tmp_path, site(kind, launcher))
    assert line not in head(scheduler(kind), work)
    assert line in head(scheduler(kind), replace(work, exclude=("n1", "nid-002")))


def test_a_site_that_forbids_the_word_gets_no_such_line_unless_the_user_wants_it(tmp_path):
    machine = site(scheduler={"forbidden": ["--exclude"]})
    own = replace(job(tmp_path, machine), exclude=("n1",))
    assert not any("exclude" in line for line in head(scheduler("slurm"), own))
    with pytest.raises(SiteError, match="--exclude"):
        head(scheduler("slurm"), replace(job(tmp_path, machine, exclude=["n1"]), exclude=("n1",)))


@pytest.mark.parametrize("name", ["n[1-2]", "n1,n2", "-n1", "", "n1 n2", "n1'", "n1#"])
def test_what_is_no_name_of_one_node_is_refused(name):
    with pytest.raises(ValidationError, match="is not the name of one node"):
        Resources(exclude=(name,))


def test_bad_nodes_are_read_from_what_the_ranks_noted(tmp_path):
    folder = RunFolder(tmp_path)
    assert named(folder) == []
    for attempt, host in ((1, "n1"), (1, "n2"), (3, "n1")):
        detail = {"host": host, "why": f"seen in {attempt}"}
        append(folder.engine_events, RunEvent("bad node", time.time(), attempt, detail))
    append(folder.engine_events, RunEvent("slow node", time.time(), 3, {"host": "n9", "why": "slow"}))
    assert named(folder) == [BadNode("n2", "seen in 1", 1), BadNode("n1", "seen in 3", 3)]
