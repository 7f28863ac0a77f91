"""The order of the data is a property of the run, not of who reads it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.engine.data.loader import Batches
from hpcdl.engine.data.sampler import shard_rows, step_indices
from hpcdl.engine.data.tokens import read_tokens
from hpcdl.errors import EngineError
from hpcdl.spec.data import Data
from hpcdl.spec.training import Training

sizes = st.integers(1, 40)


@given(batch=sizes, sequences=sizes, seed=st.integers(0, 3))
def test_every_epoch_sees_every_sequence_once(batch, sequences, seed):
    steps = -(-2 * sequences // batch)
    order = np.concatenate([step_indices(step, batch, sequences, seed) for step in range(1, steps + 1)])
    for epoch in (order[:sequences], order[sequences : 2 * sequences]):
        assert sorted(epoch) == list(range(sequences))


@given(batch=sizes, sequences=sizes, step=st.integers(1, 50))
def test_a_step_is_the_same_piece_of_the_order_whatever_was_asked_before(batch, sequences, step):
    """A restarted run goes on with exactly the data it would have seen."""
    alone = step_indices(step, batch, sequences, 0)
    order = np.concatenate([step_indices(before, 1, sequences, 0) for before in range(1, step * batch + 1)])
    assert np.array_equal(alone, order[-batch:])


def test_another_seed_is_another_order():
    assert not np.array_equal(step_indices(1, 32, 1000, 0), step_indices(1, 32, 1000, 1))


@given(shards=st.integers(1, 8), rows=st.integers(1, 8))
def test_shards_partition_a_step(shards, rows):
    batch = list(range(shards * rows))
    assert [row for shard in range(shards) for row in batch[shard_rows(len(batch), shard, shards)]] == batch


def test_shards_that_do_not_divide_the_batch_are_refused():
    """Rounding down would silently train on fewer sequences."""
    with pytest.raises(EngineError, match="global_batch 10 cannot be shared evenly by 4"):
        shard_rows(10, 0, 4)


@pytest.fixture
def corpus(tmp_path):
    for name, text in (("b.txt", "beta"), ("a.txt", "alpha"), ("c.bin", "zzz")):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_read_tokens_takes_files_in_the_order_of_their_names(corpus):
    data = Data(path=str(corpus), pattern="*.txt")
    assert bytes(read_tokens(data)) == b"alpha\0beta"
    assert bytes(read_tokens(Data(path=str(corpus / "b.txt")))) == b"beta"
    assert bytes(read_tokens(Data(path=str(corpus), max_bytes=3))) == b"alp"


def test_read_tokens_of_nothing_names_the_place(corpus):
    with pytest.raises(EngineError, match=r"no text to train on in .* that match '\*\.md' are none"):
        read_tokens(Data(path=str(corpus), pattern="*.md"))
    (corpus / "empty.md").touch()
    with pytest.raises(EngineError, match=r"'\*\.md' are empty"):
        read_tokens(Data(path=str(corpus), pattern="*.md"))
    with pytest.raises(EngineError, match="nowhere does not exist"):
        read_tokens(Data(path=str(corpus / "nowhere")))


def test_read_tokens_is_the_same_wherever_the_files_stand(corpus, tmp_path_factory):
    """Ranks on other nodes read copies; the order of a directory is the file system's own."""
    other = tmp_path_factory.mktemp("copy")
    for name in ("a.txt", "b.txt", "c.bin"):
        (other / name).write_bytes((corpus / name).read_bytes())
    assert np.array_equal(read_tokens(Data(path=str(corpus))), read_tokens(Data(path=str(other))))


def test_read_tokens_of_the_standard_library_is_python_source():
    tokens = bytes(read_tokens(Data(source="stdlib", max_bytes=200_000)))
    assert len(tokens) == 200_000 + tokens.count(b"\0")
    assert b"import " in tokens


def test_batches_are_the_same_however_they_are_sharded(corpus):
    (corpus / "long.txt").write_text("the quick brown fox jumps over the lazy dog " * 50)
    data, training = Data(path=str(corpus / "long.txt")), Training(global_batch=12)
    batches = Batches(data, training, sequence=16)
    whole, targets = batches.rows(3, 0, 1)
    for shards in (2, 3, 4, 12):
        parts = [batches.rows(3, shard, shards)[0] for shard in range(shards)]
        assert torch.equal(torch.cat(parts), whole)
    assert whole.shape == targets.shape == (12, 16)
    assert torch.equal(whole[:, 1:], targets[:, :-1])


def test_batches_of_less_than_one_sequence_say_how_much_there_is(corpus):
    with pytest.raises(EngineError, match="has 4 tokens, less than one sequence of 4"):
        Batches(Data(path=str(corpus / "b.txt")), Training(), sequence=4)
