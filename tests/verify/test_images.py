"""Memory images: each kind opened, read at any address, and refused with one line when it is broken."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_emu.errors import AetherError
from aether_emu.verify.tables.images import Image, ImageError, image_of, open_image
from tests.verify.crafted_images import elf_core, lime, note, qemu_note

PAGE = 4096


def words(first: int, pages: int = 1) -> bytes:
    """Pages whose words count up from `first`."""
    return np.arange(first, first + pages * PAGE // 8, dtype="<u8").tobytes()


def written(folder: Path, data: bytes) -> Path:
    path = folder / "image"
    path.write_bytes(data)
    return path


def read(image: Image, *addresses: int) -> list[int | None]:
    """The words there, None for what the image does not hold."""
    values, backed = image.read(np.array(addresses, np.uint64))
    return [value if there else None for value, there in zip(values.tolist(), backed.tolist(), strict=True)]


SEGMENTS = [(0x10000, words(1), PAGE), (0x30000, words(5000, 2), 2 * PAGE)]
ADDRESSES = (0x10000, 0x10008, 0x10FF8, 0x11000, 0xFFF8, 0x30000, 0x31FF8, 0x32000, 0, (1 << 64) - 8)
VALUES = [1, 2, 512, None, None, 5000, 6023, None, None, None]


@pytest.mark.parametrize("skew", [0, 4])
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("machine", [62, 183])
def test_an_elf_core_is_read_at_its_physical_addresses(
    tmp_path: Path, skew: int, many: bool, machine: int
) -> None:
    image = open_image(written(tmp_path, elf_core(SEGMENTS, skew=skew, many=many, machine=machine)))
    assert (image.kind, image.registers.isa) == ("ELF core", {62: "x86_64", 183: "arm64"}[machine])
    assert read(image, *ADDRESSES) == VALUES
    assert image.ranges == [(0x10000, 0x11000), (0x30000, 0x32000)]


def test_lime_is_read_at_its_physical_addresses(tmp_path: Path) -> None:
    image = open_image(written(tmp_path, lime([(address, data) for address, data, _ in SEGMENTS])))
    assert image.kind == "LiME dump"
    assert read(image, *ADDRESSES) == VALUES


def test_a_lime_range_of_odd_length_shifts_the_next_ones(tmp_path: Path) -> None:
    image = open_image(written(tmp_path, lime([(0x1000, words(1)[:13]), (0x8000, words(9))])))
    assert read(image, 0x1000, 0x1008, 0x8000, 0x8FF8) == [1, None, 9, 520]


def test_a_raw_image_begins_at_its_base(tmp_path: Path) -> None:
    path = written(tmp_path, words(7))
    assert read(open_image(path), 0, 0xFF8, 0x1000) == [7, 518, None]
    image = open_image(path, base=0x4000_0000)
    assert read(image, 0, 0x4000_0000, 0x4000_0FF8) == [None, 7, 518]


def test_a_base_makes_anything_raw(tmp_path: Path) -> None:
    image = open_image(written(tmp_path, elf_core(SEGMENTS)), base=0)
    assert (image.kind, read(image, 0)[0]) == ("raw memory", 0x0001_0102_464C_457F)


def test_what_a_core_did_not_save_exists_without_contents(tmp_path: Path) -> None:
    image = open_image(written(tmp_path, elf_core([(0x10000, words(1), 3 * PAGE)])))
    assert read(image, 0x10000, 0x11000) == [1, None]
    starts = np.array([0x10000, 0x12000, 0x13000, 0xF000], np.uint64)
    assert image.existing(starts, np.full(4, 0x1000, np.uint64)).tolist() == [4096, 4096, 0, 0]
    assert image.existing(starts[3:], np.full(1, 0x8000, np.uint64)).tolist() == [3 * PAGE]


def test_overlapping_ranges_count_once_and_the_first_one_wins(tmp_path: Path) -> None:
    core = elf_core(
        [(0x1000, words(1, 2), 2 * PAGE), (0x2000, words(9000, 2), 2 * PAGE), (0x1000, words(70), PAGE)]
    )
    image = open_image(written(tmp_path, core))
    assert read(image, 0x1000, 0x2000, 0x3000) == [1, 513, 9512]
    assert image.existing(np.array([0], np.uint64), np.array([1 << 20], np.uint64)).tolist() == [3 * PAGE]


def test_tables_are_read_whole_or_marked_where_they_are_not_there(tmp_path: Path) -> None:
    image = open_image(
        written(tmp_path, elf_core([(0x10000, words(1), PAGE), (0x11000, words(600)[:64], 64)]))
    )
    rows, backed = image.tables(np.array([0x10000, 0x11000, 0x40000], np.uint64), 512)
    assert rows[0].tolist() == list(range(1, 513))
    assert backed.sum(axis=1).tolist() == [512, 8, 0]
    assert rows[1, :9].tolist() == [*range(600, 608), 0]
    straddling, there = image.tables(np.array([0x10800], np.uint64), 257)
    assert straddling[0, 256] == 600
    assert there.all()


def test_an_image_is_never_copied_or_written(tmp_path: Path) -> None:
    memory = np.arange(512, dtype=np.uint64)
    image = image_of(memory, base=0x1000)
    memory[3] = 99
    assert read(image, 0x1018) == [99]
    path = written(tmp_path, words(1))
    opened = open_image(path)
    with path.open("r+b") as file:
        file.write(struct.pack("<Q", 77))
    assert read(opened, 0) == [77], "the mapping shows the file"


# ---- what cores tell


@pytest.mark.parametrize(("cr4", "name"), [(0x20, "x86_64-4level"), (0x1020, "x86_64-5level"), (0, None)])
def test_qemus_note_tells_the_root_and_the_levels(tmp_path: Path, cr4: int, name: str | None) -> None:
    core = elf_core(SEGMENTS, notes=note(b"CORE", 1, bytes(336)) + qemu_note(0x1234000, cr4))
    registers = open_image(written(tmp_path, core)).registers
    assert (registers.format, registers.roots[0]) == (name, 0x1234000 if name else None)


def test_of_several_cpus_the_first_tells(tmp_path: Path) -> None:
    core = elf_core(SEGMENTS, notes=qemu_note(0x1000, 0x20) + qemu_note(0x2000, 0x20))
    assert open_image(written(tmp_path, core)).registers.roots == (0x1000, None)


def test_a_note_that_makes_no_sense_tells_nothing(tmp_path: Path) -> None:
    for data in (b"", b"\xff" * 12, struct.pack("<III", 7, 1 << 31, 1), note(b"AETHER", 1, bytes(16)),
                 note(b"AETHER", 1, b"\xff" * 64), note(b"QEMU", 0, bytes(8))):  # fmt: skip
        core = elf_core(SEGMENTS, notes=data or note(b"X", 9, b""))
        assert open_image(written(tmp_path, core)).registers.format is None


# ---- broken files

REFUSED: list[tuple[str, bytes, str]] = [
    ("empty", b"", "empty"),
    ("half an ELF header", b"\x7fELF\x02\x01", "truncated"),
    ("32-bit", b"\x7fELF\x01\x01" + bytes(80), "64-bit"),
    ("program", elf_core(SEGMENTS, kind=2), "not a core"),
    ("other machine", elf_core(SEGMENTS, machine=8), "e_machine 8"),
    ("cut contents", elf_core(SEGMENTS)[:-1], "truncated"),
    ("cut program headers", elf_core(SEGMENTS)[:100], "truncated"),
    ("no memory", elf_core([]), "no memory"),
    ("process", elf_core([(0, words(1), PAGE), (0, words(1), PAGE)]), "core of a process"),
    ("end of addresses", elf_core([((1 << 64) - 8, words(1), PAGE)]), "end of the address space"),
    ("cut LiME", lime([(0, words(1))])[:-1], "truncated"),
    ("half a LiME header", lime([(0, words(1))]) + b"EMiL", "LiME header"),
    ("wrong LiME header", lime([(0, words(1))]) + bytes(40), "LiME header"),
    ("LiME backwards", struct.pack("<IIQQQ", 0x4C694D45, 1, 8, 0, 0), "LiME header"),
    ("LiME version", struct.pack("<IIQQQ", 0x4C694D45, 2, 0, 7, 0) + bytes(8), "LiME header"),
    ("kdump", b"KDUMP   " + bytes(99), "kdump"),
    ("gzip", b"\x1f\x8b\x08" + bytes(99), "gzip"),
]


@pytest.mark.parametrize(
    ("data", "why"), [(data, why) for _, data, why in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path, data: bytes, why: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(ImageError, match=why) as refused:
        open_image(path)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(path))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path("/dev/null")):
        with pytest.raises(ImageError):
            open_image(path)
    with pytest.raises(ImageError, match="missing: No such file or directory"):
        open_image(tmp_path / "missing")
    with pytest.raises(ImageError, match="embedded null byte"):  # Python's words: the host is not asked
        open_image("an image\0")
    with pytest.raises(ImageError, match="begin at"):
        open_image(written(tmp_path, bytes(16)), base=(1 << 64) - 8)


@pytest.mark.parametrize(
    "make", [elf_core, lambda _segments: lime([(0x10000, words(1)), (0x30000, words(2))])]
)
@given(data=st.data())
def test_any_damage_ends_in_an_image_or_one_line(make: Callable[..., bytes], data: st.DataObject) -> None:
    whole = bytearray(make(SEGMENTS))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, 200))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        image = _opened(bytes(whole[: cut or None]))
    except AetherError as error:
        assert "\n" not in str(error)
        return
    values, backed = image.read(np.array([0, 0x10000, (1 << 64) - 8, 1 << 63], np.uint64))
    assert not values[~backed].any()
    image.tables(np.array([0x10000, (1 << 64) - PAGE], np.uint64), 512)
    assert (image.existing(np.array([0], np.uint64), np.array([1 << 62], np.uint64)) >= 0).all()


def _opened(data: bytes) -> Image:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return open_image(file.name)


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageError, match="not a regular file"):
        open_image(tmp_path / "fifo")
