"""Runs the commands of docs/planner/views.md and writes what they print under them, and draws its figures.

python benchmarks/planner/views.py

Lines too long for the page end in ``…``.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "planner" / "views.md"
WIDTH = 108


def experiments(text: str, folder: Path) -> None:
    """The page's own file, and the same with an eighth of its batch."""
    found = re.search(r"```yaml\n(name: gpt.*?)```", text, re.DOTALL)
    assert found, "the page shows its experiment"
    (folder / "gpt.yaml").write_text(found[1])
    (folder / "small.yaml").write_text(found[1].replace("name: gpt", "name: small").replace("1536", "192"))


def block(shown: str, folder: Path) -> str:
    """A console block with what its command prints now."""
    lines = shown.splitlines()
    end = next(place for place, line in enumerate(lines) if not line.endswith("\\"))
    command = "\n".join(lines[: end + 1])
    done = subprocess.run(
        command.removeprefix("$ "), shell=True, cwd=folder, stdout=subprocess.PIPE, text=True, check=False
    )
    return "\n".join(["```console", command, *map(fitted, done.stdout.rstrip().splitlines()), "```"])


def fitted(line: str) -> str:
    """A line that is not too wide."""
    line = line.rstrip()
    return line if len(line) <= WIDTH else line[: WIDTH - 2].rsplit(" ", 1)[0].rstrip() + " …"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        experiments(text, folder)
        text = re.sub(r"```console\n(.*?)```", lambda found: block(found[1], folder), text, flags=re.DOTALL)
        for figure in folder.glob("*.svg"):
            (PAGE.parent / figure.name).write_bytes(figure.read_bytes())
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
