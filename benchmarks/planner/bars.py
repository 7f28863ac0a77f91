"""What the planner must reach, beside the best that other planners publish or reach on the same rows.

Calculon's figures are its shipped A100 description run on these tables' full sets, with the site's network
rate; vTrain's are printed in its paper (MICRO'24), with kernels profiled on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from answers import Kind
from measures import Score
from rows import Row

Part = Literal["all", "held out", "site"]


@dataclass(frozen=True)
class Bar:
    """One line of the table.

    Attributes:
        rows: which rows count.
        what: ``time``, or the kind of memory.
        part: all rows, those that nothing is fitted to, or the same with one scalar of the site fitted.
        measure: field of ``Score`` that is held to the bar.
    """

    name: str
    rows: Callable[[Row], bool]
    best: str
    bar: float
    aim: float
    what: Kind = "time"
    part: Part = "all"
    measure: str = "mean"

    @property
    def is_rank(self) -> bool:
        """Whether it is a correlation, of which more is better."""
        return self.measure in ("rank", "sweep_rank")

    def met(self, score: Score) -> bool:
        """Whether the bar is reached; correlations count upward, errors downward."""
        value = getattr(score, self.measure)
        return bool(value >= self.bar if self.is_rank else value <= self.bar)


def _of(*files: str, gpu: str = "") -> Callable[[Row], bool]:
    return lambda row: row.file in files and gpu in row.gpu_type


def _1f1b_of_zero_bubble(row: Row) -> bool:
    return row.file == "zero_bubble_a100" and row.schedule == "1F1B"


_H100 = ("llm_foundry_mpt", "torchtitan", "ultrascale_playbook_h100")
_SINGLE, _MULTI, _BLOOM = "vtrain_single_node_a100", "vtrain_multi_node_a100", "bloom_tuning_a100"

BARS = (
    Bar("Megatron 2021 table 1", _of("megatron2021_table1"), "Calculon 10.3", 8, 5),
    Bar("zero bubble, 1F1B", _1f1b_of_zero_bubble, "Calculon 14.0", 8, 5),
    Bar("Megatron-Core H100", _of("megatron_core_h100"), "-", 8, 5),
    Bar("vTrain, one node", _of(_SINGLE), "vTrain 8.4, Calculon 39", 10, 6, part="held out"),
    Bar("vTrain, many nodes", _of(_MULTI), "vTrain 14.7, Calculon 19.8", 10, 6, part="held out"),
    Bar("BLOOM, one scalar", _of(_BLOOM), "Calculon 25.9", 10, 6, part="site"),
    Bar("FSDP, TP and CP on H100", _of(*_H100, gpu="H100"), "-", 12, 8, part="held out"),
    Bar("BLOOM memory", _of(_BLOOM), "Calculon 42.8", 8, 5, what="device", part="held out"),
    Bar("zero bubble memory", _of("zero_bubble_a100"), "Calculon 3.4 (1F1B)", 5, 3, what="allocated"),
    Bar("torchtitan memory", _of("torchtitan"), "-", 12, 6, what="reserved"),
    Bar("rank, one node", _of(_SINGLE), "Calculon .86", 0.95, 0.98, measure="rank"),
    Bar("rank, many nodes", _of(_MULTI), "Calculon .88", 0.95, 0.98, measure="rank"),
    Bar("rank, BLOOM", _of(_BLOOM), "Calculon .71", 0.95, 0.98, measure="rank"),
    Bar("rank within sweeps", lambda row: True, "-", 0.95, 0.98, measure="sweep_rank"),
    Bar("regret, one node", _of(_SINGLE), "Calculon 10.0", 5, 2, measure="regret"),
    Bar("regret, many nodes", _of(_MULTI), "Calculon 1.3", 3, 2, measure="regret"),
)  # fmt: skip
