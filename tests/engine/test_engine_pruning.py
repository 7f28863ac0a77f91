"""Pruned training is dense training under a mask, in any decomposition; what is pruned is zero and stays so."""

import weakref
from itertools import combinations

import pytest
import torch
from engine_pruning import CPU, Trained, dense_masked, experiment, learn, smallest_gone
from engine_worlds import GPT, LLAMA, in_threads
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.groups import Peers
from hpcdl.engine.learner import Learner
from hpcdl.engine.optim.carry import whole
from hpcdl.engine.pruning import Pruner
from hpcdl.engine.sparse.masks import prunable
from hpcdl.engine.sparse.schedule import due, sparsity_after
from hpcdl.engine.sparse.tickets import Tickets
from hpcdl.engine.topology import Topology
from hpcdl.engine.transport.memory import MemoryTransport, World
from hpcdl.errors import EngineError
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model
from hpcdl.spec.training import LossScale, Pruning

SIX = Model(**GPT.model_dump() | {"layers": 6})
TIED = Model(**LLAMA.model_dump() | {"tied": True})
MODELS = {"gpt": GPT, "llama": LLAMA, "tied": TIED, "six": SIX}
ONCE = Pruning(sparsity=0.6)
LATER = Pruning(sparsity=0.7, begin=2)
ALL = Pruning(sparsity=0.5, scope="global", exclude=())
GRADUAL = Pruning(sparsity=0.8, schedule="cubic", begin=0, end=3, every=1)
PATTERN = Pruning(sparsity=0.5, pattern="2:4", begin=1)
KINDS = {"once": ONCE, "later": LATER, "global": ALL, "cubic": GRADUAL, "2:4": PATTERN}


def drawing(model, pruning):
    """What draws the masks of the reference, by sorting whole matrices."""

    def draw(step, weights):
        actions = {"once": [pruning.begin], "cubic": [1, 2, 3]}[pruning.schedule]
        if step not in actions:
            return None
        names = prunable({name: value.shape for name, value in weights.items()}, pruning.exclude)
        if pruning.pattern:
            return {name: two_of_four(weights[name]) for name in names}
        sparsity = sparsity_after(pruning, step)
        if pruning.scope == "layer":
            return {name: smallest_gone(weights[name], sparsity) for name in names}
        together = smallest_gone(torch.cat([weights[name].flatten() for name in names]), sparsity)
        parts = together.split([weights[name].numel() for name in names])
        return {name: part.view(weights[name].shape) for name, part in zip(names, parts, strict=True)}

    return draw


def two_of_four(weights):
    groups = weights.abs().view(-1, 4)
    third = groups.sort(dim=1).values[:, 1:2]
    return (groups > third).view(weights.shape)


_references = {}


def assert_dense_masked(model, pruning, decomposition, tolerance=2e-6, **training):
    settings = experiment(model, pruning=pruning, **training)
    key = settings.model_dump_json()
    if key not in _references:
        _references[key] = dense_masked(settings, drawing(model, pruning))
    losses, norms, weights, masks = _references[key]
    found = Trained(settings, decomposition)
    assert found.masks.keys() == masks.keys()
    for name, mask in masks.items():
        assert torch.equal(found.masks[name].bool(), mask), name
        assert not found.weights[name][~mask].any(), name
    for outcome, loss, norm in zip(found.outcomes, losses, norms, strict=True):
        assert outcome.loss == pytest.approx(loss, rel=tolerance)
        assert outcome.grad_norm == pytest.approx(norm, rel=tolerance)
    assert found.weights.keys() == weights.keys()
    for name, value in weights.items():
        error = (found.weights[name] - value).abs().max() / value.abs().max()
        assert error < tolerance, f"{name}: {error}"
    sizes = sum(mask.numel() for mask in masks.values())
    left = sum(int(mask.sum()) for mask in masks.values())
    assert found.reports[-1]["sparsity"] == pytest.approx(1 - left / sizes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["gpt", "llama", "tied"])
def test_alone_it_is_dense_training_under_a_mask(model, kind):
    assert_dense_masked(MODELS[model], KINDS[kind], Decomposition(microbatch=2))


SPREAD = [
    {"data": 2}, {"pipeline": 3}, {"x": 2}, {"y": 2}, {"z": 2}, {"data": 2, "zero": 1},
    {"data": 2, "z": 2, "zero": 1}, {"pipeline": 2, "x": 2}, {"data": 2, "pipeline": 2, "y": 2, "zero": 1},
    {"pipeline": 3, "interleave": 2, "defer_weights": True}, {"pipeline": 2, "x": 2, "y": 2, "z": 2},
    {"pipeline": 2, "z": 2, "recompute": "full"}, {"data": 2, "z": 2, "offload": "optimizer"},
]  # fmt: skip


@pytest.mark.parametrize("degrees", SPREAD, ids=str)
@pytest.mark.parametrize("kind", ["global", "cubic"])
def test_spread_it_is_dense_training_under_a_mask(kind, degrees):
    """Of the global threshold the embedding is pruned too, which a tied head shares."""
    model = SIX if "interleave" in degrees else TIED if kind == "global" else GPT
    assert_dense_masked(model, KINDS[kind], Decomposition(**degrees))


@pytest.mark.slow
@pytest.mark.parametrize("degrees", SPREAD, ids=str)
@pytest.mark.parametrize("kind", ["once", "later", "2:4"])
@pytest.mark.parametrize("model", ["gpt", "llama"])
def test_any_model_spread_is_dense_training_under_a_mask(model, kind, degrees):
    model = SIX if "interleave" in degrees else MODELS[model]
    assert_dense_masked(model, KINDS[kind], Decomposition(**degrees))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("degrees", [{}, {"data": 2, "z": 2, "zero": 1}, {"pipeline": 2, "x": 2}], ids=str)
def test_half_precision_stays_close_to_fp32(precision, degrees):
    """bf16 keeps 8 bits and fp16 11; both add the gradients of microbatches in that precision here."""
    settings = experiment(GPT, precision=precision, pruning=ONCE)
    losses, norms, _, masks = dense_masked(settings, drawing(GPT, ONCE))
    found = Trained(settings, Decomposition(**degrees))
    for outcome, loss, norm in zip(found.outcomes, losses, norms, strict=True):
        assert outcome.loss == pytest.approx(loss, rel=2e-3)
        assert outcome.grad_norm == pytest.approx(norm, rel=3e-2)
    for name, mask in found.masks.items():  # drawn of rounded weights, which have ties
        assert (mask.bool() != masks[name]).float().mean() < 0.01, name
        assert not found.weights[name][~mask.bool()].any(), name


def test_fp16_overflows_are_skipped_and_the_scale_survives_pruning():
    scale = LossScale(initial=2.0**24, largest=2.0**24)
    pruning = Pruning(sparsity=0.6, begin=2)
    settings = experiment(GPT, precision="fp16", pruning=pruning, loss_scale=scale)
    found = Trained(settings, Decomposition(data=2, zero=1), steps=12)
    skipped = [outcome.skipped for outcome in found.outcomes]
    assert skipped[:3] == [True] * 3
    assert skipped == sorted(skipped, reverse=True)
    assert not skipped[-1]


def test_pruning_after_every_step_is_monotone():
    found = Trained(experiment(GPT, pruning=GRADUAL), Decomposition(data=2, z=2, zero=1))
    wanted = [sparsity_after(GRADUAL, step) for step in (1, 2, 3)]
    assert [report["step"] for report in found.reports] == [1, 2, 3]
    assert [report["sparsity"] for report in found.reports] == pytest.approx(wanted, abs=1e-3)


def learner_of(settings):
    """Alone, and its pruner."""
    reports = []
    learner = Learner(settings, Decomposition(microbatch=2), MemoryTransport(World(1), 0), CPU)
    return learner, Pruner(settings.training.pruning, learner, lambda *_, **detail: reports.append(detail))


def test_gradients_come_once_after_several_prunings():
    """Autograd's hooks of before are gone, and so is the memory they wrote to."""
    settings = experiment(GPT, pruning=GRADUAL)
    learner, pruner = learner_of(settings)
    tables = [held.parameter for held in learner.stage.held if held.deposit.by_autograd]
    hooks = [len(parameter._post_accumulate_grad_hooks) for parameter in tables]
    buffers = [weakref.ref(slot.gradient) for slot in learner.gradients.slots]
    for step in range(1, 4):
        learn(learner, settings, step)
        pruner.act(step)
    assert len(learner.kept) == 12
    assert [len(parameter._post_accumulate_grad_hooks) for parameter in tables] == hooks
    assert not [buffer for buffer in buffers if buffer() is not None]


def test_masters_and_moments_are_those_of_before():
    settings = experiment(GPT, pruning=LATER)
    learner, pruner = learner_of(settings)
    for step in (1, 2):
        learn(learner, settings, step)
    kinds = ("master", "exp_avg", "exp_avg_sq")
    names = [held.name for held in learner.stage.held]
    before = {name: {kind: whole(learner._flat, name, kind) for kind in kinds} for name in names}
    counters = learner.counters()
    pruner.act(2)
    assert learner.counters() == counters == {"updates": 2.0}
    assert len(learner.kept) == 12
    for name, states in before.items():
        kept = learner.kept.get(name)
        for kind, values in states.items():
            wanted = values if kept is None else values[kept.mask]
            assert torch.equal(whole(learner._flat, name, kind), wanted), (name, kind)


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize(
    "degrees", [{}, {"data": 2}, {"data": 2, "z": 2}, {"pipeline": 2, "x": 2, "z": 2}], ids=str
)
def test_every_element_lies_in_a_part_that_one_rank_writes(degrees, zero):
    """Kept or not; and what a part has of a pruned parameter are the kept elements of its span."""
    decomposition = Decomposition(zero=zero, **degrees)

    def work(transport):
        learner = Learner(experiment(TIED), decomposition, transport, CPU)
        Pruner(ALL, learner, lambda *_, **__: None).begin(0)
        weights = {held.name: held.parameter.detach().view(-1) for held in learner.stage.held}
        return learner.parts(), weights

    written = {}
    for rank, (parts, weights) in enumerate(in_threads(decomposition.ranks, work)):
        topology = Topology(decomposition, rank)
        for part in parts:
            span = slice(
                *(end - part.sharding.span(topology).start for end in (part.span.start, part.span.stop))
            )
            dense = torch.zeros(span.stop - span.start)
            dense[slice(None) if part.index is None else part.index] = part.tensors["master"]
            assert torch.equal(dense, weights[part.name][span]), part.name
            counts = written.setdefault(part.name, torch.zeros(part.sharding.shape))
            block = counts[part.sharding.block(topology)].reshape(-1).clone()
            block[part.span] += part.writes
            counts[part.sharding.block(topology)] = block.view(part.sharding.block_shape(topology))
    assert all((counts == 1).all() for counts in written.values())
    assert sum(counts.numel() for counts in written.values()) == TIED.parameters


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
