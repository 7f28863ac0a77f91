"""The planner predicts what the engine has on the device, in all of a step."""

import pytest
import torch
from counting import Peak
from largest import bare
from measured import peak_bytes

from hpcdl.engine.host_memory import HostMemory
from hpcdl.spec.model import Model

GPT = Model(family="gpt", layers=2, hidden=256, heads=8, vocab=512, sequence=64)
ONE_MATRIX = 4 * GPT.hidden**2 * 2
"""Bytes of the largest."""

WAYS = [
    ({}, 0),
    ({"offload": "optimizer"}, 0),
    # Copies of a CPU are done at once, so no gradient is on its way while the next one is made.
    ({"offload": "parameters"}, ONE_MATRIX),
    ({"offload": "parameters", "offload_activations": True}, ONE_MATRIX),
]


@pytest.mark.parametrize(("way", "never_here"), WAYS, ids=str)
def test_the_device_holds_what_the_planner_predicts(way, never_here):
    question = bare(64, way)
    counted = peak_bytes(GPT, question.decomposition, question.training)
    assert counted + never_here == pytest.approx(question.device_bytes(GPT), rel=0.05)


def test_the_peak_is_that_of_what_is_there_at_once_and_not_on_the_host():
    host = HostMemory(torch.device("cpu"))
    with Peak() as peak:
        peak.begin(host)
        kept = torch.zeros(1000).exp()  # two at once
        away = host.copy(kept)
        doubled = away + away  # made of what lies on the host
        assert peak.most == 8000
        more = kept.exp().sigmoid()
        assert peak.most == 12000
        del more, kept, doubled
        torch.zeros(2500).exp_()
    assert peak.most == 12000


def test_what_autograd_keeps_counts():
    with Peak() as peak:
        leaf = torch.zeros(1000, requires_grad=True)
        peak.begin(HostMemory(torch.device("cpu")))
        result = leaf.exp().exp().exp().sum()
        assert peak.most == 16000 + 4
        result.backward()
    assert leaf.grad is not None
