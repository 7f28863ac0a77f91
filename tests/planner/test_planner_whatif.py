"""Plans for a machine that is not there."""

from dataclasses import replace

import pytest

from hpcdl.errors import UsageError
from hpcdl.planner.question import Question
from hpcdl.planner.whatif import KEYS, changed
from hpcdl.sites.node import NodeType


@pytest.fixture
def question(experiment_of, perlmutter):
    return Question(experiment_of(batch=64), perlmutter)


def node_of(question):
    return question.site.nodes["gpu40"]


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("link.inter=2x", "link.inter", 200.0),
        ("link.inter=50GB/s", "link.inter", 50.0),
        ("link.intra=1.5x", "link.intra", 450.0),
        ("link.host=64", "link.host", 64.0),
        ("device.memory=80GiB", "device.memory", 80 * 2**30),
        ("device.memory=0.5x", "device.memory", 20 * 2**30),
        ("device.bandwidth=3350GB/s", "device.bandwidth", 3350.0),
        ("device.flops=2x", "device.flops", 624.0),
        ("device.flops=989TFLOP/s", "device.flops", 989.0),
        ("node.devices=8", "node.devices", 8),
        ("node.devices=2x", "node.devices", 8),
        ("node.cores=128", "node.cores", 128),
        ("node.memory=512GiB", "node.memory", 512 * 2**30),
    ],
)
def test_a_setting_changes_one_figure_of_the_queues_nodes(question, setting, key, value):
    after = changed(question, [setting])
    assert KEYS[key].read(node_of(after), "bf16") == pytest.approx(value)
    NodeType.model_validate(node_of(after).model_dump())
    assert after.site.nodes["gpu80"] == question.site.nodes["gpu80"]
    for other in set(KEYS) - {key}:
        assert KEYS[other].read(node_of(after), "bf16") == KEYS[other].read(node_of(question), "bf16")


def test_every_key_is_tried(question):
    for key in KEYS:
        before = KEYS[key].read(node_of(question), "bf16")
        assert KEYS[key].read(node_of(changed(question, [f"{key}=2x"])), "bf16") == 2 * before


def test_links_between_pairs_follow_the_link_inside_a_node(question):
    after = node_of(changed(question, ["link.intra=2x"]))
    assert set(after.links.pairs.values()) == {200}


def test_all_precisions_follow_the_peak(question):
    assert node_of(changed(question, ["device.flops=2x"])).device.peak_tflops["fp32"] == 39


def test_settings_add_up(question):
    after = node_of(changed(question, ["link.inter=2x", "link.inter=2x", "device.memory=80GiB"]))
    assert after.links.inter_node == 400
    assert after.device.memory == str(80 * 2**30)


def test_faster_links_make_a_plan_faster(question):
    before, after = question.plan(16), changed(question, ["link.inter=4x"]).plan(16)
    assert after.best.step_seconds < before.best.step_seconds
    compute = ("forward", "backward", "optimizer")
    if after.best.decomposition == before.best.decomposition:
        assert all(after.best.breakdown[name] == before.best.breakdown[name] for name in compute)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("link.inter", "not of the form KEY=VALUE"),
        ("link.intr=2x", "no key 'link.intr'; did you mean 'link.intra'?"),
        ("colour=2x", "no key 'colour'"),
        ("link.inter=0", "link.inter must be above zero"),
        ("link.inter=0x", "link.inter must be above zero"),
        ("link.inter=-2x", "'-2x' is no value for it"),
        ("link.inter=fast", "'fast' is no value for it"),
        ("link.inter=80GiB", "'80GiB' is no value for it"),
        ("link.inter=", "'' is no value for it"),
        ("device.memory=80parsec", "'80parsec' is not a size"),
        ("device.memory=0GiB", "device.memory must be above zero"),
        ("node.devices=1.3x", "node.devices 5.2 is not a whole number of at most 65536"),
        ("node.devices=1000000000000", "node.devices 1e+12 is not a whole number of at most 65536"),
        (f"device.flops={'9' * 400}x", "device.flops must be above zero and finite"),
        (f"device.memory={'9' * 400}GiB", "cannot convert float infinity to integer"),
        ("node.devices=0", "node.devices must be above zero"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(question, setting, words):
    with pytest.raises(UsageError) as refused:
        changed(question, [setting])
    assert words in refused.value.message
    assert setting in refused.value.message


def test_a_multiple_of_what_the_site_does_not_say_asks_for_the_figure_itself(question):
    """The way out named a multiple once more, which is what had just been refused."""
    links = node_of(question).links.model_copy(update={"nics": 0, "nic_bandwidth": 0.0})
    nodes = {**question.site.nodes, "gpu40": node_of(question).model_copy(update={"links": links})}
    unknown = replace(question, site=question.site.model_copy(update={"nodes": nodes}))
    with pytest.raises(UsageError, match="the site does not say what this is now") as refused:
        changed(unknown, ["link.inter=2x"])
    assert refused.value.hint == "give GB/s: for example 100GB/s"
    assert node_of(changed(unknown, ["link.inter=100GB/s"])).links.inter_node == 100


def test_an_unknown_key_lists_the_known(question):
    with pytest.raises(UsageError) as refused:
        changed(question, ["colour=2x"])
    assert all(key in refused.value.hint for key in KEYS)


def test_a_precision_that_the_device_lacks_can_be_given_a_peak(experiment_of, perlmutter):
    gpu = perlmutter.nodes["gpu40"]
    old = gpu.device.model_copy(update={"peak_tflops": {"fp32": 10.0}})
    site = perlmutter.model_copy(
        update={"nodes": {**perlmutter.nodes, "gpu40": gpu.model_copy(update={"device": old})}}
    )
    question = Question(experiment_of(batch=64), site)
    with pytest.raises(UsageError, match="bf16 is not supported"):
        question.plan(4)
    with pytest.raises(UsageError, match="does not say what this is now"):
        changed(question, ["device.flops=2x"])
    given = changed(question, ["device.flops=40"])
    assert node_of(given).device.peak_tflops == {"fp32": 10.0, "bf16": 40.0}
    assert given.plan(4).best.step_seconds > 0


def test_what_a_site_does_not_say_has_no_multiple(question, small_memory):
    silent = small_memory("40GiB", links=node_of(question).links.model_copy(update={"host": None}))
    site = question.site.model_copy(update={"nodes": {"gpu40": silent, "gpu80": silent}})
    with pytest.raises(UsageError, match="does not say what this is now"):
        changed(Question(question.experiment, site), ["link.host=2x"])
    assert node_of(changed(Question(question.experiment, site), ["link.host=32"])).links.host == 32
