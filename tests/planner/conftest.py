"""Values that several planner tests start from."""

import pytest

from hpcdl.planner.case import Case
from hpcdl.sites.load import load_site
from hpcdl.sites.profile import default_profile
from hpcdl.sites.site import Network
from hpcdl.spec.experiment import Experiment
from hpcdl.spec.job import Layout
from hpcdl.spec.model import Model
from hpcdl.spec.training import Training

SMALL = Model(layers=8, hidden=512, heads=8, vocab=1024, sequence=256)


@pytest.fixture(scope="session")
def perlmutter():
    return load_site("perlmutter")


@pytest.fixture(scope="session")
def case_on(perlmutter):
    """A case on ``nodes`` Perlmutter nodes, with any of the profile's numbers changed."""

    def make(nodes=1, ranks_per_node=4, model=SMALL, training=None, node=None, **numbers):
        node = node or perlmutter.nodes["gpu40"]
        profile = default_profile(node.device).model_copy(update=numbers)
        layout = Layout(nodes=nodes, ranks_per_node=ranks_per_node, cores_per_rank=8)
        return Case(model, training or Training(global_batch=64), node, Network(), layout, profile)

    return make


@pytest.fixture(scope="session")
def experiment_of():
    """An experiment with a shape, a batch and whatever else of it matters."""

    def make(batch=32, precision="bf16", parallelism="auto", resources=None, **shape):
        small = {"layers": 8, "hidden": 512, "heads": 8, "vocab": 1024, "sequence": 256}
        return Experiment.model_validate(
            {
                "name": "tried",
                "model": shape if "preset" in shape else {**small, **shape},
                "data": {"source": "stdlib"},
                "training": {"global_batch": batch, "precision": precision},
                "parallelism": parallelism,
                "resources": resources or {},
            }
        )

    return make


@pytest.fixture(scope="session")
def small_memory(perlmutter):
    """A Perlmutter node whose devices have so much memory."""

    def make(size, **node):
        gpu = perlmutter.nodes["gpu40"]
        device = gpu.device.model_copy(update={"memory": size})
        return gpu.model_copy(update={"device": device, **node})

    return make


@pytest.fixture(scope="session")
def site_with(perlmutter, small_memory):
    """Perlmutter with such nodes."""

    def make(size, **node):
        return perlmutter.model_copy(
            update={"nodes": {**perlmutter.nodes, "gpu40": small_memory(size, **node)}}
        )

    return make
