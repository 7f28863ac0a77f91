import pytest
from pydantic import ValidationError

from hpcdl.sites.conditions import Known, holds
from hpcdl.sites.site import Variable

FRONTIER = Known(nodes=2, vendor="amd", versions={"rocm": "7.1.1"})


@pytest.mark.parametrize(
    ("condition", "answer"),
    [
        ("always", True),
        ("nodes > 1", True),
        ("nodes == 1", False),
        ("vendor == amd", True),
        ("vendor != amd", False),
        ("rocm >= 7.1", True),
        ("rocm == 7.1", True),  # as many parts are compared as are named
        ("rocm < 7.1", False),
        ("rocm > 7.0.9", True),
        ("rocm>=6 and nodes>1", True),
        ("cuda >= 12", None),
        ("cuda >= 12 and nodes > 1", None),
        ("cuda >= 12 and nodes == 1", False),  # false whatever the version
    ],
)
def test_condition_holds(condition, answer):
    assert holds(condition, FRONTIER) is answer


def test_version_with_a_suffix_is_compared_by_its_numbers():
    assert holds("torch >= 2.9", Known(1, "none", {"torch": "2.13.0+cpu"})) is True


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("nodes", "is no condition; write for example nodes > 1"),
        ("nodes > many", "'many' is not a number of nodes"),
        ("vendor > amd", "a vendor is == or != one of nvidia, amd, intel, none"),
        ("vendor == cray", "a vendor is == or != one of"),
        ("rocm >= new", "'new' is not a version such as 7.1"),
        ("slurm >= 23", "'slurm' is not among nodes, vendor, cuda, rocm, torch"),
        ("", "is no condition"),
    ],
)
def test_wrong_condition_is_refused_with_what_is_wrong(condition, message):
    with pytest.raises(ValidationError, match=message):
        Variable(name="X", value="1", when=condition)
