"""Bare engines with the least around them that still runs a program: what benchmarks compare with.

    Flat      no paging: the program's addresses are physical
    Paged     user level behind the smallest page tables; a fault or a call costs one short callback

Here is what ISAs share; `floors.x86_64` and `floors.arm64` have an engine of each kind. They keep the
program where its file says, at the same guest-physical address, and call back for system calls with
plain ints. Nothing here is part of the machine that `aether run` uses.

    0x00_1000  root, then one table of each level on the way down     (paged only)
    0x00_4000  supervisor page, of an ISA that needs one              (paged only)
    0x10_0000  leaf tables, adjacent, so that they are one array indexed by page number
    0x40_0000  the program
    0x80_0000  top of its stack
    0x100_0000 free, up to the size asked for

Without paging no page refuses execution, and this engine sends each store to a page that could hold
code down a slow path, on both ISAs. So a flat engine is a floor for arithmetic and for loads; the
floor for stores is a paged one, whose data pages cannot be executed.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from unicorn import UC_PROT_ALL

from aether_emu.arch.paging import Attributes, PageFlags, PageTableFormat
from aether_emu.errors import EngineError
from aether_emu.interruption import Undisturbed
from aether_emu.machine.memory.ram import Ram
from aether_emu.machine.unicorn import engine
from aether_emu.records import dataclass

PAGE = 4096
FREE = 16 << 20
"""First address that neither the program nor its surroundings use."""

MASK = (1 << 64) - 1
ROOT, SUPERVISOR = 0x1000, 0x4000
LEAVES = 1 << 20
_PROGRAM, _STACK_LOW, _STACK_TOP = 4 << 20, 7 << 20, 8 << 20
_LARGEST = 1 << 30  # what one table of the second level covers
_AT_NULL, _AT_PAGESZ = 0, 6

USED = PageFlags.READ | PageFlags.ACCESSED
DATA = USED | PageFlags.USER | PageFlags.WRITE | PageFlags.DIRTY

SystemCall = Callable[[int, int, int, int, int, int, int], int | None]
"""(number, six arguments) -> result, or None to end the run."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One segment of a program: `content` at `address`, zeros up to `size` bytes."""

    address: int
    content: bytes
    size: int
    writable: bool
    executable: bool

    def pages(self) -> range:
        """The numbers of the pages that it meets."""
        return range(self.address // PAGE, -(-(self.address + self.size) // PAGE))


@dataclass(frozen=True, slots=True)
class Program:
    """A position-dependent program for one of these engines."""

    entry: int
    pieces: tuple[Piece, ...]


class Floor(ABC):
    """Memory, an engine of the machine's own CPU model, and a program in both.

    `size` is the bytes of guest-physical memory, `arguments` the program's, its name first.
    `on_system_call` may be set until the run.
    """

    def __init__(self, program: Program, arguments: Sequence[bytes], size: int) -> None:
        if not FREE < size <= _LARGEST or size % PAGE:
            raise EngineError(f"a bare engine has more than {FREE} and at most {_LARGEST} bytes, not {size}")
        self.ram = Ram(0, size, PAGE)
        self._uc = self._open()
        self._handle = engine.handle_of(self._uc)
        self._uc.mem_map_ptr(0, size, UC_PROT_ALL, self.ram.host_address)
        for piece in program.pieces:
            if piece.address < _PROGRAM or piece.address + piece.size > _STACK_LOW:
                raise EngineError(f"a segment at {piece.address:#x} does not fit a bare engine")
            self.ram.bytes[piece.address : piece.address + len(piece.content)] = piece.content
        self._entry = program.entry
        self._stack = self._place_arguments(arguments)
        self.on_system_call: SystemCall = lambda *_: None
        self._failure: BaseException | None = None
        self._stopped = False
        self._keep: list[object] = []

    @abstractmethod
    def _open(self) -> Any:
        """An engine without memory (the wrapper is untyped)."""

    @abstractmethod
    def run(self) -> None:
        """Execute from the program's entry to its end: a system call that answers None, or the end of
        the way chosen on a `Paged` engine. Raises what a callback raised, or EngineError.
        """

    def exchange(self) -> Callable[[], None]:
        """A function that saves the engine's context and restores it."""
        uc, context = self._uc, self._uc.context_save()

        def exchange() -> None:
            uc.context_update(context)
            uc.context_restore(context)

        return exchange

    def _place_arguments(self, arguments: Sequence[bytes]) -> int:
        """What a program finds on its stack (System V gABI, process initialization); the stack pointer."""
        texts = b"".join(text + b"\0" for text in arguments)
        at = _STACK_TOP - len(texts)
        self.ram.bytes[at:_STACK_TOP] = texts
        words = [len(arguments)]
        for text in arguments:
            words.append(at)
            at += len(text) + 1
        words += [0, 0, _AT_PAGESZ, PAGE, _AT_NULL, 0]
        stack = _STACK_TOP - len(texts) - 8 * len(words) & -16
        self.ram.bytes[stack : stack + 8 * len(words)] = struct.pack(f"<{len(words)}Q", *words)
        return stack

    def _hook(self, kind: int, callback: object, *extra: int) -> None:
        engine.hook_add(self._handle, kind, callback, *extra)
        self._keep.append(callback)

    def _stop(self) -> None:
        self._stopped = True
        engine.emu_stop(self._handle)

    def _fail(self, failure: BaseException) -> None:
        self._failure = failure
        engine.emu_stop(self._handle)

    def _execute(self, start: int) -> None:
        with Undisturbed(lambda: engine.emu_stop(self._handle)) as block:
            code = engine.emu_start(self._handle, start, 0, 0, 0)
        if block.program_ends:
            raise SystemExit
        if self._failure is not None:
            raise self._failure
        if code or not self._stopped:
            why = engine.error_text(code) if code else "it came back by itself"
            raise EngineError(f"a bare engine did not reach its end: {why}")

    def close(self) -> None:
        """Free the engine, then its memory."""
        self._keep.clear()
        self._uc = None
        self.ram.close()


class Paged(Floor):
    """The program at user level behind identity page tables, with one of two ways to meet faults and calls:

    - `serve_faults(first, count)`: a fault costs one callback that writes a prepared entry; calls
      go to `on_system_call`;
    - `serve_calls(answer)`: a call costs one callback that reads number and arguments and writes
      `answer`; the run ends when the program first reads its constants, to print.
    """

    def __init__(self, program: Program, arguments: Sequence[bytes], size: int) -> None:
        super().__init__(program, arguments, size)
        self.prepared: list[int] = []  # entries that faults have yet to write, the next one last
        constants = (piece for piece in program.pieces if not piece.writable and not piece.executable)
        self._constants = frozenset(number for piece in constants for number in piece.pages())
        self._format = self._make_format()
        self._build_tables(program)

    @abstractmethod
    def _make_format(self) -> PageTableFormat:
        """The ISA's tables of four levels and pages of 4 KiB."""

    @abstractmethod
    def _hook_faults(self) -> None:
        """Let a fault write the next entry of `prepared`, and `on_system_call` answer calls."""

    @abstractmethod
    def _hook_calls_only(self, answer: int) -> None:
        """Let a call get `answer`, and a fault end the run by `_end_at`."""

    def _build_tables(self, program: Program) -> None:
        """Every leaf table gets its entry above; only those of what is there now are touched."""
        words, table = self.ram.words, self._format.table_entry
        words[ROOT >> 3] = table(ROOT + PAGE)
        words[ROOT + PAGE >> 3] = table(ROOT + 2 * PAGE)
        for number in range(-(-self.ram.size // (512 * PAGE))):
            words[(ROOT + 2 * PAGE >> 3) + number] = table(LEAVES + number * PAGE)
        for piece in program.pieces:
            flags = DATA if piece.writable else USED | PageFlags.USER
            self._map(piece.pages(), flags | (PageFlags.EXECUTE if piece.executable else PageFlags(0)))
        self._map(range(_STACK_LOW // PAGE, _STACK_TOP // PAGE), DATA)

    def _map(self, numbers: range, flags: PageFlags) -> None:
        bits = self._format.leaf_bits(Attributes(flags))
        for number in numbers:
            self.ram.words[(LEAVES >> 3) + number] = number * PAGE | bits

    def serve_faults(self, first: int, count: int) -> None:
        """Prepare entries for `count` pages from address `first` on, to be written in that order."""
        bits = self._format.leaf_bits(Attributes(DATA))
        start = first // PAGE
        self.prepared = [number * PAGE | bits for number in range(start + count - 1, start - 1, -1)]
        self._hook_faults()

    def serve_calls(self, answer: int) -> None:
        """Answer every system call with `answer`."""
        for number in self._constants:
            self.ram.words[(LEAVES >> 3) + number] = 0
        self._hook_calls_only(answer)

    def _end_at(self, address: int) -> None:
        """A fault of a run that only serves calls."""
        if address // PAGE in self._constants:
            self._stop()
        else:
            self._fail(EngineError(f"a fault at {address:#x}, not at the program's constants"))
