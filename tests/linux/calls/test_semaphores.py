"""System V semaphores and message queues: random walks beside the real kernel, limits, who waits for what.

What the calls answer one by one is in the program `sysv` of tests/programs.
"""

from __future__ import annotations

import errno
import random
import struct

import pytest

from aether_emu.grants import Grants
from aether_emu.linux.credentials import of_user
from aether_emu.linux.ipc.capture import capture_wait, restored_wait
from aether_emu.linux.ipc.messages import Message, ReceiveWait, SendWait, Wanted
from aether_emu.linux.ipc.semaphores import Operation, SemaphoreWait
from aether_emu.linux.ipc.undo import Undo
from aether_emu.linux.task.scheduler import Deadlock
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Wait
from aether_emu.state import capture, restore
from aether_emu.system import Machine
from tests.guests.running import program
from tests.linux.calls.twin import ARGUMENTS, A, F, Twin
from tests.linux.task.scripts import DATA, SPIN, Several, call, made_by

ISAS = pytest.mark.parametrize("isa", ["x86_64", "arm64"])
_PRIVATE, _CREATE, _NO_WAIT, _UNDO = 0, 0o1000, 0o4000, 0o10000
_REMOVE, _GETPID, _GETALL, _GETNCNT, _SETVAL, _SETALL = 0, 11, 13, 14, 16, 17
_SIZE = 4


def _operations(chance: random.Random) -> bytes:
    count = chance.choice((1, 1, 2, 3))
    flags = (_NO_WAIT, _NO_WAIT | _UNDO)
    return b"".join(
        struct.pack(
            "<Hhh",
            chance.choice((0, 1, 2, 3, 3, 4)),
            chance.choice((0, 1, -1, 2, -2, 7, 32767)),
            chance.choice(flags),
        )
        for _ in range(count)
    )


@pytest.mark.parametrize("seed", range(6))
def test_semaphores_walk_as_those_of_the_kernel(twin: Twin, seed: int) -> None:
    chance = random.Random(seed)
    twin.open("set", "semget", _PRIVATE, _SIZE, 0o600)
    try:
        for _ in range(150):
            match chance.randrange(6):
                case 0 | 1 | 2:
                    raw = _operations(chance)
                    twin.call("semop", F("set"), twin.put(ARGUMENTS, raw), len(raw) // 6)
                case 3:
                    at, value = chance.randrange(-1, 5), chance.choice((0, 1, 5, 32767, 32768, -1))
                    twin.call("semctl", F("set"), at, _SETVAL, value)
                case 4:
                    values = [chance.choice((0, 1, 3, 32767)) for _ in range(_SIZE)]
                    twin.put(ARGUMENTS, struct.pack(f"<{_SIZE}H", *values))
                    twin.call("semctl", F("set"), 0, _SETALL, A(ARGUMENTS))
                case 5:
                    twin.call("semctl", F("set"), 0, _GETALL, A(chance.randrange(200)))
    finally:
        twin.call("semctl", F("set"), 0, _REMOVE, 0)
        twin.forget("set")


@pytest.mark.parametrize("seed", range(6))
def test_queues_walk_as_those_of_the_kernel(twin: Twin, seed: int) -> None:
    chance = random.Random(seed)
    twin.open("queue", "msgget", _PRIVATE, 0o600)
    try:
        for step in range(150):
            size = chance.choice((0, 1, 5, 100, 1000, 4000))
            if chance.randrange(3):
                twin.put(ARGUMENTS, struct.pack("<q", chance.choice((1, 1, 2, 3, 0, 1 << 40))))
                twin.put(ARGUMENTS + 8, bytes([step & 0xFF]) * min(size, 4000))
                twin.call("msgsnd", F("queue"), A(ARGUMENTS), size, _NO_WAIT)
            else:
                flags = _NO_WAIT | chance.choice((0, 0o10000, 0o20000, 0o30000, 0o40000, 0o50000))
                kind = chance.choice((0, 0, 1, 2, 3, 9, -1, -2, -3, -(1 << 63)))
                twin.call("msgrcv", F("queue"), A(chance.randrange(64)), size, kind, flags)
    finally:
        twin.call("msgctl", F("queue"), _REMOVE, 0)
        twin.forget("queue")


@ISAS
def test_who_waits_is_named_when_nothing_can_come(isa: str) -> None:
    with Several(isa) as several:
        one = several.calls(
            ("semget", 0, 3, 0o600),
            ("msgget", 0, 0o600),
            ("semop", 0, DATA, 1),
            data=struct.pack("<Hhh", 2, -3, 0),
        )
        two = several.calls(("msgrcv", 0, DATA, 10, -7, 0))
        assert one is not two
        with pytest.raises(Deadlock) as found:
            several.machine.scheduler.run()
        assert "waits for semaphore 2 of set 0 to be 3 or more" in str(found.value)
        assert "waits for a message of a type up to 7 in message queue 0" in str(found.value)


def test_sets_and_queues_take_an_eighth_of_memory_at_most() -> None:
    with Several("x86_64") as several:
        task = several.calls(code=SPIN["x86_64"])
        several.machine.entry.switch(task)
        made = []
        while (number := call(task, "semget", _PRIVATE, 10_000, 0o600)) >= 0:
            made.append(number)
        assert number == -errno.ENOMEM
        assert len(made) == several.machine.kernel.config.ram // 8 // (64 * 10_000)
        queue = call(task, "msgget", _PRIVATE, 0o600)
        task.cpu.copy_to_user(DATA, struct.pack("<q", 1))
        sent = [call(task, "msgsnd", queue, DATA, 8000, _NO_WAIT) for _ in range(100)]
        left = several.machine.kernel.config.ram // 8 % (64 * 10_000)
        assert sent.count(0) == min(left // 8048, 2)
        for each in made:
            assert call(task, "semctl", each, 0, _REMOVE) == 0
        assert call(task, "msgctl", queue, _REMOVE, 0) == 0
        system_v = several.machine.kernel.system_v
        assert system_v is not None and system_v.memory.used == 0


def test_a_set_has_an_owner_and_a_mode() -> None:
    with Several("x86_64") as several:
        task = several.calls(code=SPIN["x86_64"])
        several.machine.entry.switch(task)
        task.credentials = of_user(1000, 1000)
        sets, queue = (
            call(task, "semget", 5, 1, _CREATE | 0o640),
            call(task, "msgget", 5, _CREATE | 0o640),
        )
        task.credentials = of_user(1001, 1000)
        task.cpu.copy_to_user(DATA, struct.pack("<Hhh", 0, 1, 0))
        assert call(task, "semop", sets, DATA, 1) == call(task, "semget", 5, 1, 0o600) == -errno.EACCES
        assert call(task, "msgsnd", queue, DATA, 1, 0) == -errno.EACCES
        assert call(task, "semctl", sets, 0, _GETNCNT) == 0
        assert call(task, "semctl", sets, 0, _REMOVE) == call(task, "msgctl", queue, 0, 0) == -errno.EPERM
        task.credentials = of_user(0, 0)
        assert call(task, "semctl", sets, 0, _REMOVE) == call(task, "msgctl", queue, 0, 0) == 0


def test_threads_that_share_it_take_back_once() -> None:
    with Several("x86_64") as several:
        one = several.calls(code=SPIN["x86_64"])
        several.machine.entry.switch(one)
        number = call(one, "semget", _PRIVATE, 1, 0o600)
        sharing, apart = made_by(one, "clone", 0x5_0F00, DATA), made_by(one, "fork")
        several.tasks.append(apart)
        one.cpu.copy_to_user(DATA, struct.pack("<Hhh", 0, 4, _UNDO))
        assert call(one, "semop", number, DATA, 1) == 0
        assert one.undo is sharing.undo and one.undo is not None and apart.undo is None
        one.leave_semaphores()
        assert call(one, "semctl", number, 0, 12) == 4
        sharing.leave_semaphores()
        assert call(one, "semctl", number, 0, 12) == 0
        assert call(one, "semctl", number, 0, _GETPID) == one.process.pid
        assert call(one, "semctl", number, 0, _REMOVE) == 0


def test_what_is_there_goes_through_a_capture() -> None:
    """With who is to get what it has waited for: a status, a message, that its set or queue was removed."""
    path = program("x86_64", "hello")
    with Machine("x86_64", ram="8M", aperture="4M") as machine:
        machine.load(path, grants=Grants(cwd=path.parent))
        task = machine.entry.task
        number, queue = call(task, "semget", 7, 3, _CREATE | 0o640), call(task, "msgget", 8, _CREATE | 0o600)
        sets, queues = machine.kernel.with_system_v().semaphores, machine.kernel.with_system_v().messages
        task.undo = Undo()
        assert sets.numbered(number).perform([Operation(1, 4, _UNDO)], 17, task.undo) is None
        queues.numbered(queue).send(Message(5, b"sent"), 18)
        call(task, "semctl", call(task, "semget", _PRIVATE, 1, 0o600), 0, _REMOVE)
        before = capture(machine)
        with restore(before, grants=Grants(cwd=path.parent)) as again:
            assert capture(again)["system_v"] == before["system_v"]
            other = again.entry.task
            assert other.undo is not None and other.undo.users == 1
            for name in ("semget", "msgget"):
                last = (1, 0o600) if name == "semget" else (0o600,)
                made = [call(each, name, _PRIVATE, *last) for each in (task, other)]
                assert made[0] == made[1]
            other.leave_semaphores()
            assert again.kernel.with_system_v().semaphores.numbered(number).values == [0, 0, 0]


@pytest.mark.parametrize("removed", [False, True], ids=["there", "removed"])
def test_a_wait_that_has_its_result_keeps_it(removed: bool) -> None:
    with Machine("x86_64", ram="8M", aperture="4M") as machine:
        machine.load(program("x86_64", "hello"), grants=Grants())
        kept = machine.kernel.with_system_v()
        task = machine.entry.task
        number, other = call(task, "semget", _PRIVATE, 2, 0o600), call(task, "msgget", _PRIVATE, 0o600)
        semaphores, queue = kept.semaphores.numbered(number), kept.messages.numbered(other)
        undo = Undo()
        operations = [Operation(1, -2, _UNDO)]
        waits = (
            SemaphoreWait(task, 5, semaphores, operations, operations[0], undo, 99),
            ReceiveWait(task, 6, queue, Wanted("up to", 3), 44),
            SendWait(queue, 12),
        )
        waits[0].status, waits[1].status, waits[1].message = -errno.ERANGE, 0, Message(2, b"said")
        if removed:
            semaphores.destroy()
            queue.destroy()
        for wait in waits:
            described = capture_wait(wait)
            assert described is not None
            again = restored_wait(kept, task, undo, described)
            assert capture_wait(again) == described
            assert (again.what, again.deadline, again.restart) == (wait.what, wait.deadline, wait.restart)
        assert capture_wait(Wait((), "another")) is None


@pytest.mark.parametrize(
    ("get", "control"),
    [
        (("shmget", 0, 4096, 0o600), ("shmctl", _REMOVE)),
        (("semget", 0, 1, 0o600), ("semctl", 0, _REMOVE)),
        (("msgget", 0, 0o600), ("msgctl", _REMOVE)),
    ],
)
def test_numbers_go_on_after_a_restore(get: tuple[str, int], control: tuple[str, int]) -> None:
    path = program("x86_64", "hello")
    with Machine("x86_64", ram="8M", aperture="4M") as machine:
        machine.load(path, grants=Grants(cwd=path.parent))

        def made_and_removed(task: Task) -> int:
            number = call(task, *get)
            assert call(task, control[0], number, *control[1:]) == 0
            return number

        assert [made_and_removed(machine.entry.task) for _ in range(70)] != list(range(70)), "they came round"
        with restore(capture(machine), grants=Grants(cwd=path.parent)) as restored:
            again = [made_and_removed(restored.entry.task) for _ in range(3)]
        assert again == [made_and_removed(machine.entry.task) for _ in range(3)]
