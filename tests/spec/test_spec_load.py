import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdl.errors import UsageError
from hpcdl.spec import load
from hpcdl.spec.experiment import Experiment

GOOD = """\
name: quick
model:
  family: gpt
  layers: 2
  hidden: 64
  heads: 4
  vocab: 256
  sequence: 32
data: {source: stdlib}
training:
  global_batch: 8
  steps: 5
  optimizer: {lr: 3e-4}
resources: {gpus: 4, walltime: 00:30:00}
"""


def experiment(text, *settings):
    document = load.parse(text, "exp.yaml")
    load.override(document, settings)
    return load.validate(document, Experiment)


def complaint(text, *settings):
    with pytest.raises(UsageError) as caught:
        experiment(text, *settings)
    return caught.value.message


def test_a_good_file_is_read_with_yaml_1_2_scalars():
    """00:30:00 is text and 3e-4 a number, which PyYAML alone gets the other way round."""
    read = experiment(GOOD)
    assert read.resources.walltime == "00:30:00"
    assert read.training.optimizer.lr == 3e-4
    assert read.parallelism == "auto"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  hidden: 64", "  hiden: 64", "exp.yaml:5:3: unknown key 'model.hiden'; did you mean 'hidden'?"),
        # One with a capital once ended as a crash: it looked like the name of a class.
        ("  hidden: 64", "  Hidden: 64", "exp.yaml:5:3: unknown key 'model.Hidden'; did you mean 'hidden'?"),
        ("training:", "Training:", "unknown key 'Training'; did you mean 'training'?"),
        ("global_batch: 8", "global_batch: -8", "exp.yaml:11:17: training.global_batch is -8, but"),
        ("heads: 4", "heads: 5", "exp.yaml:3:3: model: hidden 64 is not divisible by heads 5"),
        ("00:30:00", "1h", "exp.yaml:14:32: resources.walltime: '1h' is not a walltime; write HH:MM:SS"),
        ("steps: 5", "steps: 5\n  steps: 6", "exp.yaml:13:3: the key 'steps' stands here a second time"),
        ("layers: 2", "layers: two", "exp.yaml:4:11: model.layers is 'two', but"),
        ("lr: 3e-4", "lr: .inf", "training.optimizer.lr is"),
        ("{source: stdlib}", "{source: text}", "needs a path"),
        (
            "{source: stdlib}",
            "{path: ''}",
            "exp.yaml:9:14: data.path is '', but must have at least 1 character",
        ),
        ("vocab: 256", "vocab: 100", "needs a vocab of at least 256, but model.vocab is 100"),
        ("  sequence: 32\n", "", "model.sequence is missing"),
        ("data: {source", "data: [source", "not valid YAML"),
    ],
)
def test_an_error_says_where_what_and_the_way_out(old, new, words):
    assert words in complaint(GOOD.replace(old, new))


def test_file_written_as_json_means_what_it_says():
    """JSON's writers spell a character beyond U+FFFF as two escapes; it was refused as two halves."""
    told = {"name": "a 🚀", "🚀": ["\ufeff速度", "1e999", ""]}
    assert load.parse(json.dumps(told), "exp.yaml").content == told


@pytest.mark.parametrize("text", ['name: "a\\ud800"', 'name: a\nenvironment: {A: "\\udfff"}', '"\\udcff": a'])
def test_half_a_character_is_refused_where_it_stands(text):
    with pytest.raises(UsageError, match=r"exp.yaml:\d+:\d+: .* which is half of a character"):
        load.parse(text, "exp.yaml")


def test_a_file_that_no_record_could_name_is_refused(tmp_path):
    with pytest.raises(UsageError, match="has a name that is not UTF-8"):
        load.read(tmp_path / "a\udcff" / "exp.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [*a]", "file.yaml: its lists and mappings stand within each other without end"),
        (f"a: {'[' * 3000}{']' * 3000}", "file.yaml: its lists and mappings stand within each other"),
        (f"a: {'{b: ' * 3000}", "file.yaml: its lists and mappings stand within each other"),
        ("".join([f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]\n" if n else "k0: &k0 [x]\n" for n in range(30)]),
         "file.yaml:1:10: one key or value more than the 200000 a file may hold"),
    ],
    ids=["endless", "deep list", "deep mapping", "aliases of aliases"],
)  # fmt: skip
def test_a_file_that_holds_more_than_it_seems_is_refused(text, words):
    """It was a crash to report, or filled the memory."""
    with pytest.raises(UsageError) as caught:
        load.parse(text, "file.yaml")
    assert caught.value.message.startswith(words)
    assert caught.value.hint


def test_every_problem_is_reported_at_once():
    text = GOOD.replace("steps: 5", "steps: 0").replace("layers: 2", "layers: -1")
    assert len(complaint(text).splitlines()) == 2


def test_a_setting_overrides_the_file():
    read = experiment(GOOD, "training.steps=50", "parallelism={data: 2, pipeline: 2}", "name=other")
    assert (read.training.steps, read.parallelism.ranks, read.name) == (50, 4, "other")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.steps", "is not of the form key.sub=value"),
        ("training.stps=1", "--set training.stps=1: unknown key 'training.stps'; did you mean 'steps'?"),
        ("training.steps=-1", "--set training.steps=-1: training.steps is -1"),
        ("name.first=x", "--set name.first=x: name is {'first': 'x'}, but must be a valid string"),
    ],
)
def test_a_wrong_setting_is_named(setting, words):
    assert words in complaint(GOOD, setting)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(UsageError, match="there is no such file"):
        load.read(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="is a folder"):
        load.read(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "e.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        load.read(tmp_path / "e.yaml")


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_and_nothing_else(text):
    with contextlib.suppress(UsageError):
        experiment(text)


def test_a_choice_between_a_word_and_a_mapping_names_both():
    with pytest.raises(UsageError, match=r"parallelism is 'autoo', but must be 'auto' or a mapping"):
        experiment(GOOD, "parallelism=autoo")
