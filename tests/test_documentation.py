"""What the pages say of the package is so: the example of the README runs, the folder table is complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import environment

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "aether_emu"
PAGES = sorted(page.relative_to(ROOT).as_posix() for page in PACKAGE.glob("*/README.md"))


def places() -> list[str]:
    """The files and folders in the first column of CONTRIBUTING's folder table, in its order."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| where | layer |") :].split("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    return [place for cell in cells for place in re.findall(r"`([^`]+)`", cell)]


def modules() -> list[Path]:
    """Every module of the package, from the package on; `__init__.py` aside."""
    return [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]


def test_the_example_of_the_readme_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", example + "\nprint(ended)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, leaf, ended = done.stdout.splitlines()
    assert leaf.split()[:2] == ["PT", "["]  # the last line of the walk
    assert ended == "exit status 0"


def test_the_folder_table_names_what_there_is() -> None:
    named = places()
    assert len(named) == len(set(named))
    isas = [path.name for path in (PACKAGE / "arch").iterdir() if (path / "__init__.py").is_file()]
    there = {Path(place.replace("<isa>", isa)) for place in named for isa in isas}
    assert [str(place) for place in sorted(there) if not (PACKAGE / place).exists()] == []
    missing = [path for path in modules() if path not in there and path.parent not in there]
    assert [str(path) for path in sorted(missing)] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_folders_page_names_each_of_its_modules(page: str) -> None:
    text, folder = (ROOT / page).read_text(encoding="utf-8"), (ROOT / page).parent
    names = [path.name for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    assert names
    assert [name for name in names if f"`{name}`" not in text] == []
    folders = [f"{path.parent.name}/" for path in sorted(folder.glob("*/__init__.py"))]
    assert [name for name in folders if f"`{name}" not in text] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *PAGES])
def test_files_that_a_page_names_exist(page: str) -> None:
    """Named by their path from the source tree or the package, or by their end below the page's folder."""
    text, folder = (ROOT / page).read_text(encoding="utf-8"), (ROOT / page).parent
    named = re.findall(r"`((?:[a-z0-9_]+/)*[a-z0-9_]+\.(?:py|md))`", text)
    assert [
        name
        for name in named
        if not (ROOT / name).exists() and not (PACKAGE / name).exists() and not any(folder.rglob(name))
    ] == []
