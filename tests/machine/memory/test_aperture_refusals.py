"""What becomes of a file's pages when the host refuses a call long after the file was attached."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aether_emu.errors import Refused
from aether_emu.machine.memory import host
from aether_emu.machine.memory.aperture import SLOT_SIZE, Aperture, BackingFailed
from tests.machine.child import survives
from tests.machine.memory.aperture_files import PAGE, Files, check, files_in, numbered

SEAL_FUTURE_WRITE = 16
SLOT_PAGES = SLOT_SIZE // PAGE


def refusing(code: int) -> Callable[..., None]:
    """A memory call that the host refuses."""

    def refuse(address: int, length: int, *_: object, **_more: object) -> None:
        raise host.HostMemoryError("mmap", code, address, length)

    return refuse


def test_a_window_that_the_host_refuses_late_is_a_failed_page_and_the_others_stay(files: Files) -> None:
    fd = os.memfd_create("late", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 2 * SLOT_SIZE)
    file = files.aperture.attach(fd, "late", writable=True)
    pa = file.frame(0, write=True)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEAL_FUTURE_WRITE)
    with pytest.raises(BackingFailed):
        file.frame(SLOT_PAGES, write=True)
    files.aperture.on_evict = lambda pa, length: check(False)
    for name in ("a", "b"):  # there are three slots: the one that was to be bound is free again
        assert files.see(files.attach(name, numbered(1)).frame(0), PAGE) == numbered(1)
    files.store(pa, b"still mine")
    assert os.pread(fd, 10, 0) == b"still mine"
    files.aperture.on_evict = lambda pa, length: None
    os.close(fd)


def test_without_host_memory_a_page_fails_and_can_be_asked_for_again(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = files.attach("a", numbered(2))
    with monkeypatch.context() as patched:
        patched.setattr(host, "populate", lambda *_, **_more: host.PopulateResult.FAULT)
        patched.setattr(host, "can_populate", lambda: True)
        with pytest.raises(BackingFailed):
            file.frame(1)
    assert files.see(file.frame(1), PAGE) == numbered(2)[PAGE:]


def test_an_upgrade_that_the_host_refuses_gives_the_windows_up(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, told = files.attach("a", numbered(1)), []
    file.frame(0)
    files.aperture.on_evict = lambda pa, length: told.append((pa, length))
    monkeypatch.setattr(host, "mapping_refusal", lambda *_, **_more: 0)
    with monkeypatch.context() as patched:
        patched.setattr(host, "place_file", refusing(errno.ENOMEM))
        assert files.attach("a", writable=True) is file
        assert len(told) == 1, "entries that show the old window are gone"
        with pytest.raises(BackingFailed):
            file.frame(0, write=True)
    files.store(file.frame(0, write=True), b"stored")
    assert files.path("a").read_bytes()[:6] == b"stored"


@pytest.mark.parametrize("page_size", [16384, 65536])
def test_a_tail_that_cannot_be_fitted_is_an_eviction_and_no_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_size: int
) -> None:
    files = files_in(tmp_path, page_size=page_size)
    file, told = files.attach("a", b"x" * 5000, writable=True), []
    file.frame(0, write=True)
    files.aperture.on_evict = lambda pa, length: told.append((pa, length))
    with monkeypatch.context() as patched:
        patched.setattr(host, "place_file", refusing(errno.ENOMEM))
        assert file.write(5000, b"y" * 5000) == 5000
    assert len(told) == 1
    assert files.see(file.frame(0), 10_001) == b"x" * 5000 + b"y" * 5000 + b"\0"
    files.aperture.close()


@pytest.mark.parametrize("page_size", [16384, 65536])
def test_a_tail_that_was_half_fitted_is_fitted_when_the_page_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_size: int
) -> None:
    files = files_in(tmp_path, page_size=page_size)
    file = files.attach("a", b"x" * 5000, writable=True)
    file.frame(0, write=True)
    os.truncate(files.path("a"), 9000)
    with monkeypatch.context() as patched:
        patched.setattr(host, "place_zeroes", refusing(errno.ENOMEM))
        with pytest.raises(BackingFailed):
            file.frame(0, write=True)
    os.truncate(files.path("a"), 5000)
    pa = file.frame(0, write=True)
    survives(lambda: check(files.see(pa, page_size) == b"x" * 5000 + bytes(page_size - 5000)))
    files.aperture.close()


def test_a_lost_page_that_cannot_be_shown_again_is_an_eviction(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, told = files.attach("a", numbered(1)), []
    address = file.frame(0) - files.aperture.base + files.aperture.host_address
    files.aperture.on_evict = lambda pa, length: told.append((pa, length))
    with monkeypatch.context() as patched:
        patched.setattr(host, "place_file", refusing(errno.ENOMEM))
        assert files.aperture.lost(address) == (file, 0)
    assert len(told) == 1
    assert files.see(file.frame(0), PAGE) == numbered(1)


def test_a_slot_that_cannot_be_cleared_is_free_all_the_same(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = files.attach("a", numbered(1))
    file.frame(0)
    monkeypatch.setattr(host, "place_zeroes", refusing(errno.ENOMEM))
    file.close()
    assert files.see(files.attach("b", b"b" * PAGE).frame(0), PAGE) == b"b" * PAGE


def test_a_host_without_descriptors_refuses_the_file(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> int:
        raise OSError(errno.EMFILE, "too many")

    files.path("a").write_bytes(b"x")
    monkeypatch.setattr(os, "dup", full)
    with pytest.raises(Refused) as refusal:
        files.attach("a")
    assert refusal.value.errno == errno.EMFILE


def test_a_file_whose_size_the_host_does_not_tell_has_no_page(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = files.attach("a", numbered(1))

    def broken(fd: int) -> os.stat_result:
        raise OSError(errno.EIO, "no storage")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", broken)
        with pytest.raises(BackingFailed):
            file.frame(0)


def test_writes_that_the_host_loses_at_the_close_of_a_file_are_nobodys_error(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, closed = files.attach("a", numbered(1)), os.close

    def full(fd: int) -> None:
        closed(fd)
        raise OSError(errno.EDQUOT, "no room")

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", full)
        file.close()
    assert files.see(files.attach("b", numbered(1)).frame(0), PAGE) == numbered(1)


def test_a_hole_reads_as_zeroes_or_the_host_says_why_not(files: Files) -> None:
    file = files.attach("a", numbered(3), writable=True)
    pa = file.frames(0, 3)[0]
    file.punch(1, 1)
    assert files.see(pa, 3 * PAGE) == numbered(3)[:PAGE] + bytes(PAGE) + numbered(3)[2 * PAGE :]
    reader = files.attach("b", numbered(1))
    with pytest.raises(Refused) as refusal:
        reader.punch(0, 1)
    assert refusal.value.errno == errno.EBADF


def test_the_refused_reservation_of_a_trial_is_the_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    fd = os.open(tmp_path / "a", os.O_RDONLY)

    def no_memory(length: int, alignment: int = 0) -> int:
        raise host.HostMemoryError("mmap", errno.ENOMEM, 0, length)

    aperture = Aperture(1 << 32, SLOT_SIZE, PAGE)
    monkeypatch.setattr(host, "reserve", no_memory)
    with pytest.raises(Refused) as refusal:
        aperture.attach(fd, "a", writable=False)
    assert refusal.value.errno == errno.ENOMEM
    os.close(fd)
    aperture.close()
