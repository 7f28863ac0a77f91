"""The model that a row trained, with what its source does not say inferred and noted."""

from __future__ import annotations

from rows import NotScoredError, Row, said

from hpcdl.planner.divisors import divisors
from hpcdl.spec.model import Model

_VOCABULARIES = (51200, 32000)
"""Usual ones: GPT-2's 50,257 as Megatron-LM pads them for eight tensor ranks (Narayanan et al. 2021, section
5.1), and Llama's SentencePiece model."""


def model_of(row: Row, notes: list[str]) -> Model:
    """The shape of a row's model; what is taken where the row is silent is added to ``notes``.

    Of vocabularies that are not stated, and of LM heads that may be tied, what comes closest to the printed
    number of parameters is taken.

    Raises:
        NotScoredError: too much is missing to infer it.
        ValidationError: no model has such a shape.
    """
    hidden = said(row.hidden, "hidden size")
    heads = row.heads or _likely_heads(hidden, row.tensor or 1, notes)
    shape = dict(
        family="llama" if row.gated else "gpt",
        layers=row.layers or _likely_layers(row, notes),
        hidden=hidden,
        heads=heads,
        kv_heads=row.kv_heads or heads,
        sequence=said(row.sequence, "sequence"),
        **({"ffn": row.ffn} if row.ffn else {}),
    )
    possible = [
        Model.model_validate({**shape, "vocab": vocab, "tied": tied})
        for tied in ((False, True) if row.gated else (True,))
        for vocab in ((row.vocab,) if row.vocab else _VOCABULARIES)
    ]
    stated = row.parameters
    model = min(possible, key=lambda one: abs(one.parameters - stated)) if stated else possible[0]
    if row.vocab is None:
        notes.append(f"vocabulary not stated: {model.vocab}")
    return model


def _likely_heads(hidden: int, tensor: int, notes: list[str]) -> int:
    """The number of heads that divides, with a head size as near 128 as can be."""
    possible = [count for count in divisors(hidden) if count % tensor == 0]
    if not possible:
        raise NotScoredError(f"heads not stated, and none divides hidden size {hidden} over tensor {tensor}")
    heads = min(possible, key=lambda count: abs(hidden / count - 128))
    notes.append(f"heads not stated: {heads}")
    return heads


def _likely_layers(row: Row, notes: list[str]) -> int:
    """From the number of parameters, 12h² + 13h of them a layer: Narayanan et al. 2021, equation 2."""
    if row.parameters is None or row.hidden is None or row.gated:
        raise NotScoredError("layers not stated")
    embedding = ((row.vocab or _VOCABULARIES[0]) + (row.sequence or 0)) * row.hidden
    layers = round((row.parameters - embedding) / (12 * row.hidden**2 + 13 * row.hidden))
    notes.append(f"layers not stated: {layers} by the number of parameters")
    return layers
