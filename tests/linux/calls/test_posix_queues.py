"""POSIX message queues: who may open and remove them, what limits them, and what a capture keeps.

What the calls answer one by one, and who waits for whom, is in the program `queues` of tests/programs.
"""

from __future__ import annotations

import errno
import struct

import pytest

from aether_emu.errors import Refused
from aether_emu.grants import Grants
from aether_emu.linux.credentials import of_user
from aether_emu.linux.files import flags as fl
from aether_emu.linux.ipc.posix_capture import capture_wait, restored_wait
from aether_emu.linux.ipc.posix_queues import Message, ReceiveWait, SendWait
from aether_emu.linux.ipc.queue_file import QueueFile
from aether_emu.linux.task.resource_limits import RLIMIT_MSGQUEUE
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Wait
from aether_emu.state import capture, restore
from aether_emu.system import Machine
from tests.guests.running import program
from tests.linux.task.scripts import DATA, Several, call

_NEW = fl.O_RDWR | fl.O_CREAT
_NAME, _ATTRIBUTES, _TEXT = DATA, DATA + 64, DATA + 256
_USR1, _SIGNAL = 10, 0


def _open(
    task: Task, name: bytes, flags: int, mode: int = 0o600, wanted: tuple[int, int] | None = None
) -> int:
    task.cpu.copy_to_user(_NAME, name + b"\0")
    if wanted is not None:
        task.cpu.copy_to_user(_ATTRIBUTES, struct.pack("<4q32x", 0, *wanted, 0))
    return call(task, "mq_open", _NAME, flags, mode, 0 if wanted is None else _ATTRIBUTES)


def _unlink(task: Task, name: bytes) -> int:
    task.cpu.copy_to_user(_NAME, name + b"\0")
    return call(task, "mq_unlink", _NAME)


def _become(several: Several, task: Task, uid: int) -> None:
    several.machine.entry.switch(task)
    task.credentials = several.machine.kernel.actor.credentials = of_user(uid, uid)


def test_a_queue_is_its_owners_by_mode_and_umask() -> None:
    with Several("x86_64") as several:
        one, other = several.calls(("getpid",)), several.calls(("getpid",))
        _become(several, one, 7)
        assert call(one, "umask", 0o022) >= 0
        assert _open(one, b"mine", _NEW, 0o666) >= 0
        assert _open(one, b"hidden", _NEW, 0o600) >= 0
        _become(several, other, 8)
        assert _open(other, b"mine", fl.O_RDONLY) >= 0
        assert _open(other, b"mine", fl.O_WRONLY) == _open(other, b"mine", _NEW) == -errno.EACCES
        assert _open(other, b"hidden", fl.O_RDONLY) == -errno.EACCES
        assert _unlink(other, b"mine") == -errno.EPERM
        _become(several, other, 0)
        assert _open(other, b"hidden", fl.O_RDWR) >= 0
        assert _unlink(other, b"mine") == 0


def test_what_a_queue_may_hold_depends_on_who_makes_it() -> None:
    with Several("x86_64") as several:
        task = several.calls(("getpid",))
        _become(several, task, 7)
        assert (
            _open(task, b"a", _NEW, wanted=(11, 1))
            == _open(task, b"a", _NEW, wanted=(1, 8193))
            == -errno.EINVAL
        )
        assert _open(task, b"a", _NEW, wanted=(10, 8192)) >= 0
        _become(several, task, 0)
        assert _open(task, b"b", _NEW, wanted=(65536, 1)) == -errno.EMFILE
        task.process.limits[RLIMIT_MSGQUEUE] = (1 << 30, 1 << 30)
        assert _open(task, b"b", _NEW, wanted=(65536, 1)) >= 0
        assert _open(task, b"c", _NEW, wanted=(65537, 1)) == -errno.EINVAL


def test_only_root_has_more_queues_than_there_may_be() -> None:
    with Several("x86_64") as several:
        task = several.calls(("getpid",))
        _become(several, task, 7)
        task.process.limits[RLIMIT_MSGQUEUE] = (1 << 30, 1 << 30)
        made = [_open(task, b"%d" % number, _NEW, wanted=(1, 1)) for number in range(257)]
        assert min(made[:256]) >= 0 and made[256] == -errno.ENOSPC
        _become(several, task, 0)
        assert _open(task, b"root's", _NEW, wanted=(1, 1)) >= 0


def test_messages_take_a_part_of_memory_at_most() -> None:
    with Several("x86_64") as several:
        task = several.calls(("getpid",))
        _become(several, task, 0)
        task.process.limits[RLIMIT_MSGQUEUE] = (1 << 40, 1 << 40)
        size = 1 << 19
        queue = _open(task, b"large", _NEW, wanted=(100, size))
        sent = [call(task, "mq_timedsend", queue, DATA, size, 0, 0) for _ in range(9)]
        assert sent == [0] * 8 + [-errno.ENOMEM]


def test_exec_closes_a_queue_and_a_close_ends_a_registration() -> None:
    with Several("x86_64") as several:
        task, other = several.calls(("getpid",)), several.calls(("getpid",))
        several.machine.entry.switch(task)
        queue = _open(task, b"q", _NEW)
        task.cpu.copy_to_user(_TEXT, struct.pack("<Qii48x", 5, _USR1, _SIGNAL))
        assert call(task, "mq_notify", queue, _TEXT) == 0
        found = several.machine.kernel.with_posix_queues().by_name[b"q"]
        several.machine.entry.switch(other)
        there = _open(other, b"q", fl.O_RDWR)
        call(other, "close", there)
        assert found.registration is not None
        task.files.close_on_exec()
        assert found.registration is None and not found.opened
        with pytest.raises(Refused):
            task.files.table.file(queue)


def test_who_executes_another_program_gets_no_signal() -> None:
    with Several("x86_64") as several:
        task = several.calls(("getpid",))
        queue = _open(task, b"q", _NEW)
        task.cpu.copy_to_user(_TEXT, struct.pack("<Qii48x", 5, _USR1, _SIGNAL))
        for executes in (False, True):
            assert call(task, "mq_notify", queue, _TEXT) == 0
            if executes:
                task.process.program = task.process.program.__class__(b"/other", [], [])
            assert call(task, "mq_timedsend", queue, _TEXT, 1, 0, 0) == 0
            assert bool(task.signals.waiting >> _USR1 - 1 & 1) is not executes
            assert call(task, "mq_timedreceive", queue, _TEXT + 99, 8192, 0, 0) == 1
            task.signals.take(1 << _USR1 - 1)


def test_what_is_there_goes_through_a_capture() -> None:
    """With messages, who is told, and one that has lost its name."""
    path = program("x86_64", "hello")
    with Machine("x86_64", ram="8M", aperture="4M") as machine:
        machine.load(path, grants=Grants(cwd=path.parent))
        task = machine.entry.task
        queues = machine.kernel.with_posix_queues()
        files = task.files
        for name in (b"kept", b"gone"):
            queue = queues.make(name, 0o640, None, 1 << 30)
            queue.inode = files.namespace.inodes.created()
            files.table.install(QueueFile(queue, fl.O_RDWR), cloexec=True)
            queue.send(Message(3, b"three"), 1, 2)
            queue.send(Message(9, b"nine"), 1, 2)
            queue.register(task.process, 1, 0, 0)
        queues.unlink(b"gone")
        before = capture(machine)
        with restore(before, grants=Grants(cwd=path.parent)) as again:
            assert capture(again)["posix_queues"] == before["posix_queues"]
            kept = again.kernel.with_posix_queues().by_name[b"kept"]
            assert kept.opened == 1 and len(again.kernel.with_posix_queues().all) == 2
            assert [kept.receive().data for _ in range(2)] == [b"nine", b"three"]


@pytest.mark.parametrize("closed", [False, True], ids=["there", "closed"])
def test_a_wait_that_has_its_result_keeps_it(closed: bool) -> None:
    with Machine("x86_64", ram="8M", aperture="4M") as machine:
        machine.load(program("x86_64", "hello"), grants=Grants())
        queues, task = machine.kernel.with_posix_queues(), machine.entry.task
        queue = queues.make(b"q", 0o600, None, 1 << 30)
        queue.inode = task.files.namespace.inodes.created()
        receives, sends = ReceiveWait(task, queue, 120), SendWait(task, queue, 99, Message(5, b"said"))
        receives.deadline = 77
        receives.ended, receives.message = True, Message(2, b"heard")
        if closed:
            queues.unlink(b"q")
        for wait in (receives, sends):
            described = capture_wait(wait)
            assert described is not None
            again = restored_wait(queues, task, described)
            assert capture_wait(again) == described
            assert (again.what, again.deadline, again.restart) == (wait.what, wait.deadline, wait.restart)
        assert capture_wait(Wait((), "another")) is None


def test_the_limits_are_shown() -> None:
    shown = {
        "msg_default": 10,
        "msg_max": 10,
        "msgsize_default": 8192,
        "msgsize_max": 8192,
        "queues_max": 256,
    }
    with Several("x86_64") as several:
        files = several.first.files
        for name, value in shown.items():
            fd = files.open(fl.AT_FDCWD, b"/proc/sys/fs/mqueue/" + name.encode(), fl.O_RDONLY)
            assert files.read(fd, 99) == b"%d\n" % value
