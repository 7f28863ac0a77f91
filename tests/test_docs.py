"""What the documents say is so."""

import json
import re
import shlex
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from typer.main import get_command

from hpcdl.cli.app import app
from hpcdl.planner.estimate import FORMULAS
from hpcdl.runs.failures.causes import KINDS
from hpcdl.runs.record import RunState
from hpcdl.spec import load, reading

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def commands(text):
    """Lines of console and shell blocks that call hpcdl, with line continuations joined."""
    for block in re.findall(r"```(?:console|sh)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.removeprefix("$ ").split(" | ")[0].split("  #")[0].strip()
            if command.startswith("hpcdl "):
                yield command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_has_flags_that_exist(page):
    verbs = get_command(app).commands
    for line in commands(page.read_text()):
        _, verb, *rest = shlex.split(line)
        command = verbs[verb]
        if verb == "site":
            command = command.commands[rest.pop(0)]
        known = {flag for parameter in command.params for flag in parameter.opts}
        unknown = {word for word in rest if re.match(r"--?[a-z]", word)} - known
        assert not unknown, f"{page.name}: {line}"


def test_the_first_sixty_lines_of_the_readme_hold_what_a_newcomer_needs():
    head = "\n".join((ROOT / "README.md").read_text().splitlines()[:60])
    for word in (
        "It is not",
        "```console",
        "make quickstart",
        "make test",
        "resolved.json",
        "docs/quickstart.md",
    ):
        assert word in head


def test_every_term_of_an_estimate_is_in_a_page_of_the_planner():
    pages = [ROOT / "docs" / "planner.md", *sorted((ROOT / "docs" / "planner").glob("*.md"))]
    page = "\n".join(path.read_text() for path in pages)
    for name, formula in FORMULAS.items():
        assert f"| {name} | {formula} |" in page


def test_every_cause_of_a_failure_is_in_its_page_and_no_other():
    page = (ROOT / "docs" / "failures.md").read_text()
    told = page.partition("\n- **")[2].partition("\n\n")[0]
    items = " ".join(told.split()).split(" - **")
    assert items == [f"{kind}**: {each.words}. *{each.advice}*" for kind, each in KINDS.items()]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_valid_experiment(example):
    reading.experiment(load.read(example))


def keys(schema, node, path=()):
    """Every key of an experiment that has no keys of its own, and what its schema says; both of two variants."""
    node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    for variant in node.get("anyOf", []) + node.get("oneOf", []):
        yield from keys(schema, variant, path)
    for name, below in node.get("properties", {}).items():
        if below.keys() == {"required"}:
            continue  # a condition on a key that is described elsewhere
        deeper = dict(keys(schema, below, (*path, name)))
        yield from deeper.items()
        if not deeper or not isinstance(below.get("default", {}), dict):
            yield ".".join((*path, name)), below.get("default")


def shown(default):
    """A default as the page has it."""
    if default in (None, []):
        return "-"
    plain = int(default) if isinstance(default, float) and default.is_integer() else default
    return f"`{plain if isinstance(plain, str) else json.dumps(plain)}`"


def test_every_key_of_an_experiment_stands_on_its_page_with_its_default():
    page = (ROOT / "docs" / "engine" / "experiment-keys.md").read_text()
    schema = TypeAdapter(reading.AnyExperiment).json_schema()
    expected = {key: shown(default) for key, default in keys(schema, schema)}
    assert dict(re.findall(r"^\| `([a-z_.]+)` \| (\S.*?) \|", page, re.MULTILINE)) == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_short_enough_to_read(page):
    assert max(map(len, page.read_text().splitlines())) <= 110


def test_every_state_of_a_run_is_explained():
    rows = [
        line for line in (ROOT / "docs" / "concepts.md").read_text().splitlines() if line.startswith("| `")
    ]
    explained = {word for row in rows for word in re.findall(r"`([a-z ]+)`", row.split("|")[1])}
    assert {state.value for state in RunState} <= explained
