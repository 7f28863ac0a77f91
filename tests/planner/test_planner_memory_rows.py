"""Memory of published runs, and whether they fit. What was fitted where: docs/planner/memory.md."""

from collections import Counter
from contextlib import suppress

import numpy as np
import pytest
from answers import FITTED
from predict import predict
from rows import MEASURED, NotScoredError, read_rows
from scoring import ask

from hpcdl.planner import memory
from hpcdl.planner.case import Case
from hpcdl.planner.engines import find_engine
from hpcdl.sites.profile import default_profile

# The published 206B of 28 February does not run, by its authors' table, where a 203B of the same day takes 67 GiB of
# 80; nothing says why.
UNEXPLAINED = {"bloom_tuning_a100-142"}


@pytest.fixture(scope="module")
def questions():
    """Rows that can be asked, each with its place in its file, by file."""
    found, places = {}, Counter()
    for row in read_rows(MEASURED)[0]:
        with suppress(NotScoredError):
            found.setdefault(row.file, []).append((places[row.file], ask(row)))
        places[row.file] += 1
    return found


def errors(questions, file, kind):
    """Relative errors of the rows of ``file`` that nothing is fitted to."""
    measured = [
        (place, predict(question).gib[kind] / question.row.memory - 1)
        for place, question in questions[file]
        if question.row.memory_kind == kind and question.row.fits is not False
    ]
    return np.array([error for place, error in measured if file not in FITTED or place % FITTED[file]])


def needs(question):
    """Share of the device that each choice of a row would take."""
    device = question.machine.node.device
    case = Case(
        question.model, question.training, question.machine.node, question.machine.network, question.layout,
        default_profile(device), find_engine(question.engine),
    )  # fmt: skip
    return memory.device_bytes(case, question.choices) / case.memory_bytes


@pytest.mark.parametrize(
    ("file", "kind", "count", "mean", "worst"),
    [
        ("zero_bubble_a100", "allocated", 24, 0.035, 0.09),  # seen: 2.9 % and 8.1 %
        ("bloom_tuning_a100", "device", 20, 0.045, 0.10),  # 3.8 % and 9.5 %, third of the rows left out
        ("torchtitan", "reserved", 10, 0.06, 0.14),  # 5.2 % and 12.6 %
    ],
)
def test_memory_of_published_runs_is_met(questions, file, kind, count, mean, worst):
    held_out = errors(questions, file, kind)
    assert len(held_out) == count
    assert abs(held_out).mean() < mean
    assert abs(held_out).max() < worst


def test_no_run_is_refused_and_what_ran_out_of_memory_is(questions):
    accepted, refused = set(), set()
    for _, question in (one for some in questions.values() for one in some):
        least = needs(question).min()
        if question.row.fits is False and least <= 1 - memory.MARGIN:
            accepted.add(question.row.id)
        if question.row.fits is not False and least > 1:
            refused.add(question.row.id)
    assert refused == set()
    assert accepted == UNEXPLAINED
