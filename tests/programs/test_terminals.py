"""Shells with job control at a terminal, and programs that take the whole of it: Debian's static ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.sitting import Sitting, sitting
from tests.programs.run import ISAS

pytestmark = [pytest.mark.debian, pytest.mark.parametrize("isa", ISAS)]

BUSYBOX = "/bin/busybox"
PROMPT = b"ready> "


@contextmanager
def shell(static: Path, isa: str, name: str, *arguments: str) -> Iterator[Sitting]:
    """A shell that has said its prompt."""
    programs = static / isa / "bin"
    options = ["--bind", f"{programs / 'busybox'}:{BUSYBOX}", "--env", "TERM=xterm", "--env", "PS1=ready> "]
    with sitting("run", *options, programs / name, *arguments) as at:
        at.wait(PROMPT)
        yield at


def tell(at: Sitting, line: str) -> str:
    """Type a line at the prompt: what appears until the next prompt."""
    at.type(line.encode() + b"\n")
    return at.wait(PROMPT).decode().replace("\r", "")


SHELLS = [("bash-static", "--norc", "-i"), ("busybox", "sh", "-i")]


@pytest.mark.parametrize("command", SHELLS, ids=lambda command: command[0])
def test_a_shell_controls_its_jobs(static: Path, isa: str, command: tuple[str, ...]) -> None:
    with shell(static, isa, *command) as at:
        assert "/dev/pts/0\n24 80\n" in tell(at, f"{BUSYBOX} tty; {BUSYBOX} stty size")
        at.type(f"{BUSYBOX} sh -c 'echo be\"\"gun; exec {BUSYBOX} cat'\n".encode())
        at.wait(b"begun\r\n")
        at.type(b"hello\n")
        at.wait(b"hello\r\nhello\r\n")
        at.type(b"\x1a")
        assert "Stopped" in at.wait(PROMPT).decode()
        at.type(b"fg\n")
        at.wait(b"busybox cat")
        at.type(b"again\n")
        at.wait(b"again\r\n")  # the echo, or what it writes when it was typed before the shell turned that on
        at.type(b"more\n")
        at.wait(b"more\r\n")
        at.wait(b"more\r\n")
        at.type(b"\x03")
        at.wait(PROMPT)
        assert "1" not in tell(at, "jobs").removeprefix("jobs").replace("\x1b[6n", "")
        tell(at, f"{BUSYBOX} cat &")  # it reads in the background
        while "Stopped" not in tell(at, "jobs"):
            pass
        at.type(b"fg\n")
        at.wait(b"busybox cat")
        at.type(b"read\n")
        at.wait(b"read\r\n")
        at.type(b"\x04")
        at.wait(PROMPT)
        at.type(b"exit 7\n")
        assert at.status() == 7


@pytest.mark.parametrize("command", SHELLS, ids=lambda command: command[0])
def test_an_editor_has_the_screen_and_gives_it_back(static: Path, isa: str, command: tuple[str, ...]) -> None:
    with shell(static, isa, *command) as at:
        at.type(BUSYBOX.encode() + b" vi /tmp/file\n")
        at.wait(b"~")
        at.type(b"iwritten")
        at.wait(b"written")
        at.type(b"\x1b")
        at.wait(b"- /tmp/file")
        at.type(b":wq\r")
        at.wait(PROMPT)
        assert "written\n" in tell(at, f"{BUSYBOX} cat /tmp/file")
        at.type(b"exit\n")
        assert at.status() == 0
