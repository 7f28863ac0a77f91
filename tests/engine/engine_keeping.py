"""Learners that keep checkpoints: ranks as threads, real files."""

import torch
from engine_worlds import GPT, in_threads
from safetensors.torch import load_file

from hpcdl.engine.checkpoint.manifest import shard_name
from hpcdl.engine.keeping import Keeper, Progress
from hpcdl.engine.learner import Learner
from hpcdl.engine.pruning import Pruner
from hpcdl.engine.update import Step
from hpcdl.spec.checkpoint import Checkpoint
from hpcdl.spec.data import Data
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.training import Optimizer, Training

CPU = torch.device("cpu")
SERIAL = Decomposition(microbatch=2)
SPREAD = Decomposition(data=2, pipeline=2, x=2)
BATCH = 8


def experiment(model=GPT, precision="fp32", pruning=None, **checkpoint):
    training = Training(
        global_batch=BATCH,
        precision=precision,
        optimizer=Optimizer(eps=0.1),
        bucket_mib=0.002,
        pruning=pruning,
    )
    kept = Checkpoint(every=1, **checkpoint)
    return Experiment(model=model, data=Data(source="stdlib"), training=training, checkpoint=kept)


class Session:
    """One rank from start to end: restore, train some steps, each with a checkpoint."""

    def __init__(self, folder, settings, decomposition):
        self.folder, self.settings, self.decomposition = folder, settings, decomposition
        self.events = []

    def __call__(self, transport):
        learner = Learner(self.settings, self.decomposition, transport, CPU)
        report = self.report if transport.rank == 0 else lambda *_, **__: None
        pruning = self.settings.training.pruning
        pruner = Pruner(pruning, learner, report) if pruning else None
        keeper = Keeper(self.settings, self.folder, learner, report, pruner)
        progress = keeper.restore()
        if pruner:
            pruner.begin(progress.step)
        losses = []
        for step in range(progress.step + 1, self.until + 1):
            progress = Progress(step, train(learner, self.settings.model, step))
            losses.append(progress.loss)
            if pruner:
                pruner.act(step)
            keeper.save(progress)
        keeper.join()
        transport.barrier()
        return losses

    def report(self, kind, **detail):
        self.events.append((kind, detail))

    def run(self, until):
        self.until = until
        return in_threads(self.decomposition.ranks, self)[0]


def train(learner, model, step):
    """One step on a batch that depends on the step alone; the loss of the whole batch."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, model.vocab, (BATCH, model.sequence + 1), generator=generator)
    topology = learner.topology
    rows = tokens.chunk(topology.decomposition.batch_shards)[topology.batch_shard]
    return learner.step(Step(step, 0.01), rows[:, :-1], rows[:, 1:]).loss


def trained(folder, until, decomposition=SERIAL, settings=None):
    """Events and losses of a session in ``folder``."""
    session = Session(folder, settings or experiment(), decomposition)
    return session.run(until), session.events


def tensors(folder):
    """Every tensor of a checkpoint, of one rank, by key."""
    return load_file(folder / shard_name(0))


def names(folder):
    """What lies in a folder of checkpoints."""
    return sorted(path.name for path in folder.iterdir())


def flip(path):
    """Damage a file by one bit."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
