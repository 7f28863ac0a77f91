from concurrent.futures import ThreadPoolExecutor

import pytest

from hpcdl.run_folder import RunFolder
from hpcdl.runs.claims import claim, claims


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def test_one_of_many_gets_the_attempt(folder):
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda number: claim(folder, 2, f"process {number}"), range(16)))
    assert got.count(True) == 1
    assert claims(folder) == {2: f"process {got.index(True)}"}


def test_what_is_no_claim_is_passed_over(folder):
    claim(folder, 10, "somebody")
    claim(folder, 9, "else")
    (folder.claim(3)).write_text("a file")
    (folder.claim(1).parent / "attempt-x").symlink_to("nobody")
    assert claims(folder) == {9: "else", 10: "somebody"}


def test_a_run_without_claims_has_none(folder):
    assert claims(folder) == {}
