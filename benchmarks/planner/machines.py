"""The machines that published runs used, as the planner takes machines: published figures, one direction.

Device figures are the vendors' data sheets; dense peaks, without sparsity. NVLink is half of the two-way
sum that data sheets print. What differs from a data sheet has its source beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations

from hpcdl.errors import UsageError
from hpcdl.sites.load import load_site
from hpcdl.sites.node import Device, Links, NodeType
from hpcdl.sites.profile import Profile, default_profile
from hpcdl.sites.site import Network

_A100 = {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0, "fp16": 312.0}
_H100 = {"fp32": 66.9, "tf32": 494.0, "bf16": 989.0, "fp16": 989.0}
_V100 = {"fp32": 15.7, "fp16": 125.0}


@dataclass(frozen=True)
class Machine:
    """One kind of node and the network between such nodes."""

    node: NodeType
    network: Network = field(default_factory=Network)
    clock: float = 1.0  # what its power leaves of its devices' clock

    @property
    def profile(self) -> Profile:
        """The shipped one of its devices, at this clock."""
        return default_profile(self.node.device).model_copy(update={"site_efficiency": self.clock})


def _gpu(model: str, memory: str, bandwidth: float, peaks: dict[str, float]) -> Device:
    return Device(kind="gpu", model=model, memory=memory, memory_bandwidth=bandwidth, peak_tflops=peaks)


A100_40 = _gpu("NVIDIA A100-SXM4-40GB", "40GiB", 1555, _A100)
A100_80 = _gpu("NVIDIA A100-SXM4-80GB", "80GiB", 2039, _A100)
H100 = _gpu("NVIDIA H100-SXM5-80GB", "80GiB", 3350, _H100)
# 96 GB of HBM2e at 2.4 TB/s and 500 W: pytorch/torchtitan benchmarks/llama3_h100_202412_torchtitan.md.
H100_96 = _gpu("NVIDIA H100-SXM5-96GB-HBM2e-500W", "96GiB", 2400, _H100)
H200 = _gpu("NVIDIA H200-SXM5-141GB", "141GiB", 4800, _H100)
# NVIDIA's and AMD's figures as recalled, for rows of other folders.
B200 = _gpu("NVIDIA B200-SXM-180GB", "180GiB", 8000, {"fp32": 75.0, "bf16": 2250.0, "fp16": 2250.0})
MI300X = _gpu("AMD Instinct MI300X", "192GiB", 5300, {"fp32": 163.4, "bf16": 1307.0, "fp16": 1307.0})
V100_16 = _gpu("NVIDIA V100-SXM2-16GB", "16GiB", 900, _V100)
V100_32 = _gpu("NVIDIA V100-SXM2-32GB", "32GiB", 900, _V100)
GH200 = _gpu("NVIDIA GH200-96GB", "96GiB", 4000, _H100)
MI250X = Device(
    kind="gcd",
    model="AMD Instinct MI250X",
    memory="64GiB",
    memory_bandwidth=1600,
    peak_tflops={"fp32": 23.95, "bf16": 191.5, "fp16": 191.5},
)


def _node(device: Device, devices: int, cores: int, host: str, links: Links) -> NodeType:
    return NodeType(device=device, devices=devices, cores=cores, host_memory=host, links=links)


def _eight(device: Device, nvlink: float, nics: int, nic: float, *, host_link: float = 31.5) -> Machine:
    """A node of eight devices behind NVSwitch, with the CPUs of a DGX A100, which matter to offload alone."""
    links = Links(intra_node=nvlink, host=host_link, nics=nics, nic_bandwidth=nic)
    return Machine(_node(device, 8, 128, "1024GiB", links))


# PCI Express 5 x16 of DGX H100: 64 GB/s a direction, data sheet.
_PCIE5 = 63.0

_ALPS_PAIRS = {f"{low}-{high}": 150.0 for low, high in combinations(range(4), 2)}
_PERLMUTTER = load_site("perlmutter")

# Power goes with the clock and the square of a voltage that goes with the clock: 500 of 700 W, not measured.
_500_WATT = (500 / 700) ** (1 / 3)

MACHINES: dict[str, Machine] = {
    # DGX A100 of Selene, 8 HDR InfiniBand of 200 Gb/s a node: Narayanan et al. 2021, section 5.
    "Selene": _eight(A100_80, 300, 8, 25),
    # Four InfiniBand of 200 Gb/s a node, 800 Gb/s in all: VIA-Research/vTrain, configuration of the cluster.
    "KAIST": _eight(A100_80, 300, 4, 25),
    # Jean Zay's A100 partition: eight A100 over NVLink 3 and four Omni-Path a node (BLOOM, arXiv
    # 2211.05100); their 100 Gb/s are recalled, not read.
    "Jean Zay A100": _eight(A100_80, 300, 4, 12.5),
    # Jean Zay's V100 partition: four V100 a node; its links are recalled, not read.
    "Jean Zay V100": Machine(
        _node(V100_32, 4, 40, "192GiB", Links(intra_node=150, host=15.75, nics=4, nic_bandwidth=12.5))
    ),
    # Four nodes with a RoCE RDMA network: Qi et al., arXiv 2401.10241, section 5.1. No rate is printed;
    # eight of 100 Gb/s are assumed.
    "zero bubble": _eight(A100_80, 300, 8, 12.5),
    # DGX H100: 8 ConnectX-7 of 400 Gb/s, NVLink 4 of 900 GB/s both ways: data sheet.
    "DGX H100": _eight(H100, 450, 8, 50, host_link=_PCIE5),
    # Grand Teton: 8 H100, RDMA of 400 Gb/s a GPU: the same page of torchtitan's.
    "Grand Teton": replace(_eight(H100_96, 450, 8, 50, host_link=_PCIE5), clock=_500_WATT),
    # HGX B200 and MI300X with 400 Gb/s a device: recalled, not read.
    "HGX B200": _eight(B200, 900, 8, 50, host_link=_PCIE5),
    "HGX MI300X": _eight(MI300X, 448, 8, 50, host_link=_PCIE5),
    # WhiteFiber: 8 H200, ConnectX-7 of 400 Gb/s a GPU: pytorch/torchtitan benchmarks, June 2025.
    "WhiteFiber": _eight(H200, 450, 8, 50, host_link=_PCIE5),
    # AWS p5: 8 H100, EFA of 3200 Gb/s a node: huggingface/nanotron docs; AWS EC2 P5 page.
    "EFA H100": _eight(H100, 450, 8, 50, host_link=_PCIE5),
    # MosaicML: 1600 Gb/s a node, RoCE: mosaicml/llm-foundry scripts/train/benchmarking/README.md.
    "MosaicML A100 40": _eight(A100_40, 300, 8, 25),
    "MosaicML A100 80": _eight(A100_80, 300, 8, 25),
    # The same page prints no rate for H100; eight of 400 Gb/s, as HGX H100 nodes of its clouds have.
    "MosaicML H100": _eight(H100, 450, 8, 50, host_link=_PCIE5),
    # Research cluster of Meta with A100: 8 × 200 Gb/s are recalled, not read.
    "Meta A100": _eight(A100_80, 300, 8, 25),
    # Summit: 6 V100, NVLink 50 GB/s, 12.5 GB/s between nodes as Singh and Bhatele, IPDPS 2022, print.
    "Summit": Machine(
        _node(V100_16, 6, 44, "512GiB", Links(intra_node=50, host=50, nics=2, nic_bandwidth=12.5))
    ),
    "Perlmutter": Machine(_PERLMUTTER.nodes["gpu40"], _PERLMUTTER.network),
    # 8 GCDs, 200 GB/s within a pair and 50 to 100 between pairs, 4 Slingshot-11: docs.olcf.ornl.gov. Which
    # have 100 is not printed there, so every group is given what a pair has.
    "Frontier": Machine(
        _node(MI250X, 8, 64, "512GiB", Links(intra_node=200, host=36, nics=4, nic_bandwidth=25))
    ),
    # 4 GH200, NVLink 150 GB/s a pair, 4 Slingshot-11: docs.cscs.ch.
    "Alps": Machine(
        _node(
            GH200,
            4,
            288,
            "480GiB",
            Links(intra_node=450, pairs=_ALPS_PAIRS, host=450, nics=4, nic_bandwidth=25),
        )
    ),
}

# The first whose words all stand in a row's machine and GPU type is its machine.
_WORDS: tuple[tuple[str, str], ...] = (
    ("Selene", "Selene"),
    ("KAIST", "KAIST"),
    ("Jean Zay V100", "Jean Zay V100"),
    ("Jean Zay", "Jean Zay A100"),
    ("Perlmutter", "Perlmutter"),
    ("Frontier", "Frontier"),
    ("Alps", "Alps"),
    ("Summit", "Summit"),
    ("Grand Teton", "Grand Teton"),
    ("WhiteFiber", "WhiteFiber"),
    ("hopper-prod", "EFA H100"),
    ("MosaicML A100-40GB", "MosaicML A100 40"),
    ("MosaicML A100-80GB", "MosaicML A100 80"),
    ("MosaicML H100", "MosaicML H100"),
    ("Meta H100-96GB", "Grand Teton"),
    ("Meta A100", "Meta A100"),
    ("RoCE A100-80GB", "zero bubble"),
    # Machines that are not named: the usual node with such devices.
    ("MI250X", "Frontier"),
    ("MI300X", "HGX MI300X"),
    ("B200", "HGX B200"),
    ("GH200", "Alps"),
    ("H200", "WhiteFiber"),
    ("H100-96GB", "Grand Teton"),
    ("H100", "DGX H100"),
    ("H800", "DGX H100"),
    ("A100-40GB", "MosaicML A100 40"),
    ("A100", "Selene"),
    ("V100-16GB", "Summit"),
    ("V100", "Jean Zay V100"),
)


def find_machine(machine: str, gpu_type: str) -> Machine:
    """The machine that a row names, or the usual one with its kind of device.

    Raises:
        UsageError: nothing is known of such devices.
    """
    text = f"{machine} {gpu_type}"
    for words, name in _WORDS:
        if all(word in text for word in words.split()):
            return MACHINES[name]
    raise UsageError(f"no machine with {gpu_type or 'devices that are not named'} ({machine or 'no name'})")
