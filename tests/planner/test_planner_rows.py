"""Published rows: what is read of them, and what they ask of the planner."""

import csv

import pytest
from accuracy import judged, print_bars
from answers import answer, rescaled, score_of, with_site_scalar
from bars import BARS
from measures import Pair, score
from predict import predict
from rows import MEASURED, NotScoredError, parse_row, read_rows
from scoring import ask

from hpcdl.errors import UsageError
from hpcdl.planner.engines import ENGINES
from hpcdl.planner.memory import MARGIN
from hpcdl.units import GIB


@pytest.fixture(scope="module")
def rows():
    return {row.id: row for row in read_rows(MEASURED)[0]}


def changed(identity, **cells):
    """A shipped line with other cells."""
    name = identity.rsplit("-", 1)[0]
    with (MEASURED / f"{name}.csv").open(newline="") as file:
        line = next(line for line in csv.DictReader(file) if line["id"] == identity)
    return parse_row(name, {**line, **cells})


def only(row):
    """The one decomposition that a row leaves."""
    choices = ask(row).choices
    assert len(choices) == 1
    return choices.decomposition(0)


def test_every_row_is_asked_or_says_why_not(rows):
    silent = {}
    for row in rows.values():
        try:
            question = ask(row)
        except NotScoredError as reason:
            silent.setdefault(row.file, set()).add(str(reason))
            continue
        assert question.engine in ENGINES
        choices = question.choices
        ranks = choices.tensor * choices.context * choices.data * choices.pipeline
        assert (ranks == row.gpus).all(), row.id
        assert question.layout.ranks == row.gpus
    assert not set(silent) & {"vtrain_single_node_a100", "megatron2021_table1", "zero_bubble_a100"}
    assert silent["bloom_tuning_a100"] == {"degrees make 640 ranks, but the row has 320 GPUs"}


def test_megatrons_row(rows):
    question = ask(rows["megatron2021_table1-010"])
    d = only(question.row)
    assert (d.x, d.pipeline, d.data, d.microbatch, d.interleave) == (8, 64, 6, 1, 1)
    assert (d.recompute, d.zero, question.engine) == ("full", 0, "megatron")
    assert question.model.parameters == pytest.approx(1008e9, rel=1e-3)  # printed: 1008.0 billion
    assert question.machine.node.links.inter_node == 200


def test_a_rate_is_turned_into_the_step_that_it_was_derived_from(rows):
    row = rows["megatron2021_table1-001"]  # 137 TFLOP/s, recomputation counted
    without = changed(row.id, step_time_s="")
    assert ask(without).measured_seconds == pytest.approx(row.seconds, rel=1e-3)
    model = changed("megatron_core_h100-002", step_time_s="")  # 465.9 TFLOP/s, not counted
    assert ask(model).measured_seconds == pytest.approx(0.800031, rel=1e-3)
    tokens = changed("torchtitan-001", step_time_s="")
    assert ask(tokens).measured_seconds == pytest.approx(2.84346, rel=1e-4)


def test_memory_says_what_was_measured(rows):
    assert rows["bloom_tuning_a100-001"].memory_kind == "device"
    assert rows["torchtitan-001"].memory_kind == "reserved"
    assert rows["zero_bubble_a100-001"].memory_kind == "allocated"
    assert rows["vtrain_single_node_a100-001"].memory_kind is None
    assert changed("zero_bubble_a100-001", memory_gib="59 (rounded)").memory == 59


def test_sharded_rows(rows):
    fsdp = only(rows["llm_foundry_mpt-001"])
    assert (fsdp.data, fsdp.z, fsdp.zero) == (512, 1, 3)
    d = only(changed("torchtitan-005", dp="8"))  # eight shard, sixteen groups of them
    assert (d.data, d.z, d.zero) == (16, 8, 0)
    d = only(rows["torchtitan-019"])
    assert (d.x, d.sequence_parallel, d.zero) == (8, True, 3)
    assert ask(rows["torchtitan-019"]).engine == "torchtitan-2025"  # its page is of that year
    assert ask(rows["torchtitan-001"]).engine == "torchtitan"
    d = only(rows["torchtitan-009"])
    assert (d.data, d.context, d.ranks) == (2, 4, 8)


def test_schedules(rows):
    twice = only(rows["zero_bubble_a100-001"])
    assert (twice.defer_weights, twice.in_flight) == (True, 16)
    assert only(changed("zero_bubble_a100-001", schedule="ZB-1p")).in_flight == 8
    plain = only(rows["zero_bubble_a100-027"])
    assert (plain.defer_weights, plain.in_flight, plain.interleave) == (False, 8, 1)
    chunks = only(rows["zero_bubble_a100-037"])  # 22 layers, embedding and head are three a stage
    assert (chunks.interleave, chunks.in_flight) == (3, 11)


def test_what_is_left_open_is_asked_in_every_form(rows):
    question = ask(rows["megatron_core_h100-003"])  # 192 sequences over 48: one, two or four at a time
    assert set(question.choices.microbatch) == {1, 2, 4}
    assert set(question.choices.recompute) == {"none", "selective", "full"}
    assert "microbatch not stated: the best of 1, 2, 4" in question.notes
    found = predict(question)
    assert found.use <= 1 - MARGIN
    assert found.memory.value[0] / GIB == pytest.approx(found.gib["device"])


@pytest.mark.parametrize(
    ("identity", "cells", "reason"),
    [
        ("axonn_summit_v100-001", {"precision": "bf16"}, "V100-16GB-SXM2 does not compute in bf16"),
        ("torchtitan-033", {}, r"recompute selective \(every other layer\) is not one"),
        ("axonn_sc24_scaling-015", {}, "both printed, are 16 % apart"),
        ("megatron_core_h100-010", {}, "degrees not stated"),
        ("megatron2021_table1-001", {"global_batch": "500"}, "batch 500 is not divisible by data 32"),
        ("megatron2021_table1-001", {"dp": "16"}, "degrees make 16 ranks, but the row has 32 GPUs"),
        ("megatron2021_table1-001", {"schedule": "DualPipeV", "pp": "2", "dp": "16"}, "schedule DualPipeV"),
        ("megatron2021_table1-001", {"gpu_type": "TPU", "machine": "pod"}, "no machine with TPU"),
        ("megatron2021_table1-001", {"heads": "7"}, "hidden 2304 is not divisible by heads 7"),
        ("megatron2021_table1-001", {"offload": "half of it"}, "offload half of it is not one"),
        ("torchtitan-001", {"ep": "8"}, "expert parallelism 8"),
        ("llm_foundry_mpt-001", {"layers": "", "params_b": ""}, "layers not stated"),
    ],
)
def test_why_a_row_is_not_scored(identity, cells, reason):
    with pytest.raises(NotScoredError, match=reason):
        ask(changed(identity, **cells))


def test_what_is_missing_is_filled_in_and_said(rows):
    bubble = ask(rows["zero_bubble_a100-035"])  # 28.3 billion; with GPT-2's vocabulary it would be 28.4
    assert "vocabulary not stated: 32000" in bubble.notes
    assert bubble.model.parameters == pytest.approx(28.3e9, rel=1e-3)
    assert ask(changed("megatron2021_table1-010", vocab="")).model.vocab == 51200
    inferred = ask(rows["bloom_tuning_a100-010"])  # 191 billion at 14,400
    assert inferred.model.layers == 75
    assert "layers not stated: 75 by the number of parameters" in inferred.notes
    assert "heads not stated: 120" in inferred.notes
    assert ask(rows["ultrascale_playbook_h100-001"]).model.tied  # 1.34 billion only with a tied head
    assert not ask(rows["torchtitan-001"]).model.tied


def test_fp8_is_compared_in_memory_alone(rows):
    question = ask(rows["torchtitan-003"])
    assert (question.training.precision, question.measured_seconds) == ("bf16", None)
    assert "fp8: the planner has none, so memory alone is compared, as of bf16" in question.notes


def test_axonns_grid_is_searched_and_its_overlap_read(rows):
    question = ask(rows["axonn_sc24_breakdown-002"])
    assert len(question.choices) > 100
    assert set(question.choices.pipeline) == {1}
    assert set(question.choices.recompute) == {"full"}
    assert not question.overlap.weight_gather
    assert ask(rows["axonn_sc24_breakdown-004"]).overlap.weight_gather
    baseline = only(changed("axonn_sc24_breakdown-001", microbatch="1"))
    assert (baseline.x, baseline.z, baseline.data) == (8, 64, 1)


def test_a_file_that_is_not_rows(tmp_path):
    with pytest.raises(UsageError, match=r"there is no file nothing\.csv in .*; files there: none"):
        read_rows(tmp_path, "nothing")
    (tmp_path / "other.csv").write_text("id,layers\n1,2\n")
    with pytest.raises(UsageError, match="lacks the columns hidden, gpus, global_batch"):
        read_rows(tmp_path)
    (tmp_path / "runs.csv").write_text("id,layers,hidden,gpus,global_batch\n1,2,3,4,5\n")
    found, others = read_rows(tmp_path)
    assert ([row.hidden for row in found], others) == ([3], ["other"])
    (tmp_path / "other.csv").write_text("id,layers,hidden,gpus,global_batch\n1,2,3.5,4,5\n")
    with pytest.raises(UsageError, match=r"other\.csv, line 2: hidden '3\.5' is not a positive whole number"):
        read_rows(tmp_path)


def test_scores_by_hand():
    pairs = [Pair(1.1, 1.0, "a"), Pair(1.0, 2.0, "a"), Pair(3.0, 3.0, "a"), Pair(9.0, 10.0, "b")]
    found = score(pairs)
    assert (found.count, found.mean, found.worst) == (4, pytest.approx(17.5), pytest.approx(-50))
    assert found.bias == pytest.approx((10 - 50 + 0 - 10) / 4)
    assert (found.sweeps, found.sweep_rank) == (1, pytest.approx(0.5))  # two of three pairs change places
    assert (found.choices, found.regret) == (1, pytest.approx(100))  # 2 s chosen where 1 s was there
    assert score([]) is None


def test_the_table_of_bars_says_what_is_met(rows, capsys):
    answers, silent = answer(
        [rows["megatron2021_table1-001"], rows["torchtitan-041"], rows["torchtitan-033"]]
    )
    assert [row.id for row, _ in silent] == ["torchtitan-033"]
    ran, failed = answers
    assert failed.pair("time") is None  # it did not run
    assert not failed.accepted
    bar = next(bar for bar in BARS if bar.name == "Megatron 2021 table 1")
    found, _ = judged(bar, answers)
    assert found.mean == pytest.approx(abs(ran.error("time")))
    assert bar.met(found) == (found.mean <= 8)
    print_bars(answers)
    assert f"{found.mean:8.1f}" in capsys.readouterr().out


def test_a_sites_scalar_is_fitted_to_other_rows_than_it_is_scored_on(rows):
    some = [row for row in rows.values() if row.file == "bloom_tuning_a100" and row.pipeline == 1]
    answers, _ = answer(some)
    assert [one.held_out for one in answers] == [place % 3 > 0 for place in range(len(some))]
    scalar, scaled = with_site_scalar(answers)
    assert {one.row.id for one in scaled} == {one.row.id for one in answers if one.held_out}
    fitted = [one for one in answers if not one.held_out]
    assert 0.4 < scalar < 1.2
    assert score_of([rescaled(one, scalar) for one in fitted], "time").mean <= score_of(fitted, "time").mean
