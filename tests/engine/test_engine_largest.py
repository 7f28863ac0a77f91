"""The planner predicts what the engine has on the device, in all of a step."""

import pytest
import torch
from counting import Peak
from largest import bare
from measured import peak_bytes

from hpcdl.engine.host_memory import HostMemory
from hpcdl.engine.tensor.deliver import Delivery
from hpcdl.spec.model import Model

GPT = Model(family="gpt", layers=2, hidden=256, heads=8, vocab=512, sequence=64)
WAYS = [
    {}, {"offload": "optimizer"}, {"offload": "parameters"},
    {"offload": "parameters", "offload_activations": True},
]  # fmt: skip


@pytest.fixture
def slow_copies(monkeypatch):
    """A gradient is on its way to the host until the next one is brought, as it may be next to a GPU."""
    bring, travelling = Delivery.bring, []

    def brought(delivery, gradient, add):
        bring(delivery, gradient, add)
        travelling[:] = [gradient]

    monkeypatch.setattr(Delivery, "bring", brought)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_device_holds_what_the_planner_predicts(slow_copies, way):
    question = bare(64, way)
    ratio = peak_bytes(GPT, question.decomposition, question.training) / question.device_bytes(GPT)
    assert 0.9 < ratio < 1.02


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
