"""Two memories on one machine: who computes with what lies on the host, and how much lies where."""

import gc
from collections import Counter

import torch
from counting import Sides

MOVES = {
    "copy_",
    "detach",
    "view",
    "slice",
    "select",
    "as_strided",
    "split",
    "unbind",
    "alias",
    "_unsafe_view",
}


class Border(Sides):
    """Refuses operators that read memory of the host and of the device at once, which only copies may."""

    def __init__(self, host):
        super().__init__(host)
        self.crossings = 0  # copies from one to the other

    def reads(self, name, sides):
        if len(sides) == 2:
            assert name in MOVES, f"{name} reads both memories"
            self.crossings += 1


def alive():
    """A tensor of each storage there is."""
    return {
        thing.untyped_storage()._cdata: thing
        for thing in gc.get_objects()
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu"
    }


class Ledger:
    """Bytes that came to be after this was made, by what they are and where they lie."""

    def __init__(self):
        gc.collect()
        self._before = alive()

    def count(self, learner, host):
        """Of ``learner``, whose host memory is ``host``: a category and a place to bytes."""
        names = named(learner)
        counted = Counter()
        for key, tensor in alive().items():
            if key not in self._before:
                place = "host" if host.holds(tensor) else "device"
                counted[names.get(key, "other"), place] += tensor.untyped_storage().nbytes()
        return counted


def named(learner):
    """What each storage of a learner is: a gradient before a weight, for a sum may be kept in place."""
    flat = learner._flat
    groups = {
        "weights": [one.parameter for one in learner.stage.held],
        "gradients": [slot.gradient for slot in flat.slots],
        "state": [
            tensor
            for one in flat.buckets
            for tensor in (one.master, one.exp_avg, one.exp_avg_sq, one.updates)
        ],
    }
    return {tensor.untyped_storage()._cdata: name for name, tensors in groups.items() for tensor in tensors}
