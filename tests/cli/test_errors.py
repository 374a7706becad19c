"""What `aether` says when something is wrong: one line on stderr and the shell's exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import COMMAND, PATIENCE, PROGRAMS, aether, environment, one_line
from tests.linux.exec.crafted import crafted

_HELLO = str(PROGRAMS / "x86_64" / "hello")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ["nonsense", "(see aether --help)"]),
        (["run"], ["Missing argument", "(see aether run --help)"]),
        (["run", "--nope", _HELLO], ["--nope"]),
        (["run", "--timeout", "soon", _HELLO], ["--timeout"]),
        (["run", "--timeout", "-1", _HELLO], ["--timeout -1 ", "more than 0"]),
        (["run", "--ram", "3x", _HELLO], ["--ram 3x "]),
        (["run", "--ram", "1M", _HELLO], ["--ram 1M ", "from 2M"]),
        (["run", "--seed", "-1", _HELLO], ["--seed -1 "]),
        (["run", "--config", "/missing.toml", _HELLO], ["/missing.toml"]),
        (["run", "--bind", "here", _HELLO], ["--bind here ", "HOST:GUEST"]),
        (["run", "--bind", "/missing:/data", _HELLO], ["/missing"]),
        (["run", "--bind", "/proc:/data", _HELLO], ["/proc", "kernel"]),
        (["run", "--env", "NAME", _HELLO], ["NAME=VALUE"]),
        (["run", "--root", "/missing", "hello"], ["/missing"]),
        (["run", "--stats-json", "/missing/file", _HELLO], ["--stats-json /missing/file "]),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_a_bad_option(arguments: list[str], words: list[str]) -> None:
    if "--stats-json" in arguments:
        result = aether(*arguments)
        assert (result.returncode, result.stderr.count(b"\n")) == (2, 1), "the program ran before"
    else:
        one_line(aether(*arguments), 2, words)


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (None, 127, "no such file"),
        (b"", 126, "not an ELF program"),
        (b"#!/bin/sh\n", 126, "script"),
        (crafted(machine=243), 126, "RISCV"),
        (crafted()[:0x50], 126, "the program headers are cut off"),
    ],
)
def test_a_bad_program(tmp_path: Path, content: bytes | None, status: int, words: str) -> None:
    if content is not None:
        (tmp_path / "p").write_bytes(content)
    one_line(aether("run", "./p", cwd=tmp_path), status, ["./p: " if content is None else "p: ", words])


def test_a_directory_is_no_program(tmp_path: Path) -> None:
    one_line(aether("run", tmp_path), 126, ["is a directory"])


def test_a_name_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    text = one_line(aether("run", "a\n\x1b[2Jb", cwd=tmp_path), 127)
    assert r"a\n\x1b[2Jb" in text


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    result = aether("run", "--debug", "missing", cwd=tmp_path)
    assert b"Traceback" in result.stderr
    assert b"ProgramError" in result.stderr
    one_line(aether("run", "missing", "--debug", cwd=tmp_path), 127)


def test_help_and_version() -> None:
    for arguments in (["--help"], ["-h"], ["run", "--help"], ["run", "-h"], ["pt", "walk", "-h"]):
        result = aether(*arguments)
        assert result.returncode == 0
        assert b"Usage: aether" in result.stdout
    assert aether("--version").stdout.startswith(b"aether_emu ")


def limited(limit: str, *arguments: str | Path, stdout: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run it under a limit of the shell's ulimit, its standard output perhaps elsewhere."""
    shell = f'ulimit {limit}; exec "$@"' + (f" >{stdout}" if stdout else "")
    command = ["bash", "-c", shell, "bash", *COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=PATIENCE, env=environment(), check=False)


@pytest.mark.parametrize(("parameter", "size"), [("ram", "16G"), ("aperture", "16G")])
def test_a_host_without_the_address_space_names_the_parameter(
    tmp_path: Path, parameter: str, size: str
) -> None:
    (tmp_path / "c.toml").write_text(f'{parameter} = "{size}"\n')
    result = limited("-v 8000000", "run", "--config", tmp_path / "c.toml", _HELLO)
    one_line(result, 2, [f"{parameter}='{size}'", "ulimit -v"])


def test_an_engine_without_address_space_is_one_line() -> None:
    """The engine itself would end the process, and say something about its translator."""
    code = "from aether_emu.machine.memory import host; host.has_room = lambda length: False\n"
    command = [sys.executable, "-c", f"{code}from aether_emu.cli.main import main; main()", "run", _HELLO]
    result = subprocess.run(command, capture_output=True, timeout=PATIENCE, env=environment(), check=False)
    one_line(result, 125, ["address space", "ulimit -v"])


def test_too_few_files_name_the_limit() -> None:
    one_line(limited("-n 6", "run", _HELLO), 126, ["EMFILE", "ulimit -n"])


@pytest.mark.parametrize("arguments", [["--help"], ["verify", "x86_64", "--suite", "entries"]])
def test_a_full_disk_behind_standard_output_is_one_line(arguments: list[str]) -> None:
    one_line(limited("-c 0", *arguments, stdout="/dev/full"), 125, ["No space left on device"])


@pytest.mark.parametrize("option", ["--stats-json", "--core"])
def test_what_cannot_be_written_as_a_whole_is_not_there(tmp_path: Path, option: str) -> None:
    result = limited("-f 0", "run", option, tmp_path / "out", _HELLO)
    assert result.returncode in (2, 125) and result.stderr.count(b"\n") == 1
    assert b"File too large" in result.stderr
    assert not list(tmp_path.iterdir())


def test_more_memory_than_the_supervisor_s_half_holds_names_it(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('virtual_bits = 39\nram = "512G"\n')
    result = aether("run", "--config", tmp_path / "c.toml", PROGRAMS / "arm64" / "hello")
    one_line(result, 2, ["ram='512G'", "at most 253G with 39 bits"])


def test_the_largest_memory_is_had_and_no_more() -> None:
    assert aether("run", "--ram", "512G", _HELLO).returncode == 0
    one_line(aether("run", "--ram", "513G", _HELLO), 2, ["--ram 513G ", "2M to 512G"])
