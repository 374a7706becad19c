"""Strange ELF files lie in memory as on this host, byte for byte, or are refused where its kernel kills them.

What such a file becomes is the same on every ISA, so arm64 is judged by the x86_64 host too. The kernel
of the host must map the zeros of a segment as Linux has done since 6.7, and in later releases of 6.6.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from aether_emu.errors import ProgramError
from aether_emu.linux.exec.stack import AT_ENTRY, AT_PHDR
from aether_emu.linux.proc.texts import maps_text
from aether_emu.mm.user import UserFaulted, UserMemory
from aether_emu.system import Grants, Machine
from tests.linux.exec.crafted import ISAS
from tests.linux.exec.odd_images import PAGE, Layout, Odd, layout, native_layout, odd

_SAMPLE, _SWEEP = 60, 3000


def _loaded(path: Path, isa: str, made: Odd) -> Layout | None:
    """What we make of a file; None if it is refused."""
    path.write_bytes(made.content(isa))
    machine = Machine(isa, ram="8M", aperture="8M")
    try:
        process = machine.load(path, grants=Grants(cwd=path.parent))
        auxiliary = dict(struct.iter_unpack("<QQ", process.program.auxiliary))
        memory = UserMemory(process.mm)

        def read(va: int) -> bytes | None:
            try:
                return memory.read(va, PAGE)
            except UserFaulted:
                return None

        bias = auxiliary[AT_ENTRY] - made.entry
        return layout(maps_text(process).decode(), bias, auxiliary[AT_PHDR], read)
    except ProgramError:
        return None
    finally:
        machine.close()


def _differences(tmp_path: Path, seeds: range) -> tuple[list[str], int]:
    """The seeds whose files we load otherwise than the host, and how many files the host killed."""
    different, killed = [], 0
    for seed in seeds:
        made = odd(seed)
        native = tmp_path / "native"
        native.write_bytes(made.content("x86_64"))
        native.chmod(0o755)
        expected = native_layout(native, made.entry)
        killed += expected is None
        different += [f"{seed} {isa}" for isa in ISAS if _loaded(tmp_path / "p", isa, made) != expected]
        native.unlink()
    return different, killed


def test_strange_segments_are_loaded_as_the_host_loads_them(tmp_path: Path) -> None:
    different, killed = _differences(tmp_path, range(_SAMPLE))
    assert different == []
    assert 0 < killed < _SAMPLE / 2


@pytest.mark.slow
def test_very_many_strange_segments(tmp_path: Path) -> None:
    assert _differences(tmp_path, range(_SAMPLE, _SWEEP))[0] == []
