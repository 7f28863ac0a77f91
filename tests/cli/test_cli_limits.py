"""What a machine would refuse is refused before submission, with the experiment's line and the site file's."""

import re
from pathlib import Path

import pytest

SITE = """\
name: volta
scheduler: {kind: slurm, mandatory: [account], gpu_request: gpus-per-node}
launch: {launcher: srun}
partitions:
  short:
    node: v100
    min_nodes: 2
    max_nodes: 4
    walltime:
      - {max_nodes: 2, limit: "01:00:00"}
      - {limit: "00:30:00"}
  alone: {node: v100, max_nodes: 1}
  apart: {node: island}
default_partition: short
nodes:
  v100:
    device: {kind: gpu, model: NVIDIA V100, memory: 16GiB, memory_bandwidth: 900,
      peak_tflops: {fp32: 15.7, fp16: 125}}
    devices: 4
    cores: 40
    host_memory: 192GiB
    links: {intra_node: 75, nics: 1, nic_bandwidth: 12.5}
  island:
    device: {kind: gpu, model: NVIDIA V100, memory: 16GiB, memory_bandwidth: 900,
      peak_tflops: {fp32: 15.7}}
    devices: 4
    cores: 40
    host_memory: 192GiB
    links: {intra_node: 75}
"""
JOB = 'resources: {gpus: 2, walltime: "00:05:00"}'
GOOD = {"nodes": "2", "account": "m1", "walltime": '"00:05:00"'}
PLACE = re.compile(r"([^\s(]+\.yaml):(\d+):(\d+)")


@pytest.fixture
def volta(tmp_path) -> Path:
    path = tmp_path / "volta.yaml"
    path.write_text(SITE)
    return path


def written(tiny: Path, asked: dict[str, str]) -> None:
    """Give the experiment these resources, one on a line."""
    lines = "".join(f"\n  {key}: {value}" for key, value in asked.items())
    text = tiny.read_text().replace("{data: 2}", "auto")
    tiny.write_text(text.replace(JOB, f"resources:{lines}"))


def shown(place: tuple[str, str, str]) -> str:
    """The text that stands at a place."""
    path, line, column = place
    return Path(path).read_text().splitlines()[int(line) - 1][int(column) - 1 :]


REFUSED = [
    # what the experiment asks, exit code, words, what stands at its place, what stands at the site's
    ({"queue": "shrot"}, 2, "no queue 'shrot'; did you mean short", "shrot", "short:"),
    ({"walltime": '"01:30:00"'}, 3, "over the 01:00:00", '"01:30:00"', '"01:00:00"}'),
    ({"nodes": "3", "walltime": '"00:45:00"'}, 3, "over the 00:30:00", '"00:45:00"', '"00:30:00"}'),
    ({"nodes": "1"}, 3, "at least 2 nodes, but this one has 1", "1", "2"),
    ({"nodes": "5"}, 3, "at most 4 nodes, but this one needs 5", "5", "4"),
    ({"nodes": "1", "gpus": "8"}, 3, "8 a node, but queue short has 4", "8", "4"),
    ({"gpus": "8", "nodes": "2", "queue": "alone"}, 3, "queue alone of site volta is one node", "8", "1}"),
    ({"account": "null"}, 2, "no job without an account", "null", "[account]"),
]


@pytest.mark.parametrize(("asked", "code", "words", "ours", "theirs"), REFUSED)
def test_a_limit_is_shown_with_both_lines(hpcdl, tiny, volta, asked, code, words, ours, theirs):
    written(tiny, GOOD | asked)
    result = hpcdl("submit", tiny, "--site", volta, "--dry-run")
    assert result.code == code, result.err
    message = result.err.split("error: ")[1].splitlines()[0]
    assert words in message
    first, last = PLACE.findall(message)
    assert message.startswith(":".join(first))
    assert message.endswith(f"({':'.join(last)})")
    assert (first[0], last[0]) == (str(tiny), str(volta))
    assert shown(first).startswith(ours)
    assert shown(last).startswith(theirs)


def test_a_job_within_the_limits_is_taken(hpcdl, tiny, volta):
    written(tiny, GOOD)
    assert hpcdl("submit", tiny, "--site", volta, "--dry-run").code == 0


def test_bf16_on_a_v100_is_refused_with_both_lines(hpcdl, tiny, volta):
    written(tiny, GOOD)
    tiny.write_text(tiny.read_text().replace("precision: fp32", "precision: bf16"))
    result = hpcdl("submit", tiny, "--site", volta, "--dry-run")
    assert result.code == 2
    assert "training.precision bf16 is not supported by NVIDIA V100" in result.err
    first, last = PLACE.findall(result.err)
    assert shown(first).startswith("bf16")
    assert shown(last).startswith("{fp32: 15.7, fp16: 125}")


def test_nodes_without_a_network_are_refused_with_the_sites_line(hpcdl, tiny, volta):
    written(tiny, GOOD | {"queue": "apart"})
    result = hpcdl("submit", tiny, "--site", volta, "--dry-run")
    assert result.code == 2
    (place,) = PLACE.findall(result.err)
    assert shown(place).startswith("{intra_node: 75}")


def test_a_size_from_the_command_line_is_named_by_its_flag(hpcdl, tiny, volta):
    written(tiny, GOOD)
    result = hpcdl("submit", tiny, "--site", volta, "--dry-run", "--nodes", 9)
    assert result.code == 3
    assert "error: --nodes 9: queue short takes jobs of at most 4 nodes" in result.err
    setting = "resources.walltime=02:00:00"
    result = hpcdl("submit", tiny, "--site", volta, "--dry-run", "--set", setting)
    assert f"error: --set {setting}: resources.walltime 02:00:00 is over" in result.err


def test_hpcdl_plan_shows_the_same_lines_as_a_note(hpcdl, tiny, volta):
    written(tiny, GOOD | {"walltime": '"02:00:00"'})
    result = hpcdl("plan", tiny, "--site", volta)
    assert result.code == 0
    assert f"submit would refuse this: {tiny}:" in result.err
    assert f"({volta}:10:31)" in result.err
