"""The largest GPT that trains on one device, as the planner predicts it, with ever more in CPU memory.

Layers of width 128 · layers, as those of GPT-3, then up to a quarter more layers; 2,048 tokens a sequence,
one sequence at a time, 16 a step, half precision, full recomputation.

python benchmarks/memory/largest.py

With ``--measure MIB`` the device has so many MiB and the host half of this machine's memory. There is no
framework and no margin, and the engine trains what is predicted to fit, and the next shape: layers of
width 128 · layers too, in heads of 32, 128 tokens, bf16. What lies on the device is counted.

python benchmarks/memory/largest.py --measure
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass

from measured import peak_bytes

from hpcdl.planner import memory
from hpcdl.planner.case import Case
from hpcdl.planner.estimate import step_tree
from hpcdl.planner.space import Candidates
from hpcdl.sites.load import load_site
from hpcdl.sites.node import Device, Links, NodeType
from hpcdl.sites.profile import Profile, default_profile
from hpcdl.sites.site import Network
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.job import Layout
from hpcdl.spec.model import Model
from hpcdl.spec.training import Training
from hpcdl.units import GIB, MIB, format_count, format_seconds

SUMMIT = NodeType(
    device=Device(
        kind="gpu",
        model="NVIDIA V100-SXM2-16GB",
        memory="16GiB",
        memory_bandwidth=900,
        peak_tflops={"fp16": 125},
    ),
    devices=6,
    cores=42,
    host_memory="512GB",
    host_memory_bandwidth=340,
    links=Links(intra_node=50, host=50),
)
H200 = NodeType(
    device=Device(
        kind="gpu", model="NVIDIA H200", memory="141GB", memory_bandwidth=4800, peak_tflops={"fp16": 989}
    ),
    devices=8,
    cores=112,
    host_memory="2TB",
    host_memory_bandwidth=614,
    links=Links(intra_node=450, host=63),
)
NODES = {
    "V100 16 GB, host 512 GB": SUMMIT,
    "A100 40 GB, host 256 GiB": load_site("perlmutter").nodes["gpu40"],
    "H200 141 GB, host 2 TB": H200,
}
WAYS: dict[str, dict[str, object]] = {
    "none": {},
    "optimizer": {"offload": "optimizer"},
    "parameters": {"offload": "parameters"},
    "parameters, activations": {"offload": "parameters", "offload_activations": True},
}


@dataclass(frozen=True)
class Family:
    """Shapes of a width of about 128 · layers."""

    head: int  # width
    vocab: int
    sequence: int

    def gpt(self, heads: int, layers: int) -> Model:
        return Model(
            layers=layers, hidden=self.head * heads, heads=heads, vocab=self.vocab, sequence=self.sequence
        )

    def least(self, heads: int) -> Model:
        """That with the fewest layers."""
        return self.gpt(heads, max(1, self.head * heads // 128))

    def deeper(self, heads: int) -> list[Model]:
        """From there up to a quarter more layers."""
        least = self.least(heads).layers
        return [self.gpt(heads, layers) for layers in range(least, least + least // 4 + 1)]

    def following(self, model: Model) -> Model:
        """The next: a layer more or, if those are enough, wider."""
        deeper = self.gpt(model.heads, model.layers + 1)
        return deeper if deeper in self.deeper(model.heads) else self.least(model.heads + 1)


@dataclass(frozen=True)
class Question:
    """What is asked of the planner."""

    node: NodeType
    profile: Profile
    training: Training
    way: dict[str, object]

    @property
    def decomposition(self) -> Decomposition:
        return Decomposition.model_validate({"recompute": "full", **self.way})

    @property
    def candidates(self) -> Candidates:
        return Candidates.of(self.decomposition)

    def case(self, model: Model) -> Case:
        """One rank on a node of its own, which has all of its memory."""
        layout = Layout(nodes=1, ranks_per_node=1, cores_per_rank=self.node.cores)
        return Case(model, self.training, self.node, Network(), layout, self.profile)

    def fits(self, model: Model) -> bool:
        return bool(memory.fits(self.case(model), self.candidates)[0])

    def device_bytes(self, model: Model) -> float:
        return float(memory.total(memory.device_memory(self.case(model), self.candidates))[0])


def largest(question: Question, family: Family) -> Model:
    """The largest that fits."""
    heads = 1
    while question.fits(family.least(heads + 1)):
        heads += 1
    return [model for model in family.deeper(heads) if question.fits(model)][-1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Tables of what is predicted, or of that and what was counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--measure", nargs="?", type=int, const=16, metavar="MIB", help="train on a device of so many MiB"
    )
    mib = parser.parse_args(arguments).measure
    if mib is None:
        predict()
    else:
        measure(mib)


def predict() -> None:
    """A table a node."""
    family = Family(head=128, vocab=51200, sequence=2048)
    training = Training(global_batch=16, precision="fp16")
    for name, node in NODES.items():
        print(f"\n{name}\n")
        print("| `offload` | parameters | layers × width | device | host | a step | full is |")
        print("|---|---|---|---|---|---|---|")
        for words, way in WAYS.items():
            question = Question(node, default_profile(node.device), training, way)
            print(row(words, question, largest(question, family)))


def measure(mib: int) -> None:
    """What is predicted to fit, and the next, with what was counted."""
    family = Family(head=32, vocab=512, sequence=128)
    print("| `offload` | | parameters | layers × width | predicted | counted | ratio |")
    print("|---|---|---|---|---|---|---|")
    for words, way in WAYS.items():
        question = bare(mib, way)
        fitting = largest(question, family)
        print(comparison(words, "largest that fits", question, fitting))
        print(comparison(words, "next shape", question, family.following(fitting)))


def bare(mib: int, way: dict[str, object]) -> Question:
    """A device of which tensors may have everything."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    device = H200.device.model_copy(update={"memory": f"{int(mib * MIB / (1 - memory.MARGIN))}"})
    node = H200.model_copy(update={"device": device, "host_memory": f"{host}"})
    profile = default_profile(device).model_copy(update={"context_gib": 0.0, "allocator_slack": 0.0})
    training = Training(global_batch=1, precision="bf16", bucket_mib=0.25, offload_step="device")
    return Question(node, profile, training, way)


def comparison(words: str, which: str, question: Question, model: Model) -> str:
    """One line of the table of what was measured."""
    predicted = question.device_bytes(model)
    counted = peak_bytes(model, question.decomposition, question.training)
    return (
        f"| {words} | {which} | {format_count(model.parameters)} | {model.layers} × {model.hidden} | "
        f"{predicted / MIB:.2f} MiB | {counted / MIB:.2f} MiB | {counted / predicted:.2f} |"
    )


def row(words: str, question: Question, model: Model) -> str:
    """One line of a table."""
    case, c = question.case(model), question.candidates
    device = question.device_bytes(model)
    host = float(memory.host_memory(case, c)[0])
    fuller = "device" if device / memory.budget(case) > host / memory.host_budget(case) else "host"
    return (
        f"| {words} | {format_count(model.parameters)} | {model.layers} × {model.hidden} | "
        f"{device / GIB:.1f} GiB | {host / GIB:.1f} GiB | "
        f"{format_seconds(float(step_tree(case, c).value[0]))} | {fuller} |"
    )


if __name__ == "__main__":
    main()
