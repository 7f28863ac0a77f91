"""What a model consists of, by name and full shape, and whether weights fit it. Pure: no torch."""

from __future__ import annotations

from collections.abc import Mapping

from hpcdl.errors import EngineError
from hpcdl.spec.entry import EntryModel
from hpcdl.spec.model import Model

Shape = tuple[int, ...]

_MEANINGS = ("heads", "kv_heads", "rope_theta")  # change what weights compute, not their shapes


def shapes(model: Model) -> dict[str, Shape]:
    """The full shape of every parameter; a tied weight stands once, under the embedding's name."""
    biased, width = model.family == "gpt", (model.hidden,)
    found: dict[str, Shape] = {"embedding.tokens": (model.vocab, model.hidden)}
    if biased:
        found["embedding.positions"] = (model.sequence, model.hidden)
    for layer in range(model.layers):
        found |= _norm(f"layers.{layer}.attention.norm", width, biased=biased)
        found |= _norm(f"layers.{layer}.mlp.norm", width, biased=biased)
        for matrix in model.layer_matrices:
            found[f"layers.{layer}.{matrix.name}.weight"] = (matrix.rows, matrix.columns)
            if biased:
                found[f"layers.{layer}.{matrix.name}.bias"] = (matrix.rows,)
    found |= _norm("head.norm", width, biased=biased)
    if not model.tied:
        found["head.weight"] = (model.vocab, model.hidden)
    return found


def _norm(name: str, width: Shape, *, biased: bool) -> dict[str, Shape]:
    return {f"{name}.weight": width} | ({f"{name}.bias": width} if biased else {})


def refuse_other_model(source: str, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Stop where weights are not those that are needed.

    Args:
        source: where they are, for the message.
        found: the full shapes of what is there.
        expected: those of what is needed.

    Raises:
        EngineError: naming the first tensor that is missing, superfluous, or of another shape.
    """
    for name in [*expected, *(name for name in found if name not in expected)]:
        if found.get(name) != expected.get(name):
            raise EngineError(
                f"{source} holds the weights of another model: {name} has shape "
                f"{_shown(found.get(name))}, expected {_shown(expected.get(name))}",
                "check model: in the experiment against the one that the weights were trained with",
            )


def refuse_other_meaning(source: str, found: Model | EntryModel, model: Model | EntryModel) -> None:
    """Stop where weights of the right shapes would be read in another way than they were trained.

    Raises:
        EngineError: naming the first key of the model that differs.
    """
    if isinstance(found, EntryModel) or isinstance(model, EntryModel):
        return  # what those mean is for their code to know
    for key in _MEANINGS:
        theirs, ours = getattr(found, key), getattr(model, key)
        if theirs != ours:
            raise EngineError(
                f"{source} holds the weights of another model: model.{key} is {theirs}, expected {ours}",
                f"set model.{key}: {theirs} in the experiment, or take other weights",
            )


def _shown(shape: Shape | None) -> str:
    return "none (no such tensor)" if shape is None else " × ".join(map(str, shape))
