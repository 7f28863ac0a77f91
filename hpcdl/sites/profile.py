"""What a kind of device really reaches of its peaks: the fitted numbers of the cost model, dated."""

from __future__ import annotations

from pydantic import Field

from hpcdl.sites.site import Device
from hpcdl.spec.frozen import Frozen


class Profile(Frozen):
    """Efficiencies are shares of the peaks that a site file states; times are seconds."""

    gemm_efficiency: float = Field(gt=0, le=1, description="large matrix products, of peak_tflops")
    attention_efficiency: float = Field(gt=0, le=1, description="fused attention, of peak_tflops")
    flash_backward: float = Field(0.85, gt=0, le=1, description="x")
    score_efficiency: float = Field(0.5, gt=0, le=1, description="x")
    processors: int = 108
    site_efficiency: float = 1.0
    memory_efficiency: float = Field(gt=0, le=1, description="streaming kernels, of memory_bandwidth")
    kernel_floor_s: float = Field(ge=0, description="least time of one kernel")
    host_floor_s: float = Field(ge=0, description="least time of one layer's forward: the host launching it")
    step_overhead_s: float = Field(ge=0, description="once a step: data, logging, the optimizer's launches")
    intra_efficiency: float = Field(gt=0, le=1, description="collectives inside a node, of links.intra_node")
    inter_efficiency: float = Field(gt=0, le=1, description="collectives across nodes, of all NICs")
    collective_latency_s: float = Field(ge=0, description="start-up of one collective or message")
    hop_latency_s: float = Field(1.8e-6, ge=0, description="one more hop of a ring inside a node")
    network_latency_s: float = Field(10e-6, ge=0, description="one hop, or one round, between nodes")
    overlap: float = Field(ge=0, le=1, description="share of computing that collectives can run beside")
    overlap_price: float = Field(
        0.1, ge=0, lt=0.5, description="share of computing's pace that a collective beside it takes"
    )
    beside_slowdown: float = Field(
        1.3, ge=1, lt=2, description="times longer a collective takes beside computing than alone"
    )
    optimizer_bytes: float = Field(gt=0, description="memory traffic of one update, bytes a parameter")
    context_gib: float = Field(ge=0, description="framework and communication library, before any tensor")
    allocator_slack: float = Field(ge=0, description="reserved beyond allocated, as a share")
    communicator_gib: float = Field(
        0.0, ge=0, description="what the communication library takes for each group with collectives"
    )
    source: str
    date: str = Field(pattern=r"\d{4}-\d{2}(-\d{2})?")


# GEMM, attention, floors, latency and overhead as a closed-form model of this kind was fitted to vTrain's
# A100 step times (MICRO'24; eager PyTorch, unfused attention), so those tables validate nothing here. NVLink
# 225 of 300 GB/s: nccl-tests; across nodes 80 of 100 GB/s: AxoNN (arXiv 2502.08145). Start-up and hop fitted
# to vTrain's nccl-tests, 140 all-reduces of 1 MiB to 1 GiB on 2 to 8 A100: 42 µs and 1.8 µs with those 228
# GB/s, mean error 6.9 %. A hop between nodes 9.6 µs: NCCL's own tuning (src/graph/tuning.cc, ring, simple).
# Beside collectives computing loses 2 % (InfiniBand) to 15 % (NVLink) in Calculon (SC'23), 9 % to 23 % in
# Galvatron; NCCL inside training is 30 % slower than alone (vTrain). An update in bf16 reads gradient, main
# copy and both moments and writes three of them and the weight: 30 bytes. Context and slack are customary,
# not measured; what a communicator takes was fitted with them given to every third row of BLOOM's tuning runs
# (nvidia-smi, docs/planner/memory.md); a report on NCCL has 1.6 GB with one and 6 GB with three (NVIDIA/nccl
# issue 864).
_A100 = Profile(
    gemm_efficiency=0.83,
    attention_efficiency=0.48,
    memory_efficiency=0.85,
    kernel_floor_s=10e-6,
    host_floor_s=0.9e-3,
    step_overhead_s=8e-3,
    intra_efficiency=0.76,
    inter_efficiency=0.80,
    collective_latency_s=42e-6,
    overlap=1.0,
    optimizer_bytes=30.0,
    context_gib=1.0,
    allocator_slack=0.10,
    communicator_gib=1.7,
    source="fitted to published A100 step times, NCCL tests",
    date="2026-11",
)

_GPUS: dict[str, Profile] = {
    "A100": _A100,
    # 794.5 of 989 TFLOP/s: best measured matmul (stas00/ml-engineering); the rest as the A100.
    "H100": _A100.model_copy(
        update=dict(gemm_efficiency=0.77, source="A100 values, GEMM scaled by 794/989 measured on H100")
    ),
    # AxoNN (arXiv 2502.08145) measured 125 of 191.5 TFLOP/s a GCD, and 40 of 100 GB/s across nodes.
    "MI250X": _A100.model_copy(
        update=dict(
            gemm_efficiency=0.62,
            inter_efficiency=0.40,
            source="A100 values, GEMM and network scaled by AxoNN's measurements on MI250X",
        )
    ),
    # No matmul of a V100 is at hand; half precision rarely passes three quarters of 125 TFLOP/s. Buffers
    # of communicators go with their channels: two rings over EDR, where NVSwitch has two dozen.
    "V100": _A100.model_copy(
        update=dict(
            gemm_efficiency=0.70,
            communicator_gib=0.2,
            source="A100 values, GEMM and communicators lowered; unverified for V100",
        )
    ),
}
_HOPPER = ("H200", "GH200", "H100")

# Measured on two cores of an x86-64 server, Gloo over loopback, four ranks taking turns: an all-reduce of 8
# bytes 0.64 ms on two ranks and 1.2 ms on four; 1.2 and 0.75 GB/s for 8 MiB. torch's fp32 matmul reached 70
# GFLOP/s a core, more than the 64 that a detected machine is given; importing torch takes 0.2 GiB.
_CPU = Profile(
    gemm_efficiency=0.80,
    attention_efficiency=0.30,
    memory_efficiency=0.60,
    kernel_floor_s=10e-6,
    host_floor_s=0.0,
    step_overhead_s=2e-3,
    intra_efficiency=0.55,
    inter_efficiency=0.50,
    collective_latency_s=0.36e-3,
    hop_latency_s=0.14e-3,
    network_latency_s=0.3e-3,
    overlap=0.0,
    optimizer_bytes=40.0,
    context_gib=0.4,
    allocator_slack=0.10,
    source="torch and Gloo on two cores of an x86-64 server; conservative",
    date="2026-11",
)


def default_profile(device: Device) -> Profile:
    """The shipped profile for a kind of device; a GPU that is not listed is taken for an A100."""
    if device.kind == "cpu":
        return _CPU
    if any(name in device.model for name in _HOPPER):
        return _GPUS["H100"]
    named = (profile for name, profile in _GPUS.items() if name in device.model)
    unlisted = _A100.model_copy(update=dict(source=f"A100 values; nothing measured for {device.model}"))
    return next(named, unlisted)
