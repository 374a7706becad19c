"""`aether bench` as users meet it."""

from __future__ import annotations

import json
import os
import platform
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.command import COMMAND, PATIENCE, aether, environment, one_line


def test_a_figure_is_measured_printed_and_kept(tmp_path: Path) -> None:
    result = aether("bench", "map/arm64", "--json", tmp_path / "figures.json")
    assert (result.returncode, result.stderr) == (0, b""), "no progress in a pipe"
    table = result.stdout.decode()
    for words in ("name", "what", "ours", "floor", "ratio", "target", "map/arm64", "262,144 entries", "<= 5"):
        assert words in table
    data = json.loads((tmp_path / "figures.json").read_text())
    (figure,) = data["figures"]
    assert (figure["name"], figure["isa"]) == ("map", "arm64")
    assert len(figure["pairs"]) >= 5
    assert figure["ratio"]["min"] <= figure["ratio"]["median"] <= figure["ratio"]["max"]
    assert f"{figure['ratio']['median']:.2f}" in table, "both tell the same measurement"
    assert set(data["versions"]) == {"aether_emu", "python", "unicorn", "numpy"}


def test_progress_is_told_on_a_terminal_and_ctrl_c_ends_it() -> None:
    terminal, stderr = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "bench", "exec"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**environment(), "TERM": "xterm"},
        start_new_session=True,
        preexec_fn=_notice_ctrl_c,  # noqa: PLW1509  # it only resets a signal
    ) as process:
        os.close(stderr)
        told = b""
        while b"exec-alu/x86_64" not in told:
            told += os.read(terminal, 4096)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE)
    os.close(terminal)
    assert (process.returncode, output) == (130, b"interrupted: 0 of 8 figures are complete\n")


def _notice_ctrl_c() -> None:
    """A background job's children ignore Ctrl-C by custom, and so would this one if the tests are one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_programs_that_this_host_lacks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    isa = "x86_64" if platform.machine() == "aarch64" else "arm64"
    result = aether("bench", f"real/{isa}", "--json", tmp_path / "figures.json")
    lines = result.stderr.decode().splitlines()
    assert (result.returncode, result.stdout) == (0, b"")
    names = [f"real-{name}/{isa}" for name in ("python3", "git", "ruff", "esbuild", "bash")]
    assert [line.split()[1] for line in lines] == names
    assert lines[-1] == f"aether: real-bash/{isa} is not measured: not on this host"
    data = json.loads((tmp_path / "figures.json").read_text())
    assert (data["figures"], list(data["not_measured"])) == ([], names)


def test_an_unknown_figure_is_refused() -> None:
    names = (
        "fault, syscall, exec, map, unmap, protect, move, fork, populate, batch, growth, swap, collapse, "
        "split, migrate, switch, process, signal, pipe, start, shootdown, cpus, real,"
    )
    one_line(aether("bench", "map", "map/vax"), 2, ["NAME map/vax ", names, " tlbsan,"])


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    one_line(
        aether("bench", "start", "--json", tmp_path / "missing" / "f"), 2, ["--json ", "cannot be written"]
    )
