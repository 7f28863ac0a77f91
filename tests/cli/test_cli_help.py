"""The command line explains itself, and quickly."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from hpcdl.cli.boundary import guarded
from hpcdl.spec import load

ROOT = Path(__file__).parents[2]

VERBS = (
    "plan",
    "submit",
    "list",
    "status",
    "logs",
    "cancel",
    "resume",
    "collect",
    "watch",
    "report",
    "compare",
    "export",
    "schema",
    "site",
)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_loads_nothing_heavy():
    """A login node may forbid MPI, and torch takes seconds to import."""
    heavy = {"torch", "numpy", "mpi4py", "rich", "pydantic", "yaml", "jinja2"}
    code = "import sys, hpcdl.cli.app; print(*sys.modules)"
    assert not heavy & set(python(code).split())


def test_the_whole_launcher_loads_neither_torch_nor_mpi():
    code = "import sys, hpcdl.workflow.jobs.submitting, hpcdl.cli.render; print(*sys.modules)"
    assert not {"torch", "mpi4py"} & set(python(code).split())


def test_help_lists_every_verb(hpcdl):
    result = hpcdl("--help")
    assert result.code == 0
    assert all(f"\n  {verb} " in result.out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(hpcdl, verb):
    result = hpcdl(verb, "--help")
    assert result.code == 0
    assert "Usage" in result.out


@pytest.mark.parametrize("group", [(), ("site",)])
def test_summaries_of_verbs_are_whole_on_80_columns(hpcdl, group):
    listed = hpcdl(*group, "--help").out.partition("Commands:\n")[2]
    assert "list" in listed
    assert "..." not in listed


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "site"])
def test_every_verb_shows_an_example(hpcdl, verb):
    assert f"hpcdl {verb} " in hpcdl(verb, "--help").out.partition("Example")[2]


def test_no_command_shows_help_and_is_a_usage_error(hpcdl):
    assert hpcdl().code == 2


def test_unknown_command_is_a_usage_error(hpcdl):
    assert hpcdl("plann").code == 2


def test_version_is_printed(hpcdl):
    assert hpcdl("--version").out.startswith("hpcdl ")


@pytest.mark.parametrize("kind", ["experiment", "site"])
def test_schema_is_json_schema(hpcdl, kind):
    schema = json.loads(hpcdl("schema", kind).out)
    branches = [schema["$defs"][each["$ref"].rpartition("/")[2]] for each in schema.get("anyOf", [])]
    for each in branches or [schema]:
        assert each["type"] == "object"
        assert each["additionalProperties"] is False


def test_schema_accepts_every_example_and_refuses_a_typo(hpcdl):
    """An editor that uses the schema must not underline what hpcdl accepts."""
    schema = json.loads(hpcdl("schema", "experiment").out)
    for path in (*(ROOT / "examples").glob("*.yaml"), ROOT / "tests" / "tiny.yaml"):
        content = load.read(path).content
        jsonschema.validate(content, schema)
        with pytest.raises(jsonschema.ValidationError, match="trainng"):
            jsonschema.validate(content | {"trainng": {}}, schema)
    jsonschema.validate({"model": {"preset": "llama3-8b"}, "data": {"source": "stdlib"}}, schema)


def test_schema_accepts_every_shipped_site(hpcdl):
    schema = json.loads(hpcdl("schema", "site").out)
    for path in (ROOT / "site_configs").glob("*.yaml"):
        jsonschema.validate(load.read(path).content, schema)
    child = {"extends": ["polaris", "_h100"], "partitions": {"debug": None, "prod": {"max_nodes": 400}}}
    jsonschema.validate(child, schema)
    with pytest.raises(jsonschema.ValidationError, match="max_nods"):
        jsonschema.validate({"partitions": {"prod": {"max_nods": 400}}}, schema)


def test_every_key_of_a_site_file_is_explained_to_editors(hpcdl):
    """An editor shows the description of a key, or of what the key holds."""
    schema = json.loads(hpcdl("schema", "site").out)
    for name, part in {**schema["$defs"], "Site": schema}.items():
        for key, about in part.get("properties", {}).items():
            assert "description" in about or "$ref" in about, f"{name}.{key}"


def test_schema_of_something_else_names_the_known(hpcdl):
    result = hpcdl("schema", "modle")
    assert result.code == 2
    assert "experiment, site" in result.err


def test_unexpected_failure_keeps_the_traceback_in_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended, guarded():
        raise RuntimeError("boom")
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert "unexpected RuntimeError: boom" in message
    assert "Traceback" not in message
    (kept,) = (tmp_path / "hpcdl").glob("crash-*.txt")
    assert "Traceback" in kept.read_text()


def test_a_list_loads_no_planner():
    """It takes longer to load than a thousand runs to list."""
    code = "import sys, hpcdl.cli.watching; print(*sys.modules)"
    assert not {"hpcdl.planner.plan", "numpy", "jinja2", "matplotlib"} & set(python(code).split())
