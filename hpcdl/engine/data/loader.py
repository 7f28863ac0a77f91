"""The batches of a run, cut for one rank."""

from __future__ import annotations

import numpy as np
import torch

from hpcdl.engine.data.sampler import shard_rows, step_indices
from hpcdl.engine.data.tokens import read_tokens
from hpcdl.errors import EngineError
from hpcdl.spec.data import Data
from hpcdl.spec.training import Training


class Batches:
    """Sequences of next-token prediction over the text of an experiment.

    B: rows of one batch shard, L: tokens a sequence.
    """

    def __init__(self, data: Data, training: Training, sequence: int) -> None:
        self._tokens = read_tokens(data)
        self._length = sequence
        self._training = training
        # Each window also needs the token after its last one, which is a target.
        self.sequences = (len(self._tokens) - 1) // sequence
        if self.sequences < 1:
            raise EngineError(
                f"the text in {data.path or data.source} has {len(self._tokens)} tokens, less than one "
                f"sequence of {sequence} and its target",
                "give more text, or a smaller model.sequence",
            )

    def rows(self, step: int, shard: int, shards: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of one batch shard in one step: two int64 tensors of shape (B, L)."""
        batch = self._training.global_batch
        indices = step_indices(step, batch, self.sequences, self._training.seed)[
            shard_rows(batch, shard, shards)
        ]
        windows_BL = indices[:, None] * self._length + np.arange(self._length + 1)
        tokens_BL = torch.from_numpy(self._tokens[windows_BL].astype(np.int64))
        return tokens_BL[:, :-1].contiguous(), tokens_BL[:, 1:].contiguous()
