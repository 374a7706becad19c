"""Restartable sequences (rseq(2)): code that is begun anew when its thread was interrupted in the midst.

    struct rseq                 cpu_id_start, cpu_id, pointer to a struct rseq_cs, flags, node_id, mm_cid
    struct rseq_cs, 32 bytes    version, flags, first instruction, length, where to go instead

A thread that comes back to the CPU after another, or enters a signal handler, goes on at the abort address
if it stood in the sequence that its pointer names. Its CPU's number stands there whenever it runs.
"""

from __future__ import annotations

import struct
from typing import Protocol

from aether_emu.linux.abi.signal import SIGSEGV
from aether_emu.machine.cpu import Cpu, UserFault
from aether_emu.records import dataclass


class Killed(Protocol):
    """A process."""

    def die(self, signal: int, why: str) -> None: ...


class Interrupted(Protocol):
    """A task, as its sequences see it."""

    @property
    def cpu(self) -> Cpu: ...
    @property
    def process(self) -> Killed: ...
    @property
    def user_end(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Sequences:
    """What a thread has registered: where its struct rseq is, and what stands before each abort address."""

    address: int
    length: int
    signature: int

    def tell_cpu(self, cpu: Cpu, number: int) -> None:
        """Write the CPU's number, which is the concurrency ID too; there is one node. Raises UserFault."""
        cpu.copy_to_user(self.address, struct.pack("<II", number, number))
        cpu.copy_to_user(self.address + 20, struct.pack("<II", 0, number))

    def abort(self, task: Interrupted) -> None:
        """The thread was interrupted: if that was in a sequence, it goes on at the abort address.

        A struct that nobody could have meant ends the process by SIGSEGV: under Linux a handler for that
        would meet the same struct (__rseq_handle_notify_resume).
        """
        cpu = task.cpu
        try:
            (pointer,) = struct.unpack("<Q", cpu.copy_from_user(self.address + 8, 8))
            if not pointer:
                return
            target = self._target(cpu, pointer, task.user_end)
            cpu.copy_to_user(self.address + 8, bytes(8))
        except (UserFault, ValueError):
            self.fail(task)
            return
        if target is not None:
            cpu.pc = target

    def _target(self, cpu: Cpu, pointer: int, end: int) -> int | None:
        """Where to go instead; None outside the sequence. Raises ValueError, UserFault."""
        if pointer >= end:
            raise ValueError("no user address")
        version, flags, start, length, target = struct.unpack("<IIQQQ", cpu.copy_from_user(pointer, 32))
        inside = start + length
        if version or max(start, inside, target) >= end or start <= target < inside:
            raise ValueError("no sequence")
        before = cpu.copy_from_user(target - 4, 4)
        if int.from_bytes(before, "little") != self.signature:
            raise ValueError("another signature")
        if not start <= cpu.pc < inside:
            return None
        if flags or any(cpu.copy_from_user(self.address + 16, 4)):
            raise ValueError("flags that are gone since Linux 6.1")
        return int(target)

    @staticmethod
    def fail(task: Interrupted) -> None:
        """It cannot be done."""
        task.process.die(SIGSEGV, "SIGSEGV at a restartable sequence that cannot be read")
