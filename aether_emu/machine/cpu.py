"""The emulated CPU as the rest of the project sees it: run it, stop it, look at it.

Whoever runs a CPU knows this face and not the engine behind it; `computer.unicorn_cpus` alone chooses
one. A kernel plugs itself in by these attributes; but for `code_changes` they are called while the guest
stands still at the event:

    on_fault(va, access)    a page fault; repair the mapping, change the registers, or `stop()`
    on_system_call(number, a, b, c, d, e, f) -> result, or None when the registers are already right
    on_trap(trap)           any other exception
    resolve(va, access)     a fault of the kernel's own access to user memory: repaired or not
    on_rewrite(va, length)  user memory was written by the host, unseen by the engine (None: not told)
    code_changes            whether any code exists that guest stores could reach: true until told otherwise
    holds_code(physical)    whether code may have run from the page at that address: true until told otherwise
    return_work()           called once a system call's result is in place (None: nothing to do)
    halting                 breakpoints and steps (`machine.halting`); None where a CPU has none

When they return the guest goes on, unless `stop()` was called. A hook never calls `run`, and so never
switches tasks: `run` returns first, to whoever called it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

from aether_emu.errors import EngineError
from aether_emu.machine.halting import Halting
from aether_emu.records import dataclass


class ExitReason(Enum):
    """Why `run` returned."""

    STOPPED = "the kernel asked"
    BUDGET = "the block budget is used up"
    INTERRUPTED = "somebody outside asked (Ctrl-C, a timeout)"
    BUS = "a physical access met nothing"
    STRAY = "stopped from outside Python: the bus guard, or a stop meant for an earlier run"
    ENGINE = "the engine gave up"


@dataclass(frozen=True, slots=True)
class Exit:
    """What `run` returns. `detail` is for people."""

    reason: ExitReason
    detail: str = ""


class TrapKind(Enum):
    """An exception other than a page fault, in neutral words."""

    DIVIDE = "integer division"
    DEBUG = "single step or hardware breakpoint"
    BREAKPOINT = "breakpoint instruction"
    OVERFLOW = "overflow"
    ILLEGAL = "undefined instruction"
    PROTECTION = "privileged instruction or bad descriptor"
    NON_CANONICAL = "address outside the virtual address space"
    STACK = "stack address outside the virtual address space"
    DEBUGGER = "the instruction that calls a hardware debugger"
    ALIGNMENT = "misaligned access"
    FLOAT = "floating point"


@dataclass(frozen=True, slots=True)
class Trap:
    """One such exception. `vector` and `error` are the ISA's own numbers, for signal frames.

    `address` is that of a misaligned access, tag and all, where the ISA reports one, or the misaligned pc.
    """

    kind: TrapKind
    vector: int
    error: int = 0
    address: int = 0


class Saved:
    """What of a CPU belongs to the program that it runs, registers and all, as `Cpu.save` found it.

    Only a CPU of the kind that saved it can do anything with it.
    """

    __slots__ = ()


class UserFault(Exception):
    """`copy_from_user`/`copy_to_user` met an address that the MMU refuses: the guest gets EFAULT."""


class Registers(Protocol):
    """What a range of physical addresses is that has no memory: loads and stores of `width` bytes.

    They are called while the guest stands in the midst of an instruction. They must not stop the CPU, flush
    it, or touch the memory of programs by it; `Cpu.limit` is all they may ask of it. A CPU that is
    interrupted meanwhile may make the same access again.
    """

    def load(self, offset: int, width: int) -> int: ...
    def store(self, offset: int, width: int, value: int) -> None: ...


class Cpu(ABC):
    """One emulated CPU. `isa` names its instruction set; the address space is set by `set_root`.

    `number` tells it from the others of its computer, `peers`, whom it tells when a program says that it has
    changed code. `misses_stores`: on this ISA programs need not say so, and the others learn nothing of it.

    `one_root`: one root translates both halves of the address space, so that each page table holds the
    supervisor's half too (x86_64's CR3). Otherwise that half has a root of its own (ARM64's TTBR1_EL1).
    `stop_call` stops the CPU from inside a signal handler of the host: the address of a C function and
    its one argument, or zeroes for a CPU that no such handler has to stop. `number` is its own among several.
    """

    isa: str
    one_root: bool
    stop_call: tuple[int, int]
    on_fault: Callable[[int, int], None]
    on_system_call: Callable[[int, int, int, int, int, int, int], int | None]
    on_trap: Callable[[Trap], None]
    resolve: Callable[[int, int], bool]
    on_rewrite: Callable[[int, int], None] | None
    code_changes: bool
    holds_code: Callable[[int], bool]
    return_work: Callable[[], None] | None
    halting: Halting | None = None
    number: int = 0
    peers: Sequence[Cpu] = ()
    misses_stores: bool = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.isa}>"

    # ---- bring-up

    @staticmethod
    @abstractmethod
    def text_page() -> bytes:
        """What the page of the supervisor's own code begins with."""

    @staticmethod
    @abstractmethod
    def data_page(va: int, number: int = 0) -> bytes:
        """What the page with the tables and the stack of CPU `number` begins with, mapped at `va`."""

    @abstractmethod
    def boot(self, root: int, text: int, data: int) -> None:
        """Translate by the table at physical `root`, whose upper half maps those two pages, and wait for
        the first `run` at the user's privilege. Raises EngineError when that is not reached.
        """

    def show_registers(self, start: int, size: int, registers: Registers) -> None:
        """Let accesses to physical `[start, start + size)`, where no memory is, go to a device's registers.

        Before the CPU runs. It counts blocks from now on. Raises EngineError where a CPU has no such way.
        """
        raise EngineError(f"{self} reaches no registers of devices")

    def tell_stores(self, start: int, size: int, told: Callable[[int, int], None]) -> None:
        """Call `told(physical address, width)` for each store to physical `[start, start + size)`.

        All stores of the guest get slower by that. Before the CPU runs. Raises EngineError as above.
        """
        raise EngineError(f"{self} tells of no stores")

    # ---- running

    @abstractmethod
    def run(self, budget: int | None = None) -> Exit:
        """Execute until something ends it. `budget` is in blocks; None is no limit."""

    @abstractmethod
    def cut(self, instructions: int) -> None:
        """Let the next `run`, which has a budget of one block, execute at most so many of its instructions.

        It ends with BUDGET in front of the next one, in the midst of the block. The rest of the block counts
        as one, and the part before it as none, so that the count comes out as without.
        """

    @property
    @abstractmethod
    def cut_left(self) -> int:
        """How many of those the last `run` has left, when it was stopped in the midst of the block."""

    @abstractmethod
    def limit(self, budget: int) -> None:
        """From inside a callback: let `run` end after `budget` more blocks, if it would go on for longer.

        It may end at once, with STOPPED.
        """

    @abstractmethod
    def stop(self) -> None:
        """From inside a callback: leave `run` with STOPPED as soon as the callback returns."""

    @abstractmethod
    def interrupt(self) -> None:
        """From any thread: leave `run` with INTERRUPTED. Stays pending until `run` has seen it."""

    @property
    @abstractmethod
    def interrupted(self) -> bool:
        """Whether an interrupt is pending: long work of the kernel looks here and lets `run` see it."""

    @abstractmethod
    def take_interrupt(self) -> bool:
        """Whether an interrupt was pending; it is so no longer."""

    @property
    @abstractmethod
    def blocks(self) -> int:
        """Blocks executed since `count_blocks`."""

    @abstractmethod
    def count_blocks(self) -> None:
        """Start counting executed blocks, from now on. Idempotent."""

    def settle(self, _va: int) -> bool:
        """Asked in a fault's callback, before the fault at `_va` becomes the guest's signal: whether there is
        none, since the instruction needs nothing there and was done in another way, or another exception,
        of which `on_trap` was told.
        """
        return False

    # ---- address translation

    @abstractmethod
    def set_root(self, root: int, tag: int = 0, *, keep: bool = False) -> None:
        """Walk the page table at physical `root` from now on, under `tag` (PCID, ASID).

        With `keep` what the TLB holds under the tag is valid, and stays (x86_64: CR3 bit 63 is written).
        Otherwise it is dropped: what there is under the tag on x86_64, everything on ARM64, and everything
        where tags are off. A CPU whose TLB has no tags drops everything in any case.
        """

    @abstractmethod
    def flush_tag(self, tag: int, va: int | None = None) -> None:
        """Drop what the TLB holds under one tag, of the page at `va` or of all.

        x86_64: INVPCID types 0 and 1. ARM64: TLBI VAE1 and ASIDE1.
        """

    @abstractmethod
    def flush_page(self, va: int) -> None:
        """Drop what the TLB holds for one page."""

    @abstractmethod
    def flush_all(self) -> None:
        """Drop the whole TLB."""

    @abstractmethod
    def working_set(self, pages: int) -> None:
        """The guest uses so many pages now: a CPU may size its TLB for them. It counts as no flush."""

    @abstractmethod
    def flush_code(self) -> None:
        """Drop every translated block: some code changed without the engine seeing it."""

    @abstractmethod
    def forget_code(self) -> None:
        """As `flush_code`, before the next `run` that is not inside a callback now."""

    @abstractmethod
    def watch_stores(self, pa: int, length: int) -> None:
        """Let stores of the guest to this memory, by whatever address, take effect on code as the ISA has it.

        They may be slower from now on.
        """

    # ---- registers (names are the ISA's, lower case)

    @abstractmethod
    def read(self, name: str) -> int:
        """One register, vector registers as one wide integer. Raises KeyError for an unknown name."""

    @abstractmethod
    def write(self, name: str, value: int) -> None:
        """Set one register. Raises KeyError for an unknown name."""

    @property
    @abstractmethod
    def pc(self) -> int:
        """Where the guest goes on: inside a system call, behind the instruction."""

    @pc.setter
    @abstractmethod
    def pc(self, value: int) -> None: ...

    @property
    @abstractmethod
    def sp(self) -> int: ...

    @sp.setter
    @abstractmethod
    def sp(self, value: int) -> None: ...

    @property
    def syndrome(self) -> int:
        """The syndrome of the last exception (ESR_ELx), valid in its callback; 0 where the ISA has none."""
        return 0

    @property
    def fault_address(self) -> int:
        """The address that the last abort reported (FAR_ELx), tag and all, likewise."""
        return 0

    @abstractmethod
    def registers(self) -> dict[str, int]:
        """Every register a user program can observe, by name."""

    def reservation(self) -> tuple[int, ...]:
        """What the program holds for an exclusive store, for capture; empty on an ISA without such stores."""
        return ()

    def reserve(self, reservation: tuple[int, ...]) -> None:
        """Let the program hold that again."""
        assert not reservation, "this CPU has none"

    @abstractmethod
    def load_registers(self, values: dict[str, int]) -> None:
        """Set what `registers` returned."""

    @abstractmethod
    def save(self, into: Saved | None = None) -> Saved:
        """Everything of the program that runs here: `restore` lets it go on. Inside a callback it goes on
        behind the system call. `into` is an earlier result, to be used again.

        A reservation that the program holds for an exclusive store is lost, as it is when a kernel switches.
        """

    @abstractmethod
    def restore(self, saved: Saved) -> None:
        """Go on with what `save` found, in the address space where the CPU is now.

        Inside a callback only to look at it: what was there before must be put back.
        """

    # ---- user memory, by the MMU's own rules at the user's privilege

    @abstractmethod
    def copy_from_user(self, va: int, length: int) -> bytes:
        """Bytes of user memory; pages are faulted in on the way. Raises UserFault."""

    @abstractmethod
    def copy_to_user(self, va: int, data: bytes | bytearray | memoryview) -> None:
        """Write user memory likewise. Raises UserFault; what came before the bad page is written."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the engine and its memory. Safe twice."""
