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
from aether_emu.errors import AetherError, ConfigError, Refused
from aether_emu.grants import Grants
from aether_emu.linux.devices.framebuffer import Framebuffer
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.files.tmp_capture import CaptureError
from aether_emu.linux.task.ended import Ended
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.protection import Protection
from aether_emu.observe import stats
from aether_emu.observe.combining import Buffers
from aether_emu.observe.peek import PeekMemory
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


REGISTERS = """\
execute: -1
two pages: EINVAL
execute later: EACCES
the count goes on: 1, by less than a second: 1
narrow: ff ffff
a narrow store arms nothing: 0
nothing is due: 0
armed 1, compare 1, ready 0
read 8: fired 1, not early: 1, late by less than a millisecond: 1
armed 0, status 1, fired 1
status 0
spun: 1, not early: 1, late by less than 10 us: 1
ready 1
stopped: armed 0, fired 2
since the last read: 1
with the child's: 1, in all 3
longer: EFAULT, a copy of the area: EINVAL
write of registers: EFAULT
elsewhere: fired 3
executed: SIGSEGV
"""
COPIER = """\
pin: 0 0
registers: -14, read-only: -14, nothing: -14, flags: -22
copy: 1, then 2, error 0, ended 1
wrong bytes: 0
no length: 4, then 4, error 22, ended 1
too long: 4, then 4, error 14, ended 1
not to there: 4, then 4, error 14, ended 1
nowhere: 4, then 4, error 14, ended 1
busy 1, unpin -16
spun: status 2, first byte 99
again: 1, then 2, error 0, ended 1
its own page still: 55
pin zeros: 0 0, copy: 1, then 2, error 0, ended 1
copy: 1, then 2, error 0, ended 1
bytes: 77 0
after munmap: 1, then 2, error 0, ended 1
the bytes are there: 55
copies 6, bytes 1
unpin: 0, again: -22
"""


@every_target
@pytest.mark.parametrize("options", [{}, {"kpti": True, "cpus": 2}], ids=str)
@pytest.mark.parametrize(("name", "printed"), [("registers", REGISTERS), ("copier", COPIER)])
def test_registers_are_driven_by_loads_and_stores(
    target: Target, name: str, printed: str, options: dict[str, Any], tmp_path: Path
) -> None:
    ran = run_guest(target, name, cwd=tmp_path, devices="dma,timer", tlbsan=True, **options)
    assert (ran.ended, ran.output) == (Ended(code=0), printed)


@pytest.mark.parametrize("isa", ISAS)
def test_a_program_that_waits_for_the_timer_goes_on_in_a_restored_machine(isa: str, tmp_path: Path) -> None:
    def streams() -> dict[str, BufferStream]:
        return {name: BufferStream() for name in ("stdin", "stdout", "stderr")}

    grants, whole = Grants(cwd=tmp_path), streams()
    with Machine(isa, devices="timer") as machine:
        machine.load(program(isa, "registers"), ["registers"], streams=whole, grants=grants)
        assert machine.run() == Ended(code=0)
        blocks, time = machine.kernel.blocks, machine.kernel.time_seen()
    waiting = 0
    for part in range(1, 9):
        first, second = streams(), streams()
        with Machine(isa, devices="timer") as machine:
            machine.load(program(isa, "registers"), ["registers"], streams=first, grants=grants)
            assert machine.run_for(blocks * part // 9) is None
            assert machine.board is not None and machine.board.timer is not None
            waiting += machine.board.timer.deadline is not None
            snapshot = state.capture(machine)
        with state.restore(snapshot, grants=grants, streams=second) as other:
            assert other.run() == Ended(code=0)
            assert (other.kernel.blocks, other.kernel.time_seen()) == (blocks, time)
        assert first["stdout"].written + second["stdout"].written == whole["stdout"].written
    assert waiting


@pytest.mark.parametrize("isa", ISAS)
def test_who_has_pages_pinned_is_not_captured(isa: str, tmp_path: Path) -> None:
    with Machine(isa, devices="dma") as machine:
        streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
        machine.load(program(isa, "copier"), ["copier"], streams=streams, grants=Grants(cwd=tmp_path))
        while b"pin: 0 0" not in streams["stdout"].written:
            assert machine.run_for(500) is None
        with pytest.raises(CaptureError, match="pages are pinned for /dev/dma0"):
            state.capture(machine)


@every_target
def test_nobody_but_the_program_reaches_registers(target: Target, tmp_path: Path) -> None:
    with Machine(target.isa, devices="timer,dma", page_size=target.page_size) as machine:
        streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
        process = machine.load(program(target.isa, "registers"), grants=Grants(cwd=tmp_path), streams=streams)
        assert machine.board is not None and machine.board.timer is not None
        timer, base = machine.board.timer, 0x5000_0000
        process.mm.map_device(timer.memory, base, target.page_size, MemoryType.UNCACHED)
        for access in (lambda: process.read(base, 4), lambda: process.write(base + 16, b"\1\0\0\0")):
            with pytest.raises(AetherError):
                access()
        assert PeekMemory(process.mm).read_up_to(base, 4) == b""
        with pytest.raises(Refused, match="uncached for /dev/timer0, not write-back"):
            process.mm.map_device(timer.memory, base, target.page_size, MemoryType.WRITE_BACK)
        with pytest.raises(Refused, match="nobody executes"):
            process.mm.map_device(timer.memory, base, target.page_size, protection=Protection.EXECUTE)
        assert timer.accesses == 0


@pytest.mark.parametrize("isa", ISAS)
def test_bursts_to_the_framebuffer_are_counted_where_somebody_asks(isa: str, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []

    def watch(machine: Machine) -> None:
        stats.prepare(machine)
        machine.observers.attach(ended=lambda _process: told.append(stats.collect(machine, 0)))

    options: dict[str, Any] = {"framebuffer": "64x40", "write_combining": 10, "devices": "dma"}
    run_guest(TARGETS[ISAS.index(isa)], "picture", cwd=tmp_path, before=watch, **options)
    counted = told[-1]["devices"]["write_combining_modelled"]
    lines = 39 * 64 * 4 // 64  # all rows but the first, in the order of their addresses; then one pixel more
    expected = {
        "buffers": 10,
        "stores": 39 * 64 + 1,
        "full_bursts": lines,
        "partial_bursts": 1,
        "displaced": 0,
    }
    assert counted == expected
    assert told[-1]["devices"]["dma"] == dict.fromkeys(
        ("register_accesses", "lost_accesses", "copies", "bytes", "pages_pinned"), 0
    )
    with pytest.raises(ConfigError, match="write_combining"):
        Config.load(overrides={"write_combining": 1})


def test_buffers_are_let_go_when_they_are_full_or_another_line_needs_one() -> None:
    buffers = Buffers(2)
    for address in range(0, 64, 8):
        buffers.store(address, 8)
    assert (buffers.full, buffers.partial) == (1, 0)
    buffers.store(124, 8)  # over the border of two lines
    buffers.store(256, 4)  # the first of them goes
    assert (buffers.full, buffers.partial, buffers.displaced) == (1, 1, 1)
    buffers.drain()
    assert (buffers.stores, buffers.partial) == (10, 3)


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
