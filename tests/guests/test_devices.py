"""Programs that drive devices by loads and stores: what they draw is the picture, on every machine."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from aether_emu import state
from aether_emu.arch.paging import Leaf, MemoryType
from aether_emu.cli.run import run as run_command
from aether_emu.config import Config
from aether_emu.errors import ConfigError
from aether_emu.grants import Grants
from aether_emu.linux.devices.framebuffer import Framebuffer
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.task.ended import Ended
from aether_emu.mm.frames.table import Kind
from aether_emu.system import Machine
from tests.guests.running import ISAS, TARGETS, Target, program, run_guest

WIDTH, HEIGHT = 72, 40
SIZE = f"{WIDTH}x{HEIGHT}"
PRINTED = """\
72x40, 32 bits: red 16, green 8, blue 0; 288 bytes a line
pan: EINVAL
private: EINVAL
too long: EINVAL
behind: EINVAL
write: 288 of 288
at the end: -28, behind it: -27
read: what was stored
wrong pixels: 0
"""

every_target = pytest.mark.parametrize("target", TARGETS, ids=str)


def colours() -> bytes:
    """The pattern that guest/src/picture.c draws, a row after the other: red, green, blue."""
    return bytes(
        part
        for y in range(HEIGHT)
        for x in range(WIDTH)
        for part in (x * 3 & 255, y * 5 & 255, (x ^ y) & 255)
    )


def decoded(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and colours of a PNG whose rows have no filter; every checksum is looked at."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        data = png[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", png, at + 8 + length) == (zlib.crc32(kind + data),)
        chunks[kind] = data
        at += 12 + length
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [8, 2, 0, 0, 0]
    rows, line = zlib.decompress(chunks[b"IDAT"]), 1 + 3 * width
    assert len(rows) == height * line
    assert not any(rows[start] for start in range(0, len(rows), line))
    return width, height, b"".join(rows[at + 1 : at + line] for at in range(0, len(rows), line))


def framebuffer(machine: Machine) -> Framebuffer:
    assert machine.board is not None and machine.board.framebuffer is not None
    return machine.board.framebuffer


@every_target
@pytest.mark.parametrize(
    "options", [{}, {"kpti": True, "cpus": 2}, {"thp": "always", "mthp": "64K"}], ids=str
)
def test_a_picture_is_what_the_program_stored(
    target: Target, options: dict[str, Any], tmp_path: Path
) -> None:
    pictures: list[bytes] = []

    def keep(machine: Machine) -> None:
        ended = machine.scheduler.run

        def run(budget: int | None = None) -> bool:
            over = ended(budget)
            pictures.append(framebuffer(machine).png())
            return over

        machine.scheduler.run = run  # type: ignore[method-assign]

    if target.page_size > 16384 and "thp" in options:
        options = {**options, "thp": "never", "mthp": "none"}  # a huge page has 512M there
    options = {"ram": "128M", "framebuffer": SIZE, "tlbsan": True, **options}
    ran = run_guest(target, "picture", cwd=tmp_path, before=keep, **options)
    assert (ran.ended, ran.output) == (Ended(code=0), PRINTED)
    assert decoded(pictures[0]) == (WIDTH, HEIGHT, colours())


@every_target
def test_every_entry_of_the_device_is_write_combining_the_direct_map_too(
    target: Target, tmp_path: Path
) -> None:
    with Machine(target.isa, framebuffer=SIZE, page_size=target.page_size) as machine:
        streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
        process = machine.load(program(target.isa, "picture"), grants=Grants(cwd=tmp_path), streams=streams)
        device, base = framebuffer(machine).memory, 0x5000_0000
        process.mm.map_device(device, base, device.pages * target.page_size)
        process.mm.map_device(device.address, base + 0x100_0000, target.page_size)
        process.write(base, b"\1\2\3\4")
        assert process.read(base + 0x100_0000, 4) == bytes(framebuffer(machine).pixels[:4]) == b"\1\2\3\4"
        fmt, kernel = machine.format, machine.kernel_half

        def kind_at(table: Any, va: int) -> MemoryType:
            found = table.find(va)
            leaf = fmt.decode(found.entry, found.level)
            assert isinstance(leaf, Leaf)
            return leaf.attributes.memory

        assert kind_at(process.mm.table, base) is MemoryType.WRITE_COMBINING
        for page in range(device.pages):
            at = kernel.base + device.address + page * target.page_size
            assert kind_at(kernel.table, at) is MemoryType.WRITE_COMBINING
        for beside in (-target.page_size, device.pages * target.page_size):
            assert kind_at(kernel.table, kernel.base + device.address + beside) is MemoryType.WRITE_BACK
        assert machine.frames.kind[device.first] == Kind.RESERVED


@pytest.mark.parametrize("isa", ISAS)
def test_a_captured_machine_goes_on_drawing(isa: str, tmp_path: Path) -> None:
    def streams() -> dict[str, BufferStream]:
        return {name: BufferStream() for name in ("stdin", "stdout", "stderr")}

    config = Config.load(overrides={"framebuffer": SIZE, "tlbsan": True})
    first, grants = streams(), Grants(cwd=tmp_path)
    with Machine(isa, config=config) as machine:
        machine.load(program(isa, "picture"), ["picture"], streams=first, grants=grants)
        assert machine.run_for(6000) is None
        assert any(framebuffer(machine).pixels), "it draws"
        snapshot = state.capture(machine)
    second = streams()
    with state.restore(snapshot, grants=grants, streams=second) as other:
        assert other.run() == Ended(code=0)
        assert decoded(framebuffer(other).png())[2] == colours()
    assert (first["stdout"].written + second["stdout"].written).decode() == PRINTED


@pytest.mark.parametrize("isa", ISAS)
def test_the_command_writes_the_picture(isa: str, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    options = ["--framebuffer", SIZE, "--screenshot", str(shot)]
    result = CliRunner().invoke(run_command, [*options, str(program(isa, "picture"))])
    assert result.exit_code == 0
    assert decoded(shot.read_bytes()) == (WIDTH, HEIGHT, colours())


def test_without_a_device_there_is_no_name_and_no_screenshot(tmp_path: Path) -> None:
    ran = run_guest(TARGETS[0], "picture", cwd=tmp_path)
    assert ran.output == "/dev/fb0: ENOENT\n"
    with pytest.raises(ConfigError, match="framebuffer"), Machine(framebuffer="1600x1200", ram="4M"):
        pass
    arguments = ["--screenshot", str(tmp_path / "x.png"), str(program("x86_64", "hello"))]
    result = CliRunner().invoke(run_command, arguments)
    assert (result.exit_code, "given with --framebuffer" in result.output) == (2, True)
