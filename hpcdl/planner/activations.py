"""What autograd keeps of a rank's microbatches, and what one layer needs beside it while it works.

Elements kept a token and layer, with h, f and the key-value width cut as they are cut over x, y and context:

    norm inputs and outputs   4h/y                      attention: q, k, v and output   (qkv + h)/x
    mlp.up's output           f/x, SwiGLU 2f/x          mlp.down's input                f/x, SwiGLU 2f/x

For a classic block that is 16h; with the masks of dropout, a byte for each of 2h, it is the 34sbh bytes of
Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1), and cut over x their sbh(10 + 24/t). Sequence
parallelism cuts the 4h over x as well. Attention's core keeps a byte count a score: flash none, but a row's
statistics; fused its softmax; naive its softmax in fp32 and what was made of that in 16 bits. Dropout adds a
mask and what it leaves: 5 bytes in 16 bits where it is fused, the 5as²b of Korthikanti.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcdl.planner.case import Case
from hpcdl.planner.space import Candidates, Floats, Ints

_STATISTICS = 4  # bytes a row of scores: fp32 log of its sum, of flash attention
_RANDOM = 40  # bytes an element while hpcdl's engine draws a mask: five int64 at once


@dataclass(frozen=True)
class Layer:
    """Bytes of one layer and one microbatch, for every candidate."""

    boundary: Floats  # what full recomputation keeps before it
    whole: Floats  # all that autograd keeps of it
    saved: Floats  # the same without what is recomputed selectively
    passing: Floats  # gradients of activations in its backward, the most at once

    @classmethod
    def of(cls, case: Case, c: Candidates) -> Layer:
        """That of ``case``."""
        stream, tokens = _stream(case, c), case.tokens(c) / c.x
        core, norms = _core(case, tokens), _norms(case, c, stream)
        whole = norms + case.element_bytes * _width(case) * tokens + core
        partly = c.selective_recompute
        saved = np.where(partly, _selective(case, norms, stream, tokens), whole) if partly.any() else whole
        return cls(case.element_bytes * stream, whole, saved, _passing(case, stream, tokens))

    def kept(self, c: Candidates, layers: Ints, held: Floats) -> Floats:
        """Bytes that wait on the device for the backwards of ``held`` microbatches through ``layers``."""
        everything = held * layers * self.saved
        waiting = np.where(c.offload_activations, 2 * self.boundary, self.boundaries(c, layers, held))
        checkpoints: Floats = np.where(c.full_recompute, np.minimum(waiting, everything), everything)
        return checkpoints

    def boundaries(self, c: Candidates, layers: Ints, held: Floats) -> Floats:
        """All that full recomputation keeps at once."""
        return held * np.ceil(layers / c.recompute_every) * self.boundary

    def masks(self, case: Case, held: Floats) -> Floats:
        """Those of the dropout after the embedding."""
        return held * self.boundary / case.element_bytes

    def made_again(self, c: Candidates, layers: Ints) -> Floats:
        """Activations of those of ``layers`` that full recomputation has at hand for the backward."""
        return c.full_recompute * np.minimum(c.recompute_every, layers) * self.whole

    def backward(self) -> Floats:
        """What its backward needs besides: gradients on their way, and what is recomputed selectively."""
        return self.whole - self.saved + self.passing


def boundary(case: Case, c: Candidates) -> Floats:
    """Bytes of what full recomputation keeps of one microbatch before one layer."""
    return _stream(case, c) * case.element_bytes


def _norms(case: Case, c: Candidates, stream: Floats) -> Floats:
    """Inputs of both norms, their outputs, and the masks of the dropouts after attention and MLP."""
    if not case.engine.keeps.inputs:
        return (4 * case.element_bytes + 2 * case.drops) * stream
    normed = case.tokens(c) * case.model.hidden / c.y
    return case.element_bytes * 2 * (stream + normed) + 2 * case.drops * stream


def _width(case: Case) -> int:
    """Elements a token that attention outside its core and the MLP keep."""
    model = case.model
    qkv, _, up, _ = (matrix.rows for matrix in model.layer_matrices)
    mlp = 2 * up if model.family == "llama" else up + model.ffn
    return qkv + model.hidden + model.active_experts * mlp


def _selective(case: Case, norms: Floats, stream: Floats, tokens: Floats) -> Floats:
    """What one layer keeps where only a part of it is recomputed."""
    model, element = case.model, case.element_bytes
    if case.engine.keeps.selective == "core":
        return norms + element * _width(case) * tokens
    if case.engine.keeps.selective == "operators":
        # The input of the layer and the outputs of q, v, up's first half, down and attention.
        made = 2 * model.hidden + model.kv_heads * model.head_size + model.ffn
        return element * (2 * stream + made * tokens)
    qkv, _, up, _ = (matrix.rows for matrix in model.layer_matrices)
    return norms + element * (qkv + model.hidden + up) * tokens


def _core(case: Case, tokens: Floats) -> Floats:
    """What attention keeps between q, k, v and its output."""
    model, element = case.model, case.element_bytes
    kernel = case.attention
    turned = element * _turned(case)
    if kernel == "flash":
        return (_STATISTICS * model.heads + turned) * tokens
    softmax = element if kernel == "fused" else 4
    left = (1 + element) if case.drops else element * (kernel == "naive" and element < 4)
    return ((softmax + left) * model.heads * model.sequence + turned) * tokens


def _turned(case: Case) -> int:
    """Width of queries and keys with rotary positions, where they are kept beside those without."""
    model = case.model
    rotary = model.family == "llama" and case.engine.keeps.unrotated
    return rotary * (model.hidden + model.kv_heads * model.head_size)


def _passing(case: Case, stream: Floats, tokens: Floats) -> Floats:
    """Gradients of activations within a layer, the most at once: those of the MLP beside its input's."""
    gradients = case.element_bytes * (2 * stream + case.model.ffn * tokens)
    if not case.model.dropout:
        return gradients
    return np.maximum(gradients, _RANDOM * case.model.heads * case.model.sequence * tokens)


def _stream(case: Case, c: Candidates) -> Floats:
    """Elements of the residual stream of one microbatch."""
    elements = case.tokens(c) * case.model.hidden / c.y
    return np.where(c.sequence_parallel, elements / c.x, elements) if c.sequence_parallel.any() else elements
