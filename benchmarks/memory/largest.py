"""The largest GPT that trains on one device, as the planner predicts it, with ever more in CPU memory.

Layers of width 128 · layers, as those of GPT-3, then up to a quarter more layers; 2,048 tokens a sequence,
one sequence at a time, 16 a step, half precision, full recomputation.

python benchmarks/memory/largest.py
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcdl.planner import memory
from hpcdl.planner.case import Case
from hpcdl.planner.estimate import step_tree
from hpcdl.planner.space import Candidates
from hpcdl.sites.load import load_site
from hpcdl.sites.profile import default_profile
from hpcdl.sites.site import Device, Links, Network, NodeType
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.job import Layout
from hpcdl.spec.model import Model
from hpcdl.spec.training import Training
from hpcdl.units import GIB, format_count, format_seconds

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
class Question:
    """What is asked of the planner."""

    node: NodeType
    way: dict[str, object]

    @property
    def candidates(self) -> Candidates:
        return Candidates.of(Decomposition.model_validate({"recompute": "full", **self.way}))

    def case(self, model: Model) -> Case:
        """One rank on a node of its own, which has all of its memory."""
        layout = Layout(nodes=1, ranks_per_node=1, cores_per_rank=self.node.cores)
        training = Training(global_batch=16, precision="fp16")
        return Case(model, training, self.node, Network(), layout, default_profile(self.node.device))

    def fits(self, model: Model) -> bool:
        return bool(memory.fits(self.case(model), self.candidates)[0])


def gpt(width: int, layers: int) -> Model:
    return Model(layers=layers, hidden=128 * width, heads=width, vocab=51200, sequence=2048)


def largest(question: Question) -> Model:
    """The largest that fits."""
    width = 1
    while question.fits(gpt(width + 1, width + 1)):
        width += 1
    fitting = [
        gpt(width, layers)
        for layers in range(width, width + width // 4 + 1)
        if question.fits(gpt(width, layers))
    ]
    return fitting[-1]


def main() -> None:
    """A table a node."""
    for name, node in NODES.items():
        print(f"\n{name}\n")
        print("| `offload` | parameters | layers × width | device | host | a step | full is |")
        print("|---|---|---|---|---|---|---|")
        for words, way in WAYS.items():
            question = Question(node, way)
            print(row(words, question, largest(question)))


def row(words: str, question: Question, model: Model) -> str:
    """One line of a table."""
    case, c = question.case(model), question.candidates
    device = float(memory.total(memory.device_memory(case, c))[0])
    host = float(memory.host_memory(case, c)[0])
    fuller = "device" if device / memory.budget(case) > host / memory.host_budget(case) else "host"
    return (
        f"| {words} | {format_count(model.parameters)} | {model.layers} × {model.hidden} | "
        f"{device / GIB:.1f} GiB | {host / GIB:.1f} GiB | "
        f"{format_seconds(float(step_tree(case, c).value[0]))} | {fuller} |"
    )


if __name__ == "__main__":
    main()
