"""Every difference between a file and its machine is found, at its line, and nothing else."""

from dataclasses import replace

import pytest
from survey.recorded import MIXED, PBS, PLAIN, site

from hpcdl.survey.compare import compare

TRUE = """\
name: mixed
scheduler: {kind: slurm, gpu_request: gres, gpu_type: a100}
launch: {launcher: srun}
partitions:
  gpu: {node: a100, max_nodes: 6, walltime: [{limit: 2-00:00:00}]}
  debug: {node: a100, constraint: gpu&hbm40g, max_nodes: 2, walltime: [{limit: 00:30:00}]}
  big: {node: a100, min_nodes: 2, max_nodes: 4}
  cpu: {node: cpu, max_nodes: 10, walltime: [{limit: 1-00:00:00}]}
  everywhere: {node: a100, kind: qos, constraint: hbm80g}
default_partition: gpu
nodes:
  a100:
    device: {kind: gpu, model: NVIDIA A100, memory: 40GiB, memory_bandwidth: 1555, peak_tflops: {bf16: 312}}
    devices: 4
    cores: 64
    threads_per_core: 2
    reserved_cores: [0, 32]
    host_memory: 256GiB
    links: {intra_node: 300, nics: 1, nic_bandwidth: 25}
  cpu:
    device: {kind: cpu, model: CPU, memory: 4GiB, memory_bandwidth: 10, peak_tflops: {fp32: 1}}
    devices: 64
    cores: 64
    threads_per_core: 2
    host_memory: 512GB
    links: {intra_node: 10, nics: 1, nic_bandwidth: 25}
"""


def differences(text, machine=MIXED):
    return [(found.severity, found.where, found.message) for found in compare(site(text), machine)]


def test_a_true_file_differs_in_what_it_leaves_out_only():
    # Its CPU nodes would be asked for GPUs, as the whole site is; without them the file is true.
    text = TRUE.replace("  cpu: {node: cpu, max_nodes: 10, walltime: [{limit: 1-00:00:00}]}\n", "")
    assert {message for _, _, message in differences(text)} == {
        "the machine has cpu, which the file does not name",
        "the machine has closed, which the file does not name",
    }


def test_a_partition_that_the_scheduler_chooses_has_no_name_to_be_missed():
    text = TRUE.replace("everywhere: {node: a100, kind: qos", "chosen: {node: a100, kind: implicit")
    assert not [message for _, _, message in differences(text) if "chosen" in message]
    assert [
        message for _, _, message in differences(text.replace("kind: implicit, ", "")) if "chosen" in message
    ]


@pytest.mark.parametrize(
    ("planted", "severity", "where", "message"),
    [
        (("2-00:00:00", "3-00:00:00"), "error", "5:45", "walltime is 3-00:00:00, but gpu allows 2-00:00:00"),
        (("2-00:00:00", "1-00:00:00"), "warning", "5:45", "walltime is 1-00:00:00, but gpu allows 2-00:00:00"),
        ((", walltime: [{limit: 2-00:00:00}]", ""), "warning", "5:8", "no walltime is stated, but gpu allows 2-00:00:00"),
        (("max_nodes: 6", "max_nodes: 7"), "error", "5:32", "max_nodes is 7, but gpu gives up to 6"),
        (("max_nodes: 6", "max_nodes: 5"), "warning", "5:32", "max_nodes is 5, but gpu gives up to 6"),
        ((", max_nodes: 6", ""), "warning", "5:8", "max_nodes is not stated, but gpu gives up to 6"),
        (("min_nodes: 2, ", ""), "error", "7:8", "min_nodes is 1, but big takes no job below 2"),
        (("  gpu: {", "  gpu: {name: gpus, "), "error", "5:8", "the machine has no partition gpus; it has gpu, debug, big, cpu, closed"),
        (("gpu&hbm40g", "gpu&hbm64g"), "error", "6:35", "no node has the feature hbm64g; there are gpu, hbm40g, mig"),
        (("    cores: 64\n    threads_per_core: 2\n    res", "    cores: 128\n    threads_per_core: 2\n    res"), "error", "15:12", "cores is 128, but the scheduler counts 64 on 6 nodes"),
        (("threads_per_core: 2\n    res", "threads_per_core: 1\n    res"), "warning", "16:23", "threads_per_core is 1, but the scheduler counts 2 on 6 nodes"),
        (("[0, 32]", "[0]"), "error", "17:21", "1 cores are reserved in the file, 2 on the machine"),
        (("[0, 32]", "[0, 1, 32]"), "warning", "17:21", "3 cores are reserved in the file, 2 on the machine"),
        (("devices: 4", "devices: 8"), "error", "14:14", "devices is 8, but the scheduler counts 4 on 6 nodes"),
        (("gpu_type: a100", "gpu_type: h100"), "error", "2:55", "gpu_type is h100, but the nodes have a100"),
        (("256GiB", "512GiB"), "error", "18:18", "host_memory is 512.0 GiB, but the scheduler counts 251.0 GiB"),
        (("256GiB", "128GiB"), "warning", "18:18", "host_memory is 128.0 GiB, but the scheduler counts 251.0 GiB"),
        (("default_partition: gpu", "default_partition: big"), "warning", "10:20", "default_partition is big, but the machine's own default is gpu"),
        (("hbm80g}", "mig}"), "warning", "14:14", "devices is 4, but the scheduler counts 9 on 1 node"),
    ],
)  # fmt: skip
def test_a_planted_difference_is_found_at_its_line(planted, severity, where, message):
    assert planted[0] in TRUE
    before, after = differences(TRUE), differences(TRUE.replace(*planted))
    found = [(s, w, m) for s, w, m in after if (s, w, m) not in before and m.startswith(message)]
    assert [(s, w) for s, w, _ in found] == [(severity, f"mine.yaml:{where}")]


def test_a_partition_may_ask_for_a_type_of_its_own():
    text = TRUE.replace("big: {", "big: {gpu_type: h100, ")
    found = ("error", "mine.yaml:7:19", "gpu_type is h100, but the nodes have a100")
    assert [each for each in differences(text) if each not in differences(TRUE)] == [found]


def test_of_a_partition_that_the_scheduler_chooses_only_the_nodes_are_compared():
    text = TRUE.replace("everywhere: {node: a100, kind: qos,", "everywhere: {node: a100, kind: implicit,")
    assert differences(text) == differences(TRUE)


def test_larger_arrays_than_the_machine_takes_are_an_error():
    text = TRUE.replace("kind: slurm,", "kind: slurm, max_array: 10002,")
    assert ("error", "mine.yaml:2:37", "max_array is 10002, but the machine takes 10001") in differences(text)


@pytest.mark.parametrize("most", [0, 1])
def test_a_machine_without_arrays_is_told_and_no_number_of_it_asked_for(most):
    """Once the way out was "set it to 0", which the schema refuses."""
    (found,) = [
        found for found in compare(site(TRUE), replace(MIXED, max_array=most)) if "array" in found.field
    ]
    assert (found.severity, found.message) == (
        "warning",
        f"the machine takes no arrays of jobs (of at most {most})",
    )
    assert "set it" not in found.hint


def test_another_scheduler_is_another_machine():
    ((severity, where, message),) = differences(TRUE, PBS)
    assert (severity, where) == ("error", "mine.yaml:2:19")
    assert message == "scheduler.kind is slurm, but this machine runs pbs"


def test_a_partition_that_takes_no_jobs_is_told():
    text = TRUE.replace("  cpu: {node", "  closed: {node")
    assert any("closed takes no jobs now" in message for _, _, message in differences(text))


def test_memory_is_not_compared_where_jobs_are_not_held_to_it():
    text = TRUE.replace("  gpu: {", "  batch: {").replace(
        "default_partition: gpu", "default_partition: batch"
    )
    assert not any("host_memory" in message for _, _, message in differences(text, PLAIN))


def test_cpus_of_pbs_are_cores_times_threads():
    text = """\
name: pbs
scheduler: {kind: pbs, gpu_request: gpus-per-node}
launch: {launcher: mpiexec-hydra}
partitions: {workq: {node: gpu, max_nodes: 3}, routeq: {node: gpu, routing: true}}
default_partition: workq
nodes:
  gpu:
    device: {kind: gpu, model: x, memory: 40GiB, memory_bandwidth: 1555, peak_tflops: {bf16: 312}}
    devices: 4
    cores: 4
    threads_per_core: 2
    host_memory: 8GiB
    links: {intra_node: 300, nics: 1, nic_bandwidth: 25}
"""
    assert {message.partition(",")[2] for _, _, message in differences(text, PBS)} == {
        " which the file does not name"
    }
    wrong = text.replace("threads_per_core: 2", "threads_per_core: 1").replace(
        "routing: true", "max_nodes: 3"
    )
    messages = {message for _, _, message in differences(wrong, PBS)}
    assert "cores is 4, but the scheduler counts 8 on 3 nodes" in messages
    assert "routing is false, but routeq is otherwise" in messages
