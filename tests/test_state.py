"""A machine captured in the middle of a run and restored goes on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from aether_emu import state
from aether_emu.grants import Grants
from aether_emu.linux.calls import memory
from aether_emu.linux.calls.epolling import sys_epoll_create1
from aether_emu.linux.calls.futex_words import Word, move
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.memory_file import MemoryFile, create_memory
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.task.deadlock import Deadlock
from aether_emu.linux.task.futex import FutexWait
from aether_emu.linux.task.scheduler import Interrupted
from aether_emu.linux.task.task import Task
from aether_emu.linux.tty.modes import ECHO, Modes
from aether_emu.mm import mapping
from aether_emu.mm.allocation import LOCKS
from aether_emu.mm.mapping import MADV_DONTDUMP
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import EXEC_GAIN_REFUSED
from aether_emu.observe import stats
from aether_emu.system import Machine
from tests.guests.running import TARGETS, Target, expected, program
from tests.linux.task.scripts import DATA, Several

X86_64 = TARGETS[0]


def _streams() -> dict[str, BufferStream]:
    return {name: BufferStream() for name in ("stdin", "stdout", "stderr")}


def _loaded(
    target: Target, *argv: str, grants: Grants | None = None
) -> tuple[Machine, dict[str, BufferStream]]:
    streams = _streams()
    machine = Machine(target.isa, page_size=target.page_size, seed=5)
    machine.load(program(target.isa, argv[0]), list(argv), streams=streams, grants=grants)
    stats.prepare(machine)
    return machine, streams


def _whole_run(target: Target, *argv: str) -> tuple[bytes, dict[str, object]]:
    machine, streams = _loaded(target, *argv)
    machine.run()
    collected = stats.collect(machine, 0)
    machine.close()
    return bytes(streams["stdout"].written), collected


# `clock raw` prints what counters, random-number instructions and getrandom answer; addresses are in it too.
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize(
    ("command", "part"),
    [*(("tour", part) for part in (0.0, 0.3, 0.6, 0.95)), *(("clock raw", part) for part in (0.2, 0.8))],
)
def test_output_and_statistics_are_those_of_a_run_without_a_break(
    target: Target, command: str, part: float
) -> None:
    argv = command.split()
    output, whole = _whole_run(target, *argv)
    blocks = whole["blocks_executed"]
    assert isinstance(blocks, int)
    machine, before = _loaded(target, *argv)
    assert machine.run_for(max(1, int(blocks * part))) is None
    snapshot = state.capture(machine)
    after = _streams()
    restored = state.restore(snapshot, streams=after)
    ended = restored.run()
    collected = stats.collect(restored, 0)
    restored.close()
    assert ended.status == 0
    assert bytes(before["stdout"].written + after["stdout"].written) == output
    assert collected == whole
    machine.run()
    machine.close()
    assert bytes(before["stdout"].written) == output, "capturing changed the machine it captured"


@pytest.mark.parametrize("mutable", [False, True])
def test_whether_code_may_change_is_told_to_the_new_cpus(mutable: bool) -> None:
    machine, _streams_of_it = _loaded(X86_64, "hello")
    if mutable:
        machine.physical.code.may_change()
    restored = state.restore(state.capture(machine), streams=_streams())
    assert [each.cpu.code_changes for each in (machine, restored)] == [mutable] * 2
    machine.close()
    restored.close()


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_what_was_accessed_and_written_is_part_of_the_state(target: Target, tmp_path: Path) -> None:
    """`workset` is captured between the lines of its story, each of which counts such pages."""
    grants = Grants(cwd=tmp_path, binds=[Bind(tmp_path, str(tmp_path), writable=True)])
    machine, streams = _loaded(target, "workset", "file", grants=grants)
    written, captures = b"", 0
    while machine.run_for(2000) is None:
        if streams["stdout"].written:
            snapshot = state.capture(machine)
            machine.close()
            written += streams["stdout"].written
            streams, captures = _streams(), captures + 1
            machine = state.restore(snapshot, grants=grants, streams=streams)
    machine.close()
    assert (written + streams["stdout"].written).decode() == expected(target.isa, "workset-file")
    assert captures >= 5


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_snapshot_fits_machines_of_its_own_kind(target: Target) -> None:
    machine, _ = _loaded(target, "hello")
    snapshot = state.capture(machine)
    machine.close()
    for other in TARGETS:
        config = dataclasses.replace(snapshot["config"], page_size=other.page_size)
        changed = snapshot | {"arch": other.isa, "config": config}
        if other == target:
            restored = state.restore(changed, streams=_streams())
            assert restored.run().status == 0
            restored.close()
        else:
            with pytest.raises(state.StateError, match=f"with {target}.* tables does not fit .* {other}"):
                state.restore(changed, streams=_streams())


def test_one_snapshot_can_be_restored_more_than_once() -> None:
    machine, before = _loaded(X86_64, "tour")
    machine.run_for(3000)
    snapshot = state.capture(machine)
    outputs = []
    for _ in range(2):
        streams = _streams()
        restored = state.restore(snapshot, streams=streams)
        restored.run()
        restored.close()
        outputs.append(bytes(streams["stdout"].written))
    assert outputs[0] == outputs[1] != b""
    machine.run()
    machine.close()
    assert bytes(before["stdout"].written).endswith(outputs[0])


def test_what_was_asked_for_areas_and_limits_is_restored() -> None:
    machine, _streams_before = _loaded(X86_64, "hello")
    assert machine.process is not None
    task, mm = machine.entry.task, machine.process.mm
    page = mm.page_size
    at = memory.sys_mmap(task, 0, 3 * page, 3, 0x22, -1, 0)
    assert memory.sys_mlockall(task, 6) == memory.sys_mlock(task, at, page) == 0
    assert memory.sys_madvise(task, at + page, page, MADV_DONTDUMP) == 0
    machine.process.personality = 0x40_0000
    mm.exec_gain = EXEC_GAIN_REFUSED
    for resource, soft in ((1, 7), (2, 1 << 30), (8, 5 << 20), (9, 1 << 40)):
        machine.process.limits[resource] = (soft, 2 * soft)
        machine.process.limits.apply(resource)
    restored = state.restore(state.capture(machine), streams=_streams())
    assert restored.process is not None
    again = restored.process.mm
    assert [(a.start, a.flags) for a in again.areas] == [(a.start, a.flags) for a in mm.areas]
    assert (again.account.reserved, again.account.data, again.account.locked) == (
        mm.account.reserved,
        mm.account.data,
        mm.account.locked,
    )
    assert again.exec_gain == EXEC_GAIN_REFUSED
    assert (again.account.most_reserved, again.new_flags) == (mm.account.most_reserved, LOCKS)
    assert again.limits.capture() == mm.limits.capture()
    assert (again.limits.data, again.limits.data_most, again.limits.locked) == (1 << 30, 2 << 30, 5 << 20)
    assert restored.process.personality == 0x40_0000
    assert restored.namespace is not None
    assert restored.namespace.sizes is not None
    assert restored.namespace.sizes.admitted(0, 10) == 7
    restored.close()
    machine.close()


def test_a_finished_machine_is_refused() -> None:
    machine, _ = _loaded(X86_64, "hello")
    machine.run()
    with pytest.raises(state.StateError):
        state.capture(machine)
    machine.close()


def test_an_epoll_set_is_restored() -> None:
    machine, _ = _loaded(X86_64, "hello")
    assert machine.process is not None
    fd = sys_epoll_create1(machine.entry.task, 0)
    snapshot = state.capture(machine)
    restored = state.restore(snapshot, streams=_streams())
    assert restored.process is not None
    assert restored.process.files.table.file(fd).kind == "eventpoll"
    for each in (restored, machine):
        each.run()
        each.close()


def test_an_open_file_of_proc_that_is_written_is_restored() -> None:
    machine, _ = _loaded(X86_64, "hello")
    assert machine.process is not None
    fd = machine.process.files.open(fl.AT_FDCWD, b"/proc/self/clear_refs", fl.O_WRONLY)
    restored = state.restore(state.capture(machine), streams=_streams())
    for each in (machine, restored):
        assert each.process is not None
        assert each.process.files.write(fd, b"1") == 1
        assert each.run().status == 0
        each.close()


def test_a_text_of_proc_that_was_opened_and_not_read_is_made_when_it_is() -> None:
    machine, _ = _loaded(X86_64, "hello")
    assert machine.process is not None
    fd, begun = (machine.process.files.open(fl.AT_FDCWD, b"/proc/self/maps", fl.O_RDONLY) for _ in range(2))
    first = machine.process.files.read(begun, 1)
    restored = state.restore(state.capture(machine), streams=_streams())
    assert restored.process is not None
    memory.sys_mmap(restored.entry.task, 0x7000_0000, 4096, 0, 0x32, -1, 0)
    late, old = (restored.process.files.read(each, 1 << 16) for each in (fd, begun))
    assert isinstance(late, bytes) and isinstance(old, bytes) and isinstance(first, bytes)
    assert b"\n70000000-70001000 ---p" in late and b"\n70000000-" not in first + old
    for each in (machine, restored):
        each.run()
        each.close()


def test_a_call_that_waits_is_captured_and_made_again_by_the_restored_machine() -> None:
    class Silent(BufferStream):
        def ready(self) -> bool:
            return False

    def nothing_comes() -> None:
        raise Interrupted

    machine = Machine("x86_64", seed=5, pause=nothing_comes)
    machine.load(program("x86_64", "hello"), streams=_streams() | {"stdin": Silent()})
    cpu, task = machine.cpu, machine.entry.task
    space, code = task.process.mm, 0x1000_0000
    everything = Protection.READ | Protection.WRITE | Protection.EXECUTE
    space.insert(space.new_area(code, code + 8192, everything))
    # read(0, rsi, 5); write(1, rsi, 5); exit(5)
    cpu.copy_to_user(code, bytes.fromhex("0f05bf01000000b8010000000f0589c7b8e70000000f05"))
    cpu.load_registers({"rip": code, "rax": 0, "rdi": 0, "rsi": code + 4096, "rdx": 5})
    with pytest.raises(Interrupted):
        machine.run()
    restored = state.restore(
        state.capture(machine), streams=(after := _streams()) | {"stdin": BufferStream(b"hello")}
    )
    assert restored.run().code == 5
    assert after["stdout"].written == b"hello"
    assert restored.kernel.calls_by_name()["read"] == 1, "a call that is made again counts once"
    for each in (machine, restored):
        each.close()


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_mapped_memory_file_is_part_of_the_state(target: Target, closed: bool) -> None:
    machine, _ = _loaded(target, "hello")
    task = machine.entry.task
    files, page = task.process.files, target.page_size
    fd = files.table.install(create_memory(files.namespace, b"kept", 0))
    files.write(fd, b"written by a call")
    files.table.file(fd).truncate(2 * page)
    both = Protection.READ | Protection.WRITE
    first, second = (memory.sys_mmap(task, 0, 2 * page, both, mapping.MAP_SHARED, fd, 0) for _ in range(2))
    task.process.write(first + page, b"stored by the program")
    if closed:
        files.close(fd)
    restored = state.restore(state.capture(machine), streams=_streams())
    for each in (machine, restored):
        process = each.process
        assert process is not None
        assert process.read(second, 17) == b"written by a call"
        assert process.read(second + page, 21) == b"stored by the program"
        process.write(first, b"shared")
        assert process.read(second, 6) == b"shared"
        if not closed:
            assert process.files.pread(fd, 6, 0) == b"shared"
        assert each.namespace is not None
        assert each.namespace.memory_used == 2 * page
        assert each.run().status == 0
        each.close()
        assert each.namespace.memory_used == 0


@pytest.mark.parametrize("unlinked", [False, True], ids=["named", "unlinked"])
def test_a_mapped_file_in_dev_shm_is_part_of_the_state(unlinked: bool) -> None:
    machine, _ = _loaded(X86_64, "hello")
    task = machine.entry.task
    files, path = task.process.files, b"/dev/shm/sem"
    fd = files.open(fl.AT_FDCWD, path, fl.O_RDWR | fl.O_CREAT, 0o600)
    files.ftruncate(fd, 4096)
    both = Protection.READ | Protection.WRITE
    address = memory.sys_mmap(task, 0, 4096, both, mapping.MAP_SHARED, fd, 0)
    files.close(fd)
    if unlinked:
        files.unlink(fl.AT_FDCWD, path)
    task.process.write(address, b"stored")
    restored = state.restore(state.capture(machine), streams=_streams())
    for each in (machine, restored):
        process = each.process
        assert process is not None
        assert process.read(address, 6) == b"stored"
        backings = state.capture(each)["backings"]
        assert [backing["name"] for backing in backings if backing["kind"] == "memory"] == ["/dev/shm/sem"]
        if not unlinked:
            again = process.files.open(fl.AT_FDCWD, path, fl.O_RDWR)
            assert process.files.read(again, 6) == b"stored"
            process.files.pwrite(again, b"S", 0)
            assert process.read(address, 6) == b"Stored"
        each.close()


def test_a_mapped_file_that_could_not_be_found_again_is_refused_by_capture(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(4096))
    machine, _ = _loaded(X86_64, "hello", grants=Grants(cwd=tmp_path))
    assert machine.process is not None
    machine.process.mm.map_file(path, 0x1000_0000, 4096, Protection.READ)
    state.capture(machine)
    path.unlink()
    with pytest.raises(state.StateError, match="data, which is mapped, cannot be opened again"):
        state.capture(machine)
    assert machine.run().status == 0
    machine.close()


_PROGRAMS = Path(__file__).parent / "programs"
_FEW, _MANY = 4, 60


def _of_many(isa: str) -> tuple[Machine, dict[str, BufferStream]]:
    streams = _streams()
    machine = Machine(isa, ram="32M", aperture="8M", seed=5)
    machine.load(_PROGRAMS / "bin" / isa / "threads", ["threads", "race", "60"], streams=streams)
    stats.prepare(machine)
    return machine, streams


def _captured_anywhere(isa: str, count: int) -> None:
    """At seeded moments of a program with threads, which wait for each other at futexes."""
    machine, streams = _of_many(isa)
    machine.run()
    whole, output = stats.collect(machine, 0), bytes(streams["stdout"].written)
    machine.close()
    blocks = whole["blocks_executed"]
    assert isinstance(blocks, int)
    chance = random.Random(f"{isa} {count}")
    for _ in range(count):
        moment = chance.randrange(1, blocks)
        machine, before = _of_many(isa)
        assert machine.run_for(moment) is None
        restored = state.restore(state.capture(machine), streams=(after := _streams()))
        machine.close()
        assert restored.run().status == 0
        assert stats.collect(restored, 0) == whole, moment
        restored.close()
        assert bytes(before["stdout"].written + after["stdout"].written) == output, moment


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_threads_go_on_from_any_moment_as_without_a_break(isa: str) -> None:
    _captured_anywhere(isa, _FEW)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_threads_go_on_from_many_moments(isa: str) -> None:
    _captured_anywhere(isa, _MANY)


def test_a_reservation_for_an_exclusive_store_outlives_a_capture() -> None:
    """Between LDXR and STXR: without it the store fails once, and the loop goes around."""
    machine, _ = _of_many("arm64")
    held = (0x1000_0000, 5, 0)
    machine.cpu.reserve(held)
    restored = state.restore(state.capture(machine), streams=_streams())
    for each in (machine, restored):
        assert each.cpu.reservation() == held
        each.close()


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_a_wait_at_a_futex_whose_word_has_changed_is_restored_as_a_wait(isa: str) -> None:
    word = DATA + 64
    with Several(isa) as several:
        waiter = several.calls(("futex", word, 0, 0, 0), data=bytes(128))
        with pytest.raises(Deadlock):
            several.run()
        waiter.process.write(word, b"\1\0\0\0")
        assert several.machine.process is not None
        described = waiter.capture()
        again = Task(waiter.process, 3000)
        again.body.free()  # what is captured stands where the waiter does
        again.restore(described)
        assert isinstance(again.wait, FutexWait)
        assert again.wait.queues == waiter.wait.queues if waiter.wait is not None else ()
        assert not again.can_go_on(), "nobody has woken it"
        again.leave_queues()
        waiter.process.tasks.remove(again)
        del waiter.process.registry.tasks[again.tid]


def test_who_was_moved_to_a_word_waits_behind_those_that_wait_there() -> None:
    first, second = DATA + 64, DATA + 68
    with Several("x86_64") as several:
        moved = several.calls(("futex", first, 0, 0, 0), data=bytes(128))
        there = several.calls(("futex", second, 0, 0, 0), data=bytes(128))
        with pytest.raises(Deadlock):
            several.run()
        before = moved.wait_number, there.wait_number
        futexes = moved.process.kernel.futexes
        words = [
            Word(futexes, futexes.key(each.process.mm, address, private=False), address)
            for each, address in ((moved, first), (there, second))
        ]
        assert isinstance(moved.wait, FutexWait)
        move(moved, moved.wait, *words)
        assert before[0] < before[1] < moved.wait_number, "the order in which they stand after a restore"


class Terminal(BufferStream):
    """A stream that is one."""

    def terminal_size(self) -> tuple[int, int] | None:
        return (100, 30)


def test_the_programs_terminal_is_restored_if_there_is_one() -> None:
    streams = _streams()
    machine = Machine("x86_64", seed=5)
    process = machine.load(program("x86_64", "tour"), ["tour"], streams=streams | {"stdin": Terminal()})
    console = machine.console
    assert console is not None and process.terminal is console and console.size == (30, 100, 0, 0)
    console.change(Modes(local=ECHO), flush=False)
    machine.run_for(3000)
    snapshot = state.capture(machine)
    for stream in (Terminal(), BufferStream()):
        restored = state.restore(snapshot, streams=_streams() | {"stdin": stream})
        there = restored.console
        assert restored.process is not None and restored.process.terminal is there
        if isinstance(stream, Terminal):
            assert there is not None and there.modes.local == ECHO
            assert (there.session, there.foreground) == (process.pid, process.group)
            assert restored.process.files.readlink(fl.AT_FDCWD, b"/proc/self/fd/0", 99) == b"/dev/pts/0"
        else:
            assert there is None
        restored.run()
        restored.close()
    machine.close()


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_who_writes_and_executes_files_is_part_of_the_state(isa: str, tmp_path: Path) -> None:
    """`busy` writes what is executed and executes what is written: in /dev/shm, and in memory files."""
    grants = Grants(cwd=tmp_path, binds=[Bind(tmp_path, str(tmp_path), writable=True)])
    machine, streams = Machine(isa, ram="32M", seed=5), _streams()
    machine.load(_PROGRAMS / "bin" / isa / "busy", ["busy"], streams=streams, grants=grants)
    written, captures = b"", 0
    while machine.run_for(500) is None:
        if b"/dev/shm" in written + streams["stdout"].written:
            snapshot = state.capture(machine)
            machine.close()
            written += streams["stdout"].written
            streams, captures = _streams(), captures + 1
            machine = state.restore(snapshot, grants=grants, streams=streams)
    machine.close()
    assert written + streams["stdout"].written == (_PROGRAMS / "expected" / "busy.txt").read_bytes()
    assert captures >= 20


def test_which_descriptions_keep_a_memory_file_from_being_executed_is_part_of_the_state() -> None:
    machine, _streams_of_it = _loaded(X86_64, "hello")
    assert machine.process is not None and machine.namespace is not None
    first = create_memory(machine.namespace, b"m", 0)
    machine.process.files.table.place(10, first, cloexec=False)
    before = state.restore(state.capture(machine), streams=_streams())
    machine.process.files.table.place(11, first.reopen(fl.O_RDWR), cloexec=False)
    after = state.restore(state.capture(machine), streams=_streams())
    for each, written in ((before, False), (machine, True), (after, True)):
        assert each.process is not None and each.namespace is not None
        file = each.process.files.table.file(10)
        assert isinstance(file, MemoryFile)
        assert each.namespace.is_written(file.key) is written
        each.process.files.table.close_each([11] if written else [])
        assert not each.namespace.is_written(file.key)
        each.close()
