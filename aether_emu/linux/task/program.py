"""What a process executes."""

from __future__ import annotations

from aether_emu.linux.files.inodes import FileKey
from aether_emu.records import dataclass


@dataclass
class Program:
    """What was executed, as /proc/self and the auxiliary vector tell it.

    `code` and `data` are the addresses from the start of its own code and data to their ends, `strings` those
    of its arguments, their end and the environment's beginning, and its end.
    `executed` is what execve named, as it did: a script where `path` is its interpreter; empty for the first
    program.
    `file` is the identity of that file, which nobody can open for writing meanwhile.
    `vdso` is the number of the object that has the vDSO's image, `vdso_start` where the process has it or had
    it last, `signal_return` what handlers return to in it: an offset, 0 on an ISA without.
    """

    path: bytes
    arguments: list[bytes]
    environment: list[bytes]
    auxiliary: bytes = b""
    code: tuple[int, int] = (0, 0)
    data: tuple[int, int] = (0, 0)
    strings: tuple[int, int, int] = (0, 0, 0)
    entry: int = 0
    stack_pointer: int = 0
    vdso: int = 0
    vdso_start: int = 0
    signal_return: int = 0
    executed: bytes = b""
    file: FileKey | None = None
