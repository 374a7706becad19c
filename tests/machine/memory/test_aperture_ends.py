"""Files whose end moves under the guest: growth, truncation by others, tails of large pages, a full disk."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from aether_emu.machine.memory import host
from aether_emu.machine.memory.aperture import BackingFailed, BeyondEnd
from tests.machine.child import in_other_process, survives
from tests.machine.memory.aperture_files import BASE, PAGE, Files, check, files_in, numbered
from tests.machine.memory.small_disk import fill_disk, on_small_disk


def test_a_file_that_grows_has_new_pages(files: Files, kernel: str) -> None:
    file = files.attach("a", b"x" * 100, writable=True)
    pa = file.frame(0)
    assert file.write(PAGE, b"new") == 3
    assert file.size == PAGE + 3
    assert files.see(file.frame(1), 3) == b"new"
    os.truncate(files.path("a"), 3 * PAGE)
    assert file.frame(2) == pa + 2 * PAGE


def test_a_page_cut_off_by_another_process_is_beyond_the_end(files: Files, kernel: str) -> None:
    file = files.attach("a", numbered(4))
    file.frames(0, 4)
    in_other_process(lambda: os.truncate(files.path("a"), PAGE))
    with pytest.raises(BeyondEnd):
        file.frame(1)
    assert file.frames(0, 4)[1] == 1


@pytest.mark.parametrize("page_size", [16384, 65536])
@pytest.mark.parametrize("writable", [False, True])
def test_a_large_page_is_readable_to_its_end_behind_the_end_of_the_file(
    tmp_path: Path, kernel: str, page_size: int, writable: bool
) -> None:
    files = files_in(tmp_path, page_size=page_size)
    file = files.attach("a", b"x" * 5000, writable=writable)
    pa = file.frame(0, write=writable)
    survives(lambda: check(files.see(pa, page_size) == b"x" * 5000 + bytes(page_size - 5000)))
    files.store(pa + 8192, b"into the tail")
    assert files.path("a").read_bytes() == b"x" * 5000
    with pytest.raises(BeyondEnd):
        file.frame(1)
    files.aperture.close()


@pytest.mark.parametrize("page_size", [16384, 65536])
@pytest.mark.parametrize("told", [False, True], ids=["found out", "told"])
def test_a_tail_becomes_file_again_when_the_file_grows(
    tmp_path: Path, kernel: str, page_size: int, told: bool
) -> None:
    files = files_in(tmp_path, page_size=page_size)
    file = files.attach("a", b"x" * 5000, writable=True)
    pa = file.frame(0, write=True)
    files.store(pa + 8192, b"into the tail")
    in_other_process(lambda: os.truncate(files.path("a"), 2 * page_size))
    if told:
        file.resized()
    else:
        assert file.frame(0) == pa
    assert files.see(pa + 8192, 13) == bytes(13)
    files.store(pa + 8192, b"into the file")
    assert file.read(8192, 13) == b"into the file"
    files.store(file.frame(1, write=True), b"page 1")
    assert file.read(page_size, 6) == b"page 1"
    files.aperture.close()


@pytest.mark.parametrize("page_size", [16384, 65536])
def test_a_tail_moves_when_the_file_shrinks(tmp_path: Path, kernel: str, page_size: int) -> None:
    files = files_in(tmp_path, page_size=page_size)
    file = files.attach("a", b"x" * (page_size + 9000), writable=True)
    pa = file.frames(0, 2, write=True)[0]
    in_other_process(lambda: os.truncate(files.path("a"), 5000))
    file.resized()
    survives(lambda: check(files.see(pa, page_size) == b"x" * 5000 + bytes(page_size - 5000)))
    with pytest.raises(BeyondEnd):
        file.frame(1)
    assert file.frames(0, 2, write=True) == (pa, 1)
    files.aperture.close()


@pytest.mark.parametrize("page_size", [16384, 65536])
def test_a_large_page_cut_through_by_another_process_is_repaired_when_asked_for(
    tmp_path: Path, kernel: str, page_size: int
) -> None:
    files = files_in(tmp_path, page_size=page_size)
    file = files.attach("a", b"x" * page_size)
    pa = file.frame(0)
    in_other_process(lambda: os.truncate(files.path("a"), 5000))
    assert file.frames(0, 1) == (pa, 1)
    survives(lambda: check(files.see(pa, page_size) == b"x" * 5000 + bytes(page_size - 5000)))
    files.aperture.close()


def test_a_lost_page_shows_the_file_again(files: Files) -> None:
    file = files.attach("a", numbered(600))
    address = file.frame(590) - BASE + files.aperture.host_address
    host.place_zeroes(address, PAGE)
    assert files.aperture.lost(address + 5) == (file, 590)
    assert ctypes.string_at(address, PAGE) == numbered(600)[590 * PAGE :][:PAGE]


def test_a_full_disk_is_refused_before_the_guest_can_store(tmp_path: Path, kernel: str) -> None:
    def scenario() -> None:
        files = files_in(tmp_path)
        file = files.attach("a", b"", writable=True)
        os.truncate(files.path("a"), 8 * PAGE)
        file.frames(0, 2, write=True)
        fill_disk(tmp_path)
        with pytest.raises(BackingFailed):
            file.frame(2, write=True)
        assert file.frames(0, 8, write=True)[1] == 2
        with pytest.raises(BeyondEnd):
            file.frame(8, write=True)
        (tmp_path / "filler").unlink()
        assert file.frames(0, 8, write=True)[1] == 8

    on_small_disk(tmp_path, scenario)
