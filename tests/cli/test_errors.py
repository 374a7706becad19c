"""What `aether` says when something is wrong: one line on stderr and the shell's exit status."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import PROGRAMS, aether, one_line
from tests.linux.exec.crafted import crafted

_HELLO = str(PROGRAMS / "x86_64" / "hello")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ["nonsense"]),
        (["run"], ["Missing argument"]),
        (["run", "--nope", _HELLO], ["--nope"]),
        (["run", "--timeout", "soon", _HELLO], ["--timeout"]),
        (["run", "--timeout", "-1", _HELLO], ["timeout=-1.0", "more than 0"]),
        (["run", "--ram", "3x", _HELLO], ["ram='3x'"]),
        (["run", "--ram", "1M", _HELLO], ["ram='1M'", "from 2M"]),
        (["run", "--seed", "-1", _HELLO], ["seed=-1"]),
        (["run", "--config", "/missing.toml", _HELLO], ["/missing.toml"]),
        (["run", "--bind", "here", _HELLO], ["bind='here'", "HOST:GUEST"]),
        (["run", "--bind", "/missing:/data", _HELLO], ["/missing"]),
        (["run", "--bind", "/proc:/data", _HELLO], ["/proc", "kernel"]),
        (["run", "--env", "NAME", _HELLO], ["NAME=VALUE"]),
        (["run", "--root", "/missing", "hello"], ["/missing"]),
        (["run", "--stats-json", "/missing/file", _HELLO], ["stats-json"]),
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
        (crafted()[:0x800], 126, "truncated"),
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
    for arguments in ([], ["--help"], ["run", "--help"]):
        result = aether(*arguments)
        assert result.returncode == 0
        assert b"Usage: aether" in result.stdout
    assert aether("--version").stdout.startswith(b"aether_emu ")
