"""Strange ELF files lie in memory as on this host, byte for byte, or are refused where its kernel kills them.

What such a file becomes is the same on every ISA, so arm64 is judged by the x86_64 host too. The kernel
of the host must map the zeros of a segment as Linux has done since 6.7, and in later releases of 6.6.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from aether_emu.errors import ProgramError
from aether_emu.grants import Grants
from aether_emu.linux.exec.stack import AT_BASE, AT_ENTRY, AT_PHDR
from aether_emu.linux.proc.texts import maps_text
from aether_emu.mm.user import UserFaulted, UserMemory
from aether_emu.system import Machine
from tests.linux.exec.crafted import CODE, INTERP, ISAS, Header, crafted, data_header
from tests.linux.exec.odd_images import PAGE, Layout, layout, native_layout, odd

_SAMPLE, _SWEEP, _INTERPRETERS = 60, 3000, 10

BiasOf = Callable[[dict[int, int]], int]


def _loaded(path: Path, isa: str, bias_of: BiasOf) -> Layout | None:
    """What we make of a file; None if it is refused."""
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

        return layout(maps_text(process).decode(), bias_of(auxiliary), auxiliary[AT_PHDR], read)
    except ProgramError:
        return None
    finally:
        machine.close()


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # a process may still execute the one before
    path.write_bytes(content)
    path.chmod(0o755)


def _differences(tmp_path: Path, seeds: range) -> tuple[list[str], int]:
    """The seeds whose files we load otherwise than the host, and how many files the host killed."""
    different, killed, path = [], 0, tmp_path / "p"
    for seed in seeds:
        made = odd(seed)

        def bias_of(auxiliary: dict[int, int], entry: int = made.entry) -> int:
            return auxiliary[AT_ENTRY] - entry

        _write(path, made.content("x86_64"))
        native = native_layout(path, bias_of)
        killed += native is None
        for isa in ISAS:
            _write(path, made.content(isa))
            different += [f"{seed} {isa}"] if _loaded(path, isa, bias_of) != native else []
    return different, killed


def test_strange_segments_are_loaded_as_the_host_loads_them(tmp_path: Path) -> None:
    different, killed = _differences(tmp_path, range(_SAMPLE))
    assert different == []
    assert 0 < killed < _SAMPLE / 2


@pytest.mark.parametrize("independent", [False, True])
def test_so_are_those_of_an_interpreter(tmp_path: Path, independent: bool) -> None:
    program, interpreter, different = tmp_path / "p", tmp_path / "i", []
    name = bytes(interpreter) + b"\0"
    place = 0 if independent else 0x1000_0000

    def bias_of(auxiliary: dict[int, int]) -> int:
        return auxiliary[AT_BASE]

    for seed in range(_INTERPRETERS):
        found: list[object] = []
        for isa in ("x86_64", *ISAS):
            headers = [Header(address=place), data_header(INTERP, len(name))]
            kind = 3 if independent else 2
            _write(program, crafted(headers, isa=isa, kind=kind, entry=place + CODE, data=name))
            _write(interpreter, odd(seed).content(isa))
            native = not found
            loaded = native_layout(program, bias_of) if native else _loaded(program, isa, bias_of)
            found.append(None if loaded is None else (loaded.areas, loaded.pages))
        different += [seed] if found[1:] != found[:1] * 2 else []
    assert different == []


@pytest.mark.slow
def test_very_many_strange_segments(tmp_path: Path) -> None:
    assert _differences(tmp_path, range(_SAMPLE, _SWEEP))[0] == []
