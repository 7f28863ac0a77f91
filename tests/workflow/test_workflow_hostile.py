"""Every key of an experiment file with every kind of wrong value: planned or refused in words, and nothing else."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hpcdl.errors import HpcdlError
from hpcdl.spec.experiment import Experiment
from hpcdl.workflow.studies import preparing, studying

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
SCHEMA = Experiment.model_json_schema()
VALUES = (
    "0", "-1", "7", ".nan", "1e400", "1e-320", f"{10**21}", "null", "true", "''", f"'{'x' * 5000}'", "[1, 2]",
    "{a: 1}", '"a\\0b"', '"a\\nb"', "'$(touch pwned)'", "99999999999:00:00",
)  # fmt: skip


def keys(schema, above=()) -> Iterator[tuple[str, ...]]:
    """All keys of a schema and of what it refers to."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    for branch in schema.get("anyOf", []):
        yield from keys(branch, above)
    for name, inner in schema.get("properties", {}).items():
        yield (*above, name)
        yield from keys(inner, (*above, name))


KEYS = sorted(set(keys(SCHEMA)))


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_any_value_is_planned_or_refused_in_words(key, tmp_path):
    """Numbers that no array holds, paths that are too long and an empty path ended as crashes to report."""
    (tmp_path / "q.yaml").write_text(QUICKSTART.read_text())
    for value in VALUES:
        settings = ("resources.account=abc", f"{'.'.join(key)}={value}")
        with suppress(HpcdlError):
            study = studying.study(studying.Request(tmp_path / "q.yaml", "perlmutter", settings))
            preparing.prepare(study, tmp_path / "runs")


def test_there_are_keys_to_try():
    assert len(KEYS) > 100
