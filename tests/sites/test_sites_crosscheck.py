"""Values that do not go together are found, at their line, with the way out."""

import pytest

from hpcdl.sites.crosscheck import crosscheck
from hpcdl.sites.load import available, load_site
from hpcdl.sites.site import Site
from hpcdl.spec import load

SOUND = """\
name: sound
identity:
  hostnames: ['login\\d+\\.sound\\.edu']
  sources: {nodes: a page, nodes.*.links: a paper, partitions.*.walltime: a page}
  unverified: [nodes.*.device.memory_bandwidth, policy, environment]
scheduler: {kind: slurm, gpu_request: gres, gpu_type: a100, forbidden: [--mem], directives: [--exclusive]}
launch: {launcher: srun, cpu_bind: 'mask_cpu:0xe,0xe0', device_order: [1, 0], arguments: [--quiet]}
partitions:
  short: {node: gpu, max_nodes: 4, walltime: [{max_nodes: 2, limit: 01:00:00}, {limit: 02:00:00}]}
default_partition: short
nodes:
  gpu:
    device: {kind: gpu, model: NVIDIA A100, memory: 40GiB, memory_bandwidth: 1555, peak_tflops: {bf16: 312}}
    devices: 2
    cores: 8
    threads_per_core: 2
    reserved_cores: [0, 4]
    host_memory: 64GiB
    device_cores: [1-3, 5-7]
    device_nics: [1, 0]
    device_numa: [1, 0]
    links: {intra_node: 300, pairs: {0-1: 200}, nics: 2, nic_bandwidth: 25, nic_names: [hsn0, hsn1]}
rendezvous: {address: hostname, interface: hsn0}
"""


def site(text):
    document = load.parse(text, "mine.yaml")
    return load.validate(document, Site).read_at(document)


def test_a_sound_file_has_no_findings():
    assert crosscheck(site(SOUND)) == []


@pytest.mark.parametrize("name", sorted(available()))
def test_every_shipped_site_is_sound(name):
    assert [finding for finding in crosscheck(load_site(name)) if finding.severity == "error"] == []


@pytest.mark.parametrize(
    ("planted", "severity", "field", "line", "words"),
    [
        (("0xe,0xe0", "0xf,0xe0"), "error", "launch.cpu_bind", 7, "the binding of rank 0 names reserved core 0 of nodes gpu"),
        (("0xe,0xe0", "0xe,0x10e0"), "error", "launch.cpu_bind", 7, "the binding of rank 1 names reserved core 4"),
        (("0xe,0xe0", "0xe,0x100e0"), "error", "launch.cpu_bind", 7, "rank 1 names CPU 16, but nodes gpu have 8 cores with 2 threads"),
        (("0xe,0xe0", "0xe"), "error", "launch.cpu_bind", 7, "for 1 ranks, but nodes gpu have 2 devices"),
        (("0xe,0xe0", "0xe,0xeg"), "error", "launch.cpu_bind", 7, "'0xeg' is no mask of CPUs"),
        (("[--quiet]", "['--cpu-bind=map_cpu:1,4']"), "error", "launch.arguments", 7, "rank 1 names reserved core 4"),
        (("[1, 0], arg", "[1, 1], arg"), "error", "launch.device_order", 7, "device_order [1, 1] is no order of the 2 devices"),
        (("[1, 0], arg", "[0, 1, 2], arg"), "error", "launch.device_order", 7, "is no order of the 2 devices"),
        (("nics: 2", "nics: 4"), "error", "nodes.gpu.links.nic_names", 22, "nic_names has 2 names for 4 NICs"),
        (("{0-1:", "{0-2:"), "error", "nodes.gpu.links.pairs.0-2", 22, "are no two of 2 devices"),
        (("{0-1:", "{1-1:"), "error", "nodes.gpu.links.pairs.1-1", 22, "are no two of 2 devices"),
        (("max_nodes: 4", "min_nodes: 5, max_nodes: 4"), "error", "partitions.short.min_nodes", 9, "min_nodes 5 is more than max_nodes 4"),
        (("{limit: 02", "{max_nodes: 2, limit: 02"), "error", "partitions.short.walltime.1", 9, "walltime entry 2 is never used"),
        (("{max_nodes: 2, limit: 01", "{limit: 01"), "error", "partitions.short.walltime.1", 9, "walltime entry 2 is never used"),
        (("{limit: 02", "{max_nodes: 3, limit: 02"), "warning", "partitions.short.walltime.1", 9, "no walltime limit is known for more than 3 nodes"),
        (("nic_bandwidth: 25", "nic_bandwidth: 0"), "error", "nodes.gpu.links", 22, "partition short gives several nodes"),
        (("[--mem]", "[--mem, --gres]"), "error", "scheduler.gpu_request", 6, "gpu_request gres writes --gres, which scheduler.forbidden names"),
        (("[--exclusive]", "[--mem=0]"), "error", "scheduler.directives.0", 6, "'--mem=0' is a directive of every job"),
        (("max_nodes: 4,", "max_nodes: 4, directives: ['--mem 0'],"), "error", "partitions.short.directives.0", 9, "'--mem 0' is a directive of every job"),
        (("gpu_request: gres", "gpu_request: none"), "warning", "scheduler.gpu_type", 6, "gpu_type a100 is never used"),
        (("kind: slurm,", "kind: slurm, place: scatter,"), "warning", "scheduler.place", 6, "place is PBS's, but scheduler.kind is slurm"),
        (("[--exclusive]", "[\"--x='\"]"), "error", "scheduler.directives.0", 6, "cannot be cut into words"),
        (("interface: hsn0", "interface: eth0"), "warning", "rendezvous.interface", 23, "interface eth0 is not among links.nic_names: hsn0, hsn1"),
        (("login\\d+\\.sound\\.edu", "login\\d+"), "warning", "identity.hostnames.0", 3, "proves nothing by itself"),
        (("login\\d+\\.sound\\.edu", "login("), "error", "identity.hostnames.0", 3, "'login(' is no regular expression"),
        (("memory_bandwidth, pol", "bandwidth, pol"), "warning", "identity.unverified.0", 5, "names 'nodes.*.device.bandwidth', which no field"),
        (("links: a paper", "linkz: a paper"), "warning", "identity.sources.nodes.*.linkz", 4, "names 'nodes.*.linkz', which no field of this file is"),
        (("{bf16: 312}", "{bf16: 624}"), "warning", "nodes.gpu.device.peak_tflops.bf16", 13, "is what NVIDIA A100 reaches with sparsity"),
        (("{bf16: 312}", "{tf32: 312}"), "warning", "nodes.gpu.device.peak_tflops.tf32", 13, "with sparsity"),
        (("A100, memory: 40", "H100, memory: 80"), None, "", 0, ""),
        (("{bf16: 312}", "{}"), "error", "nodes.gpu.device.peak_tflops", 13, "peak_tflops is empty"),
        (("kind: gpu, model: NVIDIA A100", "kind: gcd, model: AMD MI250X"), None, "", 0, ""),
        (("model: NVIDIA A100", "model: unknown"), "warning", "nodes.gpu.device.model", 13, "its figures are placeholders"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_found_at_its_line(planted, severity, field, line, words):
    assert planted[0] in SOUND
    text = SOUND.replace(planted[0], planted[1], 1)
    found = crosscheck(site(text))
    if severity is None:
        assert found == []
        return
    (finding,) = [finding for finding in found if words in finding.message]
    assert (finding.severity, finding.field) == (severity, field)
    assert finding.where.startswith(f"mine.yaml:{line}:")
    assert finding.hint


def test_sparse_figures_are_known_for_each_device_and_whole_cards_for_a_die():
    hopper = SOUND.replace("NVIDIA A100", "NVIDIA GH200").replace("bf16: 312", "bf16: 1979")
    assert "state the dense figure: 989.5" in crosscheck(site(hopper))[0].hint
    card = SOUND.replace("kind: gpu, model: NVIDIA A100", "kind: gcd, model: AMD MI250X").replace(
        "312", "383"
    )
    assert "state the figure of one: 191.5" in crosscheck(site(card))[0].hint


@pytest.mark.parametrize("given", ["constraint: gpu", "kind: qos", "kind: implicit"])
def test_a_partition_of_slurms_is_none_of_pbs(given):
    text = SOUND.replace("kind: slurm", "kind: pbs").replace("max_nodes: 4,", f"max_nodes: 4, {given},")
    fields = {finding.field for finding in crosscheck(site(text)) if finding.severity == "error"}
    assert fields == {f"partitions.short.{given.partition(':')[0]}"}


def test_a_node_type_that_no_partition_gives_is_told():
    text = SOUND.replace(
        "nodes:\n  gpu:",
        "nodes:\n  other: &x\n    device: {kind: cpu, model: CPU, memory: 1GiB, memory_bandwidth: 1, peak_tflops: {fp32: 1}}\n    devices: 2\n    cores: 8\n    threads_per_core: 2\n    host_memory: 1GiB\n    links: {intra_node: 1}\n  gpu:",
    )
    assert [finding.message for finding in crosscheck(site(text)) if finding.severity == "warning"] == [
        "no partition gives nodes other"
    ]


def test_errors_come_first():
    text = SOUND.replace("{bf16: 312}", "{bf16: 624}").replace("0xe,0xe0", "0xf,0xe0")
    assert [finding.severity for finding in crosscheck(site(text))] == ["error", "warning"]
