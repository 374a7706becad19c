"""Long calls look at whether the run is to end, once for each part of their work, and go on later.

The stop flag is watched: how often a call looks is a matter of its arguments, and an interrupt can be made to
arrive at any look. However often a call is interrupted, it answers and leaves what it does in one go.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aether_emu.linux.abi.signal import SIGKILL, SIGUSR1, SignalInfo
from aether_emu.linux.calls import remote, user_faults
from aether_emu.linux.files import listing
from aether_emu.linux.proc import texts
from aether_emu.linux.proc.texts import ProcessTexts
from aether_emu.linux.task.ended import Ended
from aether_emu.linux.task.process import Process
from aether_emu.mm import cuts
from aether_emu.mm.protection import Protection
from aether_emu.mm.remap import MREMAP_FIXED, MREMAP_MAYMOVE
from tests.guests.running import ISAS
from tests.linux.calls.looks import Looks
from tests.linux.calls.twin import BASE, BLOCKED, PAGE, Served
from tests.linux.files.conftest import guest_in

MIB = 1 << 20
WHERE, OTHER = 0x4000_0000, 0x5000_0000
READ, WRITE = Protection.READ, Protection.READ | Protection.WRITE
MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_POPULATE = 2, 0x20, 0x4000, 0x8000
POPULATED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_POPULATE
MAP_SHARED, MAP_FIXED, READ_AND_WRITE, MS_SYNC = 1, 0x10, 3, 4
MADV_DONTNEED, MADV_POPULATE_READ, MADV_GUARD_INSTALL = 4, 22, 102


@dataclass(frozen=True)
class Long:
    """A call that takes long. `least` is how many parts its work has at least."""

    name: str
    least: int
    prepare: Callable[[Served], tuple[int, ...]]


def area(served: Served, length: int, protection: Protection, start: int = WHERE) -> int:
    """New anonymous memory. Returns its address."""
    mm = served.process.mm
    mm.insert(mm.new_area(start, start + length, protection))
    return start


def filled(served: Served) -> int:
    """Five tables' worth of pages, all there. Returns the length."""
    length = 10 * MIB
    area(served, length, READ)
    for at in range(WHERE, WHERE + length, PAGE):
        assert served.machine.cpu.copy_from_user(at, 1) == b"\0"
    return length


def descriptor(served: Served, path: bytes, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    fd = served("openat", -100, served.text(path), flags, 0o600)
    assert isinstance(fd, int) and fd >= 0
    return fd


def _files(served: Served) -> tuple[int, int]:
    source, target = descriptor(served, b"/w/from"), descriptor(served, b"/w/to")
    served.process.files.write(source, bytes(range(251)) * (3 * MIB // 251 + 1))
    assert served("lseek", source, 0, os.SEEK_SET) == 0
    return source, target


def _answering(served: Served) -> tuple[int, ...]:
    """UFFDIO_ZEROPAGE of memory whose faults the program answers."""
    return _asked(served, 0xC020AA04, area(served, 8 * MIB, READ), 8 * MIB, 1, (0, 0))


def _protecting(served: Served) -> tuple[int, ...]:
    """UFFDIO_WRITEPROTECT of five tables' worth of pages."""
    length = filled(served)
    return _asked(served, 0xC018AA06, WHERE, length, 2, (1,))


def _moving_pages(served: Served) -> tuple[int, ...]:
    """UFFDIO_MOVE of pages with bytes of their own to where there are none."""
    length = 4 * MIB
    area(served, length, WRITE)
    area(served, length, WRITE, OTHER)
    for at in range(OTHER, OTHER + length, PAGE):
        served.machine.cpu.copy_to_user(at, at.to_bytes(8, "little"))
    fd, request, argument = _asked(served, 0xC028AA05, WHERE, length, 1, ())
    served.machine.cpu.copy_to_user(argument, struct.pack("<5Q", WHERE, OTHER, length, 0, 0))
    return fd, request, argument


def _asked(
    served: Served, request: int, start: int, length: int, mode: int, rest: tuple[int, ...]
) -> tuple[int, int, int]:
    """A request about a range whose faults of a mode the program answers."""
    argument, fd = served.text(b""), served("userfaultfd", os.O_NONBLOCK | 1)
    assert isinstance(fd, int) and fd >= 0
    for first, layout in ((0xC018AA3F, (0xAA, 0, 0)), (0xC020AA00, (start, length, mode, 0))):
        served.machine.cpu.copy_to_user(argument, struct.pack(f"<{len(layout)}Q", *layout))
        assert served("ioctl", fd, first, argument) == 0
    words = (start, length, *rest)
    served.machine.cpu.copy_to_user(argument, struct.pack(f"<{len(words)}Q", *words))
    return fd, request, argument


def _showing_others(served: Served) -> tuple[int, ...]:
    """remap_file_pages of shared memory, of which nothing is there yet."""
    flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED
    assert served("mmap", WHERE, 16 * MIB, READ_AND_WRITE, flags, -1, 0) == WHERE
    return WHERE, 16 * MIB, 0, 0, 0


def _vector(served: Served, path: bytes, protection: Protection) -> tuple[int, ...]:
    area(served, MIB, protection)
    served.put(0, b"".join(word.to_bytes(8, "little") for word in (WHERE, MIB) * 4))
    return descriptor(served, path, os.O_RDWR), BASE, 4


def _buffer(served: Served, *arguments: int) -> tuple[int, ...]:
    area(served, 4 * MIB, WRITE)
    return arguments


def _unmapping_areas(served: Served) -> tuple[int, ...]:
    for index in range(8):
        area(served, PAGE, READ, WHERE + 2 * index * PAGE)
    return WHERE, 16 * PAGE


def _mincore(served: Served) -> tuple[int, ...]:
    area(served, 12 * 4096 * PAGE, READ)
    area(served, MIB, WRITE, OTHER)
    return WHERE, 12 * 4096 * PAGE, OTHER


def _holes(served: Served) -> tuple[int, ...]:
    length = filled(served)
    assert served("munmap", WHERE, 2 * PAGE) == 0
    return WHERE, length, MADV_DONTNEED


def _dirty_file(served: Served) -> tuple[int, ...]:
    """A shared mapping of a file, every page of it written, and a hole."""
    file, length = descriptor(served, b"/w/file"), 10 * MIB
    assert served("ftruncate", file, length) == 0
    flags = MAP_SHARED | MAP_FIXED
    assert served("mmap", WHERE, length, READ_AND_WRITE, flags, file, 0) == WHERE
    for at in range(WHERE, WHERE + length, PAGE):
        served.machine.cpu.copy_to_user(at, b"x")
    assert served("munmap", WHERE + PAGE, PAGE) == 0
    return WHERE, length, MS_SYNC


def _moving(served: Served, target: int = OTHER) -> tuple[int, ...]:
    """Five tables of pages to a place where as many stand, at another offset within their tables."""
    length = filled(served)
    area(served, length, READ, target)
    for at in range(target, target + length, PAGE):
        assert served.machine.cpu.copy_from_user(at, 1) == b"\0"
    return WHERE, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, target


def _reaping(served: Served) -> tuple[int, ...]:
    """process_mrelease of a process that was killed and has not ended yet."""
    filled(served)
    own = served.process
    killed = Process(own.kernel, own.mm.fork(), own.program, pid=own.pid + 1, registry=own.registry)
    killed.ended = Ended(signal=SIGKILL)
    fd = served("pidfd_open", killed.pid, 0)
    assert isinstance(fd, int) and fd >= 0
    return fd, 0


CASES = (
    Long("mmap", 8, lambda s: (WHERE, 32 * MIB, READ, POPULATED, -1, 0)),
    Long("madvise", 4, lambda s: (area(s, 16 * MIB, READ), 16 * MIB, MADV_POPULATE_READ)),
    Long("mlock", 2, lambda s: (area(s, 8 * MIB, READ), 8 * MIB)),  # RLIMIT_MEMLOCK
    Long("munmap", 4, lambda s: (WHERE, filled(s))),
    Long("mprotect", 4, lambda s: (WHERE, filled(s), 0)),
    Long("madvise", 4, lambda s: (WHERE, filled(s), MADV_DONTNEED)),
    Long("madvise", 4, _holes),
    Long("madvise", 4, lambda s: (area(s, 1024 * MIB, READ), 1024 * MIB, MADV_GUARD_INSTALL)),
    Long("ioctl", 8, _answering),
    Long("ioctl", 4, _protecting),
    Long("ioctl", 4, _moving_pages),
    Long("remap_file_pages", 4, _showing_others),
    Long("process_mrelease", 4, _reaping),
    Long("munmap", 4, _unmapping_areas),
    Long("msync", 4, _dirty_file),
    Long("mremap", 12, _moving),
    Long("mremap", 12, lambda s: _moving(s, OTHER + PAGE)),
    Long("mremap", 4, lambda s: (WHERE, filled(s), PAGE, 0)),
    Long("mincore", 12, _mincore),
    Long("readv", 4, lambda s: _vector(s, b"/dev/zero", WRITE)),
    Long("readv", 4, lambda s: _vector(s, b"/dev/urandom", WRITE)),
    Long("writev", 4, lambda s: _vector(s, b"/dev/urandom", READ)),
    Long("getrandom", 64, lambda s: _buffer(s, WHERE, 4 * MIB, 0)),
    Long("sendfile", 3, lambda s: (*_files(s)[::-1], 0, 3 * MIB)),
    Long("copy_file_range", 3, lambda s: ((pair := _files(s))[0], 0, pair[1], 0, 3 * MIB, 0)),
)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts so small that a test sees many."""
    monkeypatch.setattr(cuts, "ENTRIES", 512)
    monkeypatch.setattr(cuts, "AREAS", 2)
    monkeypatch.setattr(user_faults, "_PROTECTED", 512)
    monkeypatch.setattr(remote, "_REAPED", 512)
    monkeypatch.setattr(texts, "_AREAS_PER_LOOK", 1)


@contextlib.contextmanager
def machine(isa: str) -> Iterator[Served]:
    """A program that sees itself in /proc, and has a directory /w."""
    with (
        tempfile.TemporaryDirectory() as base,
        guest_in(Path(base)) as guest,
        contextlib.closing(Served(guest.files, isa, ram="64M")) as served,
    ):
        files = guest.files.fork(ProcessTexts(served.process))
        served.process.files = served.task.files = files
        try:
            yield served
        finally:
            files.close_all()


def left(served: Served) -> tuple[object, ...]:
    """What the call left: areas, pages, memory, positions of files. Other processes let go of theirs."""
    mm = served.process.mm
    areas = [(a.start, a.end, int(a.protection)) for a in mm.areas]
    positions = [file.position for file in served.process.files.open_files().values()]
    others = [each for each in served.process.registry.processes.values() if each is not served.process]
    resident = [each.mm.resident() for each in (served.process, *others)]
    for each in others:
        each.mm.let_go()
    return areas, resident, positions, bytes(served.memory.content)


def carried_out(long: Long, isa: str, monkeypatch: pytest.MonkeyPatch, every: int) -> tuple[object, int]:
    """The answer and what the call left, and how often it looked; interrupted at each `every`th look."""
    with machine(isa) as served, monkeypatch.context() as patch:
        arguments = long.prepare(served)
        looks = Looks(served.machine.cpu, patch)
        looks.stop_every = every
        answer = served(long.name, *arguments)
        while answer == BLOCKED:
            answer = served.again()
        return (answer, left(served)), looks.count


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("long", CASES, ids=lambda long: long.name)
def test_a_long_call_looks_once_for_each_part(isa: str, long: Long, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, looks = carried_out(long, isa, monkeypatch, every=0)
    assert looks >= long.least, "it can be ended only so often"
    interrupted, _ = carried_out(long, isa, monkeypatch, every=2)
    assert interrupted == whole


@pytest.mark.parametrize("text", [b"/proc/self/maps", b"/proc/self/smaps", b"/proc/self/numa_maps"])
def test_a_long_text_of_proc_can_be_given_up(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with machine("x86_64") as served:
        for index in range(8):
            area(served, PAGE, READ, WHERE + 2 * index * PAGE)
        looks = Looks(served.machine.cpu, monkeypatch)
        looks.stop_every = 5
        fd = descriptor(served, text, os.O_RDONLY)
        begun = looks.count
        assert served("read", fd, BASE, PAGE) == BLOCKED
        assert looks.count - begun <= 5, "the rest was not made"
        looks.stop_every = 0
        done = served.again()
        assert isinstance(done, int) and done > 100 and looks.count > 12


@pytest.mark.parametrize("call", ["poll", "ppoll", "pselect6"])
def test_a_call_that_waits_keeps_its_mask_and_its_time_when_it_is_ended_before(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine("x86_64") as served:
        counter, clock = served("eventfd2", 0, 0), served.process.kernel.clock
        assert isinstance(counter, int)
        served.put(0, struct.pack("<iHH", counter, 1, 0))
        served.put(64, struct.pack("<qqQQ", 2, 0, 1 << counter, 0))
        served.put(128, struct.pack("<QQQ", BASE + 144, 8, 0))
        arguments = {
            "poll": (BASE, 1, 2000),
            "ppoll": (BASE, 1, BASE + 64, BASE + 144, 8),
            "pselect6": (counter + 1, BASE + 80, 0, 0, BASE + 64, BASE + 128),
        }[call]
        before = clock.now_ns
        looks = Looks(served.machine.cpu, monkeypatch)
        looks.stop_every = 1
        assert served(call, *arguments) == BLOCKED
        looks.stop_every = 0
        if call != "poll":
            served.handle(SIGUSR1)
            served.task.signals.post(SignalInfo(SIGUSR1))
            assert served.again() == -errno.EINTR, "the mask of the call lets the signal in"
        else:
            assert served.again() == 0 and clock.now_ns - before == 2 * 10**9


def test_a_directory_of_many_names_can_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_NAMES_PER_LOOK", 1)
    with machine("x86_64") as served:
        served.process.files.namespace.look = served.process.kernel.checkpoint
        for index in range(6):
            descriptor(served, b"/w/%d" % index)
        directory = descriptor(served, b"/w", os.O_RDONLY)
        looks = Looks(served.machine.cpu, monkeypatch)
        looks.stop_every = 10
        assert served("getdents64", directory, BASE, PAGE) == BLOCKED
        looks.stop_every = 0
        read = served.again()
        assert isinstance(read, int) and read > 6 * 24


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_sealed_behind_the_first_part_keeps_that_too(isa: str) -> None:
    with machine(isa) as served:
        start, length = _unmapping_areas(served)
        last = start + length - 2 * PAGE
        assert served("mseal", last, PAGE, 0) == 0
        assert served("munmap", start, length) == -errno.EPERM
        assert served.process.mm.areas.find(start) is not None


@pytest.mark.parametrize("isa", ISAS)
def test_the_memory_of_who_was_killed_goes_at_once(isa: str) -> None:
    with machine(isa) as served:
        arguments = _reaping(served)
        killed = served.process.registry.processes[served.process.pid + 1]
        assert isinstance(killed, Process)
        before = killed.mm.resident()
        assert served("process_mrelease", *arguments) == 0
        after = killed.mm.resident()
        killed.mm.let_go()
        assert sum(before.values()) > 2000
        assert not any(after.values())
