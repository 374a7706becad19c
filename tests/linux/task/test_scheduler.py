"""Several processes on one CPU: turns, waiting for one another, time, deadlocks, the end of a run."""

from __future__ import annotations

import errno
import struct
import tempfile
from pathlib import Path

import pytest

from aether_emu.linux.abi.signal import SA_RESTORER, SIGNALS, SIGPIPE, SIGUSR1, Action, SignalInfo
from aether_emu.linux.task.deadlock import Deadlock
from aether_emu.linux.task.scheduler import LONGEST_TURN, Interrupted
from aether_emu.mm.objects.protocol import NotReady
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.populate import Failed
from aether_emu.mm.populate import populate as bring
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.waiting import WaitQueue
from tests.guests.running import ISAS, expected
from tests.linux.task.scripts import CODE, DATA, SPIN, Call, Several, load_loop

PAGE = 4096
MILLISECOND = 10**6
PROT_READ, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_POPULATE = 1, 2, 0x20, 0x4000, 0x8000
EPOLL_CTL_ADD, EPOLLIN, EPOLLET = 1, 1, 1 << 31
FUTEX_WAIT, FUTEX_WAKE, FUTEX_WAIT_BITSET, FUTEX_WAKE_BITSET, PRIVATE = 0, 1, 9, 10, 128

every_isa = pytest.mark.parametrize("isa", ISAS)


@every_isa
def test_two_programs_take_turns_and_print_what_each_prints_alone(isa: str) -> None:
    with Several(isa) as several:
        _, one = several.real("tour")
        _, other = several.real("tour")
        _, third = several.real("hello")
        assert several.run() == [0, 0, 0]
        assert one.written.decode() == other.written.decode() == expected(isa, "tour")
        assert third.written.decode() == expected(isa, "hello")


@every_isa
def test_who_never_waits_loses_the_cpu_at_the_end_of_a_turn(isa: str) -> None:
    with Several(isa) as several:
        several.calls(code=SPIN[isa])
        other = several.calls(("write", 1, DATA, 2), data=b"ok")
        assert not several.machine.scheduler.run(3 * LONGEST_TURN)
        assert other.process.ended is not None and several.out.written == b"ok"


@every_isa
@pytest.mark.parametrize("reader_first", [True, False])
def test_a_writer_and_a_reader_wait_for_each_other(isa: str, reader_first: bool) -> None:
    pages = 49  # the pipe holds 16
    data = bytes(i * 7 + i // PAGE & 0xFF for i in range(pages * PAGE))
    with Several(isa) as several:
        reading, writing = several.pipe()
        reads: list[Call] = [("read", reading, DATA, PAGE), ("write", 1, DATA, PAGE)] * pages
        end: list[Call] = [("close", writing), *reads, ("read", reading, DATA, PAGE)]

        def reader() -> None:
            several.calls(*end)

        def writer() -> None:
            several.calls(("close", reading), ("write", writing, DATA, len(data)), data=data)

        for make in (reader, writer) if reader_first else (writer, reader):
            make()
        several.close(reading, writing)
        statuses = several.run()
        assert statuses[0 if reader_first else 1] == 0, "at the end the reader sees that no writer is left"
        assert several.out.written == data
        calls = several.machine.kernel.calls_by_name()
        assert calls["read"] == pages + 1 and calls["write"] == pages + 1, "waiting is no call of its own"


@every_isa
def test_who_waits_at_a_pipe_hears_that_the_other_side_has_gone(isa: str) -> None:
    with Several(isa) as several:
        reading, writing = several.pipe()
        several.calls(("close", writing), ("read", reading, DATA, 1))
        several.calls(("close", reading), ("nanosleep", DATA, 0), data=struct.pack("<qq", 0, 1))
        several.close(reading, writing)
        reading, writing = several.pipe()
        several.calls(("close", reading), ("write", writing, DATA, 17 * PAGE))
        several.calls(("nanosleep", DATA, 0), data=struct.pack("<qq", 0, 1))
        several.close(reading, writing)
        assert several.run() == [0, 0, 128 + SIGPIPE, 0]


@every_isa
def test_sleepers_wake_in_the_order_of_their_times_and_sleep_at_once(isa: str) -> None:
    with Several(isa) as several:
        for milliseconds, letter in ((5, b"a"), (2, b"b"), (9, b"c")):
            times = struct.pack("<qq", 0, milliseconds * MILLISECOND)
            calls = (("nanosleep", DATA, 0), ("write", 1, DATA + 16, 1))
            several.calls(*calls, data=times + letter)
        before = several.machine.clock.now_ns
        assert several.run() == [1, 1, 1]
        assert several.out.written == b"bac"
        assert 9 * MILLISECOND <= several.machine.clock.now_ns - before < 9.1 * MILLISECOND


@every_isa
def test_time_passes_for_a_sleeper_while_another_spins(isa: str) -> None:
    with Several(isa) as several:
        several.calls(code=SPIN[isa])
        sleeper = several.calls(("nanosleep", DATA, 0), data=struct.pack("<qq", 0, MILLISECOND))
        assert not several.machine.scheduler.run(30 * LONGEST_TURN)
        assert sleeper.process.ended is not None


@every_isa
def test_a_deadlock_names_each_task_and_what_it_waits_for(isa: str) -> None:
    with Several(isa) as several:
        reading, _writing = several.pipe()
        several.calls(("read", reading, DATA, 1))
        with pytest.raises(
            Deadlock, match=r"^deadlock: the program waits for a pipe, and nothing can end that$"
        ):
            several.run()
        several.calls(("futex", DATA, FUTEX_WAIT | PRIVATE, 0, 0))
        with pytest.raises(Deadlock) as caught:
            several.run()
        assert caught.value.waiting == tuple(several.tasks)
        assert "process 2000 (calls-0) waits for a pipe" in str(caught.value)
        assert f"process 2001 (calls-1) waits for a futex at {DATA:#x}" in str(caught.value)


@every_isa
def test_a_shared_futex_is_one_word_in_two_spaces(isa: str, tmp_path: Path) -> None:
    where = 0x5000_0000
    (tmp_path / "word").write_bytes(bytes(PAGE))
    with Several(isa) as several, (tmp_path / "word").open("r+b") as file:
        waiting = several.calls(("futex", where, FUTEX_WAIT, 0, 0))
        private = several.calls(("futex", where + 2 * PAGE, FUTEX_WAKE | PRIVATE, 9))
        waking = several.calls(("futex", where + PAGE, FUTEX_WAKE, 9))
        rw = Protection.READ | Protection.WRITE
        for task, address in ((waiting, where), (private, where + 2 * PAGE), (waking, where + PAGE)):
            task.process.mm.map_file(file, address, PAGE, rw)
        assert several.run() == [0, 0, 1], "the waker counts one, the private name is another word"


@every_isa
def test_a_futex_wakes_only_who_waits_for_one_of_its_bits(isa: str) -> None:
    where, wait, wake = 0x5000_0000, FUTEX_WAIT_BITSET, FUTEX_WAKE_BITSET
    with Several(isa) as several, tempfile.TemporaryFile() as file:
        file.truncate(PAGE)
        several.calls(("futex", where, wait, 0, 0, 0, 0b01))
        several.calls(("futex", where, wait, 0, 0, 0, 0b10))
        several.calls(("futex", where, wake, 9, 0, 0, 0b10))
        several.calls(("futex", where, wait, 0, DATA, 0, 0b11), data=struct.pack("<qq", 0, 0))
        for task in several.tasks:
            task.process.mm.map_file(file, where, PAGE, Protection.READ | Protection.WRITE)
        with pytest.raises(Deadlock) as caught:
            several.run()
        assert caught.value.waiting == (several.tasks[0],)
        ended = [task.process.ended.code for task in several.tasks if task.process.ended]
        assert ended == [0, 1, 256 - errno.ETIMEDOUT]


@every_isa
def test_an_edge_made_by_another_process_is_heard(isa: str) -> None:
    layout = "<IQ" if isa == "x86_64" else "<I4xQ"
    with Several(isa) as several:
        reading, writing = several.pipe()
        event = struct.pack(layout, EPOLLIN | EPOLLET, 77)
        wait: Call = ("epoll_pwait", 5, DATA + 64, 4, -1, 0, 8)
        calls: list[Call] = [("epoll_create1", 0), ("epoll_ctl", 5, EPOLL_CTL_ADD, reading, DATA)]
        several.calls(*calls, wait, wait, ("write", 1, DATA + 64, len(event)), data=event)
        write = ("write", writing, DATA, 1)
        several.calls(write, ("nanosleep", DATA, 0), write, data=struct.pack("<qq", 0, 1))
        several.close(reading, writing)
        assert several.run()[1] == 1
        assert several.out.written == struct.pack(layout, EPOLLIN, 77)


# ---- signals and waiting


@every_isa
@pytest.mark.parametrize("number", [1, SIGUSR1, SIGNALS])
def test_a_signal_with_a_handler_ends_a_wait(isa: str, number: int) -> None:
    handler = CODE + 0x8000
    with Several(isa) as several:
        reading, _writing = several.pipe()
        task = several.calls(("read", reading, DATA, 1))
        several.machine.cpu.copy_to_user(handler, SPIN[isa])
        with pytest.raises(Deadlock):
            several.run()
        task.process.set_action(number, Action(handler, SA_RESTORER, handler))
        task.process.post(SignalInfo(number))
        assert not several.machine.scheduler.run(10)
        assert task.wait is None and several.machine.cpu.pc == handler


@every_isa
def test_a_sleep_that_a_signal_ends_tells_what_is_left(isa: str) -> None:
    handler = CODE + 0x8000
    with Several(isa) as several:
        task = several.calls(("nanosleep", DATA, DATA + 16), data=struct.pack("<qqqq", 5, 0, 0, 0))
        several.machine.cpu.copy_to_user(handler, SPIN[isa])
        several.calls(code=SPIN[isa])
        assert not several.machine.scheduler.run(LONGEST_TURN)
        task.process.post(SignalInfo(SIGUSR1 + 13))  # SIGCONT: ignored, the sleep goes on
        assert not several.machine.scheduler.run(LONGEST_TURN)
        assert task.wait is not None
        task.process.set_action(SIGUSR1, Action(handler, SA_RESTORER, handler))
        task.process.post(SignalInfo(SIGUSR1))
        assert not several.machine.scheduler.run(2 * LONGEST_TURN)
        assert task.wait is None
        several.machine.entry.switch(task)
        seconds, rest = struct.unpack("<qq", several.machine.cpu.copy_from_user(DATA + 16, 16))
        assert (seconds, rest > 999 * MILLISECOND) == (4, True)


@every_isa
def test_a_deadly_signal_kills_a_waiting_task_and_a_blocked_one_does_not(isa: str) -> None:
    with Several(isa) as several:
        reading, _writing = several.pipe()
        task = several.calls(("read", reading, DATA, 1))
        task.signals.blocked = 1 << SIGUSR1 - 1
        with pytest.raises(Deadlock):
            several.run()
        task.process.post(SignalInfo(SIGUSR1))
        with pytest.raises(Deadlock):
            several.run()
        task.signals.blocked = 0
        task.signals.update()
        assert several.run() == [128 + SIGUSR1]


# ---- pages that are on their way


@every_isa
@pytest.mark.parametrize("by_call", [True, False])
def test_an_access_to_a_page_on_its_way_is_made_again(isa: str, by_call: bool) -> None:
    queue, absent = WaitQueue(), DATA + PAGE
    asked: list[int] = []

    class Late(SharedMemory):
        """Its page comes when it is asked for again."""

        def frames(self, index: int, count: int, *, write: bool) -> tuple[int, int]:
            if not asked:
                asked.append(index)
                raise NotReady(queue)
            return super().frames(index, count, write=write)

    with Several(isa) as several:
        write = ("write", 1, absent, 2)
        task = several.calls(write, code=None if by_call else load_loop(isa, absent))
        mm = task.process.mm
        both = Protection.READ | Protection.WRITE
        late = Late(mm.physical, 1)
        mm.replace(mm.new_area(absent, absent + mm.page_size, both, shared=True, backing=late))
        several.calls(("getpid",))  # another task is on the CPU when the first one begins
        with pytest.raises(Deadlock, match="the program waits for a page"):
            several.run()
        assert len(queue) == len(asked) == 1
        queue.wake()
        assert several.machine.scheduler.run(100) == by_call
        assert several.out.written == (bytes(2) if by_call else b"")
        assert task.wait is None and not len(queue)


# ---- the end of a run inside a long call


@every_isa
def test_a_long_call_lets_the_run_end_and_goes_on_afterwards(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages, late = 20_000, 5_000
    with Several(isa) as several:
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_POPULATE
        several.calls(("mmap", 0, pages * PAGE, PROT_READ, flags, -1, 0), ("write", 1, DATA, 1), data=b"x")
        seen: list[int] = []

        def counting(space: AddressSpace, start: int, end: int, *, write: bool) -> Failed | None:
            before = len(seen)
            seen.extend(range(start, end, PAGE))
            if before < late <= len(seen):
                several.machine.cpu.interrupt()
            return bring(space, start, end, write=write)

        monkeypatch.setattr("aether_emu.linux.calls.memory.populate", counting)
        with pytest.raises(Interrupted):
            several.run()
        assert late <= len(seen) < late + 1100
        assert several.run() == [1]
        assert len(set(seen)) == len(seen), "no page was asked for twice"
        assert len(seen) >= pages
