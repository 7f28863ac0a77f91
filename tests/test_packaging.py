"""What is installed is what lies in the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hpcdl import resources
from hpcdl.errors import HpcdlError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", ["templates", "site_configs"])
def test_bundled_finds_the_checkout(kind):
    assert resources.bundled(kind) == ROOT / kind


def test_bundled_names_both_places_where_it_looked():
    with pytest.raises(HpcdlError, match="_data") as refused:
        resources.bundled("nothing")
    assert str(ROOT / "nothing") in refused.value.message


def test_search_path_puts_the_users_files_first(tmp_path):
    own, configuration = tmp_path / "own", tmp_path / "config"
    (own / "site_configs").mkdir(parents=True)
    (configuration / "hpcdl" / "site_configs").mkdir(parents=True)
    environment = {"HPCDL_PATH": f"{own}:/nowhere", "XDG_CONFIG_HOME": str(configuration)}
    assert resources.search_path("site_configs", environment) == [
        own / "site_configs",
        configuration / "hpcdl" / "site_configs",
        ROOT / "site_configs",
    ]


@pytest.mark.slow
def test_the_wheel_holds_templates_and_sites_byte_for_byte(tmp_path):
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        for kind in ("templates", "site_configs"):
            prefix = f"hpcdl/_data/{kind}/"
            inside = {
                name.removeprefix(prefix): packed.read(name)
                for name in packed.namelist()
                if name.startswith(prefix)
            }
            outside = {path.name: path.read_bytes() for path in (ROOT / kind).iterdir()}
            assert inside == outside
        packed.extractall(tmp_path / "installed")
    code = "from hpcdl import resources; print(resources.bundled('templates'))"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert answer.stdout.strip() == str(tmp_path / "installed" / "hpcdl" / "_data" / "templates")
