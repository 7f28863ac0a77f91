"""The library ``transformers`` and the engine compute the same logits from the same weights, both ways."""

import json
import os

import pytest
import torch
from engine_keeping import CPU, SERIAL, Session, experiment
from engine_worlds import in_threads
from safetensors.torch import load_file, save_file

from hpcdl.engine.checkpoint.folder import packed
from hpcdl.engine.checkpoint.huggingface import config, described, recipes
from hpcdl.engine.checkpoint.shapes import shapes
from hpcdl.engine.export import export
from hpcdl.engine.keeping import Keeper, Progress
from hpcdl.engine.learner import Learner
from hpcdl.engine.tensor.linear import product
from hpcdl.errors import EngineError
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")

SIZES = {"layers": 2, "hidden": 16, "heads": 4, "vocab": 256, "sequence": 8}
MODELS = {
    "gpt2": Model(family="gpt", ffn=24, **SIZES),
    "gpt2-untied": Model(family="gpt", tied=False, **SIZES),
    "llama": Model(family="llama", ffn=24, **SIZES),
    "llama-grouped": Model(family="llama", ffn=24, kv_heads=2, rope_theta=500.0, **SIZES),
    "llama-tied": Model(family="llama", ffn=24, kv_heads=1, tied=True, **SIZES),
}
TOKENS_BL = torch.randint(0, 256, (2, 8), generator=torch.Generator().manual_seed(1))
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def silent(*_, **__):
    """Reports of a rank that nobody listens to."""


def shaken(values):
    """Random values of a size that makes every parameter matter: biases and norms start as 0 and 1."""
    return values.copy_(
        torch.randn(values.shape, generator=torch.Generator().manual_seed(values.numel())) / 4
    )


def engine_logits(learner):
    (chunk,) = learner.stage.chunks
    stream = chunk.embedding(TOKENS_BL)
    for layer in chunk.layers:
        stream = layer(stream)
    return product(chunk.head.norm(stream), None, chunk.head.layout)


@torch.no_grad()
def saved_by_the_engine(checkpoints, model, transport):
    learner = Learner(experiment(model), SERIAL, transport, CPU)
    for part in learner.parts():
        shaken(part.tensors["master"])
    keeper = Keeper(experiment(model), checkpoints, learner, silent)
    keeper.save(Progress(7, 1.0))
    keeper.join()
    return engine_logits(learner)


@torch.no_grad()
def loaded_by_the_engine(folder, model, transport):
    settings = experiment(model, start=str(folder))
    learner = Learner(settings, SERIAL, transport, CPU)
    Keeper(settings, folder / "none", learner, silent).restore()
    return engine_logits(learner)


@torch.no_grad()
def foreign(model, folder, **how):
    """A random model of theirs, saved; its logits."""
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config(model)))
    for parameter in theirs.parameters():
        shaken(parameter)
    theirs.save_pretrained(folder, **how)
    return theirs.eval()(TOKENS_BL).logits


@each_model
def test_an_exported_model_computes_the_same_logits(tmp_path, model):
    (wanted,) = in_threads(1, lambda door: saved_by_the_engine(tmp_path / "checkpoints", model, door))
    assert export(tmp_path / "checkpoints", tmp_path / "out") == 7
    theirs, notes = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(notes.values()), notes
    with torch.no_grad():
        found = theirs.eval()(TOKENS_BL).logits
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@each_model
def test_an_imported_model_computes_the_same_logits(tmp_path, model):
    wanted = foreign(model, tmp_path)
    (found,) = in_threads(1, lambda door: loaded_by_the_engine(tmp_path, model, door))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert described("x", json.loads((tmp_path / "config.json").read_text())) == model


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped"])
def test_several_files_and_every_decomposition_start_from_the_same_weights(tmp_path, name):
    foreign(MODELS[name], tmp_path / "start", max_shard_size="4KB")
    assert len(list((tmp_path / "start").glob("*.safetensors"))) > 1
    settings = experiment(MODELS[name], start=str(tmp_path / "start"))
    spread = Decomposition(data=2, pipeline=2, x=2)
    losses = [Session(tmp_path / str(d), settings, d).run(2) for d in (SERIAL, spread)]
    assert losses[1] == pytest.approx(losses[0], rel=2e-6)


def test_a_large_export_is_cut_into_files(tmp_path):
    model = MODELS["gpt2"]
    (wanted,) = in_threads(1, lambda door: saved_by_the_engine(tmp_path / "checkpoints", model, door))
    export(tmp_path / "checkpoints", tmp_path / "out", limit=10_000)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    (found,) = in_threads(1, lambda door: loaded_by_the_engine(tmp_path / "out", model, door))
    assert torch.equal(found, wanted)
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(theirs(TOKENS_BL).logits, wanted, rtol=1e-4, atol=1e-5)


@each_model
def test_recipes_are_exact_both_ways(model):
    made = shapes(model)
    for name, recipe in recipes(model).items():
        ours = torch.randn(made[name])
        assert torch.equal(recipe.join(recipe.split(ours)), ours), name


def test_files_hold_what_fits_in_order():
    assert packed({"a": 4, "b": 4, "c": 9, "d": 1, "e": 7}, 8) == [["a", "b"], ["c"], ["d", "e"]]


def test_the_base_without_its_head_is_enough_for_a_tied_model(tmp_path):
    """As the published gpt2 is: no ``transformer.`` before the names."""
    wanted = foreign(MODELS["gpt2"], tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in whole.items()}
    save_file(bare, tmp_path / "model.safetensors")
    (found,) = in_threads(1, lambda door: loaded_by_the_engine(tmp_path, MODELS["gpt2"], door))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def refusal(folder, model):
    with pytest.raises(EngineError) as refused:
        in_threads(1, lambda door: loaded_by_the_engine(folder, model, door))
    return refused.value.message


def test_another_shape_is_refused_with_tensor_found_and_expected(tmp_path):
    foreign(MODELS["gpt2"], tmp_path)
    wider = MODELS["gpt2"].model_copy(update={"ffn": 32})
    assert "transformer.h.0.mlp.c_fc.weight has shape 16 × 24, expected 16 × 32" in refusal(tmp_path, wider)
    fewer = MODELS["gpt2"].model_copy(update={"layers": 1})
    assert "transformer.h.1.ln_1.weight has shape 16, expected none" in refusal(tmp_path, fewer)
    more = MODELS["gpt2"].model_copy(update={"layers": 3})
    assert "transformer.h.2.ln_1.weight has shape none" in refusal(tmp_path, more)
    other = MODELS["gpt2"].model_copy(update={"heads": 2, "kv_heads": 2})
    assert "model.heads is 4, expected 2" in refusal(tmp_path, other)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps: 1e-06"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_type: llama3"),
        ({"head_dim": 8}, "head_dim: 8"),
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({"hidden_size": "wide"}, "does not describe a model"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, "model.rope_theta is 7.0"),
    ],
)
def test_what_our_layers_do_not_compute_is_refused_by_name(tmp_path, change, told):
    foreign(MODELS["llama"], tmp_path)
    there = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(there | change))
    assert told in refusal(tmp_path, MODELS["llama"])


def test_weights_that_are_not_there_are_named(tmp_path):
    assert f"{tmp_path} holds no weights" in refusal(tmp_path, MODELS["llama"])
    (tmp_path / "config.json").write_text("{")
    assert f"{tmp_path}/config.json cannot be read" in refusal(tmp_path, MODELS["llama"])
    (tmp_path / "config.json").write_text(json.dumps(config(MODELS["llama"])))
    assert f"{tmp_path}/model.safetensors cannot be read" in refusal(tmp_path, MODELS["llama"])
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    assert f"{tmp_path}/model.safetensors cannot be read" in refusal(tmp_path, MODELS["llama"])


def test_grouped_queries_have_no_counterpart_in_gpt2():
    with pytest.raises(EngineError, match=r"model\.kv_heads is 2 of 4"):
        recipes(MODELS["gpt2"].model_copy(update={"kv_heads": 2}))


def test_what_cannot_be_exported_is_said_with_what_can(tmp_path):
    with pytest.raises(EngineError, match="there is no checkpoint in"):
        export(tmp_path / "checkpoints", tmp_path / "out")
    in_threads(1, lambda door: saved_by_the_engine(tmp_path / "checkpoints", MODELS["llama"], door))
    with pytest.raises(EngineError, match="no checkpoint of step 3") as refused:
        export(tmp_path / "checkpoints", tmp_path / "out", 3)
    assert "steps 7" in refused.value.hint
    (tmp_path / "out").mkdir()
    with pytest.raises(EngineError, match="exists already"):
        export(tmp_path / "checkpoints", tmp_path / "out")
