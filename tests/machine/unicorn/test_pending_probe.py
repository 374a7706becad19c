"""A failed host access to user memory leaves no fault behind that would arrive later as the guest's."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.linux.files.streams import BufferStream
from aether_emu.machine.cpu import UserFault
from aether_emu.system import Machine

HELLO = Path(__file__).parents[3] / "guest" / "bin"


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
@pytest.mark.parametrize("live_state", [True, False])
def test_a_refused_copy_is_not_delivered_at_the_next_stop(isa: str, live_state: bool) -> None:
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    machine = Machine(isa, live_state=live_state)
    machine.load(HELLO / isa / "hello", ["hello"], streams=streams)
    cpu, faults = machine.cpu, []
    fault, call = cpu.on_fault, cpu.on_system_call

    def record(va: int, access: int) -> None:
        faults.append(va)
        fault(va, access)

    def refuse_first(*arguments: int) -> int | None:
        with pytest.raises(UserFault):
            cpu.copy_to_user(0x1234_5000, b"x")
        with pytest.raises(UserFault):
            cpu.copy_from_user(0x2345_6000, 8)
        return call(*arguments)

    cpu.on_fault, cpu.on_system_call = record, refuse_first
    ended = None
    while ended is None:  # a stop before every block: each could deliver what is pending
        ended = machine.run_for(1)
    assert not {0x1234_5000, 0x2345_6000} & set(faults)
    assert ended.status == 0
    machine.close()
