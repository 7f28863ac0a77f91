"""Checkpoints of pruned runs: kept elements and where they are, for any decomposition to go on from."""

import json
import shutil

import pytest
import torch
from engine_keeping import CPU, SERIAL, experiment, tensors, trained
from engine_runs import TRAINING, Run
from engine_worlds import GPT, LLAMA, in_threads, whole
from quick import first_of
from safetensors.torch import load_file, save_file

from hpcdl.engine import learner as module
from hpcdl.engine.checkpoint import shards
from hpcdl.engine.checkpoint.choosing import read_manifest
from hpcdl.engine.checkpoint.folder import opened
from hpcdl.engine.checkpoint.manifest import MANIFEST, index_name, shard_name
from hpcdl.engine.export import export
from hpcdl.engine.keeping import Keeper, Progress
from hpcdl.engine.learner import Learner
from hpcdl.engine.optim.flat import Flat
from hpcdl.engine.pruning import Pruner
from hpcdl.errors import EngineError
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.training import Pruning

ONCE = Pruning(sparsity=0.7, begin=1)
EVERYTHING = Pruning(sparsity=0.6, scope="global", exclude=())
GRADUAL = Pruning(sparsity=0.8, schedule="cubic", begin=0, end=4, every=1)
SEARCH = Pruning(sparsity=0.7, schedule="early-bird", every=1, masks=4, distance=0.5)
"""The fourth mask is drawn after step 3, and the third is in the checkpoint of step 2."""
SPREAD = Decomposition(data=2, pipeline=2, z=2, zero=1)
KINDS = {"once": ONCE, "global": EVERYTHING, "cubic": GRADUAL, "early-bird": SEARCH}


def prunings(events):
    """What was told of each; checkpoints report from a thread of their own."""
    return [detail for kind, detail in events if kind == "pruned"]


@pytest.mark.parametrize("precision", first_of("bf16", "fp32"))
@pytest.mark.parametrize("decomposition", [SERIAL, SPREAD], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_decomposition_goes_on_to_the_bit(tmp_path, kind, decomposition, precision):
    """Also in the middle of a schedule, or of the search for a ticket."""
    settings = experiment(precision=precision, pruning=KINDS[kind])
    undisturbed, events = trained(tmp_path / "a", 5, decomposition, settings)
    first, before = trained(tmp_path / "b", 2, decomposition, settings)
    second, after = trained(tmp_path / "b", 5, decomposition, settings)
    assert first + second == undisturbed
    assert prunings(before + after) == prunings(events)
    assert len(prunings(events)) == (4 if kind == "cubic" else 1)
    ours, theirs = (tensors(tmp_path / run / "5") for run in "ab")
    assert ours.keys() == theirs.keys()
    assert any("|index|" in key for key in ours)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize(
    ("model", "before", "after"),
    [
        (GPT, SPREAD, Decomposition(z=4, microbatch=2)),
        (LLAMA, SPREAD, SERIAL),
        (GPT, SERIAL, Decomposition(pipeline=3, x=2)),
        (LLAMA, Decomposition(x=2, y=2), Decomposition(y=4)),
        (LLAMA, Decomposition(z=4), Decomposition(pipeline=2, x=2, y=2)),
        (GPT, Decomposition(y=2, z=2), Decomposition(x=2, z=2, data=2, zero=1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", first_of("early-bird", "global", "cubic"))
def test_another_decomposition_goes_on_as_if_nothing_had_changed(tmp_path, kind, model, before, after):
    settings = experiment(model, pruning=KINDS[kind])
    expected, events = trained(tmp_path / "serial", 5, SERIAL, settings)
    trained(tmp_path / "changed", 2, before, settings)
    losses, later = trained(tmp_path / "changed", 5, after, settings)
    assert losses == pytest.approx(expected[2:], rel=2e-6)
    assert prunings(later) == [detail for detail in prunings(events) if detail["step"] > 2]


@pytest.mark.parametrize("kind", ["global", "cubic"])
def test_every_kept_element_survives_a_change_and_back(tmp_path, kind):
    """Restored and saved again without a step in between: bit for bit what it was."""
    settings = experiment(pruning=KINDS[kind])
    trained(tmp_path, 2, SERIAL, settings)
    before = tensors(tmp_path / "2")
    for decomposition in (Decomposition(pipeline=3, y=2), Decomposition(x=2, z=4), SPREAD, SERIAL):
        in_threads(
            decomposition.ranks,
            lambda transport, d=decomposition: saved_again(transport, tmp_path, settings, d),
        )
    after = tensors(tmp_path / "2")
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def saved_again(transport, folder, settings, decomposition):
    learner = Learner(settings, decomposition, transport, CPU)
    keeper = Keeper(settings, folder, learner, lambda *_, **__: None)
    keeper.save(keeper.restore())
    keeper.join()
    transport.barrier()


@pytest.mark.parametrize(
    "before", [Decomposition(z=4, microbatch=2), Decomposition(data=2, z=2, zero=1)], ids=str
)
def test_ranks_that_keep_nothing_of_a_matrix_are_heard_too(tmp_path, before):
    """All that is left of one is in its first row, and the next decomposition cuts it otherwise."""
    settings, name = experiment(pruning=EVERYTHING), "layers.1.mlp.up.weight"

    def written(transport):
        learner = Learner(settings, before, transport, CPU)
        for held in learner.stage.held:
            if held.name == name:
                start = held.sharding.span(learner.topology).start
                held.parameter.data[16 if start == 0 else 0 :] *= 1e-6
        pruner = Pruner(EVERYTHING, learner, lambda *_, **__: None)
        keeper = Keeper(settings, tmp_path, learner, lambda *_, **__: None, pruner)
        pruner.begin(0)
        keeper.save(Progress(1, 0.0))
        keeper.join()
        transport.barrier()
        return learner.kept[name].count, [(one, one.parameter.detach()) for one in learner.stage.held]

    def read(transport):
        learner = Learner(settings, SERIAL, transport, CPU)
        Keeper(settings, tmp_path, learner, lambda *_, **__: None).restore()
        return [(one, one.parameter.detach()) for one in learner.stage.held]

    answers = in_threads(before.ranks, written)
    assert 0 in [count for count, _ in answers]
    wanted = whole(before, [held for _, held in answers])
    found = whole(SERIAL, in_threads(1, read))
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_what_is_kept_is_all_that_is_written(tmp_path):
    """Four numbers an element: master, two moments and the place."""
    trained(tmp_path, 2, SERIAL, experiment(pruning=EVERYTHING))
    manifest, stored = read_manifest(tmp_path / "2"), tensors(tmp_path / "2")
    assert manifest.pruned
    matrices = {name: shape for name, shape in manifest.shapes().items() if len(shape) == 2}
    sizes = {key: len(values) for key, values in stored.items() if key.split("|")[0] in matrices}
    elements = sum(rows * columns for rows, columns in matrices.values())
    assert sum(sizes.values()) == pytest.approx(4 * 0.4 * elements, abs=4)
    assert {str(values.dtype) for key, values in stored.items() if "|index|" in key} == {"torch.int32"}


def test_state_is_made_of_what_is_kept_alone(tmp_path, monkeypatch):
    """A rank that goes on from a pruned checkpoint never has room for all of it."""
    settings = experiment(pruning=EVERYTHING)
    trained(tmp_path, 2, SERIAL, settings)
    made = []
    monkeypatch.setattr(module, "Flat", lambda *told: made.append(len(told[-1].kept)) or Flat(*told))
    trained(tmp_path, 3, SERIAL, settings)
    shapes = read_manifest(tmp_path / "3").shapes().values()
    assert made == [sum(len(shape) == 2 for shape in shapes)]


def test_a_dense_checkpoint_is_what_it_always_was(tmp_path):
    trained(tmp_path, 1)
    entries = json.loads((tmp_path / "1" / MANIFEST).read_text())["shards"][0]["entries"]
    assert {tuple(entry["kinds"]) for entry in entries} == {("master", "exp_avg", "exp_avg_sq")}
    assert {frozenset(entry) for entry in entries} == {frozenset({"name", "shape", "block", "span", "kinds"})}


@pytest.mark.parametrize("decomposition", [SERIAL, SPREAD], ids=str)
def test_a_pruned_checkpoint_stays_pruned_without_the_key(tmp_path, decomposition):
    pruned, plain = experiment(pruning=ONCE), experiment()
    expected, _ = trained(tmp_path / "a", 4, decomposition, pruned)
    trained(tmp_path / "b", 2, decomposition, pruned)
    losses, events = trained(tmp_path / "b", 4, decomposition, plain)
    assert losses == expected[2:]
    assert not prunings(events)
    assert read_manifest(tmp_path / "b" / "4").pruned


@pytest.mark.parametrize(
    "pruning",
    [
        ONCE,
        Pruning(sparsity=0.7, begin=2),
        Pruning(sparsity=0.7, schedule="cubic", end=2, every=1),
        Pruning(sparsity=0.7, schedule="early-bird", end=1),
    ],
    ids=lambda pruning: f"{pruning.schedule} {pruning.begin}",
)
def test_a_dense_checkpoint_is_pruned_late(tmp_path, pruning):
    """By a run that is told to prune after a step that is past."""
    trained(tmp_path, 2)
    _, events = trained(tmp_path, 3, SERIAL, experiment(pruning=pruning))
    assert [detail["step"] for detail in prunings(events)] == [2]


@pytest.mark.parametrize("decomposition", [SERIAL, Decomposition(data=2, z=2, zero=1)], ids=str)
def test_weights_to_start_from_are_dense_with_zeros(tmp_path, decomposition):
    trained(tmp_path / "a", 2, SPREAD, experiment(pruning=ONCE))
    settings = experiment(start=str(tmp_path / "a" / "2"))

    def started(transport):
        learner = Learner(settings, decomposition, transport, CPU)
        Keeper(settings, tmp_path / "b", learner, lambda *_, **__: None).restore()
        assert not learner.kept
        return {held.name: (held.parameter == 0).float().mean().item() for held in learner.stage.held}

    for zeros in in_threads(decomposition.ranks, started):
        for name, share in zeros.items():
            if name.endswith("weight") and "norm" not in name and "layers" in name:
                assert 0.5 < share < 0.9, name
            elif "embedding" in name:
                assert share == 0, name


def test_an_export_has_zeros_where_it_is_pruned(tmp_path):
    trained(tmp_path / "a", 2, SPREAD, experiment(LLAMA, pruning=ONCE))
    export(tmp_path / "a", tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert opened(tmp_path / "out").shapes()
    down = weights["model.layers.0.mlp.down_proj.weight"]
    assert (down == 0).float().mean().item() == pytest.approx(0.7, abs=0.01)
    assert weights["model.embed_tokens.weight"].all()


@pytest.mark.parametrize("damage", ["beyond", "order", "number"])
def test_a_mask_that_does_not_fit_is_refused(tmp_path, damage):
    """With the right checksum: as another program would have written it."""
    trained(tmp_path, 2, SERIAL, experiment(pruning=ONCE))
    folder = tmp_path / "2"
    stored = tensors(folder)
    key = next(key for key in stored if "|index|" in key)
    index = stored[key]
    stored[key] = {"beyond": index + 10_000, "order": index.flip(0), "number": index[:-1]}[
        damage
    ].contiguous()
    save_file(stored, folder / shard_name(0))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["shards"][0] |= {
        "size": (folder / shard_name(0)).stat().st_size,
        "crc32": shards.checksum(folder / shard_name(0)),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    (folder / index_name(0)).unlink()
    with pytest.raises(
        EngineError, match=r"masks in .*rank-00000\.safetensors do not fit the model"
    ) as refusal:
        trained(tmp_path, 3, SERIAL, experiment(pruning=ONCE))
    assert key.split("|")[0] in refusal.value.message


def test_a_pruned_checkpoint_of_another_model_is_refused(tmp_path):
    trained(tmp_path, 1, SERIAL, experiment(pruning=ONCE))
    with pytest.raises(EngineError, match="another model"):
        trained(tmp_path, 2, SERIAL, experiment(LLAMA, pruning=ONCE))


# Real processes


def test_processes_prune_go_on_and_say_so(tmp_path):
    pruning = {"sparsity": 0.8, "schedule": "cubic", "begin": 1, "end": 5, "every": 2}
    changes = {
        "training": TRAINING | {"precision": "bf16", "pruning": pruning},
        "checkpoint": {"every": 2, "keep": 3},
    }
    run = Run(tmp_path, Decomposition(data=2, microbatch=2, zero=1), **changes).complete()
    undisturbed = run.losses()
    shutil.rmtree(run.folder.checkpoints / "6")
    again = run.complete(attempt=2)
    assert again.losses() == [*undisturbed, *undisturbed[4:]]
    told = [(event.attempt, event.detail["step"]) for event in run.events() if event.kind == "pruned"]
    assert told == [(1, 3), (1, 5), (2, 5)]
    final = [event.detail["sparsity"] for event in run.events() if event.kind == "pruned"]
    assert final[1] == pytest.approx(0.8, abs=1e-3)
    assert final[1:] == final[1:2] * 2
    assert "pruned after step 3: sparsity" in run.log(0)
    assert "pruned" not in run.log(1)


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_mpi_processes_prune_as_others_do(tmp_path, precision):
    """Counts travel as int64, and shares of the state as fp32."""
    pruning = {"sparsity": 0.7, "schedule": "cubic", "end": 4, "every": 2, "scope": "global"}
    changes = {"training": TRAINING | {"precision": precision, "pruning": pruning}}
    spread = Decomposition(data=2, z=2, microbatch=2, zero=1)
    told = {"communication": {"transport": "mpi"}}
    over_mpi = Run(tmp_path / "mpi", spread, **changes | told).complete_mpi()
    usual = Run(tmp_path / "dist", spread, **changes).complete()
    assert over_mpi.losses(3) == pytest.approx(usual.losses(3), rel=1e-5 if precision == "fp32" else 2e-2)
    assert sum(event.kind == "pruned" for event in over_mpi.events()) == 2
