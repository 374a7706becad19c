"""Reaching into other processes: their memory and files, and whether two share them."""

from __future__ import annotations

import errno
import struct

import pytest

from aether_emu.linux.abi import signal as sig
from aether_emu.linux.credentials import of_user
from aether_emu.linux.files import flags as fl
from aether_emu.linux.task.task import Task
from tests.linux.task.scripts import CODE, DATA, DATA_SIZE, SPIN, Several, call, made_by

ISAS = pytest.mark.parametrize("isa", ["x86_64", "arm64"])
_FILE, _VM, _FILES, _FS, _SIGHAND, _WATCHED = *range(5), 7
_LOCAL, _REMOTE, _BYTES = DATA + 0x100, DATA + 0x200, DATA + 0x400
_NOWHERE = 0x7000_0000


def _two(several: Several, name: str = "fork", *arguments: int) -> tuple[Task, Task]:
    """A process on the CPU and its child."""
    first = several.calls(code=SPIN[several.isa])
    several.machine.entry.switch(first)
    second = made_by(first, name, *arguments)
    several.tasks.append(second)
    return first, second


def _move(
    task: Task, other: Task, name: str, local: list[tuple[int, int]], remote: list[tuple[int, int]]
) -> int:
    for address, pieces in ((_LOCAL, local), (_REMOTE, remote)):
        task.cpu.copy_to_user(address, b"".join(struct.pack("<QQ", *piece) for piece in pieces))
    return call(task, name, other.tid, _LOCAL, len(local), _REMOTE, len(remote))


@ISAS
def test_memory_goes_from_one_process_to_the_other(isa: str) -> None:
    with Several(isa) as several:
        one, two = _two(several)
        two.process.write(DATA, b"the child's")
        read, write = "process_vm_readv", "process_vm_writev"
        assert (
            _move(
                one, two, read, [(_BYTES, 4), (_BYTES + 8, 0), (_BYTES + 16, 99)], [(DATA, 6), (DATA + 6, 5)]
            )
            == 11
        )
        assert one.cpu.copy_from_user(_BYTES, 4) + one.cpu.copy_from_user(_BYTES + 16, 7) == b"the child's"
        one.cpu.copy_to_user(_BYTES, b"given")
        assert _move(one, two, write, [(_BYTES, 5)], [(DATA, 2), (DATA + 4, 3)]) == 5
        assert two.process.read(DATA, 7) == b"gie ven"
        assert one.process.read(DATA, 7) != b"gie ven", "the child has pages of its own"


@ISAS
def test_what_cannot_be_reached_ends_the_transfer(isa: str) -> None:
    with Several(isa) as several:
        one, two = _two(several)
        end, read = DATA + DATA_SIZE, "process_vm_readv"
        assert _move(one, two, read, [(_BYTES, 100)], [(end - 10, 50)]) == 10
        assert _move(one, two, read, [(_BYTES, 100)], [(_NOWHERE, 50)]) == -errno.EFAULT
        assert _move(one, two, read, [(end - 7, 100)], [(CODE, 50)]) == 7
        assert _move(one, two, read, [(_NOWHERE, 100)], [(CODE, 50)]) == -errno.EFAULT
        assert _move(one, two, read, [], [(CODE, 50)]) == _move(one, two, read, [(_BYTES, 9)], []) == 0
        assert _move(one, two, read, [(_BYTES, 1 << 63)], [(CODE, 5)]) == -errno.EINVAL
        assert _move(one, two, read, [(_BYTES, 8)], [(CODE, 1 << 63)]) == -errno.EINVAL
        assert call(one, read, 1 << 21, _LOCAL, 1, _REMOTE, 1) == -errno.EINVAL, "vectors come first"
        assert _move(one, two, read, [(_BYTES, 8)], [(CODE, 8)]) == 8
        assert call(one, read, 1 << 21, _LOCAL, 1, _REMOTE, 1) == -errno.ESRCH
        assert call(one, read, two.tid, _LOCAL, 1, _REMOTE, 1, 1) == -errno.EINVAL
        one.credentials, two.credentials = of_user(1000, 1000), of_user(1001, 1001)
        assert _move(one, two, read, [(_BYTES, 8)], [(CODE, 8)]) == -errno.EPERM


def test_kcmp_tells_what_is_shared() -> None:
    with Several("x86_64") as several:
        one, two = _two(several, "clone", 0x200 | sig.SIGCHLD)  # CLONE_FS
        numbers = one.tid, two.tid
        assert call(one, "kcmp", *numbers, _FS, 0, 0) == call(one, "kcmp", *numbers, _FILE, 1, 1) == 0
        for kind in (_VM, _FILES, _SIGHAND):
            forth, back = (
                call(one, "kcmp", *numbers, kind, 0, 0),
                call(one, "kcmp", *numbers[::-1], kind, 0, 0),
            )
            assert {forth, back} == {1, 2}, kind
        assert call(one, "kcmp", one.tid, one.tid, _VM, 0, 0) == 0
        assert call(one, "kcmp", *numbers, _FILE, 1, 99) == -errno.EBADF
        assert call(one, "kcmp", *numbers, 99, 0, 0) == -errno.EINVAL
        assert call(one, "kcmp", one.tid, 1 << 21, _VM, 0, 0) == -errno.ESRCH
        one.credentials, two.credentials = of_user(1000, 1000), of_user(1001, 1001)
        assert call(one, "kcmp", *numbers, _VM, 0, 0) == -errno.EPERM


def test_kcmp_finds_what_an_epoll_set_watches() -> None:
    """The file stays the set's, though the number is another file's now; of several one is chosen."""
    with Several("x86_64") as several:
        one, two = _two(several)
        numbers = one.tid, two.tid

        def compared(fd: int, of: int, number: int, skipped: int = 0) -> int:
            one.cpu.copy_to_user(_LOCAL, struct.pack("<3I", of, number, skipped))
            return call(one, "kcmp", *numbers, _WATCHED, fd, _LOCAL)

        counters = [one.files.eventfd(0) for _ in range(2)]
        watches = call(one, "epoll_create1", 0)
        one.cpu.copy_to_user(_BYTES, struct.pack("<IQ", 1, 0))
        one.files.dup2(counters[0], 50)
        for _ in range(2):
            assert call(one, "epoll_ctl", watches, 1, counters[0], _BYTES) == 0
            one.files.dup2(counters[1], counters[0])
        two.files.table.place(60, one.files.table.held(watches))
        assert [compared(counters[1], 60, counters[0], skipped) > 0 for skipped in (0, 1)] == [True, False]
        assert compared(50, 60, counters[0]) == 0 and compared(counters[0], 60, counters[0], 1) == 0
        assert compared(counters[0], 60, 9) == compared(counters[0], 60, counters[0], 2) == -errno.ENOENT
        assert compared(99, 60, counters[0]) == compared(counters[0], 61, 9) == -errno.EBADF
        assert compared(counters[0], 1, 9) == -errno.EINVAL
        assert call(one, "kcmp", *numbers, _WATCHED, counters[0], _NOWHERE) == -errno.EFAULT


def test_an_open_file_is_taken_from_another_process() -> None:
    with Several("x86_64") as several:
        one, two = _two(several)
        pidfd = call(one, "pidfd_open", two.tid)
        fd = two.files.open(fl.AT_FDCWD, b"/dev/zero", fl.O_RDONLY)
        taken = call(one, "pidfd_getfd", pidfd, fd)
        assert one.files.table.held(taken) is two.files.table.held(fd) and one.files.closes_on_exec(taken)
        assert call(one, "pidfd_getfd", pidfd, 99) == call(one, "pidfd_getfd", 1, fd) == -errno.EBADF
        one.credentials, two.credentials = of_user(1000, 1000), of_user(1001, 1001)
        assert call(one, "pidfd_getfd", pidfd, fd) == -errno.EPERM
