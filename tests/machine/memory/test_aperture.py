"""The file aperture: shared frames, coherence with the host, ends of files, and slots that are reused."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from aether_emu.errors import AddressError, ConfigError, Refused
from aether_emu.machine.memory.aperture import SLOT_SIZE, Aperture, BeyondEnd
from tests.machine.child import in_other_process
from tests.machine.memory.aperture_files import BASE, PAGE, Files, check, files_in, numbered
from tests.machine.unicorn.flat_guest import FlatGuest

# ---- the range


@pytest.mark.parametrize(
    ("base", "size", "page_size", "culprit"),
    [
        (4096, SLOT_SIZE, 4096, "aperture.base"),
        (0, SLOT_SIZE + 4096, 4096, "aperture.size"),
        (0, 0, 4096, "aperture.size"),
        (0, 64 << 30, 4096, "aperture.size"),
        (0, SLOT_SIZE, 8192, "aperture.page_size"),
    ],
)
def test_a_range_that_is_not_slots_is_refused_by_name(
    base: int, size: int, page_size: int, culprit: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        Aperture(base, size, page_size)
    assert refusal.value.name == culprit


def test_close_gives_back_the_range_and_every_descriptor_and_can_be_repeated(tmp_path: Path) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    files = files_in(tmp_path)
    files.attach("a", numbered(1)).frame(0)
    files.attach("b", numbered(1))
    files.aperture.close()
    files.aperture.close()
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert f"{files.aperture.host_address:x}-" not in Path("/proc/self/maps").read_text()


# ---- frames


@pytest.mark.parametrize("writable", [False, True])
def test_a_frame_shows_its_page_with_no_copy(files: Files, kernel: str, writable: bool) -> None:
    file = files.attach("a", numbered(600), writable=writable)
    for page_index in (0, 1, 511, 512, 599):
        pa = file.frame(page_index)
        assert (pa - BASE) % SLOT_SIZE == page_index * PAGE % SLOT_SIZE
        assert files.see(pa, PAGE) == numbered(600)[page_index * PAGE :][:PAGE]
        assert files.aperture.owner_of(pa + 123) == (file, page_index)


def test_two_attachments_of_one_file_share_its_frames(files: Files) -> None:
    first, second = files.attach("a", numbered(2)), files.attach("a")
    assert first is second and first.frame(1) == second.frame(1)


def test_different_files_and_extents_have_different_frames(files: Files) -> None:
    a, b = files.attach("a", numbered(513)), files.attach("b", numbered(1))
    assert len({a.frame(0), a.frame(512), b.frame(0)}) == 3


@pytest.mark.parametrize("write", [False, True])
def test_fault_around_stops_at_the_end_of_the_file_and_of_the_slot(
    files: Files, kernel: str, write: bool
) -> None:
    file = files.attach("a", numbered(519), writable=True)
    assert file.frames(0, 16, write=write) == (file.frame(0), 16)
    assert file.frames(500, 16, write=write) == (file.frame(500), 12)
    assert file.frames(512, 16, write=write) == (file.frame(512), 7)
    assert file.frames(518, 16, write=write) == (file.frame(518), 1)


@pytest.mark.parametrize("page_index", [2, 3, 511, 512, 1 << 40, -1])
def test_a_page_beyond_the_end_is_refused_and_takes_no_slot(
    files: Files, kernel: str, page_index: int
) -> None:
    file = files.attach("a", numbered(1) + b"x")
    with pytest.raises(BeyondEnd) as refusal:
        file.frame(page_index)
    assert refusal.value.page_index == page_index
    assert files.aperture.save().free == (2, 1, 0)
    file.frame(1)
    with pytest.raises(BeyondEnd):
        file.frame(page_index)
    assert files.aperture.save().free == (2, 1)


def test_an_empty_file_has_no_page(files: Files, kernel: str) -> None:
    file = files.attach("a", b"")
    assert file.size == 0
    with pytest.raises(BeyondEnd):
        file.frame(0)


def test_the_bytes_behind_the_end_in_the_last_page_are_zero(files: Files) -> None:
    file = files.attach("a", b"x" * 100)
    assert files.see(file.frame(0), PAGE) == b"x" * 100 + bytes(PAGE - 100)


def test_a_frame_for_stores_has_its_disk_block(files: Files, kernel: str) -> None:
    file = files.attach("a", b"", writable=True)
    os.truncate(files.path("a"), 64 * PAGE)
    before = files.path("a").stat().st_blocks
    file.frame(8)
    assert files.path("a").stat().st_blocks == before
    file.frames(8, 4, write=True)
    assert (files.path("a").stat().st_blocks - before) * 512 >= 4 * PAGE
    assert files.path("a").stat().st_size == 64 * PAGE


# ---- coherence


def test_a_guest_store_is_in_the_file_at_once_and_a_host_write_in_the_guest(files: Files) -> None:
    file = files.attach("a", numbered(2), writable=True)
    guest = FlatGuest("mov [rdi], rsi; mov rax, [rbx]; nop", files.aperture)
    guest["rdi"], guest["rbx"] = file.frame(0, write=True) + 8, file.frame(1, write=True)
    guest["rsi"] = int.from_bytes(b"by guest", "little")
    file.write(PAGE, b"by write")
    guest.run()
    assert guest["rax"].to_bytes(8, "little") == b"by write"
    assert file.read(8, 8) == b"by guest"
    in_other_process(lambda: check(files.path("a").read_bytes()[8:16] == b"by guest"))


def test_a_stray_store_never_reaches_a_file_granted_for_reading(files: Files) -> None:
    content = numbered(2)
    file = files.attach("a", content)
    guest = FlatGuest("mov [rdi], rsi; mov [rdi + 512], rsi; nop", files.aperture)
    guest["rdi"], guest["rsi"] = file.frame(0), 0x6666
    guest.run()
    assert files.see(guest["rdi"], 2) == b"\x66\x66"
    assert files.path("a").read_bytes() == content
    with files.path("a").open("r+b") as other:
        other.seek(PAGE)
        other.write(b"later")
    assert files.see(file.frame(1), 5) == b"later"


def test_an_upgrade_keeps_the_frames_and_drops_stray_stores(files: Files) -> None:
    reader = files.attach("a", numbered(2))
    pa = reader.frame(0)
    files.store(pa, b"stray")
    writer = files.attach("a", writable=True)
    assert writer is reader and writer.writable
    assert files.see(pa, PAGE) == numbered(1)
    assert reader.frame(0, write=True) == pa
    files.store(pa, b"meant")
    assert files.path("a").read_bytes()[:5] == b"meant"
    assert reader.write(PAGE, b"too") == 3 and files.see(reader.frame(1), 3) == b"too"


def test_a_reading_attachment_does_not_end_the_writing_one(files: Files) -> None:
    writer = files.attach("a", numbered(1), writable=True)
    pa = writer.frame(0, write=True)
    assert files.attach("a").writable
    files.store(pa, b"still")
    assert writer.read(0, 5) == b"still"


def test_synced_stores_are_on_disk_and_a_failing_disk_is_reported(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = files.attach("a", numbered(1), writable=True)
    file.sync()

    def failing(_fd: int) -> None:
        raise OSError(errno.EIO, "disk")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(Refused) as refusal:
        file.sync()
    assert refusal.value.errno == errno.EIO


# ---- what attach and access refuse


def test_attach_refuses_what_mmap_would(files: Files) -> None:
    files.path("a").write_bytes(b"x")
    cases = [
        (files.path("a"), os.O_RDONLY, True, errno.EACCES),
        (files.path("a"), os.O_WRONLY, True, errno.EACCES),
        (files.path("a"), os.O_WRONLY, False, errno.EACCES),
        (files.folder, os.O_RDONLY, False, errno.ENODEV),
        (Path("/dev/zero"), os.O_RDWR, True, errno.ENODEV),
    ]
    for path, flags, writable, expected in cases:
        fd = os.open(path, flags)
        with pytest.raises(Refused) as refusal:
            files.aperture.attach(fd, str(path), writable=writable)
        os.close(fd)
        assert refusal.value.errno == expected, path
    sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    with pytest.raises(Refused) as refusal:
        files.aperture.attach(sealed, "sealed", writable=True)
    assert refusal.value.errno == errno.EPERM
    os.close(sealed)


def test_a_file_granted_for_reading_gives_no_frame_for_stores_and_no_write(files: Files) -> None:
    file = files.attach("a", numbered(1))
    with pytest.raises(Refused) as refusal:
        file.frame(0, write=True)
    assert refusal.value.errno == errno.EACCES
    with pytest.raises(Refused) as refusal:
        file.write(0, b"x")
    assert refusal.value.errno == errno.EBADF
    assert files.path("a").read_bytes() == numbered(1)


def test_write_refuses_a_descriptor_that_only_appends(files: Files) -> None:
    files.path("a").write_bytes(b"abc")
    fd = os.open(files.path("a"), os.O_RDWR | os.O_APPEND)
    file = files.aperture.attach(fd, "a", writable=True)
    with pytest.raises(Refused) as refusal:
        file.write(0, b"x")
    assert refusal.value.errno == errno.EINVAL
    os.close(fd)
    assert files.path("a").read_bytes() == b"abc"


def test_read_is_short_at_the_end_and_read_page_is_zero_behind_it(files: Files) -> None:
    file = files.attach("a", numbered(1) + b"tail")
    assert file.read(PAGE - 8, 100) == b"\1" + bytes(7) + b"tail"
    page = bytearray(b"?" * PAGE)
    file.read_page(1, memoryview(page))
    assert page == b"tail" + bytes(PAGE - 4)
    with pytest.raises(BeyondEnd):
        file.read_page(2, memoryview(page))


# ---- slots


def evictions(aperture: Aperture) -> list[int]:
    """A list that fills with the slots told to be evicted; each must still show its old file then."""
    told: list[int] = []

    def on_evict(pa: int, length: int) -> None:
        aperture.owner_of(pa)
        assert length == SLOT_SIZE
        told.append((pa - BASE) // SLOT_SIZE)

    aperture.on_evict = on_evict
    return told


def test_the_least_recently_used_slot_is_reused_after_its_owner_was_told(files: Files) -> None:
    told = evictions(files.aperture)
    a, b, c, d = (files.attach(name, numbered(1) + name.encode()) for name in "abcd")
    frame_of_a, frame_of_b, _ = a.frame(0), b.frame(0), c.frame(0)
    assert a.frame(1) == frame_of_a + PAGE
    assert told == []
    assert d.frame(1) == frame_of_b + PAGE
    assert told == [1]
    assert files.see(frame_of_b + PAGE, 1) == b"d"
    assert files.aperture.owner_of(frame_of_b) == (d, 0)
    assert b.frame(0) != frame_of_b
    assert told == [1, 2]


def test_the_last_close_evicts_the_files_slots_and_clears_them(files: Files) -> None:
    told = evictions(files.aperture)
    a = files.attach("a", numbered(513))
    files.attach("a")
    pa = a.frame(512)
    a.close()
    assert told == [] and files.see(pa, 2) == b"\x01\x02"
    a.close()
    assert told == [0]
    assert files.see(pa, PAGE) == bytes(PAGE)
    with pytest.raises(AddressError):
        files.aperture.owner_of(pa)
    with pytest.raises(AssertionError, match="once too often"):
        a.close()


@pytest.mark.parametrize("pa", [BASE - 1, BASE + SLOT_SIZE, BASE + 3 * SLOT_SIZE])
def test_an_address_where_no_file_is_has_no_owner(files: Files, pa: int) -> None:
    files.attach("a", numbered(1)).frame(0)
    with pytest.raises(AddressError):
        files.aperture.owner_of(pa)


def test_stray_stores_are_gone_when_a_slot_is_reused(files: Files) -> None:
    file = files.attach("a", numbered(4 * 512))
    files.store(file.frame(0), b"stray")
    for extent in (1, 2, 3, 0):
        pa = file.frame(extent * 512)
        assert files.see(pa, PAGE) == numbered(4 * 512)[extent * SLOT_SIZE :][:PAGE]


def test_load_brings_back_every_binding_and_the_order_of_use(files: Files) -> None:
    a, b, c, d = (files.attach(name, numbered(1) + name.encode()) for name in "abcd")
    b.frame(0), a.frame(0), c.frame(0), a.frame(0)
    saved = files.aperture.save()
    places = [file.frame(0) for file in (a, b, c)]
    d.frame(0), c.frame(0), b.frame(0)
    files.aperture.load(saved)
    assert files.aperture.save() == saved
    assert files.see(places[0] + PAGE, 1) + files.see(places[2] + PAGE, 1) == b"ac"
    assert d.frame(0) == places[1]


def test_load_refuses_a_file_that_is_not_attached(files: Files) -> None:
    a = files.attach("a", numbered(1))
    a.frame(0)
    saved = files.aperture.save()
    a.close()
    with pytest.raises(AddressError, match="not attached"):
        files.aperture.load(saved)
