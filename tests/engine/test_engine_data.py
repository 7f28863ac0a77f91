"""The order of the data is a property of the run, not of who reads it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.data.loader import Batches, Share
from hpcdl.engine.data.prepare import Prepared
from hpcdl.engine.data.sampler import Epochs, Mixture, fair_order, shard_rows, step_positions
from hpcdl.errors import EngineError
from hpcdl.spec.experiment import Experiment

sizes = st.integers(1, 40)
weights = st.lists(st.integers(1, 30), min_size=1, max_size=6)
TEXT = "the quick brown fox jumps over the lazy dog " * 50
ORDER_OF_TEN_WITH_SEED_SEVEN = [6, 3, 9, 1, 2, 0, 5, 7, 8, 4, 1, 9, 2, 8, 5]


def experiment(data, sequence=16, vocab=256, batch=12, **changes):
    model = {"layers": 1, "hidden": 8, "heads": 1, "vocab": vocab, "sequence": sequence}
    told = {"model": model, "data": data, "training": {"global_batch": batch}} | changes
    return Experiment.model_validate(told)


def batches(folder, told, share=None):
    prepared = Prepared(folder / "data", told.data, told.model)
    return Batches(prepared.open(prepared.make()), told, share or Share())


def windows(folder, told):
    prepared = Prepared(folder / "data", told.data, told.model)
    return prepared.open(prepared.make())


def text_of(folder, data, sequence=1):
    """What the chain of one source reads, put together again."""
    (source,) = windows(folder, experiment(data, sequence))
    parts = [source.read(index) for index in range(len(source))]
    return bytes([int(parts[0][0][0]), *(int(token) for _, targets in parts for token in targets)])


# --- the order


@given(batch=sizes, sequences=sizes, seed=st.integers(0, 3), source=st.integers(0, 2))
def test_every_epoch_sees_every_sequence_once(batch, sequences, seed, source):
    steps = -(-2 * sequences // batch)
    epochs = Epochs(sequences, seed, source)
    order = np.concatenate([epochs.at(step_positions(step, batch)) for step in range(1, steps + 1)])
    for epoch in (order[:sequences], order[sequences : 2 * sequences]):
        assert sorted(epoch) == list(range(sequences))


@given(batch=sizes, sequences=sizes, step=st.integers(1, 50))
def test_a_step_is_the_same_piece_of_the_order_whatever_was_asked_before(batch, sequences, step):
    """A restarted run goes on with exactly the data it would have seen."""
    alone = Epochs(sequences, 0).at(step_positions(step, batch))
    epochs = Epochs(sequences, 0)
    order = np.concatenate([epochs.at(step_positions(before, 1)) for before in range(1, step * batch + 1)])
    assert np.array_equal(alone, order[-batch:])


def test_another_seed_or_source_is_another_order():
    first = step_positions(1, 32)
    orders = [Epochs(1000, seed, source).at(first) for seed, source in ((0, 0), (1, 0), (0, 1))]
    assert len({tuple(order) for order in orders}) == 3


def test_the_order_of_one_source_is_that_of_the_first_release():
    """A run that was started before sources could be several goes on with its own data."""
    assert Epochs(10, 7).at(np.arange(15)).tolist() == ORDER_OF_TEN_WITH_SEED_SEVEN


@given(quotas=weights)
def test_every_source_has_its_share_of_every_beginning_to_within_one(quotas):
    period = sum(quotas)
    order = np.tile(fair_order(quotas), 2)
    places = np.arange(1, 2 * period + 1)
    for source, quota in enumerate(quotas):
        error = np.cumsum(order == source) - places * quota / period
        assert np.abs(error).max() < 1
        assert (order[:period] == source).sum() == quota


@given(quotas=weights, first=st.integers(0, 10**12))
def test_a_mixture_counts_the_sequences_of_each_source_one_by_one(quotas, first):
    sources, positions = Mixture(quotas).at(first + np.arange(3 * sum(quotas)))
    for source in range(len(quotas)):
        own = positions[sources == source]
        assert np.array_equal(own, own[0] + np.arange(len(own)))
    beginning = Mixture(quotas).at(np.arange(sum(quotas)))
    assert all(beginning[1][beginning[0] == source][0] == 0 for source in range(len(quotas)))


@given(shards=st.integers(1, 8), rows=st.integers(1, 8))
def test_shards_partition_a_step(shards, rows):
    batch = list(range(shards * rows))
    assert [row for shard in range(shards) for row in batch[shard_rows(len(batch), shard, shards)]] == batch


def test_shards_that_do_not_divide_the_batch_are_refused():
    """Rounding down would silently train on fewer sequences."""
    with pytest.raises(EngineError, match="global_batch 10 cannot be shared evenly by 4"):
        shard_rows(10, 0, 4)


# --- text


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, text in (("b.txt", "beta"), ("a.txt", "alpha"), ("c.bin", "zzz")):
        (folder / name).write_text(text)
    return folder


def test_text_is_taken_in_the_order_of_file_names(corpus, tmp_path):
    assert text_of(tmp_path, {"path": str(corpus), "pattern": "*.txt"}) == b"alpha\0beta"
    assert text_of(tmp_path, {"path": str(corpus / "b.txt")}) == b"beta"
    assert text_of(tmp_path, {"path": str(corpus), "max_bytes": 3}) == b"alp"
    assert text_of(tmp_path, {"path": str(corpus), "document_end": 10}) == b"alpha\nbeta\nzzz"


def test_no_text_names_the_place(corpus, tmp_path):
    nothing = {"path": str(corpus), "pattern": "*.md"}
    with pytest.raises(EngineError, match=r"no text to train on in .*: no file there matches '\*\.md'"):
        batches(tmp_path, experiment(nothing))
    (corpus / "empty.md").touch()
    with pytest.raises(EngineError, match=r"'\*\.md' are empty"):
        batches(tmp_path, experiment(nothing))
    with pytest.raises(EngineError, match="nowhere does not exist"):
        batches(tmp_path, experiment({"path": str(corpus / "nowhere")}))


def test_the_standard_library_is_python_source(tmp_path):
    text = text_of(tmp_path, {"source": "stdlib", "max_bytes": 20_000}, sequence=100)
    assert 19_900 < len(text) - text.count(b"\0") <= 20_000
    assert b"import " in text


def test_batches_are_the_same_however_they_are_sharded(tmp_path):
    (tmp_path / "long.txt").write_text(TEXT)
    told = experiment({"path": str(tmp_path / "long.txt")})
    whole = batches(tmp_path, told).rows(3)
    for shards in (2, 3, 4, 12):
        parts = [batches(tmp_path, told, Share(shard, shards)).rows(3) for shard in range(shards)]
        assert torch.equal(torch.cat([part.inputs_BL for part in parts]), whole.inputs_BL)
        assert {part.counted for part in parts} == {whole.counted} == {12 * 16}
    assert whole.inputs_BL.shape == whole.targets_BL.shape == (12, 16)
    assert torch.equal(whole.inputs_BL[:, 1:], whole.targets_BL[:, :-1])


def test_less_than_one_sequence_says_how_much_there_is(corpus, tmp_path):
    with pytest.raises(EngineError, match="has 4 tokens, less than one sequence of 4"):
        batches(tmp_path, experiment({"path": str(corpus / "b.txt")}, sequence=4))
