"""How close the planner comes to published runs: step time, memory, ranking, and whether they fit.

usage: python benchmarks/planner/accuracy.py [--rows DIR] [--file NAME] [--part PART] [--worst N] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from answers import KINDS, Answer, Kind, answer, score_of, with_site_scalar
from bars import BARS, Bar
from measures import Score
from rows import MEASURED, Row, read_rows

from hpcdl.errors import UsageError
from hpcdl.planner.estimate import Term
from hpcdl.units import GIB

Silent = list[tuple[Row, str]]


def main() -> None:
    """Read, ask, score and print."""
    options = _arguments()
    try:
        rows, others = read_rows(options.rows, options.file)
    except UsageError as error:
        raise SystemExit(f"accuracy.py: {error.message}") from None
    answers, silent = answer(rows)
    parts = {"all": (False, True), "fitted": (False,), "held-out": (True,)}
    chosen = [one for one in answers if one.held_out in parts[options.part]]
    if options.json:
        print(json.dumps(document(chosen, silent), indent=1))
        return
    print_files(chosen)
    print_bars(answers)
    print_verdicts(chosen)
    print_silent(silent)
    if others:
        print(f"\nno runs in {', '.join(others)}")
    for kind in KINDS:
        print_worst(chosen, kind, options.worst)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How close the planner comes to published runs.")
    parser.add_argument(
        "--rows", type=Path, default=MEASURED, help="folder of CSV files with the same columns"
    )
    parser.add_argument("--file", default="*", help="one file of it, without .csv")
    parser.add_argument(
        "--part", choices=("all", "fitted", "held-out"), default="all", help="rows that are scored"
    )
    parser.add_argument("--worst", type=int, default=0, help="print so many rows with the largest errors")
    parser.add_argument("--json", action="store_true", help="print one object instead")
    return parser.parse_args()


def print_files(answers: Sequence[Answer]) -> None:
    """One line a file and measured quantity."""
    print(f"{'file':<26}{'what':<10}{'rows':>5}{'mean %':>8}{'median':>8}{'bias':>8}{'worst':>8}", end="")
    print(f"{'rank':>7}{'in sweeps':>14}{'regret %':>10}{'worst':>7}")
    for file, kind, found in _by_file(answers):
        print(f"{file:<26}{kind:<10}{found.count:>5}{found.mean:>8.1f}{found.median:>8.1f}", end="")
        print(f"{found.bias:>8.1f}{found.worst:>8.1f}{_figure(found.rank, 3):>7}", end="")
        print(f"{_figure(found.sweep_rank, 3):>9} of {found.sweeps:<2}", end="")
        print(f"{_figure(found.regret, 1):>9}{_figure(found.worst_regret, 1):>7}")


def _by_file(answers: Sequence[Answer]) -> list[tuple[str, Kind, Score]]:
    files = dict.fromkeys(one.row.file for one in answers)
    return [
        (file, kind, found)
        for file in files
        for kind in KINDS
        if (found := score_of([one for one in answers if one.row.file == file], kind))
    ]


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def print_bars(answers: Sequence[Answer]) -> None:
    """What must be reached, and whether it is."""
    print(f"\n{'bar':<28}{'best of others':<28}{'rows':>5}{'ours':>8}{'bar':>7}{'aim':>7}")
    for bar in BARS:
        found, remark = judged(bar, answers)
        if found is None or getattr(found, bar.measure) is None:
            continue
        value = _figure(getattr(found, bar.measure), 3 if bar.is_rank else 1)
        verdict = "met" if bar.met(found) else "not met"
        print(f"{bar.name:<28}{bar.best:<28}{found.count:>5}{value:>8}{bar.bar:>7g}{bar.aim:>7g}", end="")
        print(f"  {verdict}{remark}")


def judged(bar: Bar, answers: Sequence[Answer]) -> tuple[Score | None, str]:
    """The score that a bar asks for, and what has to be known about it."""
    counted = [one for one in answers if bar.rows(one.row)]
    if bar.part == "site":
        scalar, counted = with_site_scalar(counted)
        return score_of(counted, bar.what), f" (GEMM × {scalar:.2f}, held-out rows)"
    if bar.part == "held out":
        return score_of([one for one in counted if one.held_out], bar.what), " (held-out rows)"
    return score_of(counted, bar.what), ""


def print_verdicts(answers: Sequence[Answer]) -> None:
    """Rows that ran and are refused, rows that did not fit and are accepted."""
    ran = [one for one in answers if one.row.fits is not False]
    failed = [one for one in answers if one.row.fits is False]
    refused = [one for one in ran if one.refused]
    accepted = [one for one in failed if one.accepted]
    print(f"\n{len(refused)} of {len(ran)} rows that ran are refused", end="")
    print(f"; {len(accepted)} of {len(failed)} rows that ran out of memory are accepted")
    for one in (*refused, *accepted):
        need = one.prediction.gib["device"]
        print(f"  {one.row.id:<30} needs {need:6.1f} GiB, {one.prediction.use:.0%} of the device", end="")
        print(f"  {one.prediction.decomposition}, {one.prediction.decomposition.recompute}")


def print_silent(silent: Silent) -> None:
    """Rows that are not scored, counted by reason."""
    counts = Counter((row.file, reason) for row, reason in silent)
    if counts:
        print(f"\nrows that are not scored: {len(silent)}")
    for (file, reason), count in counts.items():
        print(f"  {count:>4} of {file}: {reason}")


def print_worst(answers: Sequence[Answer], kind: Kind, count: int) -> None:
    """The rows with the largest errors, each with its breakdown."""
    pairs = [(one, pair) for one in answers if (pair := one.pair(kind))]
    pairs.sort(key=lambda item: -abs(item[1].predicted / item[1].measured - 1))
    for one, pair in pairs[:count]:
        d, question = one.prediction.decomposition, one.prediction.question
        unit = "s" if kind == "time" else "GiB"
        error = 100 * (pair.predicted / pair.measured - 1)
        print(f"\n{one.row.id}: {kind} {pair.predicted:.4g} {unit}, ", end="")
        print(f"measured {pair.measured:.4g} ({error:+.1f} %)")
        print(f"  {one.row.model}, {one.row.gpus} × {one.row.gpu_type}, {question.engine}: {d}, ", end="")
        print(f"microbatch {d.microbatch}, recompute {d.recompute}, batch {one.row.batch}")
        for note in question.notes:
            print(f"  {note}")
        if kind == "time" and one.row.compute_seconds:
            print(f"  measured: compute {one.row.compute_seconds} s", end="")
            print(f", exposed communication {one.row.communication_seconds} s")
        tree, scale = (one.prediction.step, 1.0) if kind == "time" else (one.prediction.memory, GIB)
        print("  " + ", ".join(_leaves(tree, scale)))


def _leaves(tree: Term, scale: float) -> list[str]:
    values = {term.name: float(term.value[0]) / scale for term in tree.leaves()}
    return [f"{name} {value:.3g}" for name, value in values.items() if value]


def document(answers: Sequence[Answer], silent: Silent) -> dict[str, Any]:
    """All of it as one object."""
    bars = [(bar, *judged(bar, answers)) for bar in BARS]
    return {
        "files": [dict(file=file, what=kind, **found.to_json()) for file, kind, found in _by_file(answers)],
        "bars": [
            dict(
                name=bar.name,
                best=bar.best,
                bar=bar.bar,
                aim=bar.aim,
                remark=remark.strip(),
                met=bar.met(found),
            )
            | dict(value=getattr(found, bar.measure), rows=found.count)
            for bar, found, remark in bars
            if found and getattr(found, bar.measure) is not None
        ],
        "rows": [_row(one) for one in answers],
        "not_scored": [dict(id=row.id, reason=reason) for row, reason in silent],
    }


def _row(one: Answer) -> dict[str, Any]:
    prediction = one.prediction
    errors = {kind: error for kind in KINDS if (error := one.error(kind)) is not None}
    return dict(
        id=one.row.id,
        engine=prediction.question.engine,
        decomposition=str(prediction.decomposition),
        held_out=one.held_out,
        seconds=prediction.seconds,
        measured_seconds=prediction.question.measured_seconds,
        gib=prediction.gib,
        measured_gib=one.row.memory,
        errors=errors,
        use=prediction.use,
        fits=one.row.fits,
        notes=prediction.question.notes,
    )


if __name__ == "__main__":
    main()
