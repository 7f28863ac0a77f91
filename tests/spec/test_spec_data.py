"""What an experiment may say about its data."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hpcdl.spec.data import Data, quotas
from hpcdl.spec.experiment import Experiment

MODEL = {"layers": 1, "hidden": 8, "heads": 1, "vocab": 256, "sequence": 8}


def experiment(data, **changes):
    return Experiment.model_validate({"model": MODEL, "data": data} | changes)


def test_one_source_may_be_told_plainly():
    (source,) = Data(path="corpus", pattern="*.txt").all_sources
    assert (source.source, source.path, source.pattern) == ("text", "corpus", "*.txt")
    assert Data(path="corpus").quotas == (1,)


@pytest.mark.parametrize(
    "data",
    [{"path": "a"}, {"source": "stdlib"}, {"sources": [{"path": "a"}, {"source": "tokens", "path": "b"}]}],
)
def test_data_are_the_same_after_a_round_trip(data):
    """resolved.json holds every key, also those that were never given."""
    assert Data.model_validate_json(Data(**data).model_dump_json()) == Data(**data)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([3, 1], (3, 1)), ([0.7, 0.2, 0.1], (7, 2, 1)), ([2, 4], (1, 2)), ([0.1, 0.1], (1, 1)), ([5], (1,))],
)
def test_weights_are_whole_numbers_in_lowest_terms(weights, expected):
    assert quotas(weights) == expected


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=5), st.sampled_from([1, 10, 1000]))
def test_quotas_have_the_ratio_of_the_weights(weights, scale):
    told = quotas([weight / scale for weight in weights])
    assert all(mine * weights[0] == weight * told[0] for mine, weight in zip(told, weights, strict=True))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"source": "tokens"}, "source tokens needs a path"),
        ({"sources": [{"source": "text"}]}, "source text needs a path"),
        ({"path": "a", "sources": [{"path": "b"}]}, "path stands beside sources"),
        ({"sources": [{"path": "b", "weight": 0}]}, "greater than 0"),
        ({"sources": [{"path": "b", "weight": -1}]}, "greater than 0"),
        ({"sources": [{"path": "b", "weight": 0.1234567}, {"path": "c"}]}, "whose sum is above 1000000"),
        ({"source": "tokens", "path": "a", "dtype": "int64"}, "uint16"),
        ({"path": "a", "document_end": 256}, "document_end 256 is no byte"),
        ({"path": "a", "validation": 1.0}, "less than 1"),
        ({"path": "a", "prefetch": 0}, "greater than 0"),
    ],
)
def test_what_cannot_be_is_refused(data, words):
    with pytest.raises(ValidationError, match=words):
        Data(**data)


def test_bytes_of_tokens_need_no_vocabulary_of_bytes():
    small = {"model": MODEL | {"vocab": 100}}
    assert experiment({"source": "tokens", "path": "a"}, **small)
    with pytest.raises(ValidationError, match="needs a vocab of at least 256"):
        experiment({"path": "a"}, **small)
    with pytest.raises(ValidationError, match="document_end 100 is not a token"):
        experiment({"source": "tokens", "path": "a", "document_end": 100}, **small)


def test_an_evaluation_needs_data_that_are_held_out():
    with pytest.raises(ValidationError, match=r"set data\.validation"):
        experiment({"path": "a"}, evaluation={"every": 5})
    assert experiment({"path": "a", "validation": 0.1}).evaluation.every == 0


@pytest.mark.parametrize(("every", "due"), [(0, []), (3, [3, 6, 7]), (7, [7]), (9, [7])])
def test_an_evaluation_is_due_every_so_often_and_at_the_end(every, due):
    evaluation = experiment({"path": "a", "validation": 0.1}, evaluation={"every": every}).evaluation
    assert [step for step in range(1, 8) if evaluation.due(step, 7)] == due


def test_every_relative_path_is_relative_to_the_experiment_file():
    told = Data(sources=[{"path": "a"}, {"path": "/b"}, {"source": "stdlib"}], tokenizer="t.json")
    assert told.anchored(Path("/exp")).paths == {
        "data.sources.0.path": "/exp/a",
        "data.sources.1.path": "/b",
        "data.tokenizer": "/exp/t.json",
    }
    assert Data(path="~/x").anchored(Path("/exp")).paths == {"data.path": str(Path.home() / "x")}
    assert Data(source="stdlib").anchored(Path("/exp")).paths == {}
