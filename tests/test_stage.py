"""The stage machine: any legal delivery order finishes, an illegal message changes nothing."""

import copy
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.stage import Action, Kind, Message, Operation, ProtocolError, Stage

SENDS = {
    Operation.SEND_ACTIVATION: (1, Kind.ACTIVATION),
    Operation.SEND_GRADIENT: (-1, Kind.GRADIENT),
}


class Network:
    """Stages and the messages under way between them; delivers in any order it is told."""

    def __init__(self, stages, microbatches, limit):
        self.stages = [Stage(index, stages, microbatches, limit) for index in range(stages)]
        self.under_way = []
        self.done = [[] for _ in self.stages]
        for stage in self.stages:
            self.perform(stage.index, stage.start())

    def perform(self, index, actions):
        for action in actions:
            self.done[index].append(action)
            if action.operation in SENDS:
                step, kind = SENDS[action.operation]
                self.under_way.append((index + step, Message(kind, action.microbatch)))

    def deliver(self, position):
        index, message = self.under_way.pop(position)
        self.perform(index, self.stages[index].receive(message))
        return index


def shapes(rng):
    stages, microbatches = rng.randint(1, 7), rng.randint(1, 12)
    return stages, microbatches, rng.choice([None, 1, rng.randint(1, 9)])


def run(rng):
    network = Network(*shapes(rng))
    while network.under_way:
        index = network.deliver(rng.randrange(len(network.under_way)))
        assert network.stages[index].in_flight <= network.stages[index].limit
        first = network.stages[0]
        assert first.in_flight <= first.limit
    return network


def test_a_thousand_delivery_orders_finish():
    """Messages may overtake each other even between one pair of stages."""
    rng = random.Random(20260)
    for _ in range(1000):
        network = run(rng)
        assert all(stage.done and stage.in_flight == 0 for stage in network.stages)


def test_every_microbatch_goes_forward_then_backward_once_on_every_stage():
    rng = random.Random(7)
    for _ in range(100):
        network = run(rng)
        for stage, actions in zip(network.stages, network.done, strict=True):
            for microbatch in range(stage.microbatches):
                forward = actions.index(Action(Operation.FORWARD, microbatch))
                backward = actions.index(Action(Operation.BACKWARD, microbatch))
                assert forward < backward
            computed = [a for a in actions if a.operation not in SENDS]
            assert len(computed) == 2 * stage.microbatches


def test_messages_received_are_those_announced():
    rng = random.Random(3)
    for _ in range(50):
        network = run(rng)
        for stage in network.stages:
            arrived = dict.fromkeys(Kind, 0)
            for neighbour, actions in zip(network.stages, network.done, strict=True):
                for action in actions:
                    step, kind = SENDS.get(action.operation, (0, None))
                    if kind and neighbour.index + step == stage.index:
                        arrived[kind] += 1
            assert arrived == {kind: stage.expected(kind) for kind in Kind}


@given(st.integers(0, 2**32), st.integers(-2, 14), st.sampled_from(Kind), st.integers(0, 20))
def test_an_illegal_message_raises_and_changes_nothing(seed, microbatch, kind, steps):
    rng = random.Random(seed)
    network = Network(*shapes(rng))
    for _ in range(steps):
        if network.under_way:
            network.deliver(rng.randrange(len(network.under_way)))
    stage = rng.choice(network.stages)
    before = copy.deepcopy(vars(stage))
    try:
        stage.receive(Message(kind, microbatch))
    except ProtocolError:
        assert vars(stage) == before


@pytest.mark.parametrize(
    ("index", "messages", "words"),
    [
        (0, [Message(Kind.ACTIVATION, 0)], "receives no activation"),
        (2, [Message(Kind.GRADIENT, 0)], "receives no gradient"),
        (1, [Message(Kind.GRADIENT, 0)], "before its activation left"),
        (1, [Message(Kind.ACTIVATION, 9)], "microbatch 9 of 4 does not exist"),
        (1, [Message(Kind.ACTIVATION, 1), Message(Kind.ACTIVATION, 1)], "came twice"),
        (
            1,
            [Message(Kind.ACTIVATION, 1), Message(Kind.GRADIENT, 1), Message(Kind.GRADIENT, 1)],
            "the gradient of microbatch 1 came twice",
        ),
    ],
)
def test_the_error_names_stage_and_microbatch(index, messages, words):
    stage = Stage(index, 3, 4)
    for message in messages[:-1]:
        stage.receive(message)
    with pytest.raises(ProtocolError, match=words):
        stage.receive(messages[-1])


@pytest.mark.parametrize("arguments", [(3, 3, 1), (-1, 3, 1), (0, 1, 0), (0, 1, 1, 0)])
def test_a_stage_that_cannot_exist_is_refused(arguments):
    with pytest.raises(ValueError, match=r"stage|microbatch"):
        Stage(*arguments)


def test_the_first_stage_fills_the_pipeline_and_no_more():
    actions = Stage(0, 4, 10).start()
    assert [a.microbatch for a in actions if a.operation is Operation.FORWARD] == [0, 1, 2, 3]


def test_starting_twice_does_nothing():
    stage = Stage(0, 2, 4)
    stage.start()
    assert stage.start() == []


def test_a_single_stage_runs_through_without_messages():
    stage = Stage(0, 1, 3)
    assert [action.operation for action in stage.start()] == [Operation.FORWARD, Operation.BACKWARD] * 3
    assert stage.done
