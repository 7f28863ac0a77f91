"""Models of the user's own in the experiment file."""

import pytest

from hpcdl.errors import UsageError
from hpcdl.spec import load
from hpcdl.spec.decomposition import Decomposition, violations
from hpcdl.spec.entry import EntryModel
from hpcdl.spec.experiment import Experiment

OWN = """\
name: own
model:
  entry: package.module:function
  arguments: {width: 64}
training: {global_batch: 8, steps: 5}
"""


def experiment(text):
    return load.validate(load.parse(text, "exp.yaml"), Experiment)


def test_a_model_of_ones_own_needs_no_data_and_survives_json():
    read = experiment(OWN)
    assert read.model == EntryModel(entry="package.module:function", arguments={"width": 64})
    assert read.row_tokens == 1
    assert not read.tied
    assert Experiment.model_validate_json(read.model_dump_json()) == read


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: own", "data: {source: stdlib}", "exp.yaml:1:1: model.entry returns its data; remove data:"),
        ("name: own", "checkpoint: {start: gpt2}", "checkpoint.start reads weights of transformers only"),
        ("module:function", "module", "exp.yaml:3:10: model.entry is 'package.module'"),
        ("module:function", "module:1st", "exp.yaml:3:10: model.entry is 'package.module:1st'"),
        (
            "  arguments",
            "  argument",
            "exp.yaml:4:3: unknown key 'model.argument'; did you mean 'arguments'?",
        ),
        ("  arguments", "  layers: 2\n  arguments", "exp.yaml:4:3: unknown key 'model.layers'"),
    ],
)
def test_an_error_says_where_what_and_the_way_out(old, new, words):
    with pytest.raises(UsageError) as caught:
        experiment(OWN.replace(old, new))
    assert words in caught.value.message


def test_a_transformer_needs_data_of_its_own():
    model = "{family: gpt, layers: 2, hidden: 8, heads: 2, vocab: 256, sequence: 8}"
    with pytest.raises(UsageError, match=r"data\.source model is for model\.entry; give the text or tokens"):
        experiment(f"model: {model}\ndata: {{source: model}}\n")


@pytest.mark.parametrize(
    ("degrees", "words"),
    [
        ({"x": 2}, "x 2 × y 1 × z 1: a model of your own is spread over data and pipeline only"),
        ({"y": 2, "z": 2}, "x 1 × y 2 × z 2: a model of your own is spread"),
        ({"recompute": "full"}, "recompute full: a model of your own recomputes what its modules checkpoint"),
        ({"defer_weights": True, "pipeline": 2}, "defer_weights: the backward of a model of your own is not"),
        ({"data": 3}, "global_batch 8 is not divisible by data 3"),
        ({"microbatch": 16}, "microbatch 16"),
    ],
)
def test_what_a_model_of_ones_own_cannot_do_is_told(degrees, words):
    (message,) = violations(Decomposition(**degrees), experiment(OWN).model, 8).values()
    assert words in message


def test_data_and_pipeline_in_all_their_forms_are_allowed():
    spread = Decomposition(data=2, pipeline=2, interleave=2, in_flight=3, zero=1, microbatch=2)
    assert not violations(spread, experiment(OWN).model, 8)
