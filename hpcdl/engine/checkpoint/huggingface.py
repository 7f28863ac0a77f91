"""Our parameters as those of Hugging Face's GPT-2 and Llama, and back: names, layouts and config.json.

What differs besides names: rows of ``attention.qkv`` are grouped by key-value head here, and three matrices
(or three runs of rows) there; ``mlp.up`` of llama has gate and up rows in turn here, and is two matrices
there; GPT-2's matrices stand there with rows as inputs. Rotary positions turn the same pairs (d, d + D/2) in
both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hpcdl.engine.checkpoint.shapes import shapes
from hpcdl.engine.tensor.norm import EPSILON
from hpcdl.errors import EngineError
from hpcdl.spec.model import Model

Tensors = Sequence[torch.Tensor]
BASES = ("transformer.", "model.")  # left out where only the model without its head was saved


@dataclass(frozen=True)
class Recipe:
    """How one of our parameters is made of theirs, and theirs of ours; exact both ways."""

    theirs: tuple[str, ...]
    join: Callable[[Tensors], torch.Tensor]
    split: Callable[[torch.Tensor], Tensors]

    @property
    def turned(self) -> Recipe:
        """The same for matrices that stand there with rows as inputs."""
        return Recipe(
            self.theirs,
            lambda tensors: self.join([tensor.T for tensor in tensors]),
            lambda tensor: [part.T for part in self.split(tensor)],
        )


def recipes(model: Model) -> dict[str, Recipe]:
    """A recipe for every parameter of ``model``, by our name.

    Raises:
        EngineError: the model has no counterpart there.
    """
    if model.family == "llama":
        found = _llama(model)
    elif model.kv_heads == model.heads:
        found = _gpt2(model)
    else:
        raise EngineError(
            f"GPT-2's layout has no grouped-query attention, but model.kv_heads is {model.kv_heads} of "
            f"{model.heads} heads",
            "only models of family llama, or with kv_heads equal to heads, can be exchanged in this layout",
        )
    return {name: found[name] for name in shapes(model)}


def expected(model: Model) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor there that ``model`` needs."""
    made = shapes(model)
    return {
        name: tuple(tensor.shape)
        for ours, recipe in recipes(model).items()
        for name, tensor in zip(
            recipe.theirs, recipe.split(torch.empty(made[ours], device="meta")), strict=True
        )
    }


def _same(name: str) -> Recipe:
    return Recipe((name,), lambda tensors: tensors[0], lambda tensor: [tensor])


def _gpt2(model: Model) -> dict[str, Recipe]:
    found = {
        "embedding.tokens": _same("transformer.wte.weight"),
        "embedding.positions": _same("transformer.wpe.weight"),
        "head.weight": _same("lm_head.weight"),
    }
    pairs = {"head.norm": "transformer.ln_f"}
    for layer in range(model.layers):
        ours, theirs = f"layers.{layer}", f"transformer.h.{layer}"
        pairs |= {f"{ours}.attention.norm": f"{theirs}.ln_1", f"{ours}.mlp.norm": f"{theirs}.ln_2"}
        for one, other in (
            ("attention.out", "attn.c_proj"),
            ("mlp.up", "mlp.c_fc"),
            ("mlp.down", "mlp.c_proj"),
        ):
            found[f"{ours}.{one}.weight"] = _same(f"{theirs}.{other}.weight").turned
            found[f"{ours}.{one}.bias"] = _same(f"{theirs}.{other}.bias")
        found[f"{ours}.attention.qkv.weight"] = _fused(f"{theirs}.attn.c_attn.weight", model).turned
        found[f"{ours}.attention.qkv.bias"] = _fused(f"{theirs}.attn.c_attn.bias", model)
    for one, other in pairs.items():
        found |= {f"{one}.{end}": _same(f"{other}.{end}") for end in ("weight", "bias")}
    return found


def _rows_as(tensor: torch.Tensor, *sizes: int) -> torch.Tensor:
    """The first dimension as several."""
    return tensor.reshape(*sizes, *tensor.shape[1:])


def _fused(name: str, model: Model) -> Recipe:
    """All queries, all keys, all values there; query, key and value of a head together here."""
    heads, size = model.heads, model.head_size

    def join(tensors: Tensors) -> torch.Tensor:
        return _rows_as(tensors[0], 3, heads, size).transpose(0, 1).flatten(0, 2)

    def split(tensor: torch.Tensor) -> Tensors:
        return [_rows_as(tensor, heads, 3, size).transpose(0, 1).flatten(0, 2)]

    return Recipe((name,), join, split)


def _llama(model: Model) -> dict[str, Recipe]:
    found = {
        "embedding.tokens": _same("model.embed_tokens.weight"),
        "head.norm.weight": _same("model.norm.weight"),
        "head.weight": _same("lm_head.weight"),
    }
    for layer in range(model.layers):
        ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
        found |= {
            f"{ours}.attention.norm.weight": _same(f"{theirs}.input_layernorm.weight"),
            f"{ours}.attention.qkv.weight": _grouped(f"{theirs}.self_attn", model),
            f"{ours}.attention.out.weight": _same(f"{theirs}.self_attn.o_proj.weight"),
            f"{ours}.mlp.norm.weight": _same(f"{theirs}.post_attention_layernorm.weight"),
            f"{ours}.mlp.up.weight": _gated(f"{theirs}.mlp"),
            f"{ours}.mlp.down.weight": _same(f"{theirs}.mlp.down_proj.weight"),
        }
    return found


def _grouped(layer: str, model: Model) -> Recipe:
    """Three matrices there; the queries of a key-value head, its key and its value together here."""
    groups, queries, size = model.kv_heads, model.heads // model.kv_heads, model.head_size

    def join(tensors: Tensors) -> torch.Tensor:
        return torch.cat([_rows_as(t, groups, -1, size) for t in tensors], dim=1).flatten(0, 2)

    def split(tensor: torch.Tensor) -> Tensors:
        parts = _rows_as(tensor, groups, queries + 2, size).split_with_sizes([queries, 1, 1], dim=1)
        return [part.flatten(0, 2) for part in parts]

    return Recipe(tuple(f"{layer}.{one}_proj.weight" for one in "qkv"), join, split)


def _gated(layer: str) -> Recipe:
    """Gate and up are two matrices there; their rows take turns here."""
    return Recipe(
        (f"{layer}.gate_proj.weight", f"{layer}.up_proj.weight"),
        lambda tensors: torch.stack(list(tensors), dim=1).flatten(0, 1),
        lambda tensor: _rows_as(tensor, -1, 2).unbind(1),
    )


def config(model: Model) -> dict[str, Any]:
    """The ``config.json`` of ``model``."""
    common = {"vocab_size": model.vocab, "tie_word_embeddings": model.tied, "dtype": "float32"}
    nobody = {"bos_token_id": None, "eos_token_id": None}
    own = _gpt2_config(model) if model.family == "gpt" else _llama_config(model)
    return own | common | nobody


def _gpt2_config(model: Model) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_positions": model.sequence,
        "n_embd": model.hidden,
        "n_layer": model.layers,
        "n_head": model.heads,
        "n_inner": model.ffn,
    } | _GPT2_FIXED


def _llama_config(model: Model) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": model.sequence,
        "hidden_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "intermediate_size": model.ffn,
        "rope_theta": model.rope_theta,  # read by transformers before 5
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
    } | _LLAMA_FIXED


# What our layers do and no key of ours changes. A config that leaves a key out means the library's own
# default, which is given here where it differs from ours.
_GPT2_FIXED = {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": EPSILON}
_LLAMA_FIXED = {
    "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": EPSILON, "attention_bias": False,
    "mlp_bias": False,
}  # fmt: skip
_DEFAULTS = {"rms_norm_eps": 1e-6}


def described(source: str, told: Mapping[str, Any]) -> Model:
    """The model that a ``config.json`` describes.

    Raises:
        EngineError: it computes what our layers do not, or is not complete.
    """
    kind = told.get("model_type")
    if kind not in ("gpt2", "llama"):
        raise EngineError(
            f"{source} is of model_type {kind!r}; weights of gpt2 and llama can be read",
            "give weights of one of the two",
        )
    try:
        return _gpt2_model(source, told) if kind == "gpt2" else _llama_model(source, told)
    except (KeyError, ValueError, TypeError) as error:
        raise EngineError(
            f"{source} does not describe a model: {type(error).__name__}: {error}", "look at its config.json"
        ) from None


def _gpt2_model(source: str, told: Mapping[str, Any]) -> Model:
    _refuse_different(source, told, _GPT2_FIXED)
    return Model(
        family="gpt", layers=told["n_layer"], hidden=told["n_embd"], heads=told["n_head"],
        kv_heads=told["n_head"], ffn=told.get("n_inner") or 4 * told["n_embd"], vocab=told["vocab_size"],
        sequence=told["n_positions"], tied=told.get("tie_word_embeddings", True),
    )  # fmt: skip


def _llama_model(source: str, told: Mapping[str, Any]) -> Model:
    heads, hidden = told["num_attention_heads"], told["hidden_size"]
    rope = told.get("rope_parameters") or told.get("rope_scaling") or {}
    plain = {"rope_type": rope.get("rope_type", rope.get("type", "default"))}
    head_dim = {"head_dim": told.get("head_dim") or hidden // heads}
    _refuse_different(source, told, _LLAMA_FIXED)
    _refuse_different(source, plain | head_dim, {"rope_type": "default", "head_dim": hidden // heads})
    return Model(
        family="llama", layers=told["num_hidden_layers"], hidden=hidden, heads=heads,
        kv_heads=told.get("num_key_value_heads") or heads, ffn=told["intermediate_size"],
        vocab=told["vocab_size"], sequence=told["max_position_embeddings"],
        tied=told.get("tie_word_embeddings", False),
        rope_theta=rope.get("rope_theta") or told.get("rope_theta") or 10000.0,
    )  # fmt: skip


def _refuse_different(source: str, told: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for key, ours in fixed.items():
        theirs = told.get(key, _DEFAULTS.get(key, ours))
        if theirs != ours:
            raise EngineError(
                f"{source} says {key}: {theirs}, but the bundled engine computes with {ours} only",
                "take weights that were trained so",
            )
