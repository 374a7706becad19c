"""Which tests run a line: measured once for a state of the code, kept, and asked for each mutant."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import coverage
import recorder
from coverage.exceptions import CoverageWarning

_SETTINGS = """\
[tool.coverage.run]
source = ["{package}"]
data_file = "{folder}/lines"
parallel = true
patch = ["subprocess"]
context = "${{{variable}-}}"
disable_warnings = ["dynamic-conflict", "no-data-collected"]
"""


class MapError(Exception):
    """The tests could not be measured. Carries what went wrong in one line."""


class TestMap:
    """For each line the tests that run it, and each test's seconds. `failing` fail without any bug."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root = root
        seconds = json.loads((folder / "durations.json").read_text())
        self.seconds: dict[str, float] = {test: time for test, time in seconds.items() if time != math.inf}
        self.failing = sorted(seconds.keys() - self.seconds.keys())
        self._data = coverage.CoverageData(basename=str(folder / "lines"))
        self._data.read()
        self._lines: dict[str, dict[int, list[str]]] = {}

    def tests(self, path: str, line: int) -> list[str]:
        """Those that run the line, those of the file's own test folder first, then the quick ones.

        Then the others of their modules: what a module's tests share is run, and noted, by the first of them.
        A line that only an import runs is run by every test, so the folder's own are taken.
        """
        if path not in self._lines:
            self._lines[path] = self._data.contexts_by_lineno(str(self._root / path))
        own = _own_tests(path)
        found = {test for test in self._lines[path].get(line, ()) if test in self.seconds}
        if not found:
            found = {test for test in self.seconds if test.startswith(own)}
        modules = {test.partition("::")[0] for test in found}
        shared = {test for test in self.seconds if test.partition("::")[0] in modules}

        def order(test: str) -> tuple[bool, bool, float, str]:
            return test not in found, not test.startswith(own), self.seconds[test], test

        return sorted(found | shared, key=order)


def _own_tests(path: str) -> str:
    """Where the tests of a file are: tests/mm/ for aether_emu/mm/tlb.py, all for one at the top."""
    inner = path.partition("/")[2]
    return f"tests/{inner.rpartition('/')[0]}".rstrip("/") + "/"


def measure(root: Path, folder: Path) -> TestMap:
    """Run all tests under coverage, unless `folder` has that already. Several times as long as a plain run.

    Raises MapError when the run ends without a result.
    """
    if not (folder / "durations.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        settings = _SETTINGS.format(package=root / "aether_emu", folder=folder, variable=recorder.TEST)
        (folder / "coverage.toml").write_text(settings)
        here = str(Path(__file__).parent)
        environment = {**os.environ, recorder.FOLDER: str(folder), "PYTHONPATH": here}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "recorder",
            "-n",
            "2",
            "--dist",
            "loadgroup",
            "-m",
            "not slow",
        ]
        done = subprocess.run(
            command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode not in (0, 1) or not any(folder.glob("durations-*.json")):
            raise MapError(f"pytest ended with status {done.returncode}: {done.stdout.strip()[-200:]}")
        _join(folder)
    return TestMap(root, folder)


def _join(folder: Path) -> None:
    """One file of lines and one of durations out of those of all processes."""
    lines = coverage.Coverage(config_file=str(folder / "coverage.toml"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)  # of commands that tests have killed
        lines.combine([str(folder)])
    lines.save()
    seconds: dict[str, float] = {}
    for part in sorted(folder.glob("durations-*.json")):
        seconds.update(json.loads(part.read_text()))
        part.unlink()
    (folder / "durations.json").write_text(json.dumps(seconds, sort_keys=True))
