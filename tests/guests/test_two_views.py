"""Code that is written at one address and runs at another, as by BEAM and .NET: two views of one memory file.

Each round writes two functions, calls them, writes other numbers into them, and calls them again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu import state
from aether_emu.mm.protection import Protection
from tests.small_programs import DATA, EXIT, every_isa, loaded, streams

_ROUND = 1 + 10 + 2 + 30
_X86 = """
    mov edi, {data}; xor esi, esi; mov eax, 319; syscall              # memfd_create
    mov r12, rax; mov edi, eax; mov esi, 4096; mov eax, 77; syscall   # ftruncate
    xor edi, edi; mov edx, 3; mov r10d, 1; mov r8, r12; xor r9d, r9d; mov eax, 9; syscall
    mov r13, rax                                                      # the view that is written
    xor edi, edi; mov edx, {protection}; mov eax, 9; syscall
    mov r14, rax                                                      # and the one that runs
    mov rdi, rax; mov edx, 5; mov eax, 10; syscall                    # mprotect
    lea rbp, [r14 + 0x100]
    xor r15d, r15d
    mov ebx, 3
    mov word ptr [r13], 0x00b8; mov dword ptr [r13 + 2], 0xc3000000   # mov eax, 0; ret
    mov word ptr [r13 + 0x100], 0x00b8; mov dword ptr [r13 + 0x102], 0xc3000000
again:
    mov byte ptr [r13 + 1], 1
    mov byte ptr [r13 + 0x101], 10
    call r14; add r15d, eax; call rbp; add r15d, eax
    mov byte ptr [r13 + 1], 2
    mov byte ptr [r13 + 0x101], 30
    call r14; add r15d, eax; call rbp; add r15d, eax
    dec ebx; jnz again
    mov edi, r15d
"""
_WRITE = "mov w0, #{}; orr w0, w27, w0, lsl #5; str w0, [x{}]"
_FLUSH = "dc cvau, x21; ic ivau, x21; dc cvau, x22; ic ivau, x22; dsb ish; isb"
_CALLS = "blr x21; add w23, w23, w0; blr x22; add w23, w23, w0"
_ARM = f"""
    mov x0, #{{data}}; mov x1, #0; mov x8, #279; svc #0               // memfd_create
    mov x19, x0; mov x1, #4096; mov x8, #46; svc #0                   // ftruncate
    mov x0, #0; mov x2, #3; mov x3, #1; mov x4, x19; mov x5, #0; mov x8, #222; svc #0
    mov x20, x0; add x25, x0, #0x100                                  // the view that is written
    mov x0, #0; mov x2, #{{protection}}; svc #0
    mov x21, x0; add x22, x0, #0x100                                  // and the one that runs
    mov x2, #5; mov x8, #226; svc #0                                  // mprotect
    mov w23, #0
    mov w24, #3
    movz w27, #0x5280, lsl #16                                        // mov w0, #0
    movz w26, #0xd65f, lsl #16; movk w26, #0x03c0                     // ret
    str w26, [x20, #4]; str w26, [x25, #4]
again:
    {_WRITE.format(1, 20)}; {_WRITE.format(10, 25)}; {_FLUSH}; {_CALLS}
    {_WRITE.format(2, 20)}; {_WRITE.format(30, 25)}; {_FLUSH}; {_CALLS}
    subs w24, w24, #1; b.ne again
    mov w0, w23
"""
_BLOCKS = 24  # after the first round and before the last


def _program(isa: str, protection: Protection) -> str:
    source = {"x86_64": _X86, "arm64": _ARM}[isa].format(data=DATA, protection=int(protection))
    lines = (line.split("#" if isa == "x86_64" else "//")[0] for line in source.splitlines())
    return "\n".join([*lines, EXIT[isa]])


@every_isa
@pytest.mark.parametrize("protection", [Protection.READ | Protection.EXECUTE, Protection.READ])
def test_each_store_through_one_view_changes_the_code_of_the_other(
    isa: str, protection: Protection, tmp_path: Path
) -> None:
    with loaded(tmp_path, isa, _program(isa, protection)) as machine:
        assert machine.run().status == 3 * _ROUND


@every_isa
def test_so_it_does_on_a_machine_that_was_captured(isa: str, tmp_path: Path) -> None:
    with loaded(tmp_path, isa, _program(isa, Protection.READ | Protection.EXECUTE)) as machine:
        assert machine.run_for(_BLOCKS) is None
        restored = state.restore(state.capture(machine), streams=streams())
    assert restored.run().status == 3 * _ROUND
    restored.close()
