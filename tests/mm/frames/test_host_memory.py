"""Memory that is free again goes back to the host, and reads as zero."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.mm.counters import Event
from aether_emu.system import Machine
from tests.guests.running import ISAS, program
from tests.small_programs import written

_MIB = 1 << 20


def _run(isa: str, tmp_path: Path, step: int) -> tuple[int, int, int]:
    """Frames given back, zeroed, and the host's bytes behind RAM, when a program has freed what it had."""
    size = 96 * _MIB
    calls = {
        "x86_64": f"""
            mov r12d, 3
        again: xor edi, edi; mov esi, {size}; mov edx, 3; mov r10d, 0x22; mov r8, -1; xor r9d, r9d
            mov eax, 9; syscall; mov rbx, rax; xor ecx, ecx
        touch: cmp qword ptr [rbx + rcx], 0; jne wrong; mov qword ptr [rbx + rcx], 7
            add rcx, 4096; cmp rcx, {size}; jne touch
            mov rdi, rbx; mov esi, {size}; mov eax, 11; syscall; dec r12d; jnz again
            xor edi, edi; mov eax, 60; syscall
        wrong: mov edi, 1; mov eax, 60; syscall""",
        "arm64": f"""
            mov x19, 3
        again: mov x0, 0; mov x1, {size}; mov x2, 3; mov x3, 0x22; mov x4, -1; mov x5, 0; mov x8, 222; svc 0
            mov x20, x0; mov x21, 0; mov x22, {size}; mov x23, 7
        touch: ldr x1, [x20, x21]; cbnz x1, wrong; str x23, [x20, x21]
            add x21, x21, 4096; cmp x21, x22; b.ne touch
            mov x0, x20; mov x1, x22; mov x8, 215; svc 0; subs x19, x19, 1; b.ne again
            mov x0, 0; mov x8, 93; svc 0
        wrong: mov x0, 1; mov x8, 93; svc 0""",
    }
    with Machine(isa, ram="128M", host_step=step) as machine:
        machine.load(written(tmp_path, isa, calls[isa]), ["freed"])
        assert machine.run(timeout=60).status == 0
        zeroed = machine.physical.counters.n[Event.ZEROED_PAGES]
        return machine.physical.host_memory.returned, zeroed, machine.ram.resident_bytes()


@pytest.mark.parametrize("isa", ISAS)
def test_a_run_that_freed_its_memory_is_small_again(isa: str, tmp_path: Path) -> None:
    returned, zeroed, held = _run(isa, tmp_path, 64 * _MIB)
    assert returned >= 3 * (60 * _MIB >> 12)
    assert held < 40 * _MIB
    kept, cleared, full = _run(isa, tmp_path, 0)
    assert kept == 0
    assert full > 90 * _MIB
    assert cleared > zeroed


def test_frames_of_small_blocks_stay(tmp_path: Path) -> None:
    with Machine("x86_64", ram="32M", host_step=_MIB) as machine:
        machine.load(program("x86_64", "hello"), ["hello"])
        machine.run()
        host, buddy = machine.physical.host_memory, machine.buddy
        frames = buddy.alloc_bulk(buddy.free_frames).tolist()
        for frame in frames:
            machine.physical.prepare(frame)
            machine.physical.page_bytes(frame)[0] = 1
        before = host.returned
        machine.physical.give_back(frames[::2])  # no two of them side by side
        assert host.returned == before
        machine.physical.give_back(frames[1::2])
        assert host.returned - before >= 1000
