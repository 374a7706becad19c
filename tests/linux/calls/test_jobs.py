"""The terminal's foreground group: who may see and change it (tcsetpgrp(3), setpgid(2))."""

from __future__ import annotations

import errno
import struct

import pytest

from aether_emu.linux.abi import signal as sig
from aether_emu.linux.calls import jobs
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.streams import BufferStream, StreamFile
from aether_emu.linux.task.task import Task
from tests.linux.task.scripts import DATA, SPIN, Several

TIOCGPGRP, TIOCSPGRP, TIOCGSID, TIOCSCTTY = 0x540F, 0x5410, 0x5429, 0x540E


class Terminal(BufferStream):
    """A stream that is one."""

    def terminal_size(self) -> tuple[int, int] | None:
        return (80, 24)


def _with_terminal(several: Several) -> Task:
    """A process of the terminal's session, on the CPU."""
    task = several.calls(code=SPIN["x86_64"])
    task.process.session = task.process.registry.terminal_session
    table = task.process.files.table
    table.place(0, StreamFile("stdin", Terminal(), fl.O_RDWR, task.process.files.fstat(1)))
    several.machine.entry.switch(task)
    return task


def _request(task: Task, number: int, value: int = 0) -> int:
    """An ioctl on descriptor 0; the number that it left at DATA."""
    task.cpu.copy_to_user(DATA, struct.pack("<i", value))
    jobs.terminal_request(task, task.process.files.table.file(0), number, DATA)
    return int(struct.unpack("<i", task.cpu.copy_from_user(DATA, 4))[0])


def _refused(task: Task, number: int, value: int = 0) -> int:
    with pytest.raises(Exception) as caught:
        _request(task, number, value)
    return int(getattr(caught.value, "errno", 0))


def test_a_group_of_the_session_becomes_the_foreground() -> None:
    with Several("x86_64") as several:
        task = _with_terminal(several)
        process, registry = task.process, task.process.registry
        assert _request(task, TIOCGSID) == registry.terminal_session
        assert _request(task, TIOCGPGRP) == registry.foreground != process.group
        process.signals.actions[sig.SIGTTOU] = sig.Action(sig.SIG_IGN)
        assert _refused(task, TIOCSPGRP, 77) == errno.ESRCH
        assert _refused(task, TIOCSPGRP, -1) == errno.EINVAL
        _request(task, TIOCSPGRP, process.group)
        assert _request(task, TIOCGPGRP) == process.group
        assert _refused(task, TIOCSCTTY) == errno.EPERM


def test_who_is_in_the_background_is_stopped_when_it_takes_the_terminal() -> None:
    with Several("x86_64") as several:
        task = _with_terminal(several)
        process = task.process
        assert _refused(task, TIOCSPGRP, process.group) == errno.EIO, "its group is orphaned"
        shell = several.calls(code=SPIN["x86_64"]).process
        shell.session = process.session
        process.parent = shell
        several.machine.entry.switch(task)
        assert _refused(task, TIOCSPGRP, process.group) == errno.EINTR
        assert process.signals.pending.has(sig.SIGTTOU)


def test_a_pipe_and_another_session_have_no_terminal() -> None:
    with Several("x86_64") as several:
        task = _with_terminal(several)
        with pytest.raises(Exception, match="no terminal"):
            jobs.terminal_request(task, task.process.files.table.file(1), TIOCGPGRP, DATA)
        task.process.session = task.process.pid
        assert _refused(task, TIOCGPGRP) == errno.ENOTTY
