"""A pytest plugin: which lines each test runs, and how long it takes.

Loaded into the run that makes the map. Each test process keeps its own coverage; commands that a test
starts are covered too, and carry the test's name through the environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

FOLDER, TEST = "MUTATION_FOLDER", "MUTATION_TEST"

_durations: dict[str, float] = {}
_coverage: coverage.Coverage | None = None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Begin before anything of the package is imported. xdist's controller runs no tests."""
    global _coverage  # noqa: PLW0603  # pytest calls plain functions
    if hasattr(session.config, "workerinput") or not session.config.getoption("numprocesses", None):
        os.environ[TEST] = ""
        _coverage = coverage.Coverage(config_file=str(Path(os.environ[FOLDER]) / "coverage.toml"))
        _coverage.start()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Name the test that the lines from here on belong to, its fixtures' lines too."""
    if _coverage is not None:
        os.environ[TEST] = item.nodeid
        _coverage.switch_context(item.nodeid)
    yield
    if _coverage is not None:
        os.environ[TEST] = ""
        _coverage.switch_context("")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """The seconds of a test with its fixtures; under coverage, so longer than they will be.

    A test that fails without any bug tells nothing: it stays infinitely long.
    """
    seconds = float("inf") if report.failed else report.duration
    _durations[report.nodeid] = _durations.get(report.nodeid, 0.0) + seconds


def pytest_sessionfinish() -> None:
    """Each process writes what it has seen beside the others'."""
    if _coverage is not None:
        _coverage.stop()
        _coverage.save()
        name = f"durations-{os.getpid()}.json"
        (Path(os.environ[FOLDER]) / name).write_text(json.dumps(_durations))
