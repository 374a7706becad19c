"""The examples are those that the page shows, and the workflow's steps succeed, and fail for wrong tables."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import ROOT, environment

EXAMPLES = ROOT / "docs" / "examples"
PAGE = (EXAMPLES / "index.md").read_text(encoding="utf-8")
SHOWN = [
    path.relative_to(ROOT).as_posix()
    for path in EXAMPLES.rglob("*")
    if path.suffix in (".py", ".yml") and path.name != "boot_tables.py"
]


@pytest.mark.parametrize("name", SHOWN)
def test_the_page_shows_every_example(name: str) -> None:
    assert f'--8<-- "{name}"' in PAGE


@pytest.mark.parametrize(
    "name", ["fault_handler.py", "demand_pager.py", "write_barrier.py", "use_after_free.py"]
)
def test_the_page_runs_every_program(name: str) -> None:
    assert f"$ python -u docs/examples/{name}\n" in PAGE


def workflow() -> dict[str, str]:
    """The steps that are commands, by name: all but the installation."""
    (job,) = yaml.safe_load((EXAMPLES / "ci" / "check-tables.yml").read_text())["jobs"].values()
    return {step["name"]: step["run"] for step in job["steps"] if "run" in step and step["name"] != "Install"}


def statuses(directory: Path) -> dict[str, int]:
    """What each step ends with, one after the other, in a copy of the folder."""
    return {
        name: subprocess.run(
            ["bash", "-c", command], cwd=directory, env=environment(), capture_output=True, check=False
        ).returncode
        for name, command in workflow().items()
    }


def test_the_workflow_succeeds(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "ci", tmp_path, dirs_exist_ok=True)
    assert statuses(tmp_path) == dict.fromkeys(workflow(), 0)


def test_the_workflow_fails_when_data_becomes_executable(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "ci", tmp_path, dirs_exist_ok=True)
    builder = tmp_path / "boot_tables.py"
    text = builder.read_text()
    assert " | NO_EXECUTE)" in text
    builder.write_text(text.replace(" | NO_EXECUTE)", ")"))
    failed = [name for name, status in statuses(tmp_path).items() if status]
    assert failed == ["Lint", "Ask an MMU", "Test"]
