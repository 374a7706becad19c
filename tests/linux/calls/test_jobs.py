"""Job control: who may read, change and have a terminal, and who is stopped or hears of its end."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

import pytest

from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.calls import terminals
from aether_emu.linux.files import flags as fl
from aether_emu.linux.task import family, job_control
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Sent
from aether_emu.linux.tty import modes as m
from aether_emu.linux.tty.pty import Pty, PtyMaster, PtyTerminal
from tests.linux.task.scripts import DATA, SPIN, Several

TIOCSCTTY, TIOCGPGRP, TIOCSPGRP, TIOCNOTTY, TIOCGSID = 0x540E, 0x540F, 0x5410, 0x5422, 0x5429
TIOCSTI, TCSETS = 0x5412, 0x5402


class Session:
    """A shell that leads a session with a pseudo-terminal, on descriptor 5; its master is descriptor 6."""

    def __init__(self, several: Several) -> None:
        self.several = several
        several.machine.observers.running = True  # calls are made as if it ran
        self.shell = self.process()
        self.shell.process.group = self.shell.process.session = self.shell.process.pid
        files = self.shell.process.files
        self.master_fd = files.open(fl.AT_FDCWD, b"/dev/ptmx", fl.O_RDWR)
        master = files.table.file(self.master_fd)
        assert isinstance(master, PtyMaster)
        self.pty: Pty = master.pty
        self.pty.locked = False
        self.fd = files.open(fl.AT_FDCWD, self.pty.name, fl.O_RDWR)
        self.file = files.table.file(self.fd)
        assert isinstance(self.file, PtyTerminal)
        terminals.opened(self.shell, self.file, 0)

    def process(self) -> Task:
        return self.several.calls(code=SPIN["x86_64"])

    def job(self) -> Task:
        """A child of the shell in a group of its own."""
        task = self.process()
        process, shell = task.process, self.shell.process
        process.session, process.terminal = shell.session, shell.terminal
        family.adopt(shell, process)
        return task

    def request(self, task: Task, number: int, value: int = 0) -> int:
        """An ioctl on the terminal; the number that it left at DATA."""
        self.several.machine.entry.switch(task)
        task.cpu.copy_to_user(DATA, struct.pack("<i", value).ljust(44, b"\0"))
        terminals.control(task, self.fd, self.file, number, DATA)
        return int(struct.unpack("<i", task.cpu.copy_from_user(DATA, 4))[0])

    def refused(self, task: Task, number: int, value: int = 0) -> int:
        with pytest.raises(Refused) as caught:
            self.request(task, number, value)
        return caught.value.errno


@pytest.fixture
def session() -> Iterator[Session]:
    """See `Session`."""
    with Several("x86_64") as several:
        yield Session(several)
        several.machine.observers.running = False


def test_who_opens_a_terminal_and_leads_a_session_has_it(session: Session) -> None:
    process = session.shell.process
    assert process.terminal is session.pty
    assert session.request(session.shell, TIOCGSID) == process.session
    assert session.request(session.shell, TIOCGPGRP) == process.group
    assert session.request(session.shell, TIOCSCTTY) == 0
    stranger = session.process()
    assert session.refused(stranger, TIOCGPGRP) == session.refused(stranger, TIOCGSID) == errno.ENOTTY
    assert session.refused(stranger, TIOCSCTTY) == errno.EPERM
    assert session.refused(session.shell, TIOCSTI) == errno.EIO


def test_a_group_of_the_session_is_put_in_front(session: Session) -> None:
    job = session.job()
    assert session.refused(session.shell, TIOCSPGRP, 77) == errno.ESRCH
    assert session.refused(session.shell, TIOCSPGRP, -1) == errno.EINVAL
    assert session.refused(session.shell, TIOCSPGRP, session.process().process.group) == errno.EPERM
    session.request(session.shell, TIOCSPGRP, job.process.group)
    assert session.request(job, TIOCGPGRP) == job.process.group


@pytest.mark.parametrize(("number", "request_"), [(sig.SIGTTOU, TIOCSPGRP), (sig.SIGTTOU, TCSETS)])
def test_who_is_in_the_background_is_stopped_when_it_changes_the_terminal(
    session: Session, number: int, request_: int
) -> None:
    job = session.job()
    with pytest.raises(Sent):
        session.request(job, request_, job.process.group)
    assert job.process.signals.pending.has(number)
    job.process.forget(number)
    job.process.signals.actions[number] = sig.Action(sig.SIG_IGN)
    session.request(job, request_, job.process.group)


def test_who_reads_in_the_background_is_stopped_or_refused(session: Session) -> None:
    job = session.job()
    session.several.machine.entry.switch(job)
    with pytest.raises(Sent):
        terminals.check(job, session.pty, sig.SIGTTIN)
    assert job.process.signals.pending.has(sig.SIGTTIN)
    job.process.signals.actions[sig.SIGTTIN] = sig.Action(sig.SIG_IGN)
    with pytest.raises(Refused) as caught:
        terminals.check(job, session.pty, sig.SIGTTIN)
    assert caught.value.errno == errno.EIO


def test_nobody_stops_in_an_orphaned_group(session: Session) -> None:
    job = session.job()
    session.shell.process.children.remove(job.process)
    job.process.parent = None
    for request in (TIOCSPGRP, TCSETS):
        expected = errno.ENOTTY if request == TIOCSPGRP else errno.EIO
        assert session.refused(job, request, job.process.group) == expected
    assert not job.process.can_stop(sig.SIGTSTP)
    assert job.process.can_stop(sig.SIGSTOP)


def test_keys_reach_the_group_in_front(session: Session) -> None:
    job = session.job()
    session.request(session.shell, TIOCSPGRP, job.process.group)
    master = session.shell.process.files.table.file(session.master_fd)
    for key, number in ((b"\x03", sig.SIGINT), (b"\x1c", sig.SIGQUIT), (b"\x1a", sig.SIGTSTP)):
        for each in (job.process, session.shell.process):
            each.signals.actions[number] = sig.Action(DATA)
        assert master.write(key) == 1
        assert job.process.signals.pending.has(number)
        assert not session.shell.process.signals.pending.has(number)
    job.process.signals.actions[sig.SIGWINCH] = sig.Action(DATA)
    session.pty.resize((24, 80, 0, 0))
    assert job.process.signals.pending.has(sig.SIGWINCH)


def test_the_shell_hears_of_the_terminals_end_and_the_job_of_the_shells(
    session: Session,
) -> None:
    shell, job = session.shell.process, session.job().process
    for process in (shell, job):
        process.signals.actions[sig.SIGHUP] = sig.Action(DATA)
    session.request(session.shell, TIOCSPGRP, job.group)
    shell.files.close(session.master_fd)
    assert shell.signals.pending.has(sig.SIGHUP)
    assert not job.signals.pending.has(sig.SIGHUP)
    assert shell.terminal is job.terminal is None
    assert session.file.read(10) == b""
    with pytest.raises(Refused):
        session.file.write(b"x")
    job_control.leave_terminal(shell.registry, shell, ends=True)
    assert job.signals.pending.has(sig.SIGHUP)


def test_a_stopped_job_is_woken_when_nobody_is_left_who_could(session: Session) -> None:
    shell, job = session.shell.process, session.job().process
    job.signals.actions[sig.SIGHUP] = sig.Action(DATA)
    job.stop(sig.SIGTSTP)
    job.parent = None
    jobs: list[Process] = [job]
    job_control.has_ended(shell.registry, shell, jobs)
    assert job.signals.pending.has(sig.SIGHUP)
    assert not job.stop_signal


def test_a_leader_gives_its_terminal_up(session: Session) -> None:
    shell, job = session.shell.process, session.job()
    job.process.signals.actions[sig.SIGHUP] = sig.Action(DATA)
    session.request(session.shell, TIOCSPGRP, job.process.group)
    session.request(session.shell, TIOCNOTTY)
    assert shell.terminal is job.process.terminal is None
    assert job.process.signals.pending.has(sig.SIGHUP)
    assert (session.pty.session, session.pty.foreground) == (0, 0)
    assert session.refused(session.shell, TIOCNOTTY) == errno.ENOTTY


def test_tostop_keeps_the_background_from_writing(session: Session) -> None:
    job = session.job()
    session.several.machine.entry.switch(job)
    terminals.before_write(job, session.file)
    session.pty.change(m.Modes(local=m.ICANON | m.TOSTOP), flush=False)
    with pytest.raises(Sent):
        terminals.before_write(job, session.file)
