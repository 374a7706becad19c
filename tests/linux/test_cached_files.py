"""What programs see of files' pages that count as memory, and what their calls do with them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aether_emu import state
from aether_emu.errors import Refused
from aether_emu.grants import Grants
from aether_emu.linux.calls import descriptors
from aether_emu.linux.files.flags import AT_FDCWD, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.mappable import mappable
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task
from aether_emu.machine.memory import host
from aether_emu.mm import mapping
from aether_emu.mm.counters import Event
from aether_emu.mm.mapping import MAP_FIXED, MAP_SHARED, Request
from aether_emu.mm.page_cache import PageCache
from aether_emu.mm.protection import Protection
from aether_emu.mm.user import UserMemory
from aether_emu.system import Machine
from tests.guests.running import program

AT, PAGE, PAGES = 0x3000_0000, 4096, 64
WILL_NEED, DO_NOT_NEED = 3, 4


class Kit:
    """A machine on which files count, with a process that shows the 64 pages of /disk/file."""

    def __init__(self, folder: Path, **options: object) -> None:
        options = {"ram": "64M", "uid": 0, "gid": 0, "page_cache": "counted", **options}
        self.machine = Machine("x86_64", **options)  # type: ignore[arg-type]  # any
        self.folder, self.path = folder, folder / "file"
        self.path.write_bytes(b"".join(bytes([65 + n % 26]) * PAGE for n in range(PAGES)))
        self.process: Process = self.machine.load(
            program("x86_64", "hello"), ["hello"], grants=self.grants, streams=_streams()
        )
        self.n = self.machine.physical.counters.n
        assert self.machine.physical.cache is not None
        self.cache: PageCache = self.machine.physical.cache
        self.memory = UserMemory(self.process.mm)
        self.fd = self.open("/disk/file")

    @property
    def grants(self) -> Grants:
        return Grants(binds=[Bind(self.folder, "/disk", writable=True)])

    def open(self, path: str, flags: int = O_RDWR) -> int:
        return self.process.files.open(AT_FDCWD, path.encode(), flags)

    def map(self) -> None:
        request = Request(
            AT,
            PAGES * PAGE,
            Protection.READ | Protection.WRITE,
            MAP_SHARED | MAP_FIXED,
            mappable(self.task, self.fd),
            0,
        )
        mapping.map_memory(self.process.mm, request)

    def unmap(self) -> None:
        mapping.unmap_memory(self.process.mm, AT, PAGES * PAGE)

    @property
    def task(self) -> Task:
        (task,) = self.process.tasks
        assert isinstance(task, Task)
        return task

    def call(self, name: str, *arguments: int) -> int:
        """A system call on files, and its result. Raises Refused."""
        result: int = getattr(descriptors, f"sys_{name}")(self.task, *arguments)
        return result

    def proc(self, name: str) -> str:
        number = self.open(f"/proc/{name}", O_RDONLY)
        data = self.process.files.read(number, 1 << 20)
        self.process.files.close(number)
        assert isinstance(data, bytes)
        return data.decode()

    def figures(self, name: str) -> dict[str, int]:
        return {line.split()[0].rstrip(":"): int(line.split()[1]) for line in self.proc(name).splitlines()}

    def write_proc(self, name: str, data: bytes) -> None:
        number = self.open(f"/proc/sys/vm/{name}", O_WRONLY)
        try:
            self.process.files.write(number, data)
        finally:
            self.process.files.close(number)

    def resident(self) -> list[int]:
        return [n for n, there in enumerate(mapping.residency(self.process.mm, AT, PAGES * PAGE)) if there]


def _streams() -> dict[str, BufferStream]:
    return {name: BufferStream() for name in ("stdin", "stdout", "stderr")}


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = Kit(tmp_path)
    yield made
    made.machine.close()


# ---- /proc


def test_meminfo_and_vmstat_tell_of_them(kit: Kit) -> None:
    kit.map()
    before, counted = kit.figures("meminfo"), kit.figures("vmstat")
    kit.memory.write(AT, b"x")
    kit.memory.read(AT + 32 * PAGE, 1)
    told, events = kit.figures("meminfo"), kit.figures("vmstat")
    grown = {name: told[name] - before[name] for name in told}
    assert grown["Cached"] == 64 * 4 == grown["Active(file)"] + grown["Inactive(file)"]
    assert grown["Mapped"] == grown["Active(file)"] == 2 * 4
    assert grown["Dirty"] == 4
    assert told["Writeback"] == 0
    assert grown["MemFree"] <= -64 * 4
    assert grown["MemAvailable"] > grown["MemFree"]
    assert told["Active"] == told["Active(anon)"] + told["Active(file)"]
    assert told["Inactive"] == told["Inactive(anon)"] + told["Inactive(file)"]
    more = {name: events[name] - counted[name] for name in events}
    assert (more["nr_file_pages"], more["nr_dirty"], more["nr_dirtied"]) == (64, 1, 1)
    assert more["nr_active_file"] + more["nr_inactive_file"] == 64
    assert more["pgmajfault"] == 2
    assert more["pgpgin"] == 64 * 4
    mapping.advise_memory(kit.process.mm, AT, PAGES * PAGE, mapping.MADV_PAGEOUT)
    kit.memory.read(AT, 1)
    more = {name: value - events[name] for name, value in kit.figures("vmstat").items()}
    assert (more["pgsteal_file"], more["pgsteal_anon"], more["nr_written"]) == (2, 0, 1)
    assert (more["workingset_refault_file"], more["workingset_activate_file"]) == (1, 1)
    assert more["pgpgout"] == 4


def test_where_they_do_not_count_nothing_is_told(tmp_path: Path) -> None:
    made = Kit.__new__(Kit)
    made.machine = Machine("x86_64", ram="64M")
    made.process = made.machine.load(program("x86_64", "hello"), ["hello"], streams=_streams())
    told = made.figures("meminfo")
    assert told["Cached"] == told["Dirty"] == told["Active(file)"] == told["Inactive(file)"] == 0
    assert made.machine.physical.reclaim is None
    made.machine.close()


def test_faults_are_major_for_the_task_that_waits(kit: Kit) -> None:
    kit.map()
    before = kit.machine.kernel.major_faults()
    kit.memory.read(AT, 1)
    assert kit.machine.kernel.major_faults() == before + 1


def test_what_comes_back_is_time_that_tasks_stand_still(kit: Kit) -> None:
    kit.map()
    kit.memory.read(AT, PAGE * 8)
    assert "total=0" in kit.proc("pressure/memory")
    mapping.advise_memory(kit.process.mm, AT, 8 * PAGE, mapping.MADV_PAGEOUT)
    kit.memory.read(AT, PAGE * 8)
    cost = kit.machine.kernel.cost_of(Event.FILE_READ)
    assert f"total={8 * cost // 1000}\n" in kit.proc("pressure/memory")


def test_root_says_how_readily_pages_go_to_swap(kit: Kit) -> None:
    assert kit.proc("sys/vm/swappiness") == "60\n"
    kit.write_proc("swappiness", b"200\n")
    assert kit.proc("sys/vm/swappiness") == "200\n"
    assert kit.machine.physical.swappiness == 200
    for wrong in (b"201", b"-1", b"x"):
        with pytest.raises(Refused, match="EINVAL"):
            kit.write_proc("swappiness", wrong)


def test_drop_caches_drops_what_is_clean_and_shown_by_nobody(kit: Kit) -> None:
    kit.map()
    kit.memory.write(AT, b"x")
    kit.memory.read(AT + PAGE, 1)
    shown = kit.process.mm.shown(AT, AT + PAGES * PAGE).size
    kit.write_proc("drop_caches", b"2")
    assert kit.resident() == list(range(32))
    kit.write_proc("drop_caches", b"1\n")
    assert len(kit.resident()) == shown
    mapping.advise_memory(kit.process.mm, AT, PAGES * PAGE, mapping.MADV_DONTNEED)
    kit.write_proc("drop_caches", b"3")
    assert kit.resident() == [0], "it is dirty"
    for wrong in (b"0", b"5", b"x"):
        with pytest.raises(Refused, match="EINVAL"):
            kit.write_proc("drop_caches", wrong)


# ---- calls on files


def test_advice_on_a_file_reads_and_drops_its_pages(kit: Kit) -> None:
    kit.map()
    assert kit.call("fadvise64", kit.fd, 40 * PAGE, 4 * PAGE, WILL_NEED) == 0
    assert set(range(40, 44)) <= set(kit.resident())
    assert kit.call("readahead", kit.fd, 0, PAGE) == 0
    assert 0 in kit.resident()
    kit.memory.write(AT + 41 * PAGE, b"new!")
    kit.memory.read(AT + 42 * PAGE, 1)
    assert kit.call("fadvise64", kit.fd, 40 * PAGE + 1, 4 * PAGE, DO_NOT_NEED) == 0
    assert kit.cache.dirty == 0, "it is written"
    assert {40, 41, 42} <= set(kit.resident()), "a part of a page, and what an entry shows, stays"
    mapping.advise_memory(kit.process.mm, AT, PAGES * PAGE, mapping.MADV_DONTNEED)
    assert kit.call("fadvise64", kit.fd, 40 * PAGE + 1, 3 * PAGE, DO_NOT_NEED) == 0
    assert set(kit.resident()) & set(range(40, 45)) == {40, 43, 44}
    assert kit.call("fadvise64", kit.fd, 0, 0, DO_NOT_NEED) == 0
    assert not kit.resident()
    assert kit.memory.read(AT + 41 * PAGE, 4) == b"new!"


def test_bytes_that_a_call_writes_make_pages_dirty(kit: Kit) -> None:
    kit.map()
    kit.memory.read(AT, 1)
    assert kit.process.files.pwrite(kit.fd, b"xy", PAGE - 1) == 2
    assert kit.cache.dirty == 2
    assert kit.process.files.pwrite(kit.fd, b"xy", 50 * PAGE) == 2
    assert kit.cache.dirty == 2, "that one is not in memory"
    assert kit.memory.read(AT + PAGE - 1, 2) == b"xy"


def test_fsync_writes_pages_back(kit: Kit) -> None:
    kit.map()
    kit.memory.write(AT + 3 * PAGE, b"x")
    assert kit.call("fsync", kit.fd) == 0
    assert kit.cache.dirty == 0
    kit.memory.write(AT + 3 * PAGE, b"y")
    assert kit.cache.dirty == 1, "a store after it counts anew"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failure_of_writing_back_is_told_by_fsync_once_to_each(
    number: int, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.map()
    kit.memory.write(AT + 3 * PAGE, b"kept")
    monkeypatch.setattr(host, "write_back", lambda *_: number)
    mapping.advise_memory(kit.process.mm, AT, 8 * PAGE, mapping.MADV_PAGEOUT)
    monkeypatch.undo()
    late = kit.open("/disk/file")
    for fd in (kit.fd, late):
        with pytest.raises(Refused) as refused:
            kit.call("fsync", fd)
        assert refused.value.errno == number
        assert kit.call("fsync", fd) == 0
    assert kit.call("fsync", kit.open("/disk/file")) == 0, "who comes when all is told"
    assert kit.memory.read(AT + 3 * PAGE, 4) == b"kept"
    assert kit.path.read_bytes()[3 * PAGE : 3 * PAGE + 4] == b"kept"


# ---- what becomes of files


def test_what_is_cut_off_leaves_memory(kit: Kit) -> None:
    kit.map()
    kit.memory.write(AT, b"x" * PAGES * PAGE)
    free = kit.machine.buddy.free_frames
    assert kit.call("ftruncate", kit.fd, 16 * PAGE) == 0
    assert kit.cache.dirty == 16
    assert kit.resident() == list(range(16))
    assert kit.machine.buddy.free_frames == free + 48
    assert kit.call("fallocate", kit.fd, 3, 4 * PAGE, 4 * PAGE) == 0
    assert kit.resident() == [*range(4), *range(8, 16)]
    kit.process.files.close(kit.open("/disk/file", O_RDWR | O_TRUNC))
    assert not kit.resident()


def test_a_removed_file_takes_nothing_once_nobody_shows_it(kit: Kit) -> None:
    kit.map()
    kit.memory.read(AT, PAGES * PAGE)
    before = kit.cache.pages
    kit.process.files.unlink(AT_FDCWD, b"/disk/file")
    assert kit.cache.pages == before
    kit.unmap()
    assert kit.cache.pages == before - PAGES


def test_a_file_that_is_removed_after_it_was_shown_takes_nothing_either(kit: Kit) -> None:
    kit.map()
    kit.memory.read(AT, PAGES * PAGE)
    before = kit.cache.pages
    kit.unmap()
    assert kit.cache.pages == before
    kit.process.files.unlink(AT_FDCWD, b"/disk/file")
    assert kit.cache.pages == before - PAGES


def test_another_program_that_cuts_the_file_takes_the_page(kit: Kit) -> None:
    kit.map()
    kit.memory.read(AT, PAGES * PAGE)
    os.truncate(kit.path, PAGE)
    assert kit.resident() == [0]


# ---- a captured machine


def test_what_is_kept_of_files_that_nobody_shows_is_captured(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.map()
    kit.memory.write(AT, b"kept")
    kit.memory.read(AT + 40 * PAGE, 1)
    kit.unmap()
    pages, dirty, free = kit.cache.pages, kit.cache.dirty, kit.machine.buddy.free_frames
    captured = state.capture(kit.machine)
    assert kit.cache.pages == pages
    kit.machine.abandon()
    other = state.restore(captured, grants=kit.grants, streams=_streams())
    cache = other.physical.cache
    assert cache is not None
    assert (cache.pages, cache.dirty, other.buddy.free_frames) == (pages, dirty, free)
    assert len(cache.unused) == 1
    other.run()
    other.close()


def test_a_failure_that_nobody_was_told_of_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = Kit(tmp_path)
    kit.map()
    kit.memory.write(AT, b"kept")
    monkeypatch.setattr(host, "write_back", lambda *_: errno.EIO)
    mapping.advise_memory(kit.process.mm, AT, PAGE, mapping.MADV_PAGEOUT)
    monkeypatch.undo()
    late = kit.open("/disk/file")
    with pytest.raises(Refused, match="EIO"):
        kit.call("fsync", late)
    captured = state.capture(kit.machine)
    kit.machine.abandon()
    other = state.restore(captured, grants=kit.grants, streams=_streams())
    assert other.process is not None
    (task,) = other.process.tasks
    assert isinstance(task, Task)
    assert descriptors.sys_fsync(task, late) == 0
    with pytest.raises(Refused, match="EIO"):
        descriptors.sys_fsync(task, kit.fd)
    with pytest.raises(Refused, match="EIO"):
        mapping.sync_memory(other.process.mm, AT, PAGE, mapping.MS_SYNC)
    mapping.sync_memory(other.process.mm, AT, PAGE, mapping.MS_SYNC)
    other.close()


def test_what_could_not_be_found_again_is_let_go_when_it_is_captured(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.map()
    kit.memory.read(AT, 1)
    kit.unmap()
    pages = kit.cache.pages
    kit.process.files.close(kit.fd)
    kit.path.rename(tmp_path / "elsewhere")
    state.capture(kit.machine)
    assert kit.cache.pages == pages - 32
    kit.machine.close()
