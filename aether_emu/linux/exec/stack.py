"""The first stack of a program: strings, then what execve promises below them (System V ABI, 3.4.1).

The strings go first: where they end decides where Linux puts the vDSO on x86_64, and the auxiliary vector
below them says where that is.
"""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux.exec.image import Loaded
from aether_emu.linux.task.resource_limits import RLIMIT_STACK
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import Cpu
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.policy.aslr import AddressLayout

(
    AT_NULL, AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_BASE, AT_FLAGS, AT_ENTRY, AT_UID, AT_EUID, AT_GID,
    AT_EGID, AT_PLATFORM, AT_HWCAP, AT_CLKTCK, AT_SECURE, AT_RANDOM, AT_HWCAP2, AT_EXECFN, AT_SYSINFO_EHDR,
    AT_RSEQ_FEATURE_SIZE, AT_RSEQ_ALIGN, AT_MINSIGSTKSZ,
) = (0, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 23, 25, 26, 31, 33, 27, 28, 51)  # fmt: skip
RSEQ_FEATURES, RSEQ_ALIGNMENT = 28, 32  # of a struct rseq: up to mm_cid
_INITIAL_STACK = 132 << 10
_LARGEST = 6 << 20  # three quarters of _STK_LIM
_LEAST = 128 << 10  # ARG_MAX
_RW = Protection.READ | Protection.WRITE


def map_stack(space: AddressSpace, layout: AddressLayout, *, executable: bool) -> None:
    """The area of the stack, which nothing is in the way of yet. Raises Refused(ENOMEM)."""
    protection = _RW | Protection.EXECUTE if executable else _RW
    start = layout.stack_top - _INITIAL_STACK & -space.page_size
    space.insert(space.new_area(start, layout.stack_top, protection, grows_down=True, name="[stack]"))


def room_for_strings(task: Task, arguments: int, environment: int) -> int:
    """Bytes for so many strings and the program's name, their NULs included (Linux: bprm_stack_limits).

    Refused(E2BIG) if not even their addresses have room. All must fit into the stack, as well, which may be
    smaller than what is guaranteed.
    """
    soft = task.process.limits[RLIMIT_STACK][0]
    most = max(min(soft // 4, _LARGEST), _LEAST) - 8 * (max(arguments, 1) + environment)
    if most <= 0:
        raise Refused(errno.E2BIG, "the addresses of arguments and environment have no room")
    page = task.process.mm.page_size
    return min(most, (soft & -page) - 8)


class InitialStack:
    """Writes the initial stack through the CPU, as the kernel's own user accesses."""

    def __init__(self, task: Task, layout: AddressLayout) -> None:
        self._task = task
        self._cpu: Cpu = task.cpu
        self._sp = layout.stack_top - 8
        self._layout = layout
        self._executed = 0
        self._environment: list[int] = []
        self._arguments: list[int] = []

    def put_strings(self) -> int:
        """Write path, environment and arguments. Returns the address of the lowest; Refused(E2BIG)."""
        program = self._task.process.program
        executed, texts = program.executed or program.path, (*program.arguments, *program.environment)
        room = room_for_strings(self._task, len(program.arguments), len(program.environment))
        if len(executed) + 1 + sum(len(text) + 1 for text in texts) > room:
            raise Refused(errno.E2BIG, "arguments and environment take too much of the stack")
        self._executed = self._string(executed)
        self._environment = self._strings(program.environment)
        environment = self._sp
        self._arguments = self._strings(program.arguments)
        program.strings = self._sp, environment, self._executed
        return self._sp

    def put_vectors(self, main: Loaded, interpreter: Loaded | None, vdso: int) -> int:
        """Write the vectors of addresses, and the auxiliary vector. Returns the first stack pointer."""
        program, arguments, environment = self._task.process.program, self._arguments, self._environment
        self._sp = (self._sp - self._layout.stack_offset) & -16
        platform = self._string(self._task.process.abi.machine.encode())
        random = self._push(self._task.process.kernel.streams.stream("at_random").bytes(16))
        auxiliary = self._auxiliary(main, interpreter, vdso, platform, random)
        program.auxiliary = auxiliary
        pointers = struct.pack(
            f"<Q{len(arguments)}QQ{len(environment)}QQ", len(arguments), *arguments, 0, *environment, 0
        )
        self._sp = self._sp - len(auxiliary) - len(pointers) & -16
        self._cpu.copy_to_user(self._sp, pointers + auxiliary)
        return self._sp

    def _push(self, data: bytes) -> int:
        self._sp -= len(data)
        self._cpu.copy_to_user(self._sp, data)
        return self._sp

    def _string(self, text: bytes) -> int:
        return self._push(text + b"\0")

    def _strings(self, texts: list[bytes]) -> list[int]:
        """Addresses of the texts, which lie in memory in the order given."""
        return [self._string(text) for text in reversed(texts)][::-1]

    def _auxiliary(
        self, main: Loaded, interpreter: Loaded | None, vdso: int, platform: int, random: int
    ) -> bytes:
        task = self._task
        who = task.credentials
        hwcap, hwcap2 = task.process.abi.hardware_capabilities(task.cpu)
        vector = (
            (AT_SYSINFO_EHDR, vdso),
            (AT_MINSIGSTKSZ, task.process.abi.minimum_signal_stack),
            (AT_HWCAP, hwcap),
            (AT_PAGESZ, task.process.mm.page_size),
            (AT_CLKTCK, 100),
            (AT_PHDR, main.headers),
            (AT_PHENT, 56),
            (AT_PHNUM, main.image.header_count),
            (AT_BASE, interpreter.bias if interpreter is not None else 0),
            (AT_FLAGS, 0),
            (AT_ENTRY, main.entry),
            (AT_UID, who.uid),
            (AT_EUID, who.euid),
            (AT_GID, who.gid),
            (AT_EGID, who.egid),
            (AT_SECURE, int(who.is_secure)),
            (AT_RANDOM, random),
            (AT_HWCAP2, hwcap2),
            (AT_EXECFN, self._executed),
            (AT_PLATFORM, platform),
            (AT_RSEQ_FEATURE_SIZE, RSEQ_FEATURES),
            (AT_RSEQ_ALIGN, RSEQ_ALIGNMENT),
            (AT_NULL, 0),
        )
        return b"".join(struct.pack("<QQ", *pair) for pair in vector)
