"""Memory and step times that AxoNN and SAMO published, against the formulas of offload and pruning.

AxoNN: Singh and Bhatele, IPDPS 2022. SAMO: the same, IPDPS 2023. Both on Summit.
"""

from dataclasses import replace

import pytest

from hpcdl.planner import memory, state
from hpcdl.planner.case import Case
from hpcdl.planner.engines import find_engine
from hpcdl.planner.estimate import step_tree
from hpcdl.planner.space import Candidates
from hpcdl.sites.node import Device, Links, NodeType
from hpcdl.sites.profile import default_profile
from hpcdl.sites.site import Network
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.job import Layout
from hpcdl.spec.model import Model
from hpcdl.spec.training import Pruning, Training

DEVICE = Device(
    kind="gpu",
    model="NVIDIA V100-SXM2-16GB",
    memory="16GiB",
    memory_bandwidth=900,
    peak_tflops={"fp32": 15.7, "fp16": 125},
)
# Six V100 a node; NVLink 50 GB/s to each other and to the host, 12.5 GB/s between nodes (AxoNN, section VI).
SUMMIT = NodeType(
    device=DEVICE,
    devices=6,
    cores=42,
    host_memory="512GB",
    host_memory_bandwidth=340,
    links=Links(intra_node=50, host=50, nics=1, nic_bandwidth=12.5),
)
# AxoNN's table I: layers, hidden, heads, GPUs; table II and figure 9, batch 16384: seconds and share of peak of
# AxoNN, DeepSpeed and Megatron-LM; AxoNN's microbatch, pipeline and data.
AXONN = find_engine("axonn")
SHAPES = {
    12: (48, 4512, 24, 48),
    24: (48, 6336, 36, 96),
    50: (96, 6528, 48, 192),
    100: (96, 9360, 60, 384),
}
RATES = {
    12: [(247.5, 54.8), (320.0, 42.4), (324.0, 41.8)],
    24: [(245.6, 53.9), (320.4, 41.3), (383.1, 34.6)],
    50: [(266.7, 52.4), (357.0, 39.2), (465.0, 30.1)],
    100: [(289.0, 49.4), (342.3, 41.7), (711.0, 20.1)],
}
TUNED = {12: (8, 6, 8), 24: (4, 12, 8), 50: (4, 24, 8), 100: (2, 48, 8)}
MILLION_MIB = 4e6 / 2**20  # a million elements as training.bucket_mib has them


def shape(billions):
    layers, hidden, heads, _ = SHAPES[billions]
    return Model(layers=layers, hidden=hidden, heads=heads, vocab=51200, sequence=512)


def case_of(model, gpus, **training):
    layout = Layout(nodes=gpus // 6, ranks_per_node=6, cores_per_rank=7)
    asked = Training(precision="fp16", **training)
    return Case(model, asked, SUMMIT, Network(), layout, default_profile(DEVICE))


def summit(billions, batch=16384, bucket=4):
    gpus = SHAPES[billions][-1]
    return case_of(shape(billions), gpus, global_batch=batch, bucket_mib=bucket * MILLION_MIB)


def tuned(billions, offload, **changed):
    """What AxoNN ran, with as many microbatches in flight as stages."""
    microbatch, pipeline, data = TUNED[billions]
    d = dict(data=data, pipeline=pipeline, microbatch=microbatch, in_flight=pipeline, recompute="full")
    return Decomposition(**{**d, **changed}, offload=offload)


def fits(case, d):
    return bool(memory.fits(case, Candidates.of(d))[0])


def state_bytes(case, offload="none"):
    """Weights, gradients and optimizer state of one rank that has the whole model: device and host."""
    c = Candidates.of(Decomposition(offload=offload))
    held, sparsity = state.shard(case, c, is_last=True), state.sparsity(case)
    device = {name: float(value[0]) for name, value in state.on_device(case, c, held, sparsity).items()}
    return device, float(state.on_host(case, c, held, sparsity)[0])


@pytest.mark.parametrize("billions", SHAPES)
def test_shares_of_peak_follow_from_seconds(billions):
    """AxoNN's equation 3, which counts what is recomputed: all twelve rows, to 0.06 points as printed."""
    model, gpus = shape(billions), SHAPES[billions][-1]
    flops = (model.train_flops + model.recomputed_flops["full"]) * 16384
    for seconds, percent in RATES[billions]:
        assert 100 * flops / seconds / gpus / 125e12 == pytest.approx(percent, abs=0.06)


@pytest.mark.parametrize("billions", SHAPES)
def test_axonns_pipelines_fit_sixteen_gigabytes_with_the_scratch_pad_only(billions):
    case = summit(billions)
    assert fits(case, tuned(billions, "optimizer"))
    assert not fits(case, tuned(billions, "none"))


def test_twelve_billion_on_48_gpus_need_six_stages_with_the_scratch_pad_and_four_times_as_many_without():
    case = summit(12, batch=2048, bucket=16)
    depths = (2, 3, 4, 6, 8, 12, 16, 24, 48)
    shortest = {
        offload: next(
            p
            for p in depths
            if fits(case, tuned(12, offload, pipeline=p, data=48 // p, microbatch=1, in_flight=p))
        )
        for offload in ("none", "optimizer")
    }
    assert shortest["optimizer"] <= 6
    assert shortest["none"] >= 24


@pytest.mark.parametrize("billions", SHAPES)
def test_batch_times_of_axonn_are_met_within_fifteen_percent(billions):
    """Nothing was fitted to them; seen: 7 to 11 % too fast."""
    d = tuned(billions, "optimizer", in_flight=None)
    case = replace(summit(billions), engine=find_engine("axonn"))
    seconds = float(step_tree(case, Candidates.of(d)).value[0])
    assert seconds == pytest.approx(RATES[billions][0][0], rel=0.15)


def test_offloaded_state_is_four_bytes_a_parameter_and_sixteen_an_element_of_a_bucket():
    """AxoNN, section V-B. Of the 520 GB it measured over 48 GPUs 130.24 were left: state is 83 % of both."""
    case = summit(12, bucket=16)
    parameters = case.model.parameters
    dense, _ = state_bytes(case)
    lean, host = state_bytes(case, "optimizer")
    assert sum(dense.values()) == pytest.approx(18 * parameters)
    assert sum(lean.values()) == pytest.approx(4 * parameters + 16 * 16e6)
    assert host == pytest.approx(12 * parameters)
    two_replicas = 2 * sum(dense.values()), 2 * 4 * parameters + 48 * lean["update staging"]
    assert two_replicas == pytest.approx((520e9, 130.24e9), rel=0.2)


@pytest.mark.parametrize(("sparsity", "saved"), [(0.8, 0.66), (0.9, 0.78)])
def test_pruned_state_saves_what_samo_says(sparsity, saved):
    """Equations 1 to 5: 24f + 2 bytes a parameter to dense 20; with fp32 gradients a bucket at a time 20f + 2 to 18.

    The two forms save the same to 1.5 points.
    """
    everything = Pruning(sparsity=sparsity, exclude=())
    model = shape(12)
    case = case_of(model, 48, global_batch=512, pruning=everything, bucket_mib=MILLION_MIB)
    c = Candidates.of(Decomposition())
    held = state.shard(case, c, is_last=True)
    pruned, _ = state_bytes(case)
    f, vectors, bucket = 1 - sparsity, float(held.vectors[0]), pruned["update staging"]
    matrices = model.parameters - vectors
    assert sum(pruned.values()) - bucket == pytest.approx((20 * f + 2) * matrices + 16 * vectors)
    published = 1 - (24 * f + 2) / 20
    assert published == pytest.approx(saved, abs=0.005)
    assert 1 - (20 * f + 2) / 18 == pytest.approx(published, abs=0.015)


def test_pruned_27b_needs_a_quarter_of_the_memory():
    """SAMO measured 80.16 GB and 20.28 at 90 %, not saying over how many GPUs; here it is one rank with everything.

    It ran with AxoNN, which keeps fp32 gradients beside those in fp16.
    """
    model = Model(layers=32, hidden=2560, heads=32, vocab=51200, sequence=2048)
    c = Candidates.of(Decomposition(recompute="full"))
    dense, pruned = (
        float(memory.device_bytes(replace(case_of(model, 6, global_batch=6, pruning=p), engine=AXONN), c)[0])
        for p in (None, Pruning(sparsity=0.9))
    )
    assert dense == pytest.approx(80.16e9, rel=0.35)
    assert pruned == pytest.approx(20.28e9, rel=0.2)
    assert 1 - pruned / dense == pytest.approx(0.74, abs=0.05)
