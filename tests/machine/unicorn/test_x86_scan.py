"""The walk over new x86 blocks stops at the opcodes that have a rule, in machine code and in Python alike."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_emu.machine import native
from aether_emu.machine.unicorn import engine, x86_scan
from aether_emu.machine.unicorn.x86_blocks import instructions
from aether_emu.machine.unicorn.x86_scan import CODE_BUFFER, BlockScan
from tests.machine.unicorn.flat_guest import assemble
from tests.machine.unicorn.test_x86_blocks import (
    ESCAPES,
    ILLEGAL,
    ORDINARY,
    PREFIXES,
    PRIVILEGED,
    encodings,
    needs_look,
)

AT, ENGINE = 0x40_0123, 0xABC
LOOKED_AT = [*ILLEGAL, *PRIVILEGED, "rdrand rcx", "rdseed r8w", "cmpxchg16b [rdi]", "andn rax, rcx, rdx"]
PLAIN = [source for source in ORDINARY if not needs_look(assemble(source))]

KINDS = pytest.mark.parametrize("kind", ["machine code", "python"])


class Block(ctypes.Structure):
    _fields_ = (("pc", ctypes.c_uint64), ("instructions", ctypes.c_uint16), ("size", ctypes.c_uint16))


class Scanned:
    """A scan whose engine is two callbacks: one hands out the block's bytes, one notes the TLB's flushes."""

    def __init__(self, kind: str) -> None:
        self.seen: list[tuple[int, bytes, int]] = []
        self.enough = True
        self.read: list[tuple[int, int, int, int]] = []
        self.controlled: list[tuple[int, int]] = []
        self.refuse = False
        with pytest.MonkeyPatch.context() as patch:
            if kind == "python":
                patch.setattr(native, "available", lambda: False)
            self.scan = BlockScan(self._found)
        self._code = b""
        self._callbacks = x86_scan._ReadFunction(self._read), x86_scan._ControlFunction(self._control)
        inner = self.scan._scan
        inner.read, inner.control = (
            ctypes.cast(each, ctypes.c_void_p).value or 0 for each in self._callbacks
        )

    def _found(self, pc: int, code: bytes, offset: int) -> bool:
        self.seen.append((pc, code, offset))
        return self.enough

    def _read(self, handle: int, address: int, access: int, buffer: int, size: int) -> int:
        self.read.append((handle, address, access, size))
        ctypes.memmove(buffer, self._code, min(size, len(self._code)))
        return int(self.refuse)

    def _control(self, handle: int, control: int) -> int:
        self.controlled.append((handle, control))
        return 0

    def block(self, code: bytes, size: int | None = None) -> bool:
        """The engine announces a block. Whether it is looked at."""
        self._code, before = code, len(self.seen)
        block = Block(AT, 1, len(code) if size is None else size)
        hook = x86_scan._EdgeCallback(self.scan.callback)
        hook(ENGINE, ctypes.addressof(block), 0, self.scan.user_data)
        return len(self.seen) > before


SCANS = {kind: Scanned(kind) for kind in ("machine code", "python")}


@KINDS
@pytest.mark.parametrize("source", LOOKED_AT)
def test_a_block_with_an_opcode_that_has_a_rule_is_looked_at(source: str, kind: str) -> None:
    scanned = SCANS[kind]
    before = assemble("add rax, rbx\nmov ecx, [rsi + rdx * 8 + 0x12345678]")
    code = before + assemble(source) + b"\x90\xc3"
    assert scanned.block(code)
    assert scanned.seen[-1] == (AT, code, len(before))
    assert scanned.read[-1] == (ENGINE, AT, 4, len(code)), "read as the CPU fetches"


@KINDS
def test_a_block_without_one_never_reaches_python(kind: str) -> None:
    code = b"".join(assemble(source) for source in PLAIN)
    assert len(PLAIN) >= 5
    assert not SCANS[kind].block(code)


@KINDS
@pytest.mark.parametrize("enough", [True, False])
def test_the_walk_goes_on_behind_a_harmless_instruction(kind: str, enough: bool) -> None:
    scanned = Scanned(kind)
    scanned.enough = enough
    sources = ["rdrand rcx", "mov rax, [rsp + 8]", "cmpxchg16b [rdi]", "out 0x80, al", "andn rax, rcx, rdx"]
    pieces = [assemble(source) for source in sources]
    offsets = [sum(map(len, pieces[:number])) for number in (0, 2, 3, 4)]
    assert scanned.block(b"".join(pieces) + b"\xc3")
    assert [offset for _pc, _code, offset in scanned.seen] == (offsets[:1] if enough else offsets)


@KINDS
def test_what_stands_behind_the_block_does_not_count(kind: str) -> None:
    vex = assemble("vzeroupper")
    assert SCANS[kind].block(b"\x90\x90" + vex)
    for start in (b"\x90\x90", b"\x66\x66", b"\x48\x0f", b"\xb8\x01", b"\x8b\x84"):
        assert not SCANS[kind].block(start, 2), "the earlier block's bytes still lie behind"
        assert not SCANS[kind].block(start + vex, 2)


@KINDS
def test_a_block_that_cannot_be_read_is_left_alone(kind: str) -> None:
    scanned = Scanned(kind)
    code = assemble("vzeroupper")
    assert not scanned.block(code, CODE_BUFFER + 1)
    assert not scanned.read
    scanned.refuse = True
    assert not scanned.block(code)
    assert scanned.read


@KINDS
def test_each_new_block_drops_the_tlb_while_code_may_change_under_another_address(kind: str) -> None:
    scanned = Scanned(kind)
    scanned.block(b"\x90")
    assert not scanned.controlled
    scanned.scan.changes = True
    scanned.block(b"\x90")
    scanned.block(assemble("vzeroupper"))
    assert scanned.controlled == [(ENGINE, engine.TLB_FLUSH)] * 2
    assert len(scanned.seen) == 1


@pytest.mark.parametrize("prefix", PREFIXES, ids=bytes.hex)
def test_machine_code_and_python_agree_behind_every_opcode(prefix: bytes) -> None:
    by_code, compared = SCANS["machine code"], 0
    for escape in ESCAPES:
        for opcode in range(256):
            for code in encodings(escape, opcode)[::3]:
                one = prefix + code
                first = next(instructions(one), None)
                if first is None or needs_look(one[: first.size]):
                    continue
                # A look right behind it, and none a byte later, where VEX would be an operand of a mov.
                block = one[: first.size] + b"\xc5\xf8\x77"
                hidden = one[: first.size] + b"\xb8\xc5\xf8\x77\x90\x90"
                compared += 1
                assert by_code.block(block), block.hex()
                assert not by_code.block(hidden), hidden.hex()
    assert compared > 5000


@given(st.binary(max_size=80))
def test_machine_code_and_python_agree_on_any_bytes(code: bytes) -> None:
    if sum(instruction.size for instruction in instructions(code)) == len(code):
        assert SCANS["machine code"].block(code) == needs_look(code)
    assert SCANS["machine code"].block(code) or not needs_look(code)
