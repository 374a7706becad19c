"""Bare engines with the least around them that still runs a program: what benchmarks compare with.

    FlatFloor     no paging: the program's addresses are physical
    PagedFloor    ring 3 behind the smallest page tables; a fault or a call costs one short callback

Both keep the program where its file says, at the same guest-physical address, and call back for
system calls with plain ints. Nothing here is part of the machine that `aether run` uses.

    0x00_1000  root, then one table of each level on the way down     (paged only)
    0x00_4000  supervisor page: descriptors, `iretq` and its frame    (paged only)
    0x10_0000  leaf tables, adjacent, so that they are one array indexed by page number
    0x40_0000  the program
    0x80_0000  top of its stack
    0x100_0000 free, up to the size asked for
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_HOOK_INTR, UC_MODE_64, UC_PROT_ALL, x86_const

from aether_emu.arch.x86_64 import registers as regs
from aether_emu.arch.x86_64 import stubs
from aether_emu.arch.x86_64.format import NX, A, D, P, U, W
from aether_emu.errors import EngineError
from aether_emu.machine import calibrate, engine
from aether_emu.machine.ram import Ram
from aether_emu.machine.state_views import ContextState, LiveState, State

PAGE = 4096
FREE = 16 << 20
"""First address that neither the program nor its surroundings use."""

_ROOT, _SUPERVISOR, _LEAVES = 0x1000, 0x4000, 1 << 20
_STUB, _FRAME = 0x100, 0x800  # offsets in the supervisor page
_PROGRAM, _STACK_LOW, _STACK_TOP = 4 << 20, 7 << 20, 8 << 20
_LARGEST = 1 << 30  # what one table of the second level covers
_MASK = (1 << 64) - 1
_AT_NULL, _AT_PAGESZ = 0, 6

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


class _Floor:
    """Memory, an engine of the machine's own CPU model, and a program in both.

    `size` is the bytes of guest-physical memory, `arguments` the program's, its name first.
    `on_system_call` may be set until the run.
    """

    def __init__(self, program: Program, arguments: Sequence[bytes], size: int) -> None:
        if not FREE < size <= _LARGEST or size % PAGE:
            raise EngineError(f"a bare engine has more than {FREE} and at most {_LARGEST} bytes, not {size}")
        self.ram = Ram(0, size, PAGE)
        self._uc = engine.open_engine(UC_ARCH_X86, UC_MODE_64, calibrate.MODEL)
        self._handle = engine.handle_of(self._uc)
        self._uc.mem_map_ptr(0, size, UC_PROT_ALL, self.ram.host_address)
        layout = calibrate.measure()
        base = calibrate.find_state(self._uc)
        self._state: State = ContextState(self._uc, layout) if base is None else LiveState(base, layout)
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

    def _place_arguments(self, arguments: Sequence[bytes]) -> int:
        """What a program finds on its stack (System V ABI, x86-64, 3.4.1); the stack pointer."""
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

    def _hook_calls(self) -> None:
        """Let `on_system_call` answer."""
        general = self._state.general

        def call(_uc: int, _data: int) -> None:
            try:
                g = general
                result = self.on_system_call(g[0], g[7], g[6], g[2], g[10], g[8], g[9])
            except BaseException as failure:
                self._fail(failure)
                return
            if result is None:
                self._stop()
            else:
                general[0] = result & _MASK

        self._hook(UC_HOOK_INSN, engine.INSTRUCTION(call), x86_const.UC_X86_INS_SYSCALL)

    def _stop(self) -> None:
        self._stopped = True
        engine.emu_stop(self._handle)

    def _fail(self, failure: BaseException) -> None:
        self._failure = failure
        engine.emu_stop(self._handle)

    def _execute(self, start: int) -> None:
        code = engine.emu_start(self._handle, start, 0, 0, 0)
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


class FlatFloor(_Floor):
    """The program on an engine without paging. Every address can be read, written and executed."""

    def __init__(self, program: Program, arguments: Sequence[bytes], size: int) -> None:
        super().__init__(program, arguments, size)
        self._uc.ctl_exits_enabled(True)  # else `until` would be translated
        self._uc.ctl_set_exits([])
        self._hook_calls()
        self._state.general[4] = self._stack

    def run(self) -> None:
        """Execute until a system call answers None. Raises what the callback raised, or EngineError."""
        self._execute(self._entry)


class PagedFloor(_Floor):
    """The program at ring 3 behind identity page tables, with one of two ways to meet faults and calls:

    - `serve_faults(first, count)`: a fault costs one callback that writes a prepared entry; calls
      go to `on_system_call`;
    - `serve_calls(answer)`: a call costs one callback that reads number and arguments and writes
      `answer`; the run ends when the program first reads its constants, to print.
    """

    def __init__(self, program: Program, arguments: Sequence[bytes], size: int) -> None:
        super().__init__(program, arguments, size)
        self.prepared: list[int] = []  # entries that faults have yet to write, the next one last
        self._constants = [piece for piece in program.pieces if not piece.writable and not piece.executable]
        self._build_tables(program)
        page = _SUPERVISOR
        gdt = struct.pack(f"<{len(regs.GDT)}Q", *regs.GDT)
        frame = struct.pack(
            "<5Q",
            self._entry,
            regs.USER_CODE,
            regs.RFLAGS_FIXED | regs.RFLAGS_IF,
            self._stack,
            regs.USER_DATA,
        )
        for offset, content in ((0, gdt), (_STUB, stubs.IRET.code), (_FRAME, frame)):
            self.ram.bytes[page + offset : page + offset + len(content)] = content
        calibrate.enable_paging(self._uc, _ROOT)
        self._uc.reg_write(x86_const.UC_X86_REG_GDTR, (0, page, len(gdt) - 1, 0))
        self._state.general[4] = page + _FRAME

    def _build_tables(self, program: Program) -> None:
        """Every leaf table gets its entry above; only those of what is there now are touched."""
        words = self.ram.words
        upper = P | W | U | A
        words[_ROOT >> 3] = _ROOT + PAGE | upper
        words[_ROOT + PAGE >> 3] = _ROOT + 2 * PAGE | upper
        for number in range(-(-self.ram.size // (512 * PAGE))):
            words[(_ROOT + 2 * PAGE >> 3) + number] = _LEAVES + number * PAGE | upper
        self._map(_SUPERVISOR // PAGE, P | W | A | D)
        for piece in program.pieces:
            bits = P | U | A | (W | D if piece.writable else 0) | (0 if piece.executable else NX)
            for number in piece.pages():
                self._map(number, bits)
        for number in range(_STACK_LOW // PAGE, _STACK_TOP // PAGE):
            self._map(number, P | U | W | A | D | NX)

    def _map(self, number: int, bits: int) -> None:
        self.ram.words[(_LEAVES >> 3) + number] = number * PAGE | bits

    def serve_faults(self, first: int, count: int) -> None:
        """Prepare entries for `count` pages from address `first` on, to be written in that order."""
        words, cr2, old = self.ram.words, self._state.cr2, self._state.old_exception
        leaves = _LEAVES >> 3
        start = first // PAGE
        bits = P | U | W | A | D | NX
        self.prepared = [number * PAGE | bits for number in range(start + count - 1, start - 1, -1)]
        pop = self.prepared.pop

        def fault(_uc: int, _vector: int, _data: int) -> None:
            try:
                words[leaves + (cr2[0] >> 12)] = pop()
                old[0] = -1
            except IndexError:
                self._fail(EngineError(f"a fault at {cr2[0]:#x} beyond those prepared"))
            except BaseException as failure:  # Ctrl-C arrives between two bytecodes
                self._fail(failure)

        self._hook(UC_HOOK_INTR, engine.INTERRUPT(fault))
        self._hook_calls()

    def serve_calls(self, answer: int) -> None:
        """Answer every system call with `answer`."""
        g, cr2 = self._state.general, self._state.cr2
        for piece in self._constants:
            for number in piece.pages():
                self._map(number, 0)

        def call(_uc: int, _data: int) -> None:
            try:
                _arguments = (g[0], g[7], g[6], g[2], g[10], g[8], g[9])
                g[0] = answer
            except BaseException as failure:  # Ctrl-C arrives between two bytecodes
                self._fail(failure)

        def end(_uc: int, _vector: int, _data: int) -> None:
            if any(cr2[0] // PAGE in piece.pages() for piece in self._constants):
                self._stop()
            else:
                self._fail(EngineError(f"a fault at {cr2[0]:#x}, not at the program's constants"))

        self._hook(UC_HOOK_INSN, engine.INSTRUCTION(call), x86_const.UC_X86_INS_SYSCALL)
        self._hook(UC_HOOK_INTR, engine.INTERRUPT(end))

    def run(self) -> None:
        """Execute from the program's entry to the end of the way chosen. Raises as `FlatFloor.run`."""
        self._state.old_exception[0] = -1
        self._execute(_SUPERVISOR + _STUB)
