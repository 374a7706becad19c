"""A few instructions of each ISA, as programs and as the supervisor's own stubs, under one set of names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from aether_emu.arch.arm64 import stubs as arm_stubs
from aether_emu.arch.x86_64 import stubs as x86_stubs
from aether_emu.machine.unicorn.arm64 import SupervisorResult as ArmResult
from aether_emu.machine.unicorn.x86_64 import SupervisorResult as X86Result


@dataclass(frozen=True)
class Landed:
    """What the supervisor's access left: the value loaded, and the fault that ended it, if any."""

    value: int
    fault: tuple[int, int] | None


class Instructions(ABC):
    """Code of a program uses `address`, a register, for the place and `value` for what is there.

    The supervisor's accesses are guarded against the user's pages unless they are `allowed`.
    """

    address: str
    value: str
    load: bytes  # 8 bytes
    store: bytes
    load_byte: bytes
    store_byte: bytes
    jump: bytes
    system_call: bytes
    load_offset: int  # of the supervisor's load in its text page

    @abstractmethod
    def supervisor_load(self, cpu: Any, va: int, *, allowed: bool = False) -> Landed: ...

    @abstractmethod
    def supervisor_store(self, cpu: Any, va: int, value: int, *, allowed: bool = False) -> Landed: ...

    @abstractmethod
    def supervisor_jump(self, cpu: Any, va: int) -> Landed: ...


class X86Instructions(Instructions):
    """Ring 3 with rdi and rax; ring 0 behind SMAP and SMEP."""

    address, value = "rdi", "rax"
    load, store = bytes.fromhex("488b07"), bytes.fromhex("488907")  # mov rax, [rdi]; mov [rdi], rax
    load_byte, store_byte = bytes.fromhex("8a07"), bytes.fromhex("8807")  # mov al, [rdi]; mov [rdi], al
    jump, system_call = bytes.fromhex("ffe7"), bytes.fromhex("0f05")  # jmp rdi; syscall
    load_offset = x86_stubs.LOAD.offset

    def supervisor_load(self, cpu: Any, va: int, *, allowed: bool = False) -> Landed:
        return self._run(cpu.supervisor(x86_stubs.LOAD_ALLOWED if allowed else x86_stubs.LOAD, rdi=va))

    def supervisor_store(self, cpu: Any, va: int, value: int, *, allowed: bool = False) -> Landed:
        stub = x86_stubs.STORE_ALLOWED if allowed else x86_stubs.STORE
        return self._run(cpu.supervisor(stub, rdi=va, rax=value))

    def supervisor_jump(self, cpu: Any, va: int) -> Landed:
        return self._run(cpu.supervisor(x86_stubs.JUMP, rdi=va))

    @staticmethod
    def _run(result: X86Result) -> Landed:
        return Landed(result.rax, result.fault)


class ArmInstructions(Instructions):
    """EL0 with x1 and x0; EL1 behind PAN and PXN."""

    address, value = "x1", "x0"
    load, store = bytes.fromhex("200040f9"), bytes.fromhex("200000f9")  # ldr x0, [x1]; str x0, [x1]
    load_byte, store_byte = bytes.fromhex("20004039"), bytes.fromhex("20000039")  # ldrb, strb w0, [x1]
    jump, system_call = bytes.fromhex("20001fd6"), bytes.fromhex("010000d4")  # br x1; svc #0
    load_offset = arm_stubs.LOAD.offset

    def supervisor_load(self, cpu: Any, va: int, *, allowed: bool = False) -> Landed:
        return self._run(cpu.supervisor(arm_stubs.LOAD, x1=va, pan=not allowed))

    def supervisor_store(self, cpu: Any, va: int, value: int, *, allowed: bool = False) -> Landed:
        return self._run(cpu.supervisor(arm_stubs.STORE, x0=value, x1=va, pan=not allowed))

    def supervisor_jump(self, cpu: Any, va: int) -> Landed:
        return self._run(cpu.supervisor(arm_stubs.JUMP, x1=va))

    @staticmethod
    def _run(result: ArmResult) -> Landed:
        return Landed(result.x0, result.fault)
