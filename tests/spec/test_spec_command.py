"""An experiment file with a command: what it may say, what it may not, and where it is wrong."""

import json

import pytest
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter

from hpcdl.errors import UsageError
from hpcdl.spec import load, reading
from hpcdl.spec.command import CommandExperiment, CommandRun
from hpcdl.spec.experiment import Experiment, ResolvedRun

SHORT = "command: [python, train.py, --steps, '100']\n"
LONG = "command: {run: [python, train.py], folder: code, warning: {signal: USR1, seconds: 60}}\n"
TRAINED = "model: {preset: gpt2}\ndata: {source: stdlib, tokenizer: t.json}\n"


def experiment(text):
    return reading.experiment(load.parse(text, "exp.yaml"))


def test_a_list_is_a_program_and_its_arguments():
    told = experiment(SHORT + "resources: {gpus: 2}\nenvironment: {A: b}\n")
    assert isinstance(told, CommandExperiment)
    assert (told.command.run, told.command.folder) == (["python", "train.py", "--steps", "100"], ".")
    assert (told.resources.gpus, told.environment, told.steps) == (2, {"A": "b"}, None)


def test_a_mapping_says_more():
    command = experiment(LONG).command
    assert (command.folder, command.warning.signal, command.warning.seconds) == ("code", "USR1", 60)


def test_without_a_command_it_is_for_the_bundled_engine():
    assert isinstance(experiment(TRAINED), Experiment)


def test_the_folder_is_that_of_the_file_unless_another_is_named(tmp_path):
    assert experiment(SHORT).anchored(tmp_path).command.folder == str(tmp_path)
    assert experiment(LONG).anchored(tmp_path).paths == {"command.folder": str(tmp_path / "code")}


def test_a_program_is_told_of_the_walltimes_end_only_if_the_file_names_the_signal():
    assert experiment(SHORT).before_limit_seconds == 0
    assert experiment(LONG).before_limit_seconds == 60


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("command: [python, train.py, 100]", "exp.yaml:1:29: command.run.2: an argument is text; write it in quotes: '100'"),
        ("command: [python, true]", "exp.yaml:1:19: command.run.1: an argument is text; write it in quotes: 'True'"),
        ("command: python train.py", "exp.yaml:1:10: command: no shell takes it apart; write a list: [python, train.py]"),
        ("command: []", "exp.yaml:1:10: command.run is [], but"),
        ('command: [""]', "command.run: the program has no name"),
        ('command: [a, "b\\0c"]', "command.run.1: an argument cannot hold a NUL character"),
        ("command: {run: [a], fodler: b}", "exp.yaml:1:21: unknown key 'command.fodler'; did you mean 'folder'?"),
        ("command: {run: [a], warning: {signal: KILL}}", "command.warning.signal is 'KILL', but must be"),
        ("command: {folder: b}", "command.run is missing"),
        ("comand: [python]", "unknown key 'comand'; did you mean 'command'?"),
        (SHORT + "enviroment: {A: b}", "exp.yaml:2:1: unknown key 'enviroment'; did you mean 'environment'?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place_and_the_way_out(text, words):
    with pytest.raises(UsageError) as refused:
        experiment(text)
    assert words in refused.value.message


def test_what_only_the_bundled_engine_reads_is_refused_key_by_key():
    with pytest.raises(UsageError) as refused:
        experiment("training: {steps: 5}\n" + SHORT + "parallelism: {data: 2}\n")
    assert refused.value.message.splitlines() == [
        "exp.yaml:1:1: training is for the bundled engine, and command: replaces it",
        "exp.yaml:3:1: parallelism is for the bundled engine, and command: replaces it",
    ]
    assert "take it out" in refused.value.hint


def test_a_setting_of_the_command_line_is_refused_by_its_own_name():
    document = load.parse(SHORT, "exp.yaml")
    load.override(document, ["training.steps=5"])
    with pytest.raises(UsageError, match=r"--set training.steps=5: training is for the bundled engine"):
        reading.experiment(document)


SCHEMA = Draft202012Validator(TypeAdapter(reading.AnyExperiment).json_schema())


@pytest.mark.parametrize("text", [SHORT, LONG, TRAINED])
def test_the_schema_takes_every_form(text):
    SCHEMA.validate(load.parse(text, "exp.yaml").content)


@pytest.mark.parametrize("text", ["command: python", "command: []", SHORT + TRAINED, "name: empty"])
def test_the_schema_refuses_what_is_none(text):
    assert list(SCHEMA.iter_errors(load.parse(text, "exp.yaml").content))


def test_a_run_is_read_back_as_what_it_was():
    same = {
        "run": "r",
        "layout": {"nodes": 1, "ranks_per_node": 2, "cores_per_rank": 1},
        "rendezvous": {},
        "site": "s",
        "versions": {},
    }
    command = CommandRun(experiment=experiment(LONG), **same)
    assert reading.run(command.model_dump_json()) == command
    training = ResolvedRun(
        experiment=experiment(TRAINED), decomposition={"data": 2}, device="cpu", device_per_rank=False, **same
    )
    assert reading.run(training.model_dump_json()) == training
    with pytest.raises(ValueError, match="layout"):
        reading.run(json.dumps({"run": "r", "experiment": {"command": ["a"]}}))
