"""Trying one mutant: the file is changed in a copy of the tree, and the tests that run its line are run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mutants import Mutant

_HANGS = 4.0  # a mutant that takes so many times as long as its tests did hangs
_LEAST = 60.0  # seconds: what starting pytest and a slow host may take


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant, and of how many tests that run its line each was asked."""

    mutant: Mutant
    killed: bool
    asked: int
    running: int
    how: str


class Copy:
    """A work tree of its own beside the real one, with its own environment, so that mutants never meet."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._over = False
        remove(root, folder)
        _git(root, "worktree", "add", "--quiet", "--detach", str(folder), "HEAD")
        for name in _git(root, "diff", "--name-only", "HEAD").split("\n"):
            if name and (root / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, folder / name)
        for name in (".venv", ".cache/programs"):
            if (root / name).exists():
                (folder / name).parent.mkdir(exist_ok=True)
                subprocess.run(["cp", "-al", str(root / name), str(folder / name)], check=True)

    def judge(
        self, mutant: Mutant, tests: list[str], seconds: dict[str, float], most: float
    ) -> Verdict | None:
        """Run the tests, as many as `most` seconds hold, until one fails. None: they were ended."""
        asked: list[str] = []
        spent = 0.0
        for test in tests:
            if spent + seconds[test] > most and asked:
                continue
            asked.append(test)
            spent += seconds[test]
        if not asked:
            return Verdict(mutant, killed=False, asked=0, running=0, how="no test runs it")
        path = self.folder / mutant.path
        source = path.read_bytes()
        path.write_bytes(mutant.applied(source))
        try:
            how = self._run(asked, _LEAST + _HANGS * spent)
        finally:
            path.write_bytes(source)
        if self._over:
            return None
        return Verdict(mutant, killed=bool(how), asked=len(asked), running=len(tests), how=how or "survived")

    def _run(self, tests: list[str], timeout: float) -> str:
        """The test that failed, or "it hangs"; nothing if all pass."""
        listed = self.folder / ".cache" / "tests.txt"
        listed.parent.mkdir(exist_ok=True)
        listed.write_text("\n".join(tests))
        python = str(self.folder / ".venv/bin/python")
        command = [python, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", f"@{listed}"]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        with subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as run:
            self._process = run
            if self._over:
                self.end()
            try:
                output, _ = run.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
                return "it hangs"
        if run.returncode == 0:
            return ""
        failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return failed[0].partition(" - ")[0] if failed else f"pytest ended with status {run.returncode}"

    def end(self) -> None:
        """From another thread: no tests any more, for the user has interrupted us. Those of now end."""
        self._over = True
        run = self._process
        if run is not None and run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)


def remove(root: Path, folder: Path) -> None:
    """Take a copy away again, also one that an interrupted run left."""
    shutil.rmtree(folder, ignore_errors=True)
    _git(root, "worktree", "prune")


def _git(root: Path, *command: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *command], check=True, capture_output=True, text=True)
    return done.stdout.strip()
