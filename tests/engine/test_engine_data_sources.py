"""Token files, mixtures, held-out sequences, tokenizers: what is read, and what is said when it cannot be."""

import json
import math
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_runs import wait_until
from engine_worlds import in_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from hpcdl.engine.data.encoders import HuggingFace
from hpcdl.engine.data.loader import Batches, Share
from hpcdl.engine.data.prefetch import prefetched
from hpcdl.engine.data.prepare import Prepared, agreed
from hpcdl.engine.data.shards import Row, open_shard
from hpcdl.engine.data.windows import Chain
from hpcdl.engine.evaluation import mean_loss
from hpcdl.engine.groups import make_groups
from hpcdl.engine.learner import Learner
from hpcdl.engine.topology import Topology
from hpcdl.errors import EngineError
from hpcdl.spec.decomposition import Decomposition
from hpcdl.spec.experiment import Experiment

VOCAB = 2**16


def experiment(data, sequence=4, vocab=VOCAB, batch=6, **changes):
    model = {"layers": 1, "hidden": 8, "heads": 1, "vocab": vocab, "sequence": sequence}
    told = {"model": model, "data": data, "training": {"global_batch": batch}} | changes
    return Experiment.model_validate(told)


def batches(folder, told, share=None):
    prepared = Prepared(folder / "data", told.data, told.model)
    return Batches(prepared.open(prepared.make()), told, share or Share())


def tokens(folder, name, ids, dtype=np.uint16):
    folder.mkdir(exist_ok=True)
    path = folder / name
    if name.endswith(".npy"):
        np.save(path, np.array(ids, dtype=dtype))
    else:
        np.array(ids, dtype=dtype).tofile(path)
    return path


# --- token files


@pytest.fixture
def shards(tmp_path):
    """0 to 99 in files of three kinds, and one that is empty."""
    folder = tmp_path / "shards"
    tokens(folder, "a.npy", range(30))
    tokens(folder, "b.bin", range(30, 61), "<u2")
    tokens(folder, "c.npy", [])
    tokens(folder, "d.npy", range(61, 100), ">u4")
    (folder / "README").write_text("not tokens")
    return folder


@given(data=st.data())
def test_a_row_of_files_reads_as_one(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("row")
    lengths = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=6))
    ends = np.cumsum(lengths)
    files = [
        tokens(folder, f"{index}.npy", range(end - length, end))
        for index, (end, length) in enumerate(zip(ends, lengths, strict=True))
    ]
    row = Row([open_shard(path, None) for path in files], VOCAB)
    start = data.draw(st.integers(0, len(row)))
    stop = data.draw(st.integers(start, len(row)))
    assert row.take(start, stop).tolist() == list(range(start, stop))


def test_token_files_are_one_chain(shards, tmp_path):
    """Of 8-, 16- and 32-bit ids of either byte order, with a window across each border."""
    told = experiment({"source": "tokens", "path": str(shards), "dtype": "uint16"}, batch=24)
    seen = batches(tmp_path, told).rows(1)
    assert sorted(seen.inputs_BL.flatten().tolist()) == list(range(96))
    assert torch.equal(seen.targets_BL, seen.inputs_BL + 1)


def test_a_thousand_shards_open_quickly_and_few_stay_open(tmp_path):
    """A process often may have no more than 1024 open files."""
    for index in range(1000):
        tokens(tmp_path / "shards", f"{index:04d}.npy", range(index, index + 10))
    told = experiment({"source": "tokens", "path": str(tmp_path / "shards")}, batch=2000)
    prepared = Prepared(tmp_path / "data", told.data, told.model)
    number = prepared.make()
    start = time.process_time()
    ours = Batches(prepared.open(number), told, Share())
    assert time.process_time() - start < 1
    before = len(list(Path("/proc/self/fd").iterdir()))
    ours.rows(1)
    assert len(list(Path("/proc/self/fd").iterdir())) - before < 100


def bad_shape(folder):
    np.save(folder / "bad.npy", np.zeros((2, 3), dtype=np.uint16))


def signed(folder):
    np.save(folder / "bad.npy", np.zeros(9, dtype=np.int64))


def cut_short(folder):
    path = tokens(folder, "bad.npy", range(100))
    path.write_bytes(path.read_bytes()[:-50])


def garbage(folder):
    (folder / "bad.npy").write_text("x" * 100)


def uneven(folder):
    (folder / "bad.bin").write_bytes(b"123")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (bad_shape, r"bad\.npy holds uint16 of shape \(2, 3\), not one row of unsigned integers"),
        (signed, r"bad\.npy holds int64 of shape \(9,\), not one row of unsigned integers"),
        (cut_short, r"bad\.npy is no readable \.npy file"),
        (garbage, r"bad\.npy is no readable \.npy file"),
        (uneven, r"bad\.bin has 3 bytes, no whole number of uint16 ids"),
    ],
)
def test_a_file_that_holds_no_tokens_is_named(shards, tmp_path, make, words):
    make(shards)
    with pytest.raises(EngineError, match=words):
        batches(tmp_path, experiment({"source": "tokens", "path": str(shards), "dtype": "uint16"}))


def test_bare_ids_need_a_width(shards, tmp_path):
    with pytest.raises(EngineError, match=r"b\.bin does not say how wide its token ids are"):
        batches(tmp_path, experiment({"source": "tokens", "path": str(shards)}))


def test_a_folder_without_token_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(EngineError, match=r"no token files \(\.npy or \.bin\) to train on"):
        batches(tmp_path, experiment({"source": "tokens", "path": str(tmp_path)}))


def test_an_id_beyond_the_vocabulary_is_named_with_file_and_place(tmp_path):
    tokens(tmp_path / "shards", "a.npy", range(20))
    path = tokens(tmp_path / "shards", "b.npy", [1, 2, 700, 3, 4] * 4)
    told = experiment({"source": "tokens", "path": str(path.parent)}, vocab=700, batch=9)
    with pytest.raises(EngineError, match=r"b\.npy has token 700 at position \d+, but model\.vocab is 700"):
        batches(tmp_path, told).rows(1)


def test_shards_that_vanish_while_training_are_named(shards, tmp_path):
    ours = batches(tmp_path, experiment({"source": "tokens", "path": str(shards / "a.npy")}))
    (shards / "a.npy").unlink()
    with pytest.raises(EngineError, match=r"cannot read .*a\.npy"):
        ours.rows(1)


# --- several sources, held-out sequences


@pytest.fixture(scope="module")
def number_row(tmp_path_factory):
    """Tokens that say their own place."""
    path = tokens(tmp_path_factory.mktemp("numbers"), "all.npy", range(60_000))
    return [open_shard(path, None)]


def numbered(shards, data, lengths, sequence=4, share=None, **changes):
    """Batches over sources that are the same row, cut to ``lengths`` sequences."""
    short = [type(shards[0])(shards[0].path, "<u2", shards[0].offset, n * sequence + 1) for n in lengths]
    told = experiment(
        data
        | {"sources": [{"source": "stdlib", "weight": w} for w in data.pop("weights", [1] * len(lengths))]},
        sequence,
        **changes,
    )
    return Batches([Chain(Row([each], VOCAB), sequence) for each in short], told, share or Share())


@settings(max_examples=25)
@given(sequences=st.integers(2, 40), share=st.floats(0, 0.5), batch=st.integers(1, 9), seed=st.integers(0, 3))
def test_no_held_out_sequence_is_trained_on_and_all_others_are(number_row, sequences, share, batch, seed):
    ours = numbered(
        number_row, {"validation": share}, [sequences], training={"global_batch": batch, "seed": seed}
    )
    steps = range(1, 2 + sequences // batch)
    trained = {int(row[0]) // 4 for step in steps for row in ours.rows(step).inputs_BL}
    held = list(range(sequences))[sequences - math.ceil(sequences * share) :]
    assert trained == set(range(sequences)) - set(held)
    if held:
        assert [int(row[0]) // 4 for piece in ours.held_out() for row in piece.inputs_BL] == held


def test_sources_are_mixed_by_weight_each_with_its_own_epochs(number_row):
    ours = numbered(number_row, {"weights": [3, 1]}, [6, 5], training={"global_batch": 8})
    sources, _ = ours._mixture.at(np.arange(40))
    assert np.bincount(sources).tolist() == [30, 10]
    rows = torch.cat([ours.rows(step).inputs_BL for step in range(1, 6)])[:, 0].numpy() // 4
    assert np.bincount(rows[sources == 0]).tolist() == [5] * 6
    assert np.bincount(rows[sources == 1]).tolist() == [2] * 5


def test_a_split_that_leaves_nothing_is_refused(number_row):
    with pytest.raises(EngineError, match=r"makes 1 sequences of 4, and data\.validation 0\.5 holds all"):
        numbered(number_row, {"validation": 0.5}, [9, 1])


@settings(max_examples=25)
@given(sequences=st.integers(1, 40), shards=st.integers(1, 12), share=st.integers(1, 3))
def test_any_number_of_shards_evaluates_on_the_same_sequences(number_row, sequences, shards, share):
    """Rounded down to whole shards, a run that went on with others had another validation loss, or died."""
    told = {"training": {"global_batch": shards * share}, "evaluation": {"every": 1, "sequences": sequences}}
    shared = [
        numbered(number_row, {"validation": 0.5}, [50], share=Share(shard, shards), **told).held_out()
        for shard in range(shards)
    ]
    rows = [
        row for pieces in zip(*shared, strict=True) for piece in pieces for row in piece.targets_BL.tolist()
    ]
    held = min(sequences, 25)
    counted = [row for row in rows if max(row) >= 0]
    assert [row[0] // 4 for row in counted] == list(range(25, 25 + held))
    assert len(rows) - held == -held % shards
    assert {sum(piece.counted for piece in pieces) for pieces in shared} == {4 * held}
    for pieces in zip(*shared, strict=True):
        assert len({len(piece.inputs_BL) for piece in pieces}) == 1
        assert len(pieces[0].inputs_BL) <= share


def test_a_validation_loss_does_not_depend_on_how_many_shards_there_are(tmp_path):
    """Two sequences on three shards: the third has a row that has no targets."""
    tokens(tmp_path / "shards", "a.npy", np.arange(100) % 7)
    data = {"source": "tokens", "path": str(tmp_path / "shards"), "validation": 0.05}
    told = experiment(data, vocab=8, evaluation={"every": 1})
    told = told.model_copy(update={"training": told.training.model_copy(update={"precision": "fp32"})})

    def evaluated(decomposition):
        def work(transport):
            learner = Learner(told, decomposition, transport, torch.device("cpu"))
            share = Share(learner.topology.batch_shard, decomposition.batch_shards)
            return mean_loss(learner, batches(tmp_path / str(transport.rank), told, share).held_out())

        return in_threads(decomposition.ranks, work)

    (alone,) = evaluated(Decomposition(microbatch=2))
    assert evaluated(Decomposition(data=3)) == pytest.approx([alone] * 3, rel=1e-6)


def test_evaluation_is_the_mean_over_counted_targets_of_all_pieces(tmp_path):
    """In pieces no larger than a training batch; a row without targets makes the last one even."""
    tokens(tmp_path / "shards", "a.npy", [*range(1, 8), 0] * 60)
    data = {
        "source": "tokens", "path": str(tmp_path / "shards"), "document_end": 0, "packing": "fit", "validation": 0.5,
    }  # fmt: skip
    told = experiment(data, 10, batch=4, evaluation={"every": 1, "sequences": 11})
    pieces = [batches(tmp_path, told, Share(shard, 2)).held_out() for shard in range(2)]
    assert [len(piece.inputs_BL) for piece in pieces[0]] == [2, 2, 2]

    class Known:
        """Its loss is the target: the mean over a batch of which both shards are at hand."""

        def evaluate(self, _, targets, size):
            (place,) = [i for i, piece in enumerate(pieces[0]) if piece.targets_BL is targets]
            both = torch.cat([shard[place].targets_BL for shard in pieces])
            return float(both.clamp(min=0).sum()) / size

    targets = torch.cat([piece.targets_BL.flatten() for shard in pieces for piece in shard])
    assert mean_loss(Known(), pieces[0]) == pytest.approx(float(targets[targets >= 0].double().mean()))


def test_a_stage_in_the_middle_reads_no_tokens(tmp_path):
    path = tokens(tmp_path / "shards", "a.npy", range(100))
    told = experiment({"source": "tokens", "path": str(path)})
    ours = batches(tmp_path, told, Share(1, 2, reads=False))
    path.unlink()
    rows = ours.rows(1)
    assert rows.inputs_BL.shape == rows.targets_BL.shape == (3, 4)
    assert rows.counted == 24


# --- packing


def test_packed_documents_stand_whole_with_padding_that_is_not_counted(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in (("a", "abcd"), ("b", "xy"), ("c", "0123456789")):
        (folder / name).write_text(text)
    told = experiment({"path": str(folder), "packing": "fit"}, 8, 256, batch=3)
    rows = batches(tmp_path, told).rows(1)
    assert sorted(bytes(row.tolist()) for row in rows.inputs_BL) == [
        b"01234567",
        b"89\0\0\0\0\0\0",
        b"abcd\0xy\0",
    ]
    assert rows.counted == int((rows.targets_BL >= 0).sum())


@pytest.mark.parametrize("document_end", [None, 0])
def test_packed_token_files_end_documents_at_files_and_ends(tmp_path, document_end):
    tokens(tmp_path / "shards", "a.npy", [1, 2, 0, 3, 4, 5, 0])
    tokens(tmp_path / "shards", "b.npy", [6, 7])
    data = {"source": "tokens", "path": str(tmp_path / "shards"), "packing": "fit"}
    told = experiment(data | {"document_end": document_end}, 7, batch=2)
    targets = [[t for t in row if t >= 0] for row in batches(tmp_path, told).rows(1).targets_BL.tolist()]
    expected = [[2, 0, 3, 4, 5, 0], [7]] if document_end is None else [[7], [2, 0, 4, 5, 0]]
    assert sorted(map(sorted, targets)) == sorted(map(sorted, expected))


def test_nothing_to_pack_is_refused(tmp_path):
    tokens(tmp_path / "shards", "a.npy", [0, 0, 0])
    data = {"source": "tokens", "path": str(tmp_path / "shards"), "packing": "fit", "document_end": 0}
    with pytest.raises(EngineError, match="has 3 tokens, no document of two"):
        batches(tmp_path, experiment(data))


# --- tokenizers


@pytest.fixture
def tokenizer(tmp_path):
    words = {"[UNK]": 0, "the": 1, "quick": 2, "fox": 3, "<end>": 4}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


def test_text_goes_through_a_tokenizer_file(tmp_path, tokenizer):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a").write_text("the quick fox")
    (folder / "b").write_text("quick \N{SNOWMAN}")
    data = {"path": str(folder), "tokenizer": tokenizer, "document_end": 4}
    rows = batches(tmp_path, experiment(data, 5, 5, batch=1)).rows(1)
    assert rows.inputs_BL.tolist() == [[1, 2, 3, 4, 2]]
    assert rows.targets_BL.tolist() == [[2, 3, 4, 2, 0]]


def test_a_long_text_goes_through_a_tokenizer_piece_by_piece(tmp_path, tokenizer):
    """As one it took a hundred times its size in memory, and no other thread of the rank ran meanwhile.

    Ten megabytes were a silence of 18 s, for which its peers could end a rank in good health.
    """
    text = b"the quick fox\n" * 200_000
    encode = HuggingFace(Path(tokenizer), 5)
    pieces = list(encode.encode(text))
    assert len(pieces) == 3
    assert all(len(piece) % 3 == 0 for piece in pieces), "a line was cut"
    assert np.concatenate(pieces).tolist() == [1, 2, 3] * 200_000


def test_truncation_and_padding_of_a_tokenizer_file_are_for_single_texts(tmp_path, tokenizer):
    """Files that were saved after fine-tuning have both; of a corpus the first 512 tokens were left, unsaid."""
    made = Tokenizer.from_file(tokenizer)
    made.enable_truncation(2)
    made.enable_padding(length=20)
    made.save(tokenizer)
    (tokens,) = HuggingFace(Path(tokenizer), 5).encode(b"the quick fox\n")
    assert tokens.tolist() == [1, 2, 3]


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path, tokenizer):
    data = {"path": tokenizer, "tokenizer": tokenizer}
    with pytest.raises(EngineError, match=r"has token ids up to 4, but model\.vocab is 4"):
        batches(tmp_path, experiment(data, vocab=4))


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"a": 1}))
    with pytest.raises(EngineError, match=r"tokenizer\.json cannot be used"):
        batches(tmp_path, experiment({"path": str(path), "tokenizer": str(path)}))


def test_a_missing_tokenizers_library_is_named(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(EngineError, match="needs the tokenizers library") as refused:
        batches(tmp_path, experiment({"path": tokenizer, "tokenizer": tokenizer}))
    assert "hpcdl[tokenizers]" in refused.value.hint


# --- prepared once


def test_text_is_tokenised_once_for_a_state_of_its_files(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("abcdefghij")
    told = experiment({"path": str(path)})
    prepared = Prepared(tmp_path / "data", told.data, told.model)
    first = prepared.make()
    written = (tmp_path / "data" / f"{first:07x}" / "0.tokens").stat().st_mtime_ns
    assert prepared.make() == first
    assert (tmp_path / "data" / f"{first:07x}" / "0.tokens").stat().st_mtime_ns == written
    path.write_text("ABCDEFGHIJK")
    assert prepared.make() != first
    assert len(list((tmp_path / "data").iterdir())) == 2


def test_what_a_killed_attempt_left_is_no_prepared_data(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("abcdefghij")
    unfinished = tmp_path / "data" / "unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "0.tokens").write_text("half")
    assert batches(tmp_path, experiment({"path": str(path)})).rows(1).counted
    assert not unfinished.exists()


def test_prepared_data_that_a_rank_cannot_see_are_named(tmp_path):
    told = experiment({"source": "stdlib"})
    with pytest.raises(EngineError, match=r"cannot read .*0000007/sources\.json"):
        Prepared(tmp_path, told.data, told.model).open(7)


def test_ranks_wait_for_rank_0_however_long_it_takes():
    """Each question is answered soon, so no single operation runs into the time limit of a transport."""
    asked, long_enough = [], threading.Event()

    def work(transport):
        groups = make_groups(transport, Topology(Decomposition(data=2), transport.rank), tied=False)

        def of_rank_0(number):
            asked.append(number)
            if asked.count(-1) > 3:
                long_enough.set()
            return groups.world.agree(number, torch.device("cpu"))

        with ThreadPoolExecutor(1) as worker:
            slow = worker.submit(lambda: long_enough.wait(60) and 42)
            return agreed(slow if transport.rank == 0 else worker.submit(int), of_rank_0, 0.05)

    assert in_threads(2, work) == [42, 42]


def test_what_rank_0_cannot_prepare_is_raised_on_rank_0():
    def work(transport):
        return agreed(failed, lambda number: number)

    failed = Future()
    failed.set_exception(EngineError("no such data"))
    with pytest.raises(EngineError, match="no such data"):
        in_threads(1, work)


# --- in advance


def test_steps_come_in_order_and_no_more_than_asked_are_made_ahead():
    made = []

    def make(step):
        made.append(step)
        return step

    with prefetched(make, range(5, 25), 2) as answers:
        assert next(answers) == 5
        wait_until(lambda: len(made) == 3)
        time.sleep(0.05)  # it would make more by now
        assert made == [5, 6, 7]
        assert list(answers) == list(range(6, 25))


def test_a_failure_comes_with_its_cause_at_its_step_and_leaves_no_thread():
    def make(step):
        if step == 3:
            raise EngineError("bad") from OSError("why")
        return step

    with prefetched(make, range(1, 9), 4) as answers:
        assert [next(answers), next(answers)] == [1, 2]
        with pytest.raises(EngineError, match="bad") as failed:
            next(answers)
    assert str(failed.value.__cause__) == "why"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_an_early_end_leaves_no_thread():
    with pytest.raises(KeyError), prefetched(lambda step: step, range(1, 10**9), 2) as answers:
        raise KeyError(next(answers))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
