"""Processes at a pseudo-terminal of the machine: waits, time, and its end, on both ISAs."""

from __future__ import annotations

import errno
import struct

import pytest

from aether_emu.linux.files import flags as fl
from aether_emu.linux.task.deadlock import Deadlock
from aether_emu.linux.tty.pty import PtyMaster
from tests.guests.running import ISAS
from tests.linux.task.scripts import DATA, SPIN, Several

every_isa = pytest.mark.parametrize("isa", ISAS)
TCSETS, FIONREAD = 0x5402, 0x541B
RAW = struct.pack("<4IB19s", 0, 0, 0xBF, 0, 0, bytes([3, 28, 127, 21, 4, 0, 1]))


def pair(several: Several) -> tuple[int, int]:
    """A master and its terminal, which processes made from now on inherit."""
    files = several.first.files
    master = files.open(fl.AT_FDCWD, b"/dev/ptmx", fl.O_RDWR)
    file = files.table.file(master)
    assert isinstance(file, PtyMaster)
    file.pty.locked = False
    return master, files.open(fl.AT_FDCWD, file.pty.name, fl.O_RDWR | fl.O_NOCTTY)


@every_isa
def test_a_read_waits_for_a_line(isa: str) -> None:
    with Several(isa) as several:
        master, terminal = pair(several)
        several.calls(("read", terminal, DATA, 100))
        several.calls(
            ("write", master, DATA, 2), ("sched_yield",), ("write", master, DATA + 2, 3), data=b"ab\x7fc\n"
        )
        assert several.run() == [3, 3]
        file = several.first.files.table.file(master)
        assert file.read(100) == b"ab\b \bc\r\n"


@every_isa
def test_the_time_of_a_read_without_lines_is_virtual(isa: str) -> None:
    """VMIN and VTIME: nothing in three tenths of a second, then two bytes of four in another three."""
    modes = bytearray(RAW)
    with Several(isa) as several:
        master, terminal = pair(several)
        modes[17 + 5], modes[17 + 6] = 3, 0
        begin = several.machine.clock.now_ns
        several.calls(("ioctl", terminal, TCSETS, DATA), ("read", terminal, DATA, 9), data=bytes(modes))
        assert several.run() == [0]
        assert 300_000_000 <= several.machine.clock.now_ns - begin < 301_000_000
    with Several(isa) as several:
        master, terminal = pair(several)
        modes[17 + 6] = 4
        several.calls(("ioctl", terminal, TCSETS, DATA), ("read", terminal, DATA, 9), data=bytes(modes))
        pause = struct.pack("<qq", 1, 0)
        several.calls(("nanosleep", DATA, 0), ("write", master, DATA, 2), data=pause)
        begin = several.machine.clock.now_ns
        assert several.run() == [2, 2]
        assert 1_300_000_000 <= several.machine.clock.now_ns - begin < 1_301_000_000


@every_isa
def test_who_waits_at_a_terminal_hears_of_its_end(isa: str) -> None:
    with Several(isa) as several:
        master, terminal = pair(several)
        several.calls(("read", terminal, DATA, 100))
        several.calls(("sched_yield",), ("close", master))
        several.close(master)
        first = several.tasks[0].process.files
        first.close(master)
        status, _ = several.run()
        assert status == 256 - errno.EIO


@every_isa
def test_a_writer_waits_until_the_master_reads(isa: str) -> None:
    size = 100_000
    with Several(isa) as several:
        master, terminal = pair(several)
        several.calls(("ioctl", terminal, TCSETS, DATA), ("write", terminal, DATA, size), data=RAW)
        several.calls(*[("read", master, DATA, 4096)] * 40)
        with pytest.raises(Deadlock, match="waits for a pseudo-terminal"):
            several.run()
        writer, _reader = several.tasks
        assert writer.process.ended is not None and writer.process.ended.code & 0xFF == size & 0xFF


def test_a_program_without_a_terminal_has_no_dev_tty() -> None:
    with Several("x86_64") as several:
        task = several.calls(code=SPIN["x86_64"])
        files = task.process.files
        several.machine.entry.switch(task)
        with pytest.raises(Exception, match="no controlling terminal"):
            files.open(fl.AT_FDCWD, b"/dev/tty", fl.O_RDWR)
        _master, terminal = pair(several)
        task.process.terminal = several.first.files.table.file(terminal).terminal  # type: ignore[attr-defined]  # it is one
        opened = files.open(fl.AT_FDCWD, b"/dev/tty", fl.O_RDWR)
        assert files.table.file(opened).link() == b"/dev/tty"
        assert files.fstat(opened).rdev == 5 << 8
        assert files.stat(fl.AT_FDCWD, b"/dev/pts/0").rdev == 136 << 8
        task.process.terminal = None
