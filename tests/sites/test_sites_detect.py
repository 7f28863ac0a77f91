import pytest

from hpcdl.errors import InfeasibleError
from hpcdl.planner.layout import spread
from hpcdl.sites.detect import Gpu, describe, parse_gpus
from hpcdl.sites.node import Device
from hpcdl.sites.profile import default_profile
from hpcdl.spec.job import Resources

# nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits, as drivers print it.
FOUR = "NVIDIA A100-SXM4-40GB, 40960\n" * 4
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the "
    "latest NVIDIA driver is installed and running.\n"
)


def test_gpus_are_read_from_nvidia_smi():
    assert parse_gpus(FOUR) == [Gpu("NVIDIA A100-SXM4-40GB", 40960)] * 4


@pytest.mark.parametrize("text", ["", "No devices were found\n", NO_DRIVER, "NVIDIA GB10, [N/A]\n"])
def test_an_answer_without_gpus_gives_none(text):
    assert parse_gpus(text) == []


def test_a_gpu_machine_has_one_slot_a_gpu():
    node = describe(64, 256 * 2**30, parse_gpus(FOUR)).node(None)
    assert (node.devices, node.device.kind, node.device.memory) == (4, "gpu", str(40 * 2**30))
    assert node.device.peak_tflops["bf16"] == 312


def test_the_peak_of_a_rank_is_its_devices_or_its_part_of_the_cores():
    gpus, cores = (describe(64, 2**38, parse_gpus(text)).node(None) for text in (FOUR, ""))
    assert gpus.nominal_flops("bf16", 2) == 312e12
    assert cores.nominal_flops("fp32", 2) == pytest.approx(32 * cores.nominal_flops("fp32", 64))
    assert cores.nominal_flops("fp16", 2) is None


def test_an_unknown_gpu_is_taken_for_a_slow_one():
    known, unknown = (
        describe(8, 2**34, [Gpu(name, 16000)]).node(None) for name in ("Tesla V100", "Strange 9000")
    )
    assert unknown.device.peak_tflops["fp32"] < known.device.peak_tflops["fp32"]


@pytest.mark.parametrize(("cores", "slots"), [(1, 8), (2, 8), (8, 8), (64, 64)])
def test_a_cpu_machine_has_at_least_eight_slots_that_share_its_cores(cores, slots):
    node = describe(cores, 2**34, []).node(None)
    assert (node.devices, node.cores, node.device.kind) == (slots, cores, "cpu")
    assert node.devices * node.device.peak_tflops["fp32"] == pytest.approx(0.064 * cores)


@pytest.mark.parametrize(
    ("model", "gemm"),
    [("NVIDIA A100-SXM4-80GB", 0.83), ("NVIDIA GH200 480GB", 0.68), ("AMD MI250X GCD", 0.62)],
)
def test_profiles_go_by_the_device_model(model, gemm):
    device = Device(kind="gpu", model=model, memory="64GiB", memory_bandwidth=1600, peak_tflops={"bf16": 100})
    assert default_profile(device).gemm_efficiency == gemm


def test_an_unlisted_gpu_says_that_nothing_was_measured():
    device = Device(
        kind="gpu", model="B999", memory="64GiB", memory_bandwidth=1600, peak_tflops={"bf16": 100}
    )
    assert "nothing measured for B999" in default_profile(device).source


def test_a_machine_with_a_gpu_can_still_be_asked_for_its_cores():
    """The example wants four ranks; a workstation with one GPU runs it on the CPU by resources.queue=cpu."""
    site = describe(8, 2**34, [Gpu("NVIDIA A100-SXM4-40GB", 40536)])
    assert (site.default_partition, site.node(None).devices) == ("gpu", 1)
    assert (site.node("cpu").device.kind, site.node("cpu").devices) == ("cpu", 8)


def test_more_ranks_than_the_one_gpu_points_to_the_cores():
    site = describe(8, 2**34, [Gpu("NVIDIA A100-SXM4-40GB", 40536)])
    with pytest.raises(InfeasibleError, match="4 devices are asked for") as refused:
        spread(Resources(gpus=4), site)
    assert "--set resources.queue=cpu" in refused.value.hint
    with pytest.raises(InfeasibleError) as refused:
        spread(Resources(gpus=64), site)
    assert "--gpus 1" in refused.value.hint
