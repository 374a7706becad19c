"""What `aether` says about itself: help, completion, the manual page, its parameters, a first program."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from aether_emu.cli.app import app
from aether_emu.config import Config
from tests.cli.command import COMMAND, ISAS, PATIENCE, PROGRAMS, aether, environment, one_line

_REQUESTS = (".TH", ".SH", ".SS", ".PP", ".TP", ".nf", ".fi")
_SOURCES = Path(__file__).parents[2]


def _commands() -> list[tuple[str, ...]]:
    """The words that lead to each command, those of groups included."""
    found: list[tuple[str, ...]] = [()]
    context = click.Context(app)
    for name in app.list_commands(context):
        command = app.get_command(context, name)
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, inner) for inner in command.list_commands(context)]
    return found


def _on_a_terminal(*arguments: str, columns: int = 80) -> tuple[int, str]:
    """Exit status and all output of the command on a terminal."""
    terminal, side = pty.openpty()
    settings = {**environment(), "TERM": "xterm", "COLUMNS": str(columns)}
    with subprocess.Popen(
        [*COMMAND, *arguments], stdin=side, stdout=side, stderr=side, env=settings
    ) as child:
        os.close(side)
        told = b""
        while True:
            try:
                part = os.read(terminal, 65536)
            except OSError:  # how Linux says that the other side is closed
                break
            if not part:
                break
            told += part
        status = child.wait(PATIENCE)
    os.close(terminal)
    return status, told.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_help_is_plain_text_that_fits_a_terminal(words: tuple[str, ...]) -> None:
    status, shown = _on_a_terminal(*words, "-h")
    assert status == 0
    assert shown.startswith(f"Usage: {' '.join(['aether', *words])} ")
    assert max(map(len, shown.splitlines())) <= 80
    assert not re.search(r"[\\\x00-\x09\x0b-\x1f]", shown), "no escape of a markup or of a terminal"
    assert "..." not in shown.partition("Commands:")[2], "no help is cut short"
    assert aether(*words, "--help").stdout.decode() == shown, "a pipe gets the same"


def test_help_shows_the_defaults() -> None:
    shown = " ".join(aether("run", "-h").stdout.decode().split())
    for option, default in (("--ram SIZE", "512M"), ("--seed N", "0"), ("--granule SIZE", "4K")):
        assert f"[default: {default}]" in shown.partition(option)[2].partition(" --")[0], option
    shown = " ".join(aether("verify", "-h").stdout.decode().split())
    for option, default in (("--suite SUITE", "all"), ("--cases N", "20000"), ("--jobs N", "1")):
        assert f"[default: {default}]" in shown.partition(option)[2].partition(" --")[0], option


@pytest.mark.parametrize("words", [(), ("pt",)], ids=["aether", "pt"])
def test_a_group_alone_prints_its_help_as_a_refusal(words: tuple[str, ...]) -> None:
    result = aether(*words)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr == aether(*words, "--help").stdout


def test_listing_the_commands_imports_none_of_them() -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], "--help"],
        capture_output=True, env=environment(), text=True, check=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "click" in imported
    heavy = ("numpy", "unicorn", "rich", "aether_emu.system", "aether_emu.cli.run", "aether_emu.cli.pt")
    assert imported.isdisjoint(heavy)


def test_python_m_is_the_command_under_its_own_name() -> None:
    command = [sys.executable, "-m", "aether_emu"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], capture_output=True, env=environment(), text=True, check=False
        )

    assert run("-h").stdout.startswith("Usage: python -m aether_emu [OPTIONS]")
    assert "(see python -m aether_emu run --help)" in run("run").stderr
    assert run("run", str(PROGRAMS / "x86_64" / "hello")).stdout.startswith("hello, world")


# ---- completion


def _completed(tmp_path: Path, *words: str) -> list[str]:
    """What bash offers for the last word, after it has read what `aether completion bash` prints."""
    shim = tmp_path / "aether"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m aether_emu "$@"\n')
    shim.chmod(0o755)
    script = (
        'eval "$(aether completion bash)"\n'
        'COMP_WORDS=(aether "$@"); COMP_CWORD=$#\n'
        "_aether_completion aether\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    settings = {**environment(), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "-c", script, "bash", *words], capture_output=True, text=True, env=settings, check=True
    )
    return result.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("ver",), ["verify"]),
        (("run", "--gr"), ["--granule"]),
        (("run", "--granule", ""), ["4K", "16K", "64K"]),
        (("run", "--stat"), ["--stats", "--stats-json"]),
        (("run", "--strace-only", "%mem"), ["%memory"]),
        (("run", "--strace-only", "mmap,page"), ["mmap,page-fault"]),
        (("pt", "w"), ["walk", "who"]),
        (("pt", "show", "--format", "x86_64"), ["x86_64-4level", "x86_64-5level"]),
        (("verify", "--suite", "t"), ["tlb"]),
        (("verify", "arm64-64K"), ["arm64-64K", "arm64-64K-42bit"]),
        (("litmus", "coRR-pte9-no"), ["coRR-pte9-nobbm", "coRR-pte9-nobbm+dsb", "coRR-pte9-noscope"]),
        (("bench", "sysc"), ["syscall", "syscall/x86_64", "syscall/arm64"]),
        (("demo", "a"), ["arm64"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bash_completes(tmp_path: Path, words: tuple[str, ...], offered: list[str]) -> None:
    assert _completed(tmp_path, *words) == offered


@pytest.mark.parametrize(
    ("shell", "line"), [("zsh", "#compdef aether"), ("fish", "function _aether_completion;")]
)
def test_other_shells_have_functions_too(shell: str, line: str) -> None:
    result = aether("completion", shell)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode().startswith(line)
    assert b"_AETHER_COMPLETE=" in result.stdout


@pytest.mark.parametrize(("shell", "word"), [("zsh", "3"), ("fish", "mmap,page")])
def test_other_shells_are_offered_the_same(shell: str, word: str) -> None:
    """What their functions ask the command for, in Click's protocol."""
    asked = {
        "_AETHER_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": "aether run --strace-only mmap,page",
        "COMP_CWORD": word,
    }
    command = [sys.executable, "-m", "aether_emu"]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**environment(), **asked}, check=True
    )
    assert "mmap,page-fault" in result.stdout


def test_an_unknown_shell_is_refused() -> None:
    one_line(aether("completion", "csh"), 2, ["SHELL csh ", "bash, zsh, fish"])


# ---- the manual page


def test_the_manual_page_has_every_command_and_option() -> None:
    page = aether("man").stdout.decode()
    assert page.startswith('.TH AETHER 1 "" "aether_emu ')
    shown = page.replace(r"\-", "-")
    for words in _commands():
        assert f"\n.SS aether {' '.join(words)}\n" in shown or not words
        options = aether(*words, "--help").stdout.decode().partition("\nOptions:\n")[2]
        for option in re.findall(r"^  (-.*?)(?:  |$)", options, re.MULTILINE):
            assert rf"\fB{option}\fR" in shown, option


def test_the_manual_page_is_well_formed() -> None:
    """Only requests of man(7) begin a line with a dot, and only escapes that roff knows are there."""
    page = aether("man").stdout.decode()
    for line in page.splitlines():
        assert line[:1] != "'"
        assert not line.startswith(".") or line.split()[0] in (
            ".TH",
            ".SH",
            ".SS",
            ".PP",
            ".TP",
            ".nf",
            ".fi",
        )
        assert not re.search(r"\\(?!-|e|&|fB|fR)", line), line


# ---- parameters


def test_the_parameters_are_a_file_that_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    path.write_bytes(aether("config").stdout)
    assert Config.load(path) == Config()
    text = path.read_text()
    for row in Config.describe():
        assert re.search(rf"^(# )?{row.name.removeprefix('clock.')} =", text, re.MULTILINE), row.name
    assert max(map(len, text.splitlines())) <= 80


def test_the_page_of_the_parameters_is_current() -> None:
    page = aether("config", "--markdown").stdout.decode()
    assert (_SOURCES / "docs" / "configuration.md").read_text() == page
    assert all(f"| `{row.name}` | {row.type} |" in page for row in Config.describe())


# ---- the demo


@pytest.mark.parametrize("isa", ISAS)
def test_the_demo_is_a_program_that_can_be_run_again(tmp_path: Path, isa: str) -> None:
    result = aether("demo", isa, cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.decode().startswith(f"A tour of virtual memory, on {isa}")
    first, _, table = result.stderr.decode().partition("\n")
    assert first.startswith("$ aether run --stats /")
    assert "page-table pages" in table
    assert aether(*first.split()[2:], cwd=tmp_path).stdout == result.stdout
