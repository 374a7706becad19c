"""Bare engines do the work that they stand for: the same program, every fault, every call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from aether_emu.errors import EngineError
from aether_emu.machine.floors import bare as floors
from aether_emu.machine.floors.arm64 import ArmFlat, ArmPaged
from aether_emu.machine.floors.x86_64 import X86Flat, X86Paged
from aether_emu.machine.unicorn import arm64_calibrate, x86_calibrate

_EXIT = 60
_SIZE = floors.FREE + 16 * floors.PAGE


@dataclass(frozen=True)
class _Isa:
    """Bare engines of an ISA, and code for them."""

    flat: type[floors.Floor]
    paged: type[floors.Paged]
    calibration: Any
    leave: bytes  # system call 60
    touch_three: bytes  # stores to three pages, the first at 0x100_0000
    five_calls: bytes  # call 7 five times; while each gives 99, then load from 0x40_0000; else undefined
    arguments: bytes  # call 7 with arguments 1 to 6
    surroundings: bytes  # into argument registers: argc, argv[1], a byte at 0x40_4000, a word at 0x40_5000
    halt: bytes  # ends a run of the engine
    undefined: bytes
    privileged: bytes
    jump_to_data: bytes  # to 0x40_4000
    not_executable: str  # what that is answered with


_X86 = _Isa(
    flat=X86Flat,
    paged=X86Paged,
    calibration=x86_calibrate,
    # mov eax, 60; syscall
    leave=bytes.fromhex("b83c0000000f05"),
    # mov edi, 0x1000000; mov ecx, 3; l: mov [rdi], rdi; add rdi, 4096; dec ecx; jnz l
    touch_three=bytes.fromhex("bf00000001 b903000000 48893f 4881c700100000 ffc9 75f2"),
    # mov ebx, 5; l: mov eax, 7; syscall; cmp eax, 99; jne f; dec ebx; jnz l; mov al, [0x400000]; f: ud2
    five_calls=bytes.fromhex("bb05000000 b807000000 0f05 83f863 750b ffcb 75f0 8a042500004000 0f0b"),
    # mov edi, 1; mov esi, 2; mov edx, 3; mov r10d, 4; mov r8d, 5; mov r9d, 6; mov eax, 7; syscall
    arguments=bytes.fromhex(
        "bf01000000 be02000000 ba03000000 41ba04000000 41b805000000 41b906000000 b807000000 0f05"
    ),
    # mov rdi, [rsp]; mov rsi, [rsp+16]; mov rsi, [rsi]
    # mov dl, [0x404000]; movzx edx, dl; mov r10, [0x405000]
    surroundings=bytes.fromhex("488b3c24 488b742410 488b36 8a142500404000 0fb6d2 4c8b142500504000"),
    halt=bytes.fromhex("f4"),  # hlt
    undefined=bytes.fromhex("0f0b"),  # ud2
    privileged=bytes.fromhex("0f20c0"),  # mov rax, cr0
    jump_to_data=bytes.fromhex("b800404000 ffe0"),  # mov eax, 0x404000; jmp rax
    not_executable="a fault at 0x404000",
)
_ARM = _Isa(
    flat=ArmFlat,
    paged=ArmPaged,
    calibration=arm64_calibrate,
    # mov x8, #60; svc #0
    leave=bytes.fromhex("880780d2 010000d4"),
    # mov x0, #0x1000000; mov x1, #3; l: str x0, [x0]; add x0, x0, #4096; subs x1, x1, #1; b.ne l
    touch_three=bytes.fromhex("0020a0d2 610080d2 000000f9 00044091 210400f1 a1ffff54"),
    # mov x9, #5; l: mov x8, #7; svc #0; cmp x0, #99; b.ne f; subs x9, x9, #1; b.ne l
    # mov x1, #0x400000; ldrb w1, [x1]; f: udf #0
    five_calls=bytes.fromhex(
        "a90080d2 e80080d2 010000d4 1f8c01f1 a1000054 290500f1 61ffff54 0108a0d2 21004039 00000000"
    ),
    # mov x0, #1; mov x1, #2; mov x2, #3; mov x3, #4; mov x4, #5; mov x5, #6; mov x8, #7; svc #0
    arguments=bytes.fromhex("200080d2 410080d2 620080d2 830080d2 a40080d2 c50080d2 e80080d2 010000d4"),
    # ldr x0, [sp]; ldr x1, [sp, #16]; ldr x1, [x1]
    # mov x4, #0x400000; movk x4, #0x4000; ldrb w2, [x4]; ldr x3, [x4, #4096]
    surroundings=bytes.fromhex("e00340f9 e10b40f9 210040f9 0408a0d2 040088f2 82004039 830048f9"),
    halt=bytes.fromhex("7f2003d5"),  # wfi
    undefined=bytes.fromhex("00000000"),  # udf #0
    privileged=bytes.fromhex("001038d5"),  # mrs x0, sctlr_el1
    jump_to_data=bytes.fromhex("0408a0d2 040088f2 80001fd6"),  # mov x4, #0x400000; movk x4, #0x4000; br x4
    not_executable="exception 3 at 0x404000",
)
_ISAS = {"x86_64": _X86, "arm64": _ARM}
_KINDS = {
    f"{name}-{kind}": (isa, engine)
    for name, isa in _ISAS.items()
    for kind, engine in (("flat", isa.flat), ("paged", isa.paged))
}

on_each_isa = pytest.mark.parametrize("isa", _ISAS.values(), ids=_ISAS)
on_each_engine = pytest.mark.parametrize(("isa", "kind"), _KINDS.values(), ids=_KINDS)


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


def _faulting(kind: type[floors.Paged], code: bytes, pages: int) -> floors.Paged:
    floor = kind(_program(code), [b"name", b"argument"], _SIZE)
    floor.serve_faults(floors.FREE, pages)
    return floor


def _started(kind: type[floors.Floor], code: bytes) -> floors.Floor:
    if issubclass(kind, floors.Paged):
        return _faulting(kind, code, 0)
    return kind(_program(code), [b"name", b"argument"], _SIZE)


@on_each_engine
def test_a_call_arrives_with_its_number_and_six_arguments(isa: _Isa, kind: type[floors.Floor]) -> None:
    floor, calls = _started(kind, isa.arguments + isa.leave), _Calls()
    floor.on_system_call = calls
    floor.run()
    floor.close()
    assert calls.made[0] == (7, 1, 2, 3, 4, 5, 6)
    assert [made[0] for made in calls.made] == [7, _EXIT]


@on_each_engine
def test_the_program_finds_its_arguments_and_segments(isa: _Isa, kind: type[floors.Floor]) -> None:
    floor, calls = _started(kind, isa.surroundings + isa.leave), _Calls()
    floor.on_system_call = calls
    floor.run()
    floor.close()
    assert calls.made[0][1:5] == (2, int.from_bytes(b"argument", "little"), 5, 0)


@on_each_engine
@pytest.mark.parametrize("answer", [99, 99 - (1 << 64)], ids=["positive", "negative"])
def test_the_answer_arrives_in_the_program(isa: _Isa, kind: type[floors.Floor], answer: int) -> None:
    floor, numbers = _started(kind, isa.five_calls), []

    def answered(number: int, *_arguments: int) -> int:
        numbers.append(number)
        return answer

    floor.on_system_call = answered
    with pytest.raises(EngineError):  # the program ends with an undefined instruction
        floor.run()
    floor.close()
    assert numbers == [7] * 5, "another answer ends the loop"


@on_each_engine
@pytest.mark.parametrize("raised", [KeyboardInterrupt, IndexError])
def test_what_the_callback_raises_comes_out_of_the_run(
    isa: _Isa, kind: type[floors.Floor], raised: type[BaseException]
) -> None:
    def refuse(*_: int) -> int:
        raise raised

    floor = _started(kind, isa.leave)
    floor.on_system_call = refuse
    with pytest.raises(raised):
        floor.run()
    floor.close()


@on_each_isa
def test_a_run_that_ends_by_itself_is_an_error(isa: _Isa) -> None:
    floor = _started(isa.flat, isa.halt)
    with pytest.raises(EngineError, match="did not reach its end"):
        floor.run()
    floor.close()


@on_each_engine
def test_an_undefined_instruction_ends_the_run_with_an_error(isa: _Isa, kind: type[floors.Floor]) -> None:
    floor = _started(kind, isa.undefined)
    with pytest.raises(EngineError):
        floor.run()
    floor.close()


@on_each_isa
def test_behind_page_tables_the_program_has_no_privilege(isa: _Isa) -> None:
    floor = _started(isa.flat, isa.privileged + isa.leave)
    floor.run()
    floor.close()
    floor = _started(isa.paged, isa.privileged + isa.leave)
    with pytest.raises(EngineError):
        floor.run()
    floor.close()


@on_each_isa
def test_behind_page_tables_data_cannot_be_executed(isa: _Isa) -> None:
    floor = _started(isa.paged, isa.jump_to_data)
    with pytest.raises(EngineError, match=isa.not_executable):
        floor.run()
    floor.close()


@on_each_isa
@pytest.mark.parametrize("live", [True, False], ids=["live", "api"])
def test_each_prepared_entry_is_written_by_one_fault_on_untouched_memory(
    isa: _Isa, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not live:
        monkeypatch.setattr(isa.calibration, "find_state", lambda _uc: None)
    floor = _faulting(isa.paged, isa.touch_three + isa.leave, 3)
    before = floor.ram.resident_bytes()
    floor.on_system_call = _Calls()
    floor.run()
    stored = [floor.ram.words[(floors.FREE + i * floors.PAGE) >> 3] for i in range(4)]
    after = floor.ram.resident_bytes()
    assert not floor.prepared
    floor.close()
    assert stored == [floors.FREE, floors.FREE + 0x1000, floors.FREE + 0x2000, 0]
    assert after - before >= 3 * floors.PAGE


@on_each_isa
def test_a_fault_beyond_the_prepared_entries_is_an_error(isa: _Isa) -> None:
    floor = _faulting(isa.paged, isa.touch_three + isa.leave, 2)
    floor.on_system_call = _Calls()
    with pytest.raises(EngineError, match="0x1002000 beyond those prepared"):
        floor.run()
    floor.close()


@on_each_isa
def test_every_call_is_answered_until_the_program_reads_its_constants(isa: _Isa) -> None:
    floor = isa.paged(_program(isa.five_calls), [b"name"], _SIZE)
    floor.serve_calls(99)
    floor.run()  # without an answer in each round the program would reach an undefined instruction
    floor.close()
    floor = isa.paged(_program(isa.five_calls), [b"name"], _SIZE)
    floor.serve_calls(98)
    with pytest.raises(EngineError):
        floor.run()
    floor.close()


@on_each_isa
def test_a_fault_elsewhere_ends_a_run_of_calls_with_an_error(isa: _Isa) -> None:
    floor = isa.paged(_program(isa.touch_three), [b"name"], _SIZE)
    floor.serve_calls(99)
    with pytest.raises(EngineError, match="0x1000000, not at the program's constants"):
        floor.run()
    floor.close()


@on_each_engine
def test_what_does_not_fit_is_refused(isa: _Isa, kind: type[floors.Floor]) -> None:
    with pytest.raises(EngineError, match="more than"):
        kind(_program(isa.leave), [b"name"], floors.FREE)
    with pytest.raises(EngineError, match="not 16781313"):
        kind(_program(isa.leave), [b"name"], floors.FREE + 4097)
    for address in (0x10_0000, 0x70_0000):
        piece = floors.Piece(address, isa.halt, len(isa.halt), writable=False, executable=True)
        with pytest.raises(EngineError, match=f"{address:#x} does not fit"):
            kind(floors.Program(address, (piece,)), [b"name"], _SIZE)
