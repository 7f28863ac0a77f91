"""What the planner says to a question: seconds and memory of the fastest choice that fits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rows import MemoryKind
from scoring import Question

from hpcdl.planner import memory
from hpcdl.planner.case import Case
from hpcdl.planner.engines import find_engine
from hpcdl.planner.estimate import Term, memory_tree, step_tree
from hpcdl.planner.space import Candidates
from hpcdl.sites.profile import Profile
from hpcdl.spec.decomposition import Decomposition
from hpcdl.units import GIB


@dataclass(frozen=True)
class Prediction:
    """One answer.

    Attributes:
        question: what was asked.
        decomposition: the choice that stands for the run.
        step: its seconds, as the planner's tree of terms.
        memory: its bytes, likewise: device, of it reserved, of it allocated.
        capacity: bytes that the device has.
    """

    question: Question
    decomposition: Decomposition
    step: Term
    memory: Term
    capacity: float

    @property
    def seconds(self) -> float:
        """Seconds a step."""
        return float(self.step.value[0])

    @property
    def gib(self) -> dict[MemoryKind, float]:
        """GiB by what is counted: allocated tensors, reserved by the allocator, in use on the device."""
        reserved = self.memory.children[0]
        trees: dict[MemoryKind, Term] = {
            "allocated": reserved.children[0],
            "reserved": reserved,
            "device": self.memory,
        }
        return {kind: float(tree.value[0]) / GIB for kind, tree in trees.items()}

    @property
    def use(self) -> float:
        """Memory that is needed, as a share of all that the device has."""
        return float(self.memory.value[0]) / self.capacity


def predict(question: Question, profile: Profile | None = None) -> Prediction:
    """The fastest of the question's choices that fits, or of none that does the smallest."""
    case = case_of(question, profile or question.machine.profile)
    choices = question.choices
    place = 0 if len(choices) == 1 else _stands_for_the_run(case, choices)
    one = choices.take(np.array([place]))
    needed = memory_tree(memory.device_memory(case, one))
    return Prediction(question, choices.decomposition(place), step_tree(case, one), needed, case.memory_bytes)


def _stands_for_the_run(case: Case, choices: Candidates) -> int:
    needed = memory.total(memory.device_memory(case, choices))
    fitting = np.flatnonzero(needed <= memory.budget(case))
    if not len(fitting):
        return int(np.argmin(needed))
    return int(fitting[np.argmin(step_tree(case, choices.take(fitting), drive=False).value)])


def case_of(question: Question, profile: Profile) -> Case:
    """A question as the cost model takes it."""
    return Case(
        model=question.model,
        training=question.training,
        node=question.machine.node,
        network=question.machine.network,
        layout=question.layout,
        profile=profile,
        engine=find_engine(question.engine),
        overlap=question.overlap,
    )
