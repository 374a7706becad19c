"""A page-table entry that points at no memory is the guest's SIGBUS, and the machine goes on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from aether_emu.arch.paging import Access
from aether_emu.linux.vfs.streams import BufferStream
from aether_emu.system import Grants, Machine
from tests.guests.running import ISAS, program

NOWHERE = 0x7F_0000_0000


@pytest.mark.parametrize("live_state", [True, False], ids=["live state", "state by API"])
@pytest.mark.parametrize("arch", ISAS)
def test_code_behind_a_broken_entry_is_a_bus_error(arch: str, live_state: bool, tmp_path: Path) -> None:
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    machine = Machine(arch, live_state=live_state)
    process = machine.load(program(arch, "hello"), ["hello"], streams=streams, grants=Grants(cwd=tmp_path))
    space, entry = process.space, process.program.entry
    space.fault(entry, int(Access.USER | Access.EXECUTE))
    found = space.table.find(entry & -4096)
    assert found is not None
    words, good = machine.ram.words, found.entry
    words[found.slot] = good & ~space.table.format.address_mask | NOWHERE
    ended = machine.run()
    words[found.slot] = good
    machine.close()
    assert ended.signal == signal.SIGBUS
    assert not streams["stdout"].written
