"""A run goes on in another shape only if that works and leaves the loss as it is; else nothing is touched."""

import json
from pathlib import Path

import pytest

from hpcdl.errors import HpcdlError, InfeasibleError, SiteError, UsageError
from hpcdl.runs import claims, store
from hpcdl.runs.record import RunState
from hpcdl.spec import reading
from hpcdl.workflow.jobs import submitting
from hpcdl.workflow.states import following
from hpcdl.workflow.studies import preparing
from hpcdl.workflow.studies.reshaping import Change, draft, reshaped, rewrite

AUTO = "parallelism=auto"


@pytest.fixture
def make(terminal):
    """A run whose first attempt was cancelled."""

    def call(*settings):
        (folder,) = preparing.prepare(terminal.study("generic-slurm", *settings), terminal.runs)
        submitting.submit([folder])
        store.note(folder, "observed", 1, state=RunState.CANCELLED.value)
        return folder

    return call


@pytest.fixture
def run(make):
    return make()


def contents(folder):
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def new(folder, *settings, **size):
    return reshaped(folder, Change(settings, **size))


def test_auto_is_chosen_anew_for_another_number_of_devices_and_what_was_stays(make, terminal):
    folder = make(AUTO)
    before, given = store.resolved(folder), folder.experiment.read_bytes()
    plan = folder.plan.read_text()
    assert submitting.resume(folder, new(folder, gpus=4)) == "71"
    now = store.resolved(folder)
    assert (now.decomposition.ranks, now.layout.ranks, now.experiment.resources.gpus) == (4, 4, 4)
    assert now.experiment.parallelism == "auto"
    same = {"resources": before.experiment.resources}
    assert now.experiment.model_copy(update=same) == before.experiment
    assert (now.site_file, now.run) == (before.site_file, before.run)
    assert store.resolved(folder, 1) == before
    assert store.resolved(folder, 2) == now
    assert folder.experiment.read_bytes() == given
    assert folder.plan_until(1).read_text() == plan
    assert json.loads(folder.plan.read_text())["gpus"] == 4
    assert "attempt 2" in folder.script.read_text()
    assert len(terminal.submitted()) == 2
    (noted,) = [event for event in store.events(folder) if event.kind == "reshaped"]
    assert noted.detail == {"since": 2, "what": str(now.decomposition), "gpus": 4}


def test_each_attempt_keeps_what_it_ran_with(make):
    """Also attempts that shared one shape, and those after which nothing changed."""
    folder = make(AUTO)
    shapes = []
    for number, gpus in enumerate((None, 4, None, 1, 2), start=2):
        submitting.resume(folder, new(folder, gpus=gpus) if gpus else None)
        store.note(folder, "observed", number, state=RunState.TIMEOUT.value)
        shapes.append(store.resolved(folder).layout.ranks)
    assert shapes == [2, 4, 4, 1, 2]
    assert [store.resolved(folder, number).layout.ranks for number in range(1, 7)] == [2, 2, 4, 4, 1, 2]


def test_settings_alone_leave_the_decomposition_as_it_is(make):
    folder = make(AUTO)
    before = store.resolved(folder)
    found = new(folder, "checkpoint.every=7", "resources.walltime=00:10:00", "chain.attempts=3").study
    assert found.decomposition == before.decomposition
    assert found.experiment.checkpoint.every == 7
    assert found.experiment.training == before.experiment.training


def test_an_explicit_decomposition_is_never_scaled_unasked(run):
    with pytest.raises(
        InfeasibleError, match="given as data 2, which makes 2 ranks, but 4 devices"
    ) as caught:
        new(run, gpus=4)
    for way in (AUTO, "parallelism.data=4", "parallelism.pipeline=2", "parallelism.x=2"):
        assert f"--set {way}" in caught.value.hint
    assert new(run, "parallelism.data=4", gpus=4).study.decomposition.data == 4
    assert new(run, AUTO, gpus=4).study.decomposition.ranks == 4


def test_every_way_out_that_is_named_works(make):
    """Property over sizes: what the hint proposes is taken as it stands."""
    folder = make("parallelism={data: 2, microbatch: 4}")
    named = 0
    for gpus in (1, 3, 4, 6, 8):
        try:
            new(folder, gpus=gpus)
        except InfeasibleError as error:
            for way in error.hint.split("or ")[1:]:
                if "--set" not in way:
                    continue
                settings = [part for part in way.split() if part.startswith("parallelism.")]
                named += 1
                assert new(folder, *settings, gpus=gpus).study.decomposition.ranks == gpus
    assert named >= 10


@pytest.mark.parametrize(
    "setting",
    [
        "training.global_batch=16", "training.seed=1", "training.steps=7", "training.optimizer.lr=1.0",
        "training.precision=bf16", "model.layers=3", "model.dropout=0.5", "data.validation=0.1", "name=other",
        "environment.NVIDIA_TF32_OVERRIDE=on", "checkpoint.start=weights", "checkpoint={start: weights}",
    ],
)  # fmt: skip
def test_what_is_learned_cannot_change(run, setting):
    before = contents(run)
    with pytest.raises(UsageError, match="of a run that goes on cannot change: ") as caught:
        new(run, setting)
    assert setting.split("=")[0] in caught.value.message
    assert "checkpoint.start" in caught.value.hint
    assert contents(run) == before


def test_a_setting_that_says_what_is_true_already_changes_nothing(run):
    assert new(run, "training.seed=0", "name=tiny").study.experiment == store.resolved(run).experiment


@pytest.mark.parametrize(
    ("settings", "size", "kind", "words"),
    [
        ((AUTO,), {"gpus": 7}, InfeasibleError, "prime factor of 7"),
        ((), {"gpus": 7}, InfeasibleError, "the nearest device counts that work: 4, 8"),
        ((AUTO,), {"gpus": 10**6}, InfeasibleError, "1000000"),
        ((AUTO,), {"gpus": 7, "nodes": 2}, UsageError, "gpus 7 cannot be spread evenly over nodes 2"),
        ((AUTO, "parallelisms=1"), {}, UsageError, "did you mean 'parallelism'"),
        (("checkpoint.every",), {}, UsageError, "not of the form"),
        (("checkpoint.every=-1",), {}, UsageError, "--set checkpoint.every=-1: checkpoint.every is -1"),
        (("parallelism.data=3",), {"gpus": 3}, InfeasibleError, "global_batch 8 is not divisible by data 3"),
        (("resources.queue=none",), {}, UsageError, "no queue 'none'"),
        ((), {"site": "local"}, SiteError, "it has local, but"),
        ((), {"site": "nowhere"}, SiteError, "there is no site 'nowhere'"),
    ],
)
def test_a_refusal_says_why_and_touches_nothing(run, settings, size, kind, words):
    before = contents(run)
    with pytest.raises(kind) as caught:
        new(run, *settings, **size)
    assert words in f"{caught.value.message}\n{caught.value.hint}"
    assert contents(run) == before


def test_what_does_not_fit_into_memory_is_refused_with_numbers(make):
    """A model that fits only because it is spread over many devices."""
    folder = make(
        AUTO, "resources.gpus=256", "training.precision=bf16",
        "model={family: gpt, layers: 96, hidden: 12288, heads: 96, vocab: 50304, sequence: 2048}",
        "data={source: text, path: corpus.txt, tokenizer: bytes}", "training.global_batch=64",
    )  # fmt: skip
    before = contents(folder)
    with pytest.raises(InfeasibleError, match="GiB a rank") as caught:
        new(folder, gpus=1)
    assert "nearest device counts that work" in caught.value.hint
    assert caught.value.hint.endswith("which takes a new run")
    assert contents(folder) == before


def test_the_sites_file_is_the_one_of_the_submission_unless_it_is_asked_for(run, terminal, tmp_path):
    assert new(run, "checkpoint.every=2").study.site == following.site_of(run)
    changed = tmp_path / "mine.yaml"
    changed.write_text("name: mine\nextends: generic-slurm\nsoftware: {modules: [gcc]}\n")
    found = new(run, site=str(changed)).study
    assert found.site.software.modules == ["gcc"]
    submitting.resume(run, new(run, site=str(changed)))
    assert "module load gcc" in run.script.read_text()
    assert store.resolved(run, 1).site == "generic-slurm"


def test_a_run_that_goes_on_or_has_finished_is_left_alone(terminal):
    (folder,) = preparing.prepare(terminal.study("generic-slurm", AUTO), terminal.runs)
    submitting.submit([folder])
    found = new(folder, gpus=4)
    before = contents(folder)
    with pytest.raises(UsageError, match="queued; cancel it first"):
        submitting.resume(folder, found)
    assert contents(folder) == before
    store.note(folder, "observed", 1, state=RunState.COMPLETED.value)
    with pytest.raises(UsageError, match="nothing to resume"):
        submitting.resume(folder, found)
    assert store.resolved(folder).layout.ranks == 2
    assert not folder.resolved_until(1).exists()


def test_broken_off_after_any_write_it_is_still_a_run_that_can_be_resumed(make, monkeypatch):
    """A login node may die between any two of them."""
    whole = store.write
    for broken_at in range(8):
        folder = make(AUTO)
        before = store.resolved(folder)
        found, done = new(folder, gpus=4), []

        def write(path, content, done=done, last=broken_at):
            if len(done) == last:
                raise KeyboardInterrupt
            done.append(path)
            whole(path, content)

        with monkeypatch.context() as patched:
            patched.setattr(store, "write", write)
            try:
                rewrite(folder, found, 1)
                ended = True
            except KeyboardInterrupt:
                ended = False
        assert store.resolved(folder, 1) == before
        assert store.resolved(folder).layout.ranks in (2, 4)
        submitting.resume(folder)
        assert store.resolved(folder, 1) == before
        assert store.resolved(folder, 2).layout.ranks == store.resolved(folder).layout.ranks
        if ended:
            break
    assert broken_at == 4  # what was and its plan kept, both written


def test_who_comes_second_has_written_nothing(make, monkeypatch):
    """Two terminals reshape one run; the other claims the attempt between this one's look and its write."""
    folder = make(AUTO)
    found = new(folder, gpus=4)
    refresh = submitting.refresh

    def overtaken(folders, **options):
        attempts = refresh(folders, **options)
        claims.claim(folder, 2, "somebody else")
        return attempts

    monkeypatch.setattr(submitting, "refresh", overtaken)
    before = contents(folder)
    with pytest.raises(UsageError, match="attempt 2 has been claimed"):
        submitting.resume(folder, found)
    assert contents(folder) == before


def test_an_attempt_that_was_refused_does_not_hide_what_ran_before(make, terminal):
    """Reshaped twice, as the first new shape never got into the queue."""
    folder = make(AUTO)
    takes = (terminal.programs / "sbatch").read_text()
    terminal.answer("sbatch", '[ "$1" = --test-only ] || { echo no >&2; exit 1; }')
    with pytest.raises(HpcdlError, match="refused"):
        submitting.resume(folder, new(folder, gpus=4))
    (terminal.programs / "sbatch").write_text(takes)
    submitting.resume(folder, new(folder, gpus=1))
    assert [store.resolved(folder, number).layout.ranks for number in (1, 2, 3)] == [2, 4, 1]


def test_a_draft_writes_nothing(run):
    before = contents(run)
    work = draft(run, new(run, "parallelism.data=4", gpus=4))
    assert (work.attempt, work.run.layout.ranks) == (2, 4)
    assert draft(run, None).run == store.resolved(run)
    assert contents(run) == before


OWN = """
name: own
command: [python, train.py]
resources: {gpus: 2, walltime: "00:05:00"}
"""


def test_a_program_of_ones_own_may_be_resized_too(terminal):
    Path(terminal.file).write_text(OWN)
    (folder,) = preparing.prepare(terminal.study(), terminal.runs)
    submitting.submit([folder])
    store.note(folder, "observed", 1, state=RunState.FAILED.value)
    submitting.resume(folder, new(folder, "chain.attempts=2", gpus=4))
    assert store.resolved(folder).layout.ranks == 4
    assert store.resolved(folder, 1).layout.ranks == 2
    with pytest.raises(UsageError, match="another program, or another seed of it"):
        new(folder, "command.seed=3")
    with pytest.raises(UsageError, match="parallelism is for the bundled engine"):
        new(folder, "parallelism.data=4")
    assert reading.run(folder.resolved.read_text()).experiment.chain.attempts == 2
