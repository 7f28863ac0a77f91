"""A checkpoint is complete or it is not there, and any decomposition goes on from it."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from engine_keeping import CPU, SERIAL, SPREAD, experiment, tensors, trained
from engine_worlds import GPT, LLAMA, in_threads
from quick import first_of, one_in

from hpcdl.engine.checkpoint.choosing import read_manifest
from hpcdl.engine.checkpoint.completing import Desk
from hpcdl.engine.checkpoint.manifest import Manifest
from hpcdl.engine.checkpoint.restoring import fill, targets_of
from hpcdl.engine.checkpoint.saving import Saver
from hpcdl.engine.checkpoint.shapes import shapes
from hpcdl.engine.keeping import Keeper
from hpcdl.engine.learner import Learner
from hpcdl.engine.topology import Topology
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model


@pytest.mark.parametrize("model", [GPT, LLAMA], ids=["gpt", "llama"])
@pytest.mark.parametrize("decomposition", [SERIAL, SPREAD, Decomposition(x=2, y=2, z=2)], ids=str)
def test_the_shapes_of_a_model_are_those_it_is_built_with(model, decomposition):
    def held(transport):
        learner = Learner(experiment(model), decomposition, transport, CPU)
        return {part.name: part.sharding.shape for part in learner.parts()}

    found = {}
    for rank in in_threads(decomposition.ranks, held):
        found |= rank
    assert found == shapes(model)


@pytest.mark.parametrize("precision", first_of("bf16", "fp32"))
@pytest.mark.parametrize("decomposition", [SERIAL, SPREAD], ids=str)
def test_the_same_decomposition_goes_on_to_the_bit(tmp_path, decomposition, precision):
    settings = experiment(precision=precision)
    undisturbed, _ = trained(tmp_path / "a", 4, decomposition, settings)
    first, _ = trained(tmp_path / "b", 2, decomposition, settings)
    second, _ = trained(tmp_path / "b", 4, decomposition, settings)
    assert first + second == undisturbed
    ours, theirs = (tensors(tmp_path / run / "4") for run in "ab")
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize(
    ("model", "before", "after"),
    one_in(
        2,
        [
            (GPT, Decomposition(data=2, pipeline=2, x=2), Decomposition(z=4, microbatch=2)),
            (LLAMA, Decomposition(data=2, pipeline=2, x=2), SERIAL),
            (GPT, SERIAL, Decomposition(pipeline=3, x=2)),
            (LLAMA, Decomposition(x=2, y=2), Decomposition(y=4)),
            (LLAMA, Decomposition(z=4), Decomposition(pipeline=2, x=2, y=2)),
            (GPT, Decomposition(y=2, z=2), Decomposition(x=2, z=2, data=2)),
        ],
    ),
    ids=lambda value: value.family if isinstance(value, Model) else str(value),
)
def test_another_decomposition_goes_on_as_if_nothing_had_changed(tmp_path, model, before, after):
    settings = experiment(model)
    expected, _ = trained(tmp_path / "serial", 4, SERIAL, settings)
    trained(tmp_path / "changed", 2, before, settings)
    losses, _ = trained(tmp_path / "changed", 4, after, settings)
    assert losses == pytest.approx(expected[2:], rel=2e-6)


def test_every_element_survives_a_change_and_back(tmp_path):
    """Restored and saved again without a step in between: bit for bit what it was."""
    trained(tmp_path, 2)
    before = tensors(tmp_path / "2")
    for decomposition in (Decomposition(pipeline=3, y=2), Decomposition(x=2, z=4), SERIAL):
        in_threads(
            decomposition.ranks, lambda transport, d=decomposition: saved_again(transport, tmp_path, d)
        )
    after = tensors(tmp_path / "2")
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_parts_may_be_pieces_of_a_block(tmp_path):
    """As a rank that updates only a share of each parameter keeps it."""
    settings = experiment()

    def learner(transport):
        return Learner(settings, SERIAL, transport, CPU)

    def written(transport):
        parts = learner(transport).parts()
        desk = Desk(tmp_path, attempt=1, keep=1)
        head = Manifest(step=1, loss=0.0, counters={}, model=GPT, decomposition=SERIAL)
        saver = Saver(desk, Topology(SERIAL, 0), settings.checkpoint, lambda *_, **__: None)
        saver.save(head, [piece for part in parts for piece in cut(part)])
        saver.join()
        return [part.tensors["master"].clone() for part in parts]

    def read(transport):
        parts = learner(transport).parts()
        for part in parts:
            part.tensors["master"].zero_()
        pieces = [piece for part in parts for piece in cut(part, 3)]
        fill(tmp_path / "1", read_manifest(tmp_path / "1"), targets_of(pieces, Topology(SERIAL, 0)))
        return [part.tensors["master"] for part in parts]

    (before,), (after,) = in_threads(1, written), in_threads(1, read)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def cut(part, pieces=2):
    """The same part as several."""
    size = part.span.stop - part.span.start
    first = part.span.start
    ends = [size * index // pieces for index in range(pieces + 1)]
    return [
        replace(
            part,
            span=slice(first + start, first + stop),
            tensors={name: tensor[start:stop] for name, tensor in part.tensors.items()},
        )
        for start, stop in pairwise(ends)
    ]


def saved_again(transport, folder, decomposition):
    learner = Learner(experiment(), decomposition, transport, CPU)
    keeper = Keeper(experiment(), folder, learner, lambda *_, **__: None)
    progress = keeper.restore()
    keeper.save(progress)
    keeper.join()
    transport.barrier()
