"""What saving memory costs a step: offload and pruning, against FSDP2 with its parameters offloaded.

One rank on a CPU, where the memory of the device is that of the host: copies are made all the same, so this
is the price without the gain.

PYTHONPATH=benchmarks/engine python benchmarks/memory/step.py
"""

from __future__ import annotations

import ours
import plain
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from turns import Step, in_processes, report, take_turns

from hpcdl.engine import pruning
from hpcdl.engine.learner import Learner
from hpcdl.engine.transport.base import Transport
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.model import Model
from hpcdl.spec.training import Pruning

ROWS, ROUNDS, STEPS = 4, 7, 2
PRUNING = Pruning(sparsity=0.9)
MODEL = Model(family="gpt", layers=8, hidden=512, heads=8, vocab=8192, sequence=64, tied=False)


def fsdp2(policy: OffloadPolicy) -> Step:
    """One step of FSDP2 alone, as ``ours`` is alone: nothing is left to be gathered."""
    model = plain.gpt(MODEL)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (*model, model):
        fully_shard(part, mesh=mesh, offload_policy=policy)
    return plain.step_of(model, MODEL, ROWS)


def engine(transport: Transport) -> dict[str, Step]:
    """Every way of saving memory, and none."""
    whole = Decomposition(microbatch=ROWS)
    optimizer = whole.model_copy(update={"offload": "optimizer"})
    parameters = whole.model_copy(update={"offload": "parameters"})

    def learner_of(decomposition: Decomposition, **settings: object) -> Learner:
        return ours.learner_of(transport, MODEL, decomposition, ROWS, **settings)

    pruned = learner_of(whole, pruning=PRUNING)
    pruning.Pruner(PRUNING, pruned, lambda *_, **__: None).begin(0)
    learners = {
        "hpcdl": learner_of(whole),
        "hpcdl, optimizer, host": learner_of(optimizer, offload_step="host"),
        "hpcdl, optimizer, device": learner_of(optimizer, offload_step="device"),
        "hpcdl, parameters": learner_of(parameters),
        "hpcdl, pruned by 90 %": pruned,
    }
    return {name: ours.stepping(learner, MODEL, ROWS) for name, learner in learners.items()}


def main() -> None:
    """Take turns and print what each took."""
    transport = in_processes(1)
    contestants = engine(transport) | {
        "torch FSDP2": fsdp2(OffloadPolicy()),
        "torch FSDP2, CPUOffloadPolicy": fsdp2(CPUOffloadPolicy(pin_memory=False)),
    }
    report("saving memory", take_turns(contestants, ROUNDS, STEPS), "hpcdl, optimizer, host")
    transport.close()


if __name__ == "__main__":
    main()
