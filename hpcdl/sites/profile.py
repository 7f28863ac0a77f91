"""What a kind of device really reaches of its peaks: the fitted numbers of the cost model, dated."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from hpcdl.sites.node import Device
from hpcdl.spec.frozen import Frozen
from hpcdl.spec.load import read, validate


class Profile(Frozen):
    """Efficiencies are shares of the peaks that a site file states; times are seconds."""

    gemm_efficiency: float = Field(gt=0, le=1, description="large matrix products, of peak_tflops")
    flash_efficiency: float = Field(gt=0, le=1, description="flash attention forward, of peak_tflops")
    flash_backward_efficiency: float = Field(gt=0, le=1, description="and backward")
    flash_latest: float = Field(
        1.0, ge=1, description="times faster than FlashAttention 2 that version 3 and cuDNN are"
    )
    memory_efficiency: float = Field(gt=0, le=1, description="streaming kernels, of memory_bandwidth")
    score_efficiency: float = Field(
        gt=0, le=1, description="softmax and dropout over attention scores in memory, of memory_bandwidth"
    )
    site_efficiency: float = Field(
        1.0,
        gt=0,
        le=2,
        description="what one site's devices compute of what this profile says: one number fits it",
    )
    processors: int = Field(
        0, ge=0, description="that work on tiles of a product; 0: products are not quantised"
    )
    alignment: int = Field(
        0, ge=0, description="bytes of which rows of matrices are multiples at full speed; 0: any"
    )
    products: str = Field("", description="kind of device whose measured products correct the formula")
    kernel_launch_s: float = Field(ge=0, description="what one kernel takes beside its work")
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
    context_gib: float = Field(ge=0, description="framework and communication library, before any tensor")
    allocator_slack: float = Field(ge=0, description="reserved beyond allocated, as a share")
    communicator_gib: float = Field(
        0.0, ge=0, description="what the communication library takes for each group with collectives"
    )
    source: str
    date: str = Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")


# The six numbers of products, memory, scores, launches, host and step: fitted to half of vTrain's A100 step
# times (MICRO'24; eager PyTorch, scores in memory) by benchmarks/planner/fit.py, so that half validates
# nothing. Rows of 128 bytes, and of 16 before the A100: NVIDIA's guide to matrix multiplication, table 1.
# Flash attention and the shape of products: measured on an A100 (SimuMax), benchmarks/planner/kernels.py.
# NVLink 225 of 300 GB/s: nccl-tests; across nodes 80 of 100 GB/s: AxoNN (arXiv
# 2502.08145). Start-up and hop fitted to vTrain's nccl-tests, 140 all-reduces of 1 MiB to 1 GiB on 2 to 8
# A100: 42 µs and 1.8 µs with those 228 GB/s, mean error 6.9 %. A hop between nodes 9.6 µs: NCCL's own tuning
# (src/graph/tuning.cc, ring, simple). Beside collectives computing loses 2 % (InfiniBand) to 15 % (NVLink) in
# Calculon (SC'23), 9 % to 23 % in Galvatron; NCCL inside training is 30 % slower than alone (vTrain). Context
# and slack are customary, not measured; what a communicator takes was fitted with them given to every third
# row of BLOOM's tuning runs (nvidia-smi, docs/planner/memory.md); a report on NCCL has 1.6 GB with one and
# 6 GB with three (NVIDIA/nccl issue 864).
_A100 = Profile(
    gemm_efficiency=0.83,
    flash_efficiency=0.667,
    flash_backward_efficiency=0.527,
    memory_efficiency=0.92,
    score_efficiency=0.56,
    processors=108,
    alignment=128,
    products="A100",
    kernel_launch_s=1e-6,
    host_floor_s=1.02e-3,
    step_overhead_s=1e-3,
    intra_efficiency=0.76,
    inter_efficiency=0.80,
    collective_latency_s=42e-6,
    overlap=1.0,
    context_gib=1.0,
    allocator_slack=0.10,
    communicator_gib=1.7,
    source="fitted to published A100 step times, NCCL tests",
    date="2026-11",
)

# Products and memory: benchmarks/planner/fit.py, from every third row of llm-foundry's H100 step times.
# The best matmuls reach 0.80 (stas00/ml-engineering, 2025); power limits what training does. FlashAttention 2
# runs at 370 of 989 TFLOP/s there, version 3 and cuDNN at 610 to 650 (arXiv 2407.08608, figure 5). Its
# backward is taken to be as far below as the A100's. 132 processors.
_HOPPER = dict(
    flash_efficiency=0.37,
    flash_backward_efficiency=0.29,
    flash_latest=1.65,
    memory_efficiency=0.68,
    processors=132,
    products="",
)

_GPUS: dict[str, Profile] = {
    # The best matmul of a GH200 reaches 829 of 989 TFLOP/s, the H100's 794; the rest as the H100.
    "GH200": _A100.model_copy(
        update=dict(
            _HOPPER, gemm_efficiency=0.68, source="H100 values; matmul as far above as the best, 829 to 794.5"
        )
    ),
    # The best matmul of an H100 reaches 794.5 of 989 TFLOP/s. H200: the same processors.
    **dict.fromkeys(
        ("H100", "H200"),
        _A100.model_copy(
            update=dict(
                _HOPPER,
                gemm_efficiency=0.66,
                source="matmul and memory fitted to published H100 step times; the rest as A100",
            )
        ),
    ),
    # 432 products, 0.515 of 2250 TFLOP/s within 10 %, and flash attention: SimuMax, b200_bf16_ceperm.json.
    "B200": _A100.model_copy(
        update=dict(
            gemm_efficiency=0.515,
            flash_efficiency=0.45,
            flash_backward_efficiency=0.45,
            processors=148,
            products="B200",
            source="A100 values; products and flash attention measured on B200 (SimuMax)",
        )
    ),
    "A100": _A100,
    # AxoNN (arXiv 2502.08145) measured 125 of 191.5 TFLOP/s a GCD, and 40 of 100 GB/s across nodes. 110
    # compute units. Flash attention as far below the A100's as the matmul; not measured.
    "MI250X": _A100.model_copy(
        update=dict(
            gemm_efficiency=0.62,
            flash_efficiency=0.50,
            flash_backward_efficiency=0.40,
            processors=110,
            alignment=0,
            products="",
            inter_efficiency=0.40,
            source="A100 values, GEMM and network scaled by AxoNN's measurements on MI250X",
        )
    ),
    # Fitted to 20 layers of five GPT models, forward and backward (Aceso's profile, EuroSys 2024), 8 % off:
    # benchmarks/planner/kernels.py. There is no flash attention for it; what others reach is not measured.
    # Buffers of communicators go with their channels: two rings over EDR, where NVSwitch has two dozen.
    "V100": _A100.model_copy(
        update=dict(
            gemm_efficiency=0.80,
            memory_efficiency=0.95,
            score_efficiency=0.61,
            kernel_launch_s=12e-6,
            flash_efficiency=0.25,
            flash_backward_efficiency=0.20,
            processors=80,
            alignment=16,
            communicator_gib=0.2,
            products="",
            source="fitted to measured layers on V100 (Aceso); host, attention and network as A100",
        )
    ),
}

# Measured on two cores of an x86-64 server, Gloo over loopback, four ranks taking turns: an all-reduce of 8
# bytes 0.64 ms on two ranks and 1.2 ms on four; 1.2 and 0.75 GB/s for 8 MiB. torch's fp32 matmul reached 70
# GFLOP/s a core, more than the 64 that a detected machine is given; importing torch takes 0.2 GiB.
_CPU = Profile(
    gemm_efficiency=0.80,
    flash_efficiency=0.30,
    flash_backward_efficiency=0.30,
    memory_efficiency=0.60,
    score_efficiency=0.60,
    kernel_launch_s=10e-6,
    host_floor_s=0.0,
    step_overhead_s=2e-3,
    intra_efficiency=0.55,
    inter_efficiency=0.50,
    collective_latency_s=0.36e-3,
    hop_latency_s=0.14e-3,
    network_latency_s=0.3e-3,
    overlap=0.0,
    context_gib=0.4,
    allocator_slack=0.10,
    source="torch and Gloo on two cores of an x86-64 server; conservative",
    date="2026-11",
)


def default_profile(device: Device) -> Profile:
    """The shipped profile for a kind of device; a GPU that is not listed is taken for an A100."""
    if device.kind == "cpu":
        return _CPU
    named = (profile for name, profile in _GPUS.items() if name in device.model)
    unlisted = _A100.model_copy(update=dict(source=f"A100 values; nothing measured for {device.model}"))
    return next(named, unlisted)


def read_profile(path: Path, device: Device) -> Profile:
    """A profile that was measured, from a YAML file; numbers that it leaves out are the shipped ones.

    Args:
        path: the file; it must say its ``source`` and ``date``.
        device: whose shipped profile gives the rest.

    Raises:
        UsageError: it cannot be read, or does not describe a profile; with file, line and column.
    """
    document = read(path)
    if isinstance(document.content, dict):
        shipped = default_profile(device).model_dump(exclude={"source", "date"})
        document.content = {**shipped, **document.content}
    return validate(document, Profile)
