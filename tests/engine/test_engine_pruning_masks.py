"""Which weights are pruned, and when: masks, schedules, tickets, and what does not fit the model."""

from itertools import combinations

import pytest
import torch
from engine_pruning import CPU, Trained, experiment, learn, learner_of
from engine_worlds import GPT, LLAMA, in_threads
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.groups import Peers
from hpcdl.engine.learner import Learner
from hpcdl.engine.pruning import Pruner
from hpcdl.engine.sparse.masks import prunable
from hpcdl.engine.sparse.schedule import due, sparsity_after
from hpcdl.engine.sparse.tickets import Tickets
from hpcdl.engine.transport.memory import MemoryTransport, World
from hpcdl.errors import EngineError
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model
from hpcdl.spec.training import Pruning

TIED = Model(**LLAMA.model_dump() | {"tied": True})
ALL = Pruning(sparsity=0.5, scope="global", exclude=())
LATER = Pruning(sparsity=0.7, begin=2)
PATTERN = Pruning(sparsity=0.5, pattern="2:4", begin=1)


# Early-bird tickets


def test_a_ticket_is_found_when_the_last_masks_agree():
    """Weights hardly move, so the masks do not either: pruned when there are as many as must agree."""
    pruning = Pruning(sparsity=0.5, schedule="early-bird", every=1, begin=1, masks=3, distance=0.2)
    found = Trained(experiment(GPT, pruning=pruning), Decomposition(data=2, x=2), steps=5)
    assert [report["step"] for report in found.reports] == [3]


def test_masks_that_never_agree_prune_at_the_end():
    pruning = Pruning(sparsity=0.5, schedule="early-bird", every=2, end=3, masks=2, distance=1e-9)
    found = Trained(experiment(GPT, pruning=pruning), Decomposition(pipeline=2, z=2), steps=5)
    assert [report["step"] for report in found.reports] == [3]


@given(st.integers(2, 8), st.integers(1, 12), st.integers(0, 1000))
def test_the_distance_is_the_largest_between_two_of_the_last_masks(masks, drawn, seed):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.rand(40, generator=generator) < 0.5 for _ in range(drawn)]
    tickets = Tickets(masks)
    for mask in made:
        tickets.add({"a": mask[:30], "b": mask[30:]})
    last = made[-masks:]
    wanted = max((int((one ^ other).sum()) for one, other in combinations(last, 2)), default=0)
    world = Peers(MemoryTransport(World(1), 0), (0,), None)
    assert tickets.drawn == len(last)
    assert tickets.differing(["a", "b"], world, CPU) == wanted


@pytest.mark.parametrize(
    "degrees", [{"data": 2, "zero": 1}, {"x": 2, "z": 2}, {"pipeline": 2, "y": 2}], ids=str
)
def test_the_distance_counts_every_element_once(degrees):
    """Two masks that have nothing in common differ in every element of the pruned matrices."""
    decomposition = Decomposition(**degrees)
    settings = experiment(TIED, pruning=ALL)

    def work(transport):
        learner = Learner(settings, decomposition, transport, CPU)
        pruner = Pruner(ALL, learner, lambda *_, **__: None)
        for value in (True, False):
            masks = {
                held.name: torch.full((held.parameter.numel(),), value)
                for held in learner.stage.held
                if held.decay
            }
            pruner._tickets.add(masks)
        counted = [held.name for held in pruner._held if held.is_first(learner.topology)]
        return pruner._tickets.differing(counted, learner.groups.world, CPU), sum(pruner._sizes.values())

    for differing, elements in in_threads(decomposition.ranks, work):
        assert differing == elements


# When


@given(st.integers(0, 5), st.integers(1, 20), st.integers(1, 7), st.floats(0.1, 0.9))
def test_the_cubic_sparsity_rises_to_its_full_value(begin, length, every, sparsity):
    settings = Pruning(sparsity=sparsity, schedule="cubic", begin=begin, end=begin + length, every=every)
    steps = [step for step in range(begin + length + 10) if due(settings, step)]
    values = [sparsity_after(settings, step) for step in steps]
    assert steps[-1] == begin + length
    assert all(begin < step <= begin + length for step in steps)
    assert values == sorted(values)
    assert values[-1] == sparsity
    assert [step for step in steps[:-1] if (step - begin) % every] == []


def test_the_cubic_sparsity_is_that_of_zhu_and_gupta():
    settings = Pruning(sparsity=0.8, schedule="cubic", begin=10, end=50, every=10)
    values = [sparsity_after(settings, step) for step in (10, 20, 30, 40, 50, 60)]
    assert values == pytest.approx([0, 0.8 * 37 / 64, 0.8 * 7 / 8, 0.8 * 63 / 64, 0.8, 0.8])
    assert [step for step in range(100) if due(settings, step)] == [20, 30, 40, 50]


def test_masks_are_drawn_from_begin_on():
    search = Pruning(sparsity=0.5, schedule="early-bird", begin=2, every=3, end=9)
    assert [step for step in range(20) if due(search, step)] == [2, 5, 8, 9]
    assert [step for step in range(20) if due(LATER, step)] == [2]


# Which


def test_two_of_four_are_kept_of_every_row():
    found = Trained(experiment(LLAMA, pruning=PATTERN), Decomposition(y=2, z=2))
    for mask in found.masks.values():
        assert (mask.view(-1, 4).sum(1) == 2).all()


def test_excluded_matrices_and_vectors_stay_whole():
    pruning = Pruning(sparsity=0.9, exclude=("embedding.*", "head.*", "layers.0.*", "*.out.*"))
    found = Trained(experiment(GPT, pruning=pruning), Decomposition(pipeline=3), steps=1)
    assert found.masks
    assert all(name.startswith(("layers.1.", "layers.2.")) and ".out." not in name for name in found.masks)
    assert all(len(found.weights[name].shape) == 2 for name in found.masks)


@pytest.mark.parametrize(
    ("pruning", "told"),
    [
        (Pruning(sparsity=0.5, exclude=("layer.*",)), "'layer.*' fits no parameter of the model"),
        (Pruning(sparsity=0.5, exclude=("*",)), "leaves none of 14 matrices to be pruned"),
        (Pruning(sparsity=0.5, pattern="3:6"), "has 16 inputs a block, which 6 does not divide"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value.pattern or value.exclude[0],
)
def test_what_does_not_fit_the_model_is_refused(pruning, told):
    with pytest.raises(EngineError, match=r"training\.pruning") as refusal:
        learner_of(experiment(GPT, pruning=pruning))
    assert told in refusal.value.message


def test_a_pattern_that_fits_nothing_is_told_the_closest_names():
    with pytest.raises(EngineError) as refusal:
        prunable({"layers.0.mlp.up.weight": (4, 4), "head.norm.weight": (4,)}, ("layers.0.mlp.upp.weight",))
    assert "layers.0.mlp.up.weight" in refusal.value.hint


@pytest.mark.parametrize("degrees", [{}, {"pipeline": 2, "z": 2}], ids=str)
def test_a_matrix_of_which_nothing_would_be_left_is_named(degrees):
    """On all ranks, also those that do not hold it."""
    decomposition = Decomposition(**degrees)

    def work(transport):
        settings = experiment(GPT, pruning=Pruning(sparsity=0.5, scope="global", begin=0))
        learner = Learner(settings, decomposition, transport, CPU)
        for held in learner.stage.held:
            if held.name == "layers.2.mlp.up.weight":
                held.parameter.data.mul_(1e-6)
        with pytest.raises(EngineError, match=r"0\.5 leaves nothing of layers\.2\.mlp\.up\.weight"):
            Pruner(settings.training.pruning, learner, lambda *_, **__: None).begin(0)
        return True

    assert all(in_threads(decomposition.ranks, work))


@pytest.mark.parametrize("degrees", [{"z": 4}, {"data": 2, "z": 2, "zero": 1}, {"z": 2, "x": 2}], ids=str)
def test_a_rank_may_hold_nothing_but_zeros_of_a_matrix(degrees):
    """All that is kept of one is in its first row; the other ranks train and keep nothing of it."""
    decomposition = Decomposition(**degrees)
    name = "layers.1.mlp.up.weight"

    def work(transport):
        settings = experiment(GPT, pruning=Pruning(sparsity=0.5, scope="global"))
        learner = Learner(settings, decomposition, transport, CPU)
        for held in learner.stage.held:
            if held.name == name:
                start = (
                    held.sharding.span(learner.topology).start
                    + held.sharding.block(learner.topology)[0].start
                )
                held.parameter.data[16 if start == 0 else 0 :] *= 1e-6
        pruner = Pruner(settings.training.pruning, learner, lambda *_, **__: None)
        pruner.begin(0)
        losses = [learn(learner, settings, step).loss for step in (1, 2)]
        parts = [part for part in learner.parts() if part.name == name]
        return losses, learner.kept[name].count, sum(part.span.stop - part.span.start for part in parts)

    answers = in_threads(decomposition.ranks, work)
    assert all(losses == answers[0][0] for losses, _, _ in answers)
    counts = [count for _, count, _ in answers]
    assert counts.count(0) >= decomposition.ranks // 2
    assert max(counts) > 0
    assert all(covered > 0 for _, count, covered in answers if not count)


def test_sparsity_below_the_break_even_is_warned_of_with_both_sizes(capsys):
    learner_of(experiment(GPT, pruning=Pruning(sparsity=0.2)))
    told = capsys.readouterr().out
    assert "sparsity 0.2 is below 0.25" in told
    assert "takes 21.2 bytes a parameter of the pruned matrices, training whole 20" in told
    learner_of(experiment(GPT, pruning=Pruning(sparsity=0.25)))
    assert not capsys.readouterr().out
