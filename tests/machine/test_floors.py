"""Bare engines do the work that they stand for: the same program, every fault, every call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aether_emu.errors import EngineError
from aether_emu.machine import floors

_EXIT = 60
# mov eax, 60; syscall
_LEAVE = bytes.fromhex("b83c0000000f05")
# mov edi, 0x1000000; mov ecx, 3; l: mov [rdi], rdi; add rdi, 4096; dec ecx; jnz l
_TOUCH_THREE = bytes.fromhex("bf00000001 b903000000 48893f 4881c700100000 ffc9 75f2".replace(" ", ""))
# mov ebx, 5; l: mov eax, 7; syscall; cmp eax, 99; jne fail; dec ebx; jnz l; mov al, [0x400000]; fail: ud2
_FIVE_CALLS = bytes.fromhex(
    "bb05000000 b807000000 0f05 83f863 750b ffcb 75f0 8a042500004000 0f0b".replace(" ", "")
)
_SIZE = floors.FREE + 16 * floors.PAGE


def _program(code: bytes) -> floors.Program:
    return floors.Program(
        0x40_2000,
        (
            floors.Piece(0x40_0000, b"constants", 9, writable=False, executable=False),
            floors.Piece(0x40_2000, code, len(code), writable=False, executable=True),
            floors.Piece(0x40_4000, b"\x05", 0x1800, writable=True, executable=False),
        ),
    )


class _Calls:
    """Records system calls; `exit` ends the run."""

    def __init__(self) -> None:
        self.made: list[tuple[int, ...]] = []

    def __call__(self, number: int, *arguments: int) -> int | None:
        self.made.append((number, *arguments))
        return None if number == _EXIT else 0


@pytest.fixture(params=[floors.FlatFloor, floors.PagedFloor])
def kind(request: pytest.FixtureRequest) -> Iterator[type[floors.FlatFloor | floors.PagedFloor]]:
    yield request.param


def _started(
    kind: type[floors.FlatFloor | floors.PagedFloor], code: bytes, pages: int = 0
) -> floors.FlatFloor | floors.PagedFloor:
    floor = kind(_program(code), [b"name", b"argument"], _SIZE)
    if isinstance(floor, floors.PagedFloor):
        floor.serve_faults(floors.FREE, pages)
    return floor


def test_a_call_arrives_with_its_number_and_six_arguments(
    kind: type[floors.FlatFloor | floors.PagedFloor],
) -> None:
    # mov edi, 1; mov esi, 2; mov edx, 3; mov r10d, 4; mov r8d, 5; mov r9d, 6; mov eax, 7; syscall
    code = bytes.fromhex("bf01000000be02000000ba0300000041ba0400000041b80500000041b906000000b8070000000f05")
    floor, calls = _started(kind, code + _LEAVE), _Calls()
    floor.on_system_call = calls
    floor.run()
    floor.close()
    assert calls.made[0] == (7, 1, 2, 3, 4, 5, 6)
    assert [made[0] for made in calls.made] == [7, _EXIT]


def test_the_program_finds_its_arguments_and_segments(
    kind: type[floors.FlatFloor | floors.PagedFloor],
) -> None:
    # mov rdi, [rsp]; mov rsi, [rsp+16]; mov rsi, [rsi]
    # mov dl, [0x404000]; movzx edx, dl; mov r10, [0x405000]
    code = bytes.fromhex("488b3c24 488b742410 488b36 8a142500404000 0fb6d2 4c8b142500504000".replace(" ", ""))
    floor, calls = _started(kind, code + _LEAVE), _Calls()
    floor.on_system_call = calls
    floor.run()
    floor.close()
    assert calls.made[0][1:5] == (2, int.from_bytes(b"argument", "little"), 5, 0)


def test_what_the_callback_raises_comes_out_of_the_run(
    kind: type[floors.FlatFloor | floors.PagedFloor],
) -> None:
    def refuse(*_: int) -> int:
        raise KeyboardInterrupt

    floor = _started(kind, _LEAVE)
    floor.on_system_call = refuse
    with pytest.raises(KeyboardInterrupt):
        floor.run()
    floor.close()


def test_a_run_that_ends_by_itself_is_an_error() -> None:
    floor = _started(floors.FlatFloor, b"\xf4")  # hlt
    with pytest.raises(EngineError, match="did not reach its end"):
        floor.run()
    floor.close()


def test_each_prepared_entry_is_written_by_one_fault_on_untouched_memory() -> None:
    floor = _started(floors.PagedFloor, _TOUCH_THREE + _LEAVE, pages=3)
    assert isinstance(floor, floors.PagedFloor)
    before = floor.ram.resident_bytes()
    floor.on_system_call = _Calls()
    floor.run()
    stored = [floor.ram.words[(floors.FREE + i * floors.PAGE) >> 3] for i in range(4)]
    after = floor.ram.resident_bytes()
    assert not floor.prepared
    floor.close()
    assert stored == [floors.FREE, floors.FREE + 0x1000, floors.FREE + 0x2000, 0]
    assert after - before >= 3 * floors.PAGE


def test_a_fault_beyond_the_prepared_entries_is_an_error() -> None:
    floor = _started(floors.PagedFloor, _TOUCH_THREE + _LEAVE, pages=2)
    floor.on_system_call = _Calls()
    with pytest.raises(EngineError, match="0x1002000 beyond those prepared"):
        floor.run()
    floor.close()


class _Counting:
    """The registers, counting what is stored into them."""

    def __init__(self, registers: object) -> None:
        self._registers, self.stores = registers, 0

    def __getitem__(self, index: int) -> int:
        value: int = self._registers[index]  # type: ignore[index]  # a view
        return value

    def __setitem__(self, index: int, value: int) -> None:
        self._registers[index] = value  # type: ignore[index]  # a view
        self.stores += 1


def test_every_call_is_answered_until_the_program_reads_its_constants() -> None:
    floor = floors.PagedFloor(_program(_FIVE_CALLS), [b"name"], _SIZE)
    registers = _Counting(floor._state.general)
    floor._state.general = registers
    floor.serve_calls(99)
    floor.run()
    floor.close()
    assert registers.stores == 5


def test_a_fault_elsewhere_ends_a_run_of_calls_with_an_error() -> None:
    floor = floors.PagedFloor(_program(_FIVE_CALLS), [b"name"], _SIZE)
    floor.serve_calls(98)  # the program jumps to an undefined instruction: no interrupt hook, no way on
    with pytest.raises(EngineError):
        floor.run()
    floor.close()
    floor = floors.PagedFloor(_program(_TOUCH_THREE), [b"name"], _SIZE)
    floor.serve_calls(99)
    with pytest.raises(EngineError, match="0x1000000, not at the program's constants"):
        floor.run()
    floor.close()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(EngineError, match="more than"):
        floors.FlatFloor(_program(_LEAVE), [b"name"], floors.FREE)
    with pytest.raises(EngineError, match="not 16781313"):
        floors.FlatFloor(_program(_LEAVE), [b"name"], floors.FREE + 4097)
    for address in (0x10_0000, 0x70_0000):
        piece = floors.Piece(address, b"\xf4", 1, writable=False, executable=True)
        with pytest.raises(EngineError, match=f"{address:#x} does not fit"):
            floors.FlatFloor(floors.Program(address, (piece,)), [b"name"], _SIZE)
