"""Which points a sweep makes: how many, in which order, the same everywhere, and each a whole experiment."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.errors import UsageError
from hpcdl.spec import load, points
from hpcdl.spec.sweep import MOST, Draw, Sweep

TINY = (Path(__file__).parents[1] / "tiny.yaml").read_text()

KEYS = st.sampled_from(["training.seed", "training.steps", "model.layers", "training.optimizer.lr", "name"])
COLUMNS = st.lists(st.integers(1, 99), min_size=1, max_size=4)


def read(sweep, base=TINY):
    """The points of the small experiment with this sweep."""
    document = load.parse(f"{base}\nsweep: {sweep}\n", "exp.yaml")
    return points.points(document, points.sweep_of(document))


def refused(sweep, base=TINY):
    with pytest.raises(UsageError) as caught:
        read(sweep, base)
    return caught.value.message


@st.composite
def sweeps(draw):
    """Sweeps over different keys in each part."""
    keys = draw(st.lists(KEYS, unique=True, min_size=1))
    cuts = sorted(draw(st.lists(st.integers(0, len(keys)), min_size=2, max_size=2)))
    grid, zipped, drawn = keys[: cuts[0]], keys[cuts[0] : cuts[1]], keys[cuts[1] :]
    length = draw(st.integers(1, 4))
    column = st.lists(st.integers(1, 99), min_size=length, max_size=length)
    return Sweep.model_validate(
        {"grid": {key: draw(COLUMNS) for key in grid}, "zip": {key: draw(column) for key in zipped}}
        | ({"random": {"points": draw(st.integers(1, 5)), "keys": {key: {"integers": [1, 9]} for key in drawn}}}
           if drawn else {})
    )  # fmt: skip


@given(sweeps())
def test_a_sweep_has_the_product_of_its_parts_and_every_point_every_key(sweep):
    made = [{setting.key: setting.value for setting in settings} for settings in sweep.settings()]
    zipped = len(next(iter(sweep.zip.values()), [0]))
    drawn = sweep.random.points if sweep.random else 1
    grid = 1
    for column in sweep.grid.values():
        grid *= len(column)
    assert len(made) == sweep.size == grid * zipped * drawn
    assert all(tuple(point) == sweep.keys for point in made)
    assert made == [{each.key: each.value for each in settings} for settings in sweep.settings()]


@given(st.lists(COLUMNS, min_size=1, max_size=3))
def test_a_grid_is_the_product_with_the_last_key_fastest(columns):
    grid = {f"model.k{index}": column for index, column in enumerate(columns)}
    sweep = Sweep.model_validate({"grid": grid})
    made = [tuple(setting.value for setting in settings) for settings in sweep.settings()]
    assert made == list(itertools.product(*columns))


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 20))
def test_more_points_or_another_key_change_nothing_of_those_there_were(seed, few, more):
    lr = {"training.optimizer.lr": {"log_uniform": [1e-5, 1e-2]}}
    both = {"training.seed": {"integers": [0, 99]}, **lr}

    def drawn(count, keys):
        sweep = Sweep.model_validate({"random": {"points": count, "seed": seed, "keys": keys}})
        return [{each.key: each.value for each in point} for point in sweep.settings()]

    first, second = drawn(few, lr), drawn(few + more, both)
    assert [point["training.optimizer.lr"] for point in second[:few]] == [
        point["training.optimizer.lr"] for point in first
    ]


@given(st.floats(0, 1, exclude_max=True))
def test_what_is_drawn_lies_between_the_ends(share):
    assert 1e-5 <= Draw(log_uniform=(1e-5, 1e-2)).at(share) <= 1e-2
    assert -1 <= Draw(uniform=(-1, 3)).at(share) <= 3
    assert Draw(integers=(3, 5)).at(share) in (3, 4, 5)
    assert Draw(choice=["a", None]).at(share) in ("a", None)


def test_both_ends_of_integers_are_drawn_and_nothing_beyond():
    assert Draw(integers=(3, 5)).at(0.0) == 3
    assert Draw(integers=(3, 5)).at(0.999999) == 5


def test_random_points_are_these_on_every_python():
    """Written down once: a change here would change everybody's sweeps."""
    sweep = Sweep.model_validate({
        "random": {"points": 3, "seed": 7, "keys": {
            "training.optimizer.lr": {"log_uniform": [1e-5, 1e-2]}, "training.seed": {"integers": [0, 999]},
            "model.layers": {"choice": [2, 4, 8]}, "training.optimizer.clip": {"uniform": [0, 1]},
        }}
    })  # fmt: skip
    assert [[setting.value for setting in settings] for settings in sweep.settings()] == EXPECTED


EXPECTED = [[6.70857e-05, 426, 8, 0.585815], [0.000167135, 382, 2, 0.122649], [0.000213585, 593, 2, 0.71157]]


def test_another_process_with_another_hash_seed_draws_the_same():
    code = (
        "from hpcdl.spec.sweep import Sweep; import json; s = Sweep.model_validate({'random': {'points': 5, "
        "'keys': {'a.b': {'uniform': [0, 1]}, 'c': {'choice': ['x', 'y', 'z']}}}}); "
        "print(json.dumps([[v.value for v in p] for p in s.settings()]))"
    )
    answers = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert answers[0] == answers[1]
    assert len(json.loads(answers[0])) == 5


def test_a_point_is_the_experiment_with_its_values_in_place():
    found = read(
        "{grid: {training.optimizer.lr: [1.0e-3, 2.0e-3]}, zip: {model.layers: [2, 4], model.hidden: [32, 64]}}"
    )
    told = [
        (each.experiment.training.optimizer.lr, each.experiment.model.layers, each.experiment.model.hidden)
        for each in found
    ]
    assert told == [(1e-3, 2, 32), (1e-3, 4, 64), (2e-3, 2, 32), (2e-3, 4, 64)]
    assert found[3].values == {"training.optimizer.lr": 2e-3, "model.layers": 4, "model.hidden": 64}
    assert all(each.experiment.sweep is None for each in found)


def test_whole_decompositions_and_single_degrees_are_swept():
    found = read("{grid: {parallelism: [auto, {data: 1, pipeline: 2}]}}")
    assert found[0].experiment.parallelism == "auto"
    assert found[1].experiment.parallelism.pipeline == 2
    degrees = read("{zip: {parallelism.data: [2, 1], parallelism.pipeline: [1, 2]}}")
    assert [str(each.experiment.parallelism) for each in degrees] == ["data 2", "pipeline 2"]


def test_a_key_the_file_leaves_to_the_sweep_need_not_stand_in_it():
    base = TINY.replace("layers: 2, ", "")
    assert [each.experiment.model.layers for each in read("{grid: {model.layers: [2, 4]}}", base)] == [2, 4]


def test_points_that_are_the_same_experiment_stand_there_once():
    assert len(read("{grid: {training.seed: [1, 2, 1], training.optimizer.lr: [1, 1.0]}}")) == 2


def test_a_command_is_swept_by_its_seed_its_variables_and_its_arguments():
    base = "command: [python, train.py]\n"
    seeds = read("{grid: {command.seed: [3, 4], environment.LR: ['1', '2']}}", base)
    assert [(each.experiment.command.run, each.experiment.command.seed) for each in seeds][::2] == [
        (["python", "train.py"], 3),
        (["python", "train.py"], 4),
    ]
    assert [each.experiment.environment["LR"] for each in seeds] == ["1", "2", "1", "2"]
    runs = read("{grid: {command.run: [[python, a.py], [python, b.py]]}}", base)
    assert [each.experiment.command.run[1] for each in runs] == ["a.py", "b.py"]


LINE = TINY.count("\n") + 2
"""Where the sweep stands."""


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("{grid: {training.optimiser.lr: [1, 2]}}", f"exp.yaml:{LINE}:16: unknown key 'training.optimiser'; did you mean 'optimizer'?"),
        ("{grid: {parallelism: [{data: 2}, {pipelines: 2}]}}", f"exp.yaml:{LINE}:42: unknown key 'parallelism.pipelines'; did you mean 'pipeline'?"),
        ("{grid: {training.seed: [0, -1]}}", f"exp.yaml:{LINE}:35: training.seed is -1, but must be greater than or equal to 0 (in point training.seed=-1)"),
        ("{zip: {model.layers: [2, 4], model.hidden: [32]}}", "sweep.zip: values stand side by side, so there must be as many of each; model.layers has 2, model.hidden has 1"),
        ("{grid: {training.seed: []}}", "sweep.grid.training.seed is []"),
        ("{}", "nothing is swept; give grid, zip or random"),
        ("3", f"exp.yaml:{LINE}:8: sweep is 3, but must be a mapping"),
        ("{grids: {training.seed: [1]}}", "unknown key 'sweep.grids'; did you mean 'grid'?"),
        ("{grid: {training.seed: [1]}, zip: {training.seed: [1]}}", "training.seed stands in two parts"),
        ("{grid: {parallelism: [auto], parallelism.data: [1]}}", "would overwrite each other"),
        ("{grid: {sweep.at_once: [1]}}", "cannot be swept"),
        ("{grid: {training..seed: [1]}}", "'training..seed' is no key of an experiment"),
        ("{random: {points: 3, keys: {training.seed: {uniform: [1, 2], choice: [1]}}}}", "give exactly one of uniform, log_uniform, integers, choice, not uniform and choice"),
        ("{random: {points: 3, keys: {training.seed: {log_uniform: [0, 1]}}}}", "both numbers must be above 0"),
        ("{random: {points: 3, keys: {training.seed: {integers: [5, 2]}}}}", "the first number must be below the second"),
        ("{random: {points: 0, keys: {training.seed: {integers: [1, 2]}}}}", "sweep.random.points is 0, but must be greater than 0"),
        ("{random: {points: 3, keys: {}}}", "sweep.random.keys"),
        ("{grid: {training.seed: [1]}, at_once: 0}", "sweep.at_once is 0"),
        ("{grid: {name.first: [1]}}", "exp.yaml"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(sweep, words):
    message = refused(sweep)
    assert words in message
    assert message.startswith("exp.yaml:")


def test_all_problems_are_told_at_once_each_once_with_a_point_that_has_it():
    message = refused("{grid: {training.seed: [-1, 1], training.steps: [0, 2, 3], model.layers: [2, 4]}}")
    first, second = sorted(message.splitlines(), key=lambda line: "training.seed is" not in line)
    assert "training.seed is -1" in first
    assert first.endswith("(in point training.seed=-1, training.steps=0, model.layers=2 and 5 others)")
    assert "training.steps is 0" in second
    assert second.endswith("and 3 others)")


def test_a_problem_of_every_point_names_none():
    assert refused("{grid: {training.seed: [1, 2]}}", TINY + "wrong: 1\n").endswith("unknown key 'wrong'; known keys: "
        "chain, checkpoint, command, communication, data, environment, evaluation, health, metrics, model, name, "
        "parallelism, resources, sweep, trace, training")  # fmt: skip


@pytest.mark.parametrize(
    "sweep",
    [
        "{grid: {environment.HF_TOKEN: [hunter2, hunter3], training.seed: [1, 2]}}",
        "{grid: {environment: [{HF_TOKEN: hunter2}, {A: b}], training.seed: [1, 2]}}",
    ],
)
def test_a_secret_that_is_refused_is_not_printed(sweep):
    """The message named the point by its values, and so told the secret."""
    message = refused(sweep)
    assert "HF_TOKEN looks like a secret" in message
    assert "hunter" not in message
    assert "[removed]" in message
    assert "training.seed=1" in message


def test_a_million_points_are_refused_with_the_numbers_before_they_are_made():
    assert f"1000000 points, more than the {MOST} of one sweep" in refused(
        "{random: {points: 1000000, keys: {training.seed: {integers: [0, 9]}}}}"
    )
    values = list(range(1000))
    message = refused(f"{{grid: {{training.seed: {values}, training.steps: {values}}}}}")
    assert "1000 × 1000 = 1000000 points" in message


@pytest.mark.parametrize(
    ("setting", "sweep"),
    [
        ("parallelism=auto", "{grid: {parallelism.data: [1, 2]}}"),
        ("parallelism={data: 2}", "{grid: {parallelism.data: [1, 2]}}"),
        ("parallelism.data=2", "{grid: {parallelism: [auto, {pipeline: 2}]}}"),
        ("training.optimizer.lr=1.0", "{grid: {training.optimizer: [{name: adamw}]}}"),
    ],
)
def test_what_was_typed_is_not_overwritten_by_a_key_above_or_below_it(setting, sweep):
    """``--set parallelism=auto`` gave way to a grid over ``parallelism.data`` without a word."""
    document = load.parse(f"{TINY}\nsweep: {sweep}\n", "exp.yaml")
    load.override(document, [setting])
    with pytest.raises(UsageError, match=r"--set .*: exp.yaml:.* sweeps .*; leave out one of them"):
        points.points(document, points.sweep_of(document))


@pytest.mark.parametrize(
    "setting", ["parallelism.pipeline=2", "parallelism={pipeline: 2}", "training.steps=7"]
)
def test_what_was_typed_beside_a_swept_key_stays(setting):
    base = TINY.replace("parallelism: {data: 2}\n", "")
    document = load.parse(f"{base}\nsweep: {{grid: {{parallelism.data: [1, 2]}}}}\n", "exp.yaml")
    load.override(document, [setting])
    for point in points.points(document, points.sweep_of(document)):
        told = point.document.content
        assert told["parallelism"]["data"] == point.values["parallelism.data"]
        assert told["parallelism"].get("pipeline") == 2 or setting == "training.steps=7"


def test_the_command_line_and_the_sweep_may_not_both_set_a_key():
    document = load.parse(f"{TINY}\nsweep: {{grid: {{training.seed: [1, 2]}}}}\n", "exp.yaml")
    load.override(document, ["training.seed=5"])
    with pytest.raises(
        UsageError, match=r"--set training.seed=5: exp.yaml:.* sweeps training.seed; leave out one"
    ):
        points.points(document, points.sweep_of(document))


@pytest.mark.parametrize(
    "draw", [Draw(log_uniform=(1e-308, 1e308)), Draw(uniform=(-1.5e308, 1.5e308))], ids=["log", "even"]
)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_draw_between_the_ends_of_what_is_a_number_is_a_number(draw, share):
    low, high = draw.log_uniform or draw.uniform
    assert low <= draw.at(share) <= high
