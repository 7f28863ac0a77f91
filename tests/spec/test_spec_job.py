import pytest
from pydantic import TypeAdapter, ValidationError

from hpcdl.spec.data import Data
from hpcdl.spec.experiment import Rendezvous
from hpcdl.spec.job import Environment, Layout, Resources
from hpcdl.spec.training import Optimizer, Training


@pytest.mark.parametrize("queue", ["gpu", "gpu_a100", "a+b", "m1234_g", "proj:sub", "q.1@host"])
def test_a_word_of_a_directive_is_taken_as_it_is(queue):
    assert Resources(queue=queue).queue == queue


@pytest.mark.parametrize("queue", ["", "-q", "a b", "a;rm", "a\n#SBATCH --x", "$(x)", "a'b"])
def test_what_could_end_a_directive_is_refused(queue):
    with pytest.raises(ValidationError, match="may hold only letters"):
        Resources(queue=queue)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"gpus": 7, "nodes": 2}, "gpus 7 cannot be spread evenly over nodes 2"),
        ({"gpus": 0}, "greater than 0"),
        ({"walltime": "1h"}, "is not a walltime"),
        ({"walltime": "00:00:00"}, "walltime of zero"),
    ],
)
def test_resources_that_make_no_sense_are_refused(asked, words):
    with pytest.raises(ValidationError, match=words):
        Resources(**asked)


@pytest.mark.parametrize("variables", [{"1A": "x"}, {"A-B": "x"}, {"A": "x\0"}, {"": "x"}])
def test_variables_that_no_process_can_have_are_refused(variables):
    with pytest.raises(ValidationError):
        TypeAdapter(Environment).validate_python(variables)


def test_a_layout_counts_its_ranks():
    assert Layout(nodes=3, ranks_per_node=4, cores_per_rank=1).ranks == 12


def test_an_interface_address_needs_the_interface():
    with pytest.raises(ValidationError, match="needs the name of the interface"):
        Rendezvous(address="interface")
    assert Rendezvous(address="interface", interface="hsn0").interface == "hsn0"


@pytest.mark.parametrize("source", [{"source": "text"}, {"source": "stdlib", "path": "corpus"}])
def test_data_needs_a_path_exactly_where_it_reads_one(source):
    with pytest.raises(ValidationError, match="path"):
        Data(**source)


@pytest.mark.parametrize("betas", [(1.0, 0.9), (-0.1, 0.9), (0.9, 1.5)])
def test_moments_that_never_decay_are_refused(betas):
    with pytest.raises(ValidationError, match="must both be at least 0 and below 1"):
        Optimizer(betas=betas)


def test_values_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Training().steps = 5
