"""Where the engine keeps hidden state is found by behaviour, and a search that fails says so."""

from __future__ import annotations

import os

import pytest

from aether_emu.errors import EngineError
from aether_emu.machine.unicorn import arm64_calibrate, engine, locate, x86_calibrate
from tests.machine.unicorn.bare_x86 import BareX86


def test_every_x86_field_has_a_place_of_its_own() -> None:
    layout = x86_calibrate.measure()
    places = [layout.rip, layout.hflags, layout.cr2, layout.error_code, layout.is_int, layout.old_exception]
    assert len(set(places)) == len(places)
    assert layout.context >= 0
    assert all(place not in range(16 * 8) for place in places)


def test_every_arm_field_has_a_place_of_its_own() -> None:
    layout = arm64_calibrate.measure()
    assert len({layout.pc, layout.syndrome, layout.address, 0}) == 4


def test_live_state_and_api_show_one_cpu_alike() -> None:
    live, slow = BareX86(True), BareX86(False)
    for bare in (live, slow):
        bare["rdi"], bare["rbx"] = 0x1234_5678, 0x77
        bare.run("nop\nmov [rdi], rbx")
    assert live.faults == slow.faults
    assert live.cpu.registers() == slow.cpu.registers()


def test_where_the_memory_of_the_process_cannot_be_read_the_api_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> int:
        raise OSError("no /proc")

    monkeypatch.setattr(os, "open", refuse)
    bare = BareX86(True)
    assert not bare.cpu.live_state
    bare["rdi"] = 0x1234_5000
    bare.run("mov rax, [rdi]")
    assert [va for va, _access, _pc in bare.faults] == [0x1234_5000]


def test_a_place_that_does_not_follow_the_registers_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread

    def frozen(fd: int, length: int, offset: int) -> bytes:
        return b"" if length == 8 else real(fd, length, offset)

    monkeypatch.setattr(os, "pread", frozen)
    assert not BareX86(True).cpu.live_state


@pytest.mark.parametrize("places", [set(), {8, 16}])
def test_a_field_that_cannot_be_told_apart_is_an_error(places: set[int]) -> None:
    with pytest.raises(EngineError, match="behave like rip"):
        locate.only("rip", places)


def test_an_end_address_leaves_no_fault_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine translates what is before `until` when a run ends; with exits listed it does not."""
    start = engine.emu_start

    def with_an_end(handle: int, pc: int, _until: int, timeout: int, count: int) -> int:
        return int(start(handle, pc, 0x1234_5001, timeout, count))

    monkeypatch.setattr(engine, "emu_start", with_an_end)
    x86_calibrate.measure.cache_clear()
    try:
        bare = BareX86()
        bare["rdi"] = 0x2345_6000
        bare.run("mov rax, [rdi]")
        assert bare["cr2"] == 0x2345_6000
    finally:
        monkeypatch.undo()
        x86_calibrate.measure.cache_clear()
