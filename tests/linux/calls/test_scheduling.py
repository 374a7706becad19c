"""sched_*, nice values, membarrier, rseq: refusals beside the kernel's, rights, and what follows of them."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from aether_emu.linux.abi.signal import SIGKILL, SIGSEGV
from aether_emu.linux.task.resource_limits import RLIMIT_NICE, RLIMIT_RTPRIO
from aether_emu.linux.task.scheduler import LONGEST_TURN
from aether_emu.linux.task.scheduling import IDLE, Scheduling
from tests.guests.running import ISAS
from tests.linux.calls.conftest import twin_in
from tests.linux.calls.twin import BASE, A, Served
from tests.linux.task.scripts import CODE, DATA, SPIN, Call, Several

OTHER, FIFO, ROUND_ROBIN, BATCH, DEADLINE = 0, 1, 2, 3, 6
every_isa = pytest.mark.parametrize("isa", ISAS)


def test_what_is_refused_to_everybody_is_what_the_kernel_refuses(tmp_path: Path) -> None:
    with twin_in(tmp_path) as twin:
        nobody, parameters = 99_999_999, twin.put(64, bytes(64))
        for pid in (-1, nobody):
            for name in ("sched_getscheduler", "sched_getparam", "sched_setparam", "sched_rr_get_interval"):
                twin.call(name, pid, parameters)
            twin.call("sched_setscheduler", pid, OTHER, parameters)
            twin.call("sched_getattr", pid, parameters, 48, 0)
            twin.call("sched_setattr", pid, parameters, 0)
            twin.call("getpriority", 0, pid)
            twin.call("setpriority", 0, pid, 0)
            twin.call("sched_setaffinity", pid, 8, parameters)
            twin.call("sched_getaffinity", pid, 8, parameters)
        for policy in range(-1, 9):
            for name in ("sched_get_priority_max", "sched_get_priority_min"):
                if policy != 7:  # newer than 6.6
                    twin.call(name, policy)
        for policy, priority in ((-1, 0), (9, 0), (OTHER, 1), (FIFO, 0), (FIFO, 100), (4, 0)):
            twin.call("sched_setscheduler", 0, policy, twin.put(64, struct.pack("<i", priority)))
        for name in ("sched_getparam", "sched_setparam"):
            twin.call(name, 0, 0)
        for size, flags in ((47, 0), (4097, 0), (48, 1)):
            twin.call("sched_getattr", 0, A(64), size, flags)
        for size, policy, how in ((47, 0, 0), (5000, 0, 0), (48, 9, 0), (48, 0, 0x80), (48, 0, 0x20)):
            twin.call("sched_setattr", 0, twin.put(64, struct.pack("<IIQiI", size, policy, how, 0, 0)), 0)
        for times in ((0, 0, 0), (10**6, 100, 100), (1000, 10**8, 0), (10**6, 10**8, 10**7), (2000, 2000, 0)):
            attributes = struct.pack("<IIQiIQQQ", 48, DEADLINE, 0, 0, 0, *times)
            twin.call("sched_setattr", 0, twin.put(64, attributes), 0)
        twin.call("sched_setscheduler", 0, DEADLINE, twin.put(64, bytes(4)))
        for which in (-1, 3):
            twin.call("getpriority", which, 0)
            twin.call("setpriority", which, 0, 0)
        for command, flags in ((0, 0), (0, 1), (1, 0), (3, 0), (0x400, 0), (8, 1)):
            twin.call("membarrier", command, flags, 0)
        twin.call("sched_getscheduler", 0)
        twin.call("sched_getparam", 0, parameters)
        twin.call("sched_yield")


def test_an_ordinary_user_gives_up_but_does_not_take(served: Served) -> None:
    def policy(number: int, priority: int = 0) -> int | str:
        served.put(0, struct.pack("<i", priority))
        return served("sched_setscheduler", 0, number, BASE)

    assert served("setpriority", 0, 0, 5) == 0 and served("getpriority", 0, 0) == 15
    assert served("setpriority", 0, 0, 4) == -errno.EACCES
    served.process.limits[RLIMIT_NICE] = (16, 20)
    assert served("setpriority", 0, 0, 4) == 0
    assert policy(FIFO, 1) == policy(ROUND_ROBIN, 9) == -errno.EPERM
    served.put(0, struct.pack("<IIQiIQQQ", 48, DEADLINE, 0, 0, 0, 10**7, 10**8, 10**8))
    assert served("sched_setattr", 0, BASE, 0) == -errno.EPERM
    served.process.limits[RLIMIT_RTPRIO] = (5, 5)
    assert policy(FIFO, 6) == -errno.EPERM and policy(FIFO, 5) == 0
    assert served("sched_getscheduler", 0) == FIFO
    assert policy(BATCH) == 0 and policy(IDLE) == 0
    served.process.limits[RLIMIT_NICE] = (0, 0)
    assert policy(OTHER) == -errno.EPERM, "the idle policy is for good"
    assert served("sched_getattr", 0, BASE, 48, 0) == 0
    assert struct.unpack_from("<IIQiI", served.memory.content, 0) == (48, IDLE, 0, 4, 0)


def test_a_child_that_is_to_be_ordinary_is(served: Served) -> None:
    assert Scheduling(FIFO, 9, resets=True).of_child() == Scheduling()
    assert Scheduling(nice=-3, resets=True).of_child() == Scheduling()
    kept = Scheduling(BATCH, nice=3)
    assert kept.of_child() == kept
    served.process.limits[RLIMIT_RTPRIO] = (9, 9)
    served.put(0, struct.pack("<i", 3))
    assert served("sched_setscheduler", 0, FIFO | 0x4000_0000, BASE) == 0
    assert served("sched_getscheduler", 0) == FIFO | 0x4000_0000


def test_a_barrier_needs_its_registration(served: Served) -> None:
    for use, register in ((8, 0x10), (0x20, 0x40), (0x80, 0x100)):
        assert served("membarrier", use, 0, 0) == -errno.EPERM
        assert served("membarrier", register, 0, 0) == served("membarrier", use, 0, 0) == 0
    assert served("membarrier", 0x80, 1, 0) == 0
    assert served("membarrier", 0x200, 0, 0) == 0x150


@every_isa
def test_who_is_nicer_gets_less(isa: str) -> None:
    with Several(isa) as several:
        tasks = [several.calls(code=SPIN[isa]) for _ in range(2)]
        tasks[1].set_scheduling(Scheduling(nice=10))
        blocks, cpu = [0, 0], several.machine.cpu
        cpu.count_blocks()
        while cpu.blocks < 60 * LONGEST_TURN:
            before = cpu.blocks
            several.machine.scheduler.run(997)
            blocks[tasks.index(several.machine.entry.task)] += cpu.blocks - before
        share = blocks[0] / blocks[1]
        assert 4 < share < 22, "1.25 to the tenth is 9.3"


@every_isa
def test_a_real_time_task_runs_before_all_others(isa: str) -> None:
    with Several(isa) as several:
        several.calls(*[("write", 1, DATA, 1)] * 9, data=b"a")
        writes: list[Call] = [("sched_yield",), ("write", 1, DATA, 1)] * 9
        urgent = several.calls(*writes, data=b"b")
        urgent.set_scheduling(Scheduling(FIFO, 1))
        several.run()
        assert several.out.written == b"b" * 9 + b"a" * 9
        assert several.machine.kernel.run_queue.real_time == 0


@every_isa
def test_who_yields_lets_the_other_run(isa: str) -> None:
    with Several(isa) as several:
        for letter in (b"a", b"b"):
            writes: list[Call] = [("write", 1, DATA, 1), ("sched_yield",)] * 5
            several.calls(*writes, data=letter)
        several.run()
        assert sorted(several.out.written) == sorted(b"ab" * 5)
        assert b"aa" not in several.out.written[:4]


# ---- restartable sequences

AREA, DESCRIPTION, SIGNATURE = DATA + 0x100, DATA + 0x200, 0x53053053


def _sequence(start: int, length: int, abort: int, *, version: int = 0) -> bytes:
    return struct.pack("<IIQQQ", version, 0, start, length, abort)


def test_rseq_is_registered_once_and_given_back(served: Served) -> None:
    area, other = BASE + 64, BASE + 96
    assert served("rseq", area, 31, 0, 1) == served("rseq", area + 4, 32, 0, 1) == -errno.EINVAL
    assert served("rseq", area, 32, 2, 1) == served("rseq", area, 32, 1, 1) == -errno.EINVAL
    served.put(64, b"\xff" * 32)
    assert served("rseq", area, 32, 0, 1) == 0
    assert bytes(served.memory.content[64:72]) == bytes(8)
    assert served("rseq", other, 32, 0, 1) == -errno.EINVAL
    assert served("rseq", area, 32, 0, 2) == -errno.EPERM
    assert served("rseq", area, 32, 0, 1) == -errno.EBUSY
    assert served("rseq", area, 32, 1, 2) == -errno.EPERM
    assert served("rseq", area, 32, 1, 1) == 0
    assert bytes(served.memory.content[64:72]) == struct.pack("<II", 0, 0xFFFF_FFFF)
    assert served("rseq", area, 32, 1, 1) == -errno.EINVAL


@every_isa
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("signature", [SIGNATURE, 5])
def test_a_sequence_that_another_task_interrupts_is_aborted(isa: str, inside: bool, signature: int) -> None:
    spins, aborted = CODE + 0x100, CODE + 0x204
    with Several(isa) as several:
        task = several.calls(code=b"")
        cpu, machine = several.machine.cpu, several.machine
        cpu.copy_to_user(spins, SPIN[isa])
        cpu.copy_to_user(aborted - 4, signature.to_bytes(4, "little") + SPIN[isa])
        start = spins if inside else spins + 0x40
        cpu.copy_to_user(DESCRIPTION, _sequence(start, 0x20, aborted))
        cpu.copy_to_user(AREA + 8, DESCRIPTION.to_bytes(8, "little"))
        (number,) = (n for n, name in machine.abi.system_calls.items() if name == "rseq")
        assert machine.entry.make_call(number, AREA, 32, 0, SIGNATURE, 0, 0) == 0
        cpu.pc = spins
        several.calls(code=SPIN[isa])
        several.machine.scheduler.run(5 * LONGEST_TURN)
        if signature != SIGNATURE:
            assert task.process.ended is not None and task.process.ended.signal == SIGSEGV
            return
        machine.entry.switch(task)
        assert cpu.pc == (aborted if inside else spins)
        assert cpu.copy_from_user(AREA + 8, 8) == bytes(8) if inside else True
        task.process.die(SIGKILL, "the end of the test")
