"""/proc of several processes: one that sleeps, one that is stopped, a zombie, a thread, and who looks."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from aether_emu.errors import Refused
from aether_emu.grants import Grants
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import WouldBlock
from aether_emu.linux.observers import ProcessSeen
from aether_emu.linux.task import family
from aether_emu.linux.task.process import Process
from aether_emu.state import capture, restore
from aether_emu.system import Machine
from tests.guests.running import ISAS
from tests.linux.files.conftest import parse_entries
from tests.small_programs import DATA, loaded, streams

FIRST, SLEEPER, ZOMBIE, STOPPED, THREAD = range(1000, 1005)
_NUMBERS = {
    "x86_64": {"clone": 56, "nanosleep": 35, "exit_group": 231, "getpid": 39, "kill": 62, "getppid": 110},
    "arm64": {"clone": 220, "nanosleep": 101, "exit_group": 94, "getpid": 172, "kill": 129, "getppid": 173},
}
_ARGUMENTS = {"x86_64": ("rdi", "rsi", "rdx", "r10", "r8"), "arm64": ("x0", "x1", "x2", "x3", "x4")}
_LONG, _SHORT = DATA, DATA + 16  # times to sleep
_AS_THREAD = 0x10F00  # CLONE_VM, FS, FILES, SIGHAND, THREAD


def _call(isa: str, name: str, *arguments: int | str) -> str:
    pairs, number = list(zip(_ARGUMENTS[isa], arguments, strict=False)), _NUMBERS[isa][name]
    if isa == "x86_64":
        return "\n".join(
            [*(f"mov {register}, {value}" for register, value in pairs), f"mov eax, {number}; syscall"]
        )
    lines = [f"mov {register}, {value}" for register, value in pairs if isinstance(value, str)]
    for register, value in pairs:
        if isinstance(value, int):
            lines += [f"movz {register}, #{value & 0xFFFF}", f"movk {register}, #{value >> 16}, lsl #16"]
    return "\n".join([*lines, f"mov x8, #{number}", "svc #0"])


def _child(isa: str, label: str, flags: int, what: str) -> str:
    """Make a task that does something and exits."""
    skip = f"test eax, eax; jnz {label}" if isa == "x86_64" else f"cbnz x0, {label}"
    made, end = _call(isa, "clone", flags, 0, 0, 0, 0), _call(isa, "exit_group", 0)
    return f"{made}\n{skip}\n{what}\n{end}\n{label}:\n"


def _source(isa: str) -> str:
    sleep, own = _call(isa, "nanosleep", _LONG, 0), "rax" if isa == "x86_64" else "x0"
    store = (
        f"mov rbx, {DATA}; mov qword ptr [rbx], 1000; mov qword ptr [rbx + 16], 1\n"
        if isa == "x86_64"
        else f"mov x19, #{DATA}\nmov x0, #1000\nstr x0, [x19]\nmov x0, #1\nstr x0, [x19, #16]\n"
    )
    return (
        store
        + _child(isa, "one", 17, sleep)
        + _child(isa, "two", 17, _call(isa, "exit_group", 7))
        + _child(isa, "three", 17, f"{_call(isa, 'getpid')}\n{_call(isa, 'kill', own, 19)}\n{sleep}")
        + _child(isa, "four", _AS_THREAD, sleep)
        + f"{_call(isa, 'nanosleep', _SHORT, 0)}\n{_call(isa, 'getppid')}\n{_call(isa, 'exit_group', 0)}"
    )


@pytest.fixture(params=ISAS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """Stopped when all of them are as they stay."""
    with loaded(tmp_path, request.param, _source(request.param)) as made:
        with made.on_system_call(lambda call: made.stop(), ["getppid"]):
            made.run()
        yield made


@pytest.fixture
def first(machine: Machine) -> Process:
    assert machine.process is not None
    return machine.process


def _read(process: Process, path: str) -> str:
    fd = process.files.open(fl.AT_FDCWD, f"/proc/{path}".encode(), fl.O_RDONLY)
    try:
        data = process.files.read(fd, 1 << 16)
        assert not isinstance(data, WouldBlock)
        return data.decode()
    finally:
        process.files.close(fd)


def _names(process: Process, path: str) -> list[str]:
    fd = process.files.open(fl.AT_FDCWD, f"/proc/{path}".encode(), fl.O_RDONLY | fl.O_DIRECTORY)
    try:
        return [name.decode() for name, _, _ in parse_entries(process.files.getdents64(fd, 1 << 16))[2:]]
    finally:
        process.files.close(fd)


def _status(process: Process, number: int | str) -> dict[str, str]:
    rows = (line.split(":\t", 1) for line in _read(process, f"{number}/status").splitlines())
    return {name: value.strip() for name, value in rows}


def _refused(process: Process, path: str, write: bool = False) -> int:
    with pytest.raises(Refused) as caught:
        process.files.open(fl.AT_FDCWD, f"/proc/{path}".encode(), fl.O_WRONLY if write else fl.O_RDONLY)
    return caught.value.errno


def test_processes_are_listed_by_number_and_threads_below_them(first: Process) -> None:
    assert [name for name in _names(first, "") if name.isdigit()] == ["1000", "1001", "1002", "1003"]
    assert _names(first, "1000/task") == ["1000", "1004"]
    assert _names(first, "1001/task") == ["1001"]
    assert _status(first, THREAD)["Pid"] == "1004"  # found, though it is not listed
    assert _refused(first, "1005/stat") == _refused(first, "01000/stat") == errno.ENOENT
    assert first.files.readlink(fl.AT_FDCWD, b"/proc/thread-self", 99) == b"1000/task/1000"


def test_each_state_is_told(first: Process) -> None:
    states = {number: _status(first, number)["State"] for number in (FIRST, SLEEPER, ZOMBIE, STOPPED)}
    assert states == {
        FIRST: "R (running)",
        SLEEPER: "S (sleeping)",
        ZOMBIE: "Z (zombie)",
        STOPPED: "T (stopped)",
    }
    assert _status(first, f"1000/task/{THREAD}")["State"] == "S (sleeping)"
    assert _read(first, "1001/stat").startswith("1001 (program) S 1000 1000 1000 0 -1 ")
    assert _read(first, "1002/stat").startswith("1002 (program) Z 1000 1000 1000 0 -1 ")
    assert _read(first, "1002/stat").split()[-1] == "1792", "its exit code"
    assert _read(first, "stat").split("procs_running")[1].split()[0] == "1"
    assert _read(first, "loadavg") == "0.00 0.00 0.00 1/4 1004\n"


def test_threads_are_counted_and_named_one_by_one(first: Process) -> None:
    assert _status(first, FIRST)["Threads"] == "2"
    thread = _status(first, f"1000/task/{THREAD}")
    assert (thread["Tgid"], thread["Pid"], thread["NSpid"], thread["PPid"]) == ("1000", "1004", "1004", "999")
    fd = first.files.open(fl.AT_FDCWD, b"/proc/self/task/1004/comm", fl.O_WRONLY)
    assert first.files.write(fd, b"a name of 17 byte") == 17
    assert _read(first, "1000/task/1004/comm") == "a name of 17 by\n"
    assert _read(first, "1000/comm") == "program\n"
    assert _read(first, "1000/task/1000/children") == "1001 1002 1003 "
    other = first.files.open(fl.AT_FDCWD, b"/proc/1001/comm", fl.O_WRONLY)
    with pytest.raises(Refused) as caught:
        first.files.write(other, b"x")
    assert caught.value.errno == errno.EINVAL


def test_a_zombie_has_neither_memory_nor_files(first: Process) -> None:
    for name in ("maps", "smaps", "cmdline", "environ", "auxv", "mem", "pagemap"):
        assert _read(first, f"{ZOMBIE}/{name}") == "", name
    assert _read(first, f"{ZOMBIE}/statm") == "0 0 0 0 0 0 0\n"
    assert "VmSize" not in _status(first, ZOMBIE)
    assert _names(first, f"{ZOMBIE}/fd") == _names(first, f"{ZOMBIE}/fdinfo") == []
    for link in ("exe", "cwd", "root"):
        with pytest.raises(Refused) as caught:
            first.files.readlink(fl.AT_FDCWD, f"/proc/{ZOMBIE}/{link}".encode(), 99)
        assert caught.value.errno == errno.ENOENT


def test_another_process_is_seen_by_its_own_memory_and_files(machine: Machine, first: Process) -> None:
    sleeper = first.registry.processes[SLEEPER]
    sleeper.write(DATA + 64, b"of the child")
    fd = first.files.open(fl.AT_FDCWD, f"/proc/{SLEEPER}/mem".encode(), fl.O_RDWR)
    assert first.files.pread(fd, 12, DATA + 64) == b"of the child"
    assert first.files.pwrite(fd, b"by its parent", DATA + 64) == 13
    assert sleeper.read(DATA + 64, 13) == b"by its parent"
    assert first.read(DATA + 64, 13) == bytes(13)
    sleeper.files.dup2(sleeper.files.open(fl.AT_FDCWD, b"program", fl.O_RDONLY), 50)
    opened = sleeper.files.open(fl.AT_FDCWD, b"program", fl.O_RDONLY | fl.O_CLOEXEC)
    assert "50" in _names(first, f"{SLEEPER}/fd")
    assert "50" not in _names(first, f"{FIRST}/fd")
    sleeper.files.lseek(opened, 5, 0)
    about = dict(line.split(":\t") for line in _read(first, f"{SLEEPER}/fdinfo/{opened}").splitlines())
    assert about["pos"] == "5"
    assert int(about["flags"], 8) & fl.O_CLOEXEC
    path = f"/proc/{SLEEPER}/fd/{opened}".encode()
    again = first.files.open(fl.AT_FDCWD, path, fl.O_RDONLY)
    assert first.files.read(again, 4) == b"\x7fELF"
    for write in (fl.O_WRONLY, fl.O_RDWR, fl.O_RDONLY | fl.O_TRUNC):
        with pytest.raises(Refused) as caught:
            first.files.open(fl.AT_FDCWD, path, write)
        assert caught.value.errno == errno.EROFS, "the grant is read-only, whoever opened the file"


def test_what_is_open_of_a_process_that_is_gone_says_so(machine: Machine, first: Process) -> None:
    files = first.files
    folder = files.open(fl.AT_FDCWD, f"/proc/{ZOMBIE}".encode(), fl.O_RDONLY | fl.O_DIRECTORY)
    stat = files.open(folder, b"stat", fl.O_RDONLY)
    assert files.read(stat, 4) == b"1002"
    zombie = first.registry.processes[ZOMBIE]
    assert isinstance(zombie, Process)
    family.vanish(zombie)
    files.lseek(stat, 0, 0)
    with pytest.raises(Refused) as caught:
        files.read(stat, 4)
    assert caught.value.errno == errno.ESRCH
    with pytest.raises(Refused) as caught:
        files.open(folder, b"stat", fl.O_RDONLY)
    assert caught.value.errno == errno.ENOENT
    assert _refused(first, f"{ZOMBIE}/stat") == errno.ENOENT


def test_it_is_all_there_after_a_restore(machine: Machine, first: Process, tmp_path: Path) -> None:
    numbers = (FIRST, SLEEPER, ZOMBIE, STOPPED)
    shown = ("stat", "cmdline", "maps", "statm", "limits")
    before = {(number, name): _read(first, f"{number}/{name}") for number in numbers for name in shown}
    fd = first.files.open(fl.AT_FDCWD, f"/proc/{SLEEPER}/stat".encode(), fl.O_RDONLY)
    other = restore(capture(machine), grants=Grants(cwd=tmp_path), streams=streams())
    try:
        again = other.process
        assert again is not None
        after = {(number, name): _read(again, f"{number}/{name}") for number in numbers for name in shown}
        assert after == before
        assert _names(again, "1000/task") == ["1000", "1004"]
        assert again.files.read(fd, 4) == b"1001"
    finally:
        other.close()


def test_time_is_the_programs_or_idle(first: Process) -> None:
    up, idle = (float(text) for text in _read(first, "uptime").split())
    assert up >= 1 and up - idle < 0.1, "it slept for a second, while nobody could run"
    user, *_, idle_ticks = (int(text) for text in _read(first, "stat").split()[1:5])
    assert idle_ticks >= 99 and user < 10
    slept = [_read(first, f"{number}/stat").split() for number in (FIRST, SLEEPER)]
    assert all(int(fields[13]) < 10 for fields in slept)
    assert int(slept[0][21]) == int(slept[1][21]) == 0, "both were made within the first tick"
    assert int(slept[1][9]) == 0 < int(slept[0][9]), "the child found all its pages there"


def _to_the_end(machine: Machine) -> tuple[object, ...]:
    """How the run goes on: in what order who ends, how often they waited, what calls were made."""
    told: list[tuple[int, list[int]]] = []

    def ended(seen: ProcessSeen) -> None:
        assert isinstance(seen, Process)
        told.append((seen.pid, [task.waits for task in seen.tasks]))

    machine.observers.attach(ended=ended)
    assert machine.run().status == 0
    return told, dict(machine.kernel.calls_made), machine.clock.now_ns


def test_a_restored_machine_goes_on_alike(machine: Machine, tmp_path: Path) -> None:
    with restore(capture(machine), grants=Grants(cwd=tmp_path), streams=streams()) as other:
        again = _to_the_end(other)
    assert again == _to_the_end(machine)
