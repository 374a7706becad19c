"""System V shared memory: segments by key and number, their owners, and when they end."""

from __future__ import annotations

import errno
import struct

import pytest

from aether_emu.grants import Grants
from aether_emu.linux.credentials import of_user
from aether_emu.linux.task.task import Task
from aether_emu.mm.frames.table import Kind
from aether_emu.state import capture, restore
from aether_emu.system import Machine
from tests.guests.running import program
from tests.linux.task.scripts import CODE, DATA, SPIN, Several, call, made_by

ISAS = pytest.mark.parametrize("isa", ["x86_64", "arm64"])
_KEY, _CREATE, _EXCLUSIVE, _READ_ONLY, _REMAP = 0x1234, 0o1000, 0o2000, 0o10000, 0o40000
_REMOVE, _SET, _STAT = 0, 1, 2


def _attached(task: Task, number: int) -> tuple[int, int, int, int]:
    """(key, mode, size, how often attached)."""
    assert call(task, "shmctl", number, _STAT, DATA) == 0
    data = task.cpu.copy_from_user(DATA, 112)
    (key,), (mode,), (size,) = (
        struct.unpack_from(layout, data, at) for layout, at in (("<i", 0), ("<I", 20), ("<Q", 48))
    )
    return key, mode, size, struct.unpack_from("<Q", data, 88)[0]


@ISAS
def test_processes_that_attach_a_segment_share_its_memory_until_the_last_has_left(isa: str) -> None:
    with Several(isa) as several:
        one = several.calls(code=SPIN[isa])
        several.machine.entry.switch(one)
        number = call(one, "shmget", _KEY, 10_000, _CREATE | 0o600)
        assert call(one, "shmget", _KEY, 10_000, _CREATE | _EXCLUSIVE) == -errno.EEXIST
        assert (
            call(one, "shmget", _KEY, 10_001, 0) == call(one, "shmget", _KEY + 1, 0, _CREATE) == -errno.EINVAL
        )
        assert call(one, "shmget", _KEY + 1, 1, 0) == -errno.ENOENT
        where = call(one, "shmat", number, 0, 0)
        one.cpu.copy_to_user(where, b"shared")
        two = made_by(one, "fork")
        several.tasks.append(two)
        two.process.write(where + 6, b" by two")
        assert one.process.read(where, 13) == b"shared by two"
        assert _attached(one, number) == (_KEY, 0o600, 10_000, 2)
        assert call(one, "shmctl", number, _REMOVE, 0) == 0
        assert _attached(one, number) == (0, 0o1600, 10_000, 2)
        assert call(one, "shmget", _KEY, 1, 0) == -errno.ENOENT
        assert call(one, "shmdt", where) == 0 and call(one, "shmdt", where) == -errno.EINVAL
        system_v, census = several.machine.kernel.system_v, several.machine.frames.census
        assert system_v is not None and len(system_v.segments) == 1 and census()[Kind.SHARED]
        several.machine.entry.switch(two)
        assert call(two, "shmdt", where) == 0
        assert not system_v.segments and not census()[Kind.SHARED]


def test_an_address_must_be_free_unless_it_is_to_be_replaced() -> None:
    with Several("x86_64") as several:
        task = several.calls(code=SPIN["x86_64"])
        several.machine.entry.switch(task)
        number = call(task, "shmget", 0, 4096, 0o600)
        assert (
            call(task, "shmat", number, CODE, 0) == call(task, "shmat", number, CODE + 1, 0) == -errno.EINVAL
        )
        assert call(task, "shmat", number, CODE, _REMAP) == CODE
        where = call(task, "shmat", number, 0, _READ_ONLY)
        assert call(task, "mprotect", where, 4096, 3) == -errno.EACCES
        assert call(task, "shmat", number + 1, 0, 0) == call(task, "shmat", -1, 0, 0) == -errno.EINVAL
        assert str(task.process.areas).count("/SYSV00000000 (deleted)") == 2
        for each in (CODE, where):
            assert call(task, "shmdt", each) == 0
        assert call(task, "shmctl", number, _REMOVE, 0) == 0
        again = call(task, "shmget", 0, 4096, 0o600)
        assert again == number + 1, "numbers are not used again at once"
        assert call(task, "shmctl", again, _REMOVE, 0) == 0


def test_a_segment_has_an_owner_and_a_mode() -> None:
    with Several("x86_64") as several:
        task = several.calls(code=SPIN["x86_64"])
        several.machine.entry.switch(task)
        task.credentials = of_user(1000, 1000)
        number = call(task, "shmget", _KEY, 4096, _CREATE | 0o640)
        task.credentials = of_user(1001, 1000)
        assert call(task, "shmat", number, 0, 0) == call(task, "shmget", _KEY, 1, 0o600) == -errno.EACCES
        where = call(task, "shmat", number, 0, _READ_ONLY)
        assert where > 0 and call(task, "shmdt", where) == 0
        for command in (_REMOVE, _SET):
            assert call(task, "shmctl", number, command, DATA) == -errno.EPERM
        task.credentials = of_user(1001, 1001)
        assert call(task, "shmctl", number, _STAT, DATA) == -errno.EACCES
        task.credentials = of_user(0, 0)
        assert call(task, "shmctl", number, _REMOVE, 0) == 0


@ISAS
def test_a_segment_that_nobody_removed_ends_with_the_machine_and_goes_through_a_capture(isa: str) -> None:
    path = program(isa, "hello")
    with Machine(isa, ram="8M", aperture="4M") as machine:
        machine.load(path, grants=Grants(cwd=path.parent))
        assert machine.run_for(20) is None
        task = machine.entry.task
        kept, gone = (call(task, "shmget", key, 9000, _CREATE | 0o640) for key in (_KEY, 0))
        at = call(task, "shmat", kept, 0, 0), call(task, "shmat", gone, 0, 0)
        for number, address in enumerate(at):
            task.process.write(address + 5000, b"text %d" % number)
        assert call(task, "shmctl", gone, _REMOVE, 0) == 0
        before = capture(machine)
        with restore(before, grants=Grants(cwd=path.parent)) as again:
            assert capture(again)["system_v"] == before["system_v"]
            other = again.entry.task
            assert [other.process.read(address + 5000, 6) for address in at] == [b"text 0", b"text 1"]
            assert call(other, "shmget", _KEY, 0, 0) == kept
            assert call(other, "shmdt", at[1]) == 0
            assert call(other, "shmat", gone, 0, 0) == -errno.EINVAL, "it ended with its last area"
            made = [call(each, "shmget", 0, 4096, 0o600) for each in (task, other)]
            assert made[0] == made[1]
