"""The `aether` command as a child process, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = Path(__file__).parents[2] / "guest" / "bin"
ISAS = ("x86_64", "arm64")
COMMAND = [sys.executable, "-c", "from aether_emu.cli.main import main; main()"]
PATIENCE = 120  # seconds after which a child counts as hanging


def environment() -> dict[str, str]:
    """The caller's, with the package importable from any working directory."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def aether(
    *arguments: str | Path, cwd: Path | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(
        command, input=stdin, capture_output=True, timeout=PATIENCE, cwd=cwd, env=environment(), check=False
    )


def start(*arguments: str | Path, stdin: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """Start it in a process group of its own, its output piped."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=environment(),
    )


def one_line(result: subprocess.CompletedProcess[bytes], status: int, words: Sequence[str] = ()) -> str:
    """The one line that a refused command says on stderr, without a traceback."""
    text = result.stderr.decode()
    assert result.returncode == status, text
    assert result.stdout == b""
    assert text.startswith("aether: ")
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert all(word in text for word in words), text
    return text
