"""Models of the user's own: trained alike however they are spread, and refused with a reason."""

import itertools
import sys

import pytest
import torch
from engine_keeping import SERIAL
from engine_worlds import in_threads, whole

from hpcdl.engine.data.loader import Share
from hpcdl.engine.data.own import OwnBatches
from hpcdl.engine.evaluation import mean_loss
from hpcdl.engine.keeping import Keeper, Progress
from hpcdl.engine.learner import Learner
from hpcdl.engine.program import load_program
from hpcdl.engine.pruning import Pruner
from hpcdl.engine.update import Step
from hpcdl.errors import EngineError
from hpcdl.spec.checkpoint import Checkpoint
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.entry import EntryModel
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.observe import Evaluation
from hpcdl.spec.training import Optimizer, Pruning, Training

CPU = torch.device("cpu")
BATCH = 8
STEPS = 3
LR = 0.01

SOURCE = '''
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset
from hpcdl.engine.program import Program

LENGTH, KINDS = 8, 3


class Centre(nn.Module):
    """Nothing to learn, so nothing that a gradient goes back to."""

    def forward(self, signal):
        return signal - signal.mean(-1, keepdim=True)


class Flatten(nn.Module):
    """A float and an int tensor from one."""

    def forward(self, signal):
        return signal.flatten(1), signal.argmax(-1)


class Meet(nn.Module):
    """One tensor from a float and an int tensor."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4 * LENGTH, 16)
        self.table = nn.Embedding(LENGTH, 16)

    def forward(self, both):
        values, places = both
        return self.linear(values) + self.table(places).mean(1)


def fixed(make):
    """Ranks that are threads share torch's generators, so weights are drawn without them."""

    def layer():
        made, draw = make(), np.random.default_rng(7)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.copy_(torch.tensor(0.3 * draw.standard_normal(tuple(parameter.shape))))
        return made

    return layer


def samples(number, first):
    draw = np.random.default_rng(first)
    signals = torch.tensor(draw.standard_normal((number, 1, LENGTH)), dtype=torch.float32)
    return TensorDataset(signals, torch.tensor(draw.integers(0, KINDS, number)))


def summed(scores, kinds):
    return F.cross_entropy(scores.float(), kinds, reduction="sum")


def layers(dropped=0.0):
    makers = [Centre, lambda: nn.Conv1d(1, 4, 3, padding=1), Flatten, Meet, nn.Tanh]
    head = [lambda: nn.Sequential(nn.Dropout(dropped), nn.Linear(16, 6)), lambda: nn.Linear(6, KINDS)]
    return [fixed(make) for make in (*makers, *head)]


def small(costs=None, dropped=0.0, validation=True):
    held_out = samples(10, 2) if validation else None
    return Program(layers(dropped), summed, samples(20, 1), held_out, costs)


def several():
    """Two numbers a target."""
    data = TensorDataset(torch.arange(12.0).view(6, 2), torch.ones(6, 2))
    return Program([nn.Identity, lambda: nn.Linear(2, 2)], lambda a, b: (a.float() - b).abs().sum(), data, data)


def drawn():
    """Layers whose weights come from torch's generators."""
    return Program([lambda: nn.Linear(2, 2)] * 3, summed, TensorDataset(torch.ones(4, 2), torch.ones(4)))


def empty():
    return Program([nn.Tanh], summed, TensorDataset(torch.ones(0, 2), torch.ones(0)))


def misfit():
    data = TensorDataset(torch.ones(4, 2), torch.ones(4))
    return Program([lambda: nn.Linear(2, 3), nn.Tanh, lambda: nn.Linear(5, 1)], summed, data)


def silent():
    class Unwritten(nn.Module):
        def forward(self, value):
            raise NotImplementedError

    return Program([Unwritten], summed, samples(4, 1))


def normed():
    return Program([lambda: nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2))], summed, samples(4, 1))


def tied():
    one = nn.Linear(2, 2)

    def other():
        layer = nn.Linear(2, 2)
        layer.weight = one.weight
        return layer

    data = TensorDataset(torch.ones(4, 2), torch.ones(4))
    return Program([lambda: one, nn.Tanh, other], summed, data)


def ready(as_function):
    one = nn.Linear(2, 2)
    layer = (lambda: one) if as_function else one
    return Program([layer], summed, TensorDataset(torch.ones(4, 2), torch.ones(4)))


def nothing():
    return "a model"
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the module of all programs here lies; Python looks there no longer than this module runs."""
    place, before = tmp_path_factory.mktemp("programs"), list(sys.path)
    (place / "own_programs.py").write_text(SOURCE)
    (place / "own_broken.py").write_text("import a_package_that_nobody_has\n")
    yield place
    sys.path[:] = before


@pytest.fixture
def own(folder):
    """An experiment with one of the programs."""

    def make(function="small", module="own_programs", precision="fp32", **arguments):
        training = Training(
            global_batch=BATCH,
            steps=STEPS,
            precision=precision,
            optimizer=Optimizer(lr=LR, eps=0.1, clip=0.5),
            bucket_mib=0.0005,
        )
        return Experiment(
            model=EntryModel(entry=f"{module}:{function}", arguments=arguments, folder=str(folder)),
            training=training,
            checkpoint=Checkpoint(every=1),
            evaluation=Evaluation(every=1, sequences=10),
        )

    return make


def batches(settings, learner):
    topology = learner.topology
    share = Share(topology.batch_shard, topology.decomposition.batch_shards)
    return OwnBatches(load_program(settings.model), settings, share)


def train(settings, learner, step):
    portion = batches(settings, learner).rows(step)
    return learner.step(Step(step, LR), portion.inputs_BL, portion.targets_BL, portion.counted)


def trained(settings, decomposition, pruning=None):
    """Losses and gradient norms of all steps, and full weights after the last."""

    def work(transport):
        learner = Learner(settings, decomposition, transport, CPU)
        if pruning is not None:
            Pruner(pruning, learner, lambda *_, **__: None).begin(0)
        outcomes = [train(settings, learner, step) for step in range(1, STEPS + 1)]
        held = [(one, one.parameter.detach().float()) for one in learner.stage.held]
        return [(outcome.loss, outcome.grad_norm) for outcome in outcomes], held

    answers = in_threads(decomposition.ranks, work)
    assert all(answer[0] == answers[0][0] for answer in answers), "ranks disagree about the step"
    return answers[0][0], whole(decomposition, [answer[1] for answer in answers])


def assert_alike(found, wanted, tolerance):
    for outcome, expected in zip(found[0], wanted[0], strict=True):
        assert outcome == pytest.approx(expected, rel=tolerance)
    assert found[1].keys() == wanted[1].keys()
    for name, value in wanted[1].items():
        assert (found[1][name] - value).abs().max() < tolerance * value.abs().max(), name


SPREADS = [
    {"data": 2}, {"pipeline": 2}, {"pipeline": 3}, {"data": 2, "pipeline": 2}, {"microbatch": 3},
    {"pipeline": 2, "interleave": 2}, {"pipeline": 3, "interleave": 2, "microbatch": 3, "in_flight": 1},
    {"data": 2, "zero": 1}, {"data": 2, "pipeline": 2, "zero": 1}, {"data": 2, "offload": "optimizer"},
    {"data": 2, "pipeline": 2, "zero": 1, "offload": "optimizer"},
]  # fmt: skip


@pytest.mark.parametrize("degrees", SPREADS, ids=str)
def test_training_does_not_depend_on_the_decomposition(own, degrees):
    """Shapes differ at every boundary, and one is crossed by a float and an int tensor."""
    found, wanted = (trained(own(), one) for one in (Decomposition(**degrees), SERIAL))
    assert_alike(found, wanted, 2e-6)


@pytest.mark.parametrize("degrees", [{"data": 2, "zero": 1}, {"pipeline": 3, "interleave": 2}], ids=str)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_pruned_training_does_not_depend_on_the_decomposition(own, scope, degrees):
    """What has more than two dimensions counts as a matrix; all gradients come by autograd."""
    pruning = Pruning(sparsity=0.5, scope=scope)
    found, wanted = (trained(own(), one, pruning) for one in (Decomposition(**degrees), SERIAL))
    assert_alike(found, wanted, 2e-6)
    dense = trained(own(), SERIAL)[1]
    matrices = {name: values for name, values in found[1].items() if values.dim() == 2}
    gone = sum(int((values == 0).sum()) for values in matrices.values())
    assert gone == pytest.approx(0.5 * sum(values.numel() for values in matrices.values()), rel=0.02)
    assert not any((dense[name] == 0).any() for name in matrices)


def test_stages_are_cut_by_the_costs_that_are_given(own):
    settings = own(costs=[1, 1, 1, 1, 1, 1, 6])

    def names(transport):
        learner = Learner(settings, Decomposition(pipeline=2), transport, CPU)
        return [one.name for one in learner.stage.held]

    assert in_threads(2, names)[1] == ["layers.6.weight", "layers.6.bias"]


def test_a_virtual_stage_may_have_nothing_to_learn(own):
    """The first has the layer without parameters alone, so that no gradient goes through it."""
    settings = own(costs=[9, 1, 1, 1, 1, 1, 1])
    decomposition = Decomposition(pipeline=2, interleave=2)
    assert_alike(trained(settings, decomposition), trained(own(), SERIAL), 2e-6)


def test_a_rank_with_nothing_to_learn_is_refused(own):
    with pytest.raises(EngineError, match="pipeline stage 0 of the program has nothing to learn"):
        built(own(costs=[9, 1, 1, 1, 1, 1, 1]), pipeline=2)


@pytest.mark.parametrize("degrees", [{"data": 2}, {"pipeline": 2}], ids=str)
def test_bf16_training_stays_close_to_the_serial_one(own, degrees):
    settings = own(precision="bf16")
    found, _ = trained(settings, Decomposition(**degrees))
    wanted, _ = trained(settings, SERIAL)
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in wanted], rel=5e-3)


def test_initial_weights_depend_on_the_seed_and_the_place_alone(own):
    """Every layer draws other weights, and drawing leaves torch's generators as they were."""
    before = torch.get_rng_state()

    def weights(transport):
        learner = Learner(own("drawn"), Decomposition(), transport, CPU)
        return [one.parameter.detach() for one in learner.stage.held if one.name.endswith("weight")]

    first, again = (in_threads(1, weights)[0] for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(first, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_dropout_draws_repeats_and_evaluation_drops_nothing(own):
    dropping, plain = own(dropped=0.5), own()
    once, twice = (trained(dropping, Decomposition())[0] for _ in range(2))
    assert once == twice
    assert once != trained(plain, Decomposition())[0]
    assert evaluated(dropping, Decomposition()) == evaluated(plain, Decomposition())


def evaluated(settings, decomposition):
    """The validation loss before training, of rank 0."""

    def work(transport):
        learner = Learner(settings, decomposition, transport, CPU)
        return mean_loss(learner, batches(settings, learner).held_out())

    return in_threads(decomposition.ranks, work)[0]


@pytest.mark.parametrize("degrees", [{"data": 2}, {"data": 4}, {"pipeline": 2, "microbatch": 3}], ids=str)
def test_a_validation_loss_does_not_depend_on_the_decomposition(own, degrees):
    """Ten samples are more than a batch: the second piece is smaller, and not to be shared by four."""
    assert evaluated(own(), Decomposition(**degrees)) == pytest.approx(evaluated(own(), SERIAL), rel=1e-6)


def test_fewer_samples_than_shards_are_evaluated_on_all_the_same(own):
    """A run that went on with more shards than samples died at its start, after its time in the queue."""
    few = own().model_copy(update={"evaluation": Evaluation(every=1, sequences=3)})
    assert evaluated(few, Decomposition(data=4)) == pytest.approx(evaluated(few, SERIAL), rel=1e-6)


def test_a_validation_loss_is_a_mean_over_samples_as_in_training(own):
    """Also where a target has several numbers."""
    settings = own("several")
    program = load_program(settings.model)

    def work(transport):
        learner = Learner(settings, Decomposition(), transport, CPU)
        told = mean_loss(learner, batches(settings, learner).held_out())
        inputs, targets = program.validation.tensors
        trained = learner.step(Step(1, 0.0), inputs, targets, len(inputs)).loss
        return told, trained

    told, trained = in_threads(1, work)[0]
    assert told == pytest.approx(trained, rel=1e-6)


def test_a_checkpoint_goes_on_in_another_decomposition(own, tmp_path):
    settings = own()

    def session(decomposition, until):
        def work(transport):
            learner = Learner(settings, decomposition, transport, CPU)
            keeper = Keeper(settings, tmp_path, learner, lambda *_, **__: None)
            progress, losses = keeper.restore(), []
            for step in range(progress.step + 1, until + 1):
                losses.append(train(settings, learner, step).loss)
                keeper.save(Progress(step, losses[-1]))
            keeper.join()
            transport.barrier()
            return losses

        return in_threads(decomposition.ranks, work)[0]

    spread = Decomposition(data=2, pipeline=2, interleave=2, zero=1)
    losses = [*session(Decomposition(pipeline=3), 1), *session(spread, 2), *session(SERIAL, 3)]
    assert losses == pytest.approx([loss for loss, _ in trained(settings, SERIAL)[0]], rel=2e-6)


def built(settings, **degrees):
    decomposition = Decomposition(**degrees)
    in_threads(decomposition.ranks, lambda transport: Learner(settings, decomposition, transport, CPU))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"module": "nowhere_at_all"}, "there is no module nowhere_at_all"),
        ({"function": "absent"}, "own_programs.py has no function absent"),
        ({"function": "LENGTH"}, "own_programs.py has no function LENGTH"),
        ({"function": "nothing"}, "returned str"),
        ({"function": "empty"}, "data is empty"),
        ({"function": "normed"}, "layer 0 of the program holds BatchNorm1d"),
        ({"costs": [1, 2]}, "gives 2 costs for 7 layers"),
        ({"function": "misfit"}, "layer 2 of the program cannot take what comes before it: .*3.*5"),
        ({"function": "silent"}, "layer 0 .* cannot take what comes before it: NotImplementedError"),
        ({"function": "tied"}, "layers 0 and 2 of the program share the parameter weight"),
        ({"function": "ready", "as_function": True}, "layer 0 .* has parameters without values"),
        ({"function": "ready", "as_function": False}, "layer 0 of the program is a module"),
    ],
)
def test_a_program_that_cannot_train_is_refused_by_name(own, entry, words):
    with pytest.raises(EngineError, match=words) as caught:
        built(own(**entry))
    assert caught.value.hint


def test_more_stages_than_layers_are_refused(own):
    with pytest.raises(EngineError, match="7 layers") as caught:
        built(own(), pipeline=4, interleave=2)
    assert caught.value.hint == "lower pipeline × interleave, or cut the model into more layers"


def test_what_the_users_own_module_misses_is_passed_on(own):
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has"):
        load_program(own(module="own_broken").model)


def test_an_evaluation_without_validation_is_refused(own):
    settings = own(validation=False)
    held_out = OwnBatches(load_program(settings.model), settings, Share(0, 2)).held_out
    with pytest.raises(EngineError, match="the program has no samples to evaluate on"):
        held_out()
