"""What an installed package is called, and what is in it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import aether_emu
from aether_emu import version
from tests.cli.command import aether

_SOURCES = Path(__file__).parents[1]


def _git(root: Path, *arguments: str) -> None:
    settings = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", root, *settings, *arguments], check=True, capture_output=True)


def _commit(root: Path) -> None:
    _git(root, "commit", "--allow-empty", "--message", "more")


def _called(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The version of a package whose sources are there."""
    monkeypatch.setattr(version, "__file__", str(root / "aether_emu" / "version.py"))
    return version.version()


def test_a_work_tree_is_called_by_its_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _git(tmp_path, "init")
    assert _called(tmp_path, monkeypatch) == version.UNRELEASED, "there is no commit"
    _commit(tmp_path)
    assert re.fullmatch(r"0\.1\.1\.dev1\+g[0-9a-f]{7,}", _called(tmp_path, monkeypatch)), "there is no tag"
    _git(tmp_path, "tag", "v1.2.9")
    _git(tmp_path, "tag", "another")
    assert _called(tmp_path, monkeypatch) == "1.2.9"
    _commit(tmp_path)
    _commit(tmp_path)
    assert re.fullmatch(r"1\.2\.10\.dev2\+g[0-9a-f]{7,}", _called(tmp_path, monkeypatch))


def test_sources_without_history_have_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor without git, as here."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / ".git").mkdir()
    assert _called(tmp_path, monkeypatch) == version.UNRELEASED


def test_what_is_built_from_an_archive_has_the_same_version() -> None:
    project = tomllib.loads((_SOURCES / "pyproject.toml").read_text())
    assert project["tool"]["setuptools_scm"]["fallback_version"] == version.UNRELEASED
    assert "version" in project["project"]["dynamic"]


def test_an_archive_names_its_tag_and_nothing_else() -> None:
    """Of a commit without one setuptools-scm would make the version 0.0, in place of the one above."""
    lines = (_SOURCES / ".git_archival.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["describe-name"]


def test_the_command_tells_it() -> None:
    assert aether("--version").stdout.decode() == f"aether_emu {aether_emu.__version__}\n"


def test_every_file_that_the_package_reads_is_installed() -> None:
    """Not Python's, not a page for readers of the sources: each is covered by a pattern of package-data."""
    package = Path(aether_emu.__file__).parent
    project = tomllib.loads((_SOURCES / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["aether_emu"]
    covered = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    data = {path for path in files if path.suffix not in (".py", ".md")}
    assert data == covered
    assert {path.name for path in data} >= {"tour.x86_64", "tour.arm64", "py.typed"}
