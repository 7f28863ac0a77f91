"""The stage machine: any legal delivery order finishes, an illegal message changes nothing."""

import copy
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.stage import Action, Cause, Flow, Kind, Message, Operation, ProtocolError, Stage

SENDS = (Operation.SEND_ACTIVATION, Operation.SEND_GRADIENT)
COMPUTES = (Operation.FORWARD, Operation.BACKWARD, Operation.WEIGHT)


class Network:
    """A pipeline of machines and the messages under way; any may be delivered, any rank may act, at any time."""

    def __init__(self, flow, rng):
        self.flow, self.rng = flow, rng
        self.stages = [Stage(index, flow) for index in range(flow.ranks)]
        self.under_way = []
        self.able = self.stages[:1]
        self.done = [[] for _ in self.stages]
        self.arrived = [{kind: [] for kind in Kind} for _ in self.stages]
        self.story = [[] for _ in self.stages]

    def turn(self):
        """One random thing that can happen; False if nothing can."""
        events = len(self.under_way) + len(self.able)
        if not events:
            return False
        chosen = self.rng.randrange(events)
        if chosen < len(self.under_way):
            index, message = self.under_way.pop(chosen)
            stage = self.stages[index]
            stage.arrive(message)
            self.arrived[index][message.kind].append(message)
        else:
            stage = self.able[chosen - len(self.under_way)]
            options, cause = stage.options(), self.cause(stage)
            self.perform(stage, stage.take(cause))
            self.story[stage.index].append((options, cause))
            assert stage.in_flight <= self.flow.limit, self.flow
            assert stage.holds <= self.flow.limit * self.flow.chunks, self.flow
        self.able = [one for one in self.able if one is not stage] + [stage] * bool(stage.choose())
        return True

    def cause(self, stage):
        """Usually the machine's choice, sometimes anything else that is there: a team's first rank saw that."""
        there = [cause for cause in Cause if stage.can_take(cause)]
        return stage.choose() if self.rng.random() < 0.7 else self.rng.choice(there)

    def perform(self, stage, actions):
        for action in actions:
            self.done[stage.index].append(action)
            if action.operation in SENDS:
                self.under_way.append(stage.addressed(action))


def flows(rng):
    ranks = rng.randint(1, 6)
    return Flow(
        ranks,
        microbatches=rng.randint(1, 4),
        chunks=rng.randint(1, 3) if ranks > 1 else 1,
        in_flight=rng.choice([None, 1, rng.randint(1, 6)]),
        defer_weights=rng.random() < 0.5,
    )


def run(seed):
    rng = random.Random(seed)
    network = Network(flows(rng), rng)
    while network.turn():
        pass
    return network


@pytest.mark.slow
def test_ten_thousand_schedules_finish():
    """Messages may overtake each other even between one pair of ranks."""
    for seed in range(10_000):
        network = run(seed)
        assert all(stage.done and not stage.holds for stage in network.stages), (seed, network.flow)


def test_every_microbatch_is_computed_once_in_every_chunk_and_in_order():
    for seed in range(300):
        network = run(seed)
        flow = network.flow
        operations = COMPUTES if flow.defer_weights else COMPUTES[:2]
        for actions in network.done:
            for chunk in range(flow.chunks):
                for microbatch in range(flow.microbatches):
                    places = [actions.index(Action(each, chunk, microbatch)) for each in operations]
                    assert places == sorted(places)
            computed = [action for action in actions if action.operation in COMPUTES]
            assert len(computed) == len(operations) * flow.chunks * flow.microbatches


def test_messages_received_are_those_announced():
    for seed in range(100):
        network = run(seed)
        arrived = [dict.fromkeys(Kind, 0) for _ in network.stages]
        for stage, actions in zip(network.stages, network.done, strict=True):
            for action in actions:
                if action.operation in SENDS:
                    index, message = stage.addressed(action)
                    arrived[index][message.kind] += 1
        for stage, counts in zip(network.stages, arrived, strict=True):
            assert counts == {kind: stage.expected(kind) for kind in Kind}


def test_who_is_told_what_to_take_needs_no_more():
    """A rank of a team that sees each message only when it is told to take it does the same, of equal options."""
    for seed in range(300):
        network = run(seed)
        for stage, story, done in zip(network.stages, network.story, network.done, strict=True):
            told, actions = Stage(stage.index, network.flow), []
            mail = {Cause(kind.value): iter(sent) for kind, sent in network.arrived[stage.index].items()}
            for options, cause in story:
                assert told.options() == options
                assert cause in options
                if cause in mail:
                    told.arrive(next(mail[cause]))
                actions += told.take(cause)
            assert actions == done


@given(
    st.integers(0, 2**32), st.integers(-2, 10), st.integers(-1, 3), st.sampled_from(Kind), st.integers(0, 60)
)
def test_an_illegal_message_raises_and_changes_nothing(seed, microbatch, chunk, kind, turns):
    rng = random.Random(seed)
    network = Network(flows(rng), rng)
    for _ in range(turns):
        network.turn()
    stage, message = rng.choice(network.stages), Message(kind, chunk, microbatch)
    before = copy.deepcopy(vars(stage))
    try:
        stage.arrive(message)
    except ProtocolError:
        assert vars(stage) == before
    else:
        assert message not in network.arrived[stage.index][kind], "it came twice"


@given(st.integers(0, 2**32), st.integers(0, 60))
def test_what_is_not_there_cannot_be_taken(seed, turns):
    rng = random.Random(seed)
    network = Network(flows(rng), rng)
    for _ in range(turns):
        network.turn()
    for stage in network.stages:
        before = copy.deepcopy(vars(stage))
        for cause in (cause for cause in Cause if not stage.can_take(cause)):
            with pytest.raises(ProtocolError, match=f"no {cause.value} to take"):
                stage.take(cause)
            assert vars(stage) == before


A, G = Kind.ACTIVATION, Kind.GRADIENT


@pytest.mark.parametrize(
    ("index", "messages", "words"),
    [
        (0, [Message(A, 0, 0)], "receives no activation for chunk 0"),
        (2, [Message(G, 1, 0)], "receives no gradient for chunk 1"),
        (1, [Message(G, 0, 0)], "before its activation left"),
        (1, [Message(A, 0, 9)], "microbatch 9 of 4 does not exist"),
        (1, [Message(A, 2, 0)], "chunk 2 of 2 does not exist"),
        (1, [Message(A, 0, 1), Message(A, 0, 1)], "came twice"),
        (1, [Message(A, 1, 1)], "chunk 1 came before chunk 0 sent its own"),
        (1, [Message(A, 0, 1), Message(G, 0, 1)], "chunk 0 came before chunk 1 sent its own"),
        (
            1,
            [Message(A, 0, 1), Message(A, 1, 1), Message(G, 1, 1), Message(G, 1, 1)],
            "the gradient of microbatch 1 for chunk 1 came twice",
        ),
    ],
)
def test_the_error_names_stage_chunk_and_microbatch(index, messages, words):
    stage = Stage(index, Flow(3, 4, chunks=2))
    for message in messages[:-1]:
        stage.arrive(message)
        stage.take(Cause(message.kind.value))
    with pytest.raises(ProtocolError, match=words):
        stage.arrive(messages[-1])


@pytest.mark.parametrize("index", [-1, 3])
def test_a_stage_that_cannot_exist_is_refused(index):
    with pytest.raises(ValueError, match=f"stage {index} does not exist in a pipeline of 3"):
        Stage(index, Flow(3, 1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 1), "no pipeline has 0 ranks"),
        ((1, 1, 2), "no pipeline has 1 ranks with 2 stages each"),
        ((2, 1, 0), "no pipeline has 2 ranks with 0"),
        ((1, 0), "at least one microbatch, not 0"),
        ((1, 1, 1, 0), "at least one microbatch must be in flight, not 0"),
    ],
)
def test_a_flow_that_cannot_exist_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Flow(*arguments)


@pytest.mark.parametrize(
    ("flow", "limit"),
    [
        (Flow(4, 10), 5),
        (Flow(16, 64), 20),
        (Flow(4, 10, defer_weights=True), 4),
        (Flow(4, 3), 3),
        (Flow(4, 10, in_flight=6), 6),
        (Flow(4, 10, chunks=2), 8),
        (Flow(4, 10, chunks=2, defer_weights=True), 6),
    ],
)
def test_the_first_rank_lets_in_as_many_as_the_flow_says(flow, limit):
    stage, entered = Stage(0, flow), 0
    while (cause := stage.choose()) is Cause.DATA:
        stage.take(cause)
        entered += 1
    assert entered == flow.limit == limit


def test_a_single_stage_runs_through_without_messages():
    stage, operations = Stage(0, Flow(1, 3)), []
    while cause := stage.choose():
        operations += [action.operation for action in stage.take(cause)]
    assert operations == [Operation.FORWARD, Operation.BACKWARD] * 3
    assert stage.done


def operations_of(stage, *messages):
    for message in messages:
        stage.arrive(message)
    return [action.operation for action in stage.take(stage.choose())]


def test_forward_and_backward_take_turns():
    """Where both are there; a rank that would always prefer one of them would starve the other neighbour."""
    stage = Stage(1, Flow(3, 8))
    for microbatch in range(3):
        operations_of(stage, Message(A, 0, microbatch))
    waiting = [Message(G, 0, 0), Message(G, 0, 1), Message(A, 0, 3), Message(A, 0, 4)]
    found = [operations_of(stage, *waiting)[0], *(operations_of(stage)[0] for _ in range(3))]
    assert found == [Operation.BACKWARD, Operation.FORWARD] * 2


def test_deferred_work_waits_until_nothing_has_arrived():
    stage = Stage(1, Flow(3, 8, defer_weights=True))
    operations_of(stage, Message(A, 0, 0))
    assert operations_of(stage, Message(G, 0, 0)) == [Operation.BACKWARD, Operation.SEND_GRADIENT]
    assert operations_of(stage, Message(A, 0, 1)) == [Operation.FORWARD, Operation.SEND_ACTIVATION]
    assert operations_of(stage) == [Operation.WEIGHT]
    assert stage.choose() is None


def test_deferred_work_comes_first_where_a_rank_holds_all_it_may():
    stage = Stage(0, Flow(2, 8, defer_weights=True))
    operations_of(stage)
    operations_of(stage)
    operations_of(stage, Message(G, 0, 0))
    assert operations_of(stage) == [Operation.WEIGHT, Operation.FORWARD, Operation.SEND_ACTIVATION]
