"""Who called whom: from the registers at a place back through every frame.

By unwind tables where a function has them, by frame pointers where it has not: then a return address counts
if it lies behind a call. A jump to where no code is was a call: its caller is what the call left behind.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from elftools.common.exceptions import DWARFError, ELFError, ELFParseError

from aether_emu.errors import Refused
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.observe.crash.cfi import Function, NoFrame, evaluate, find_function, find_scanned, scan
from aether_emu.observe.crash.modules import Module, Modules, NotElf
from aether_emu.observe.peek import PeekMemory, Unreadable

MOST_FRAMES = 100_000
_MOST_PLACES = 512  # whose records are looked at: hostile ones may take long
_MASK = (1 << 64) - 1
_WORD = struct.Struct("<Q")
_PC = -1  # the column that keeps the pc of a caller
_X86 = ("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", *(f"r{i}" for i in range(8, 16)), "rip")
_ARM = (*(f"x{i}" for i in range(31)), "sp")


@dataclass(frozen=True)
class Columns:
    """How DWARF numbers an ISA's registers (their psABIs): `names` by number, and those that matter here.

    `link` is the register that a call leaves the return address in, None where that is on the stack.
    `trampoline` is the code that a signal handler returns to; then the registers named in `kept` stand in a
    row, `context` bytes from the stack pointer on (`linux/abi`).
    """

    names: tuple[str, ...]
    pc: str
    sp: int
    frame: int
    link: int | None
    trampoline: bytes
    context: int
    kept: tuple[str, ...]


_KEPT_X86 = (
    *(f"r{i}" for i in range(8, 16)),
    *("rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp", "rip"),
)
_ENDBR64, _PUSH_RBP, _PROLOGUE = b"\xf3\x0f\x1e\xfa", b"\x55", 5
_LONGEST_CALL = 7  # bytes, without prefixes
_LONGEST_START = 64  # bytes
_TRAMPOLINE = 12  # bytes: the number of rt_sigreturn, and the call
COLUMNS = {
    "x86_64": Columns(_X86, "rip", 7, 6, None, b"\x0f\0\0\0\x0f\x05", 40, _KEPT_X86),
    "arm64": Columns(_ARM, "pc", 31, 29, 30, bytes.fromhex("681180d2010000d4"), 128 + 176 + 8, (*_ARM, "pc")),
}


@dataclass(frozen=True)
class Frame:
    """One frame: where its function is, or will go on when what it called returns. `by`: how it was found."""

    pc: int
    sp: int
    by: str
    returned: bool


class _End(Exception):
    """There is no caller that could be found, and why; without words, none is to be expected."""


@dataclass(frozen=True)
class _Row:
    """The rules of a place: the frame's address by a register or an expression, and where registers are.

    `saved` are (column, offset from there), `others` are rules of another kind.
    """

    register: int | None
    offset: int
    expression: bytes | None
    saved: tuple[tuple[int, int], ...]
    others: tuple[tuple[int, object], ...]

    @classmethod
    def of(cls, row: dict[object, object]) -> _Row:
        """As pyelftools has decoded them."""
        cfa = row["cfa"]
        register, offset, expression = (getattr(cfa, name) for name in ("reg", "offset", "expr"))
        rules = [(column, how) for column, how in row.items() if isinstance(column, int)]
        saved = [(column, how) for column, how in rules if getattr(how, "type", "") == "OFFSET"]
        return cls(
            register,
            offset or 0,
            None if expression is None else bytes(expression),
            tuple((column, int(getattr(how, "arg", 0))) for column, how in saved),
            tuple(rule for rule in rules if rule not in saved),
        )


class Unwinder:
    """Walks the frames of one process.

    `ended` says why the last walk went no farther; "" if it came to the outermost frame.
    """

    ended = ""

    def __init__(self, space: AddressSpace, modules: Modules, isa: str) -> None:
        self._space, self._modules = space, modules
        self._memory = PeekMemory(space, forced=True)
        self._columns = COLUMNS[isa]
        self._functions: dict[int, Function | None] = {}
        self._tables: dict[str, list[tuple[int, int]]] = {}
        self._pages: dict[int, bytes] = {}
        self._rows: dict[int, _Row] = {}
        self._trampolines: dict[int, bool] = {}

    def frames(self, state: dict[str, int]) -> Iterator[Frame]:
        """From the innermost frame on; `state` are a CPU's registers. At most `MOST_FRAMES`."""
        columns = self._columns
        registers = {number: state[name] for number, name in enumerate(columns.names) if name in state}
        pc, by, returned = state[columns.pc], "registers", False
        for _ in range(MOST_FRAMES):
            trampoline = self._is_trampoline(pc, registers)
            returned = returned and not trampoline
            yield Frame(pc, registers[columns.sp], by, returned)
            try:
                caller, by = self._caller(pc, returned, trampoline, registers)
                self._check(pc, returned, trampoline, registers, caller)
            except _End as end:
                self.ended = str(end)
                return
            except NoFrame as error:
                self.ended = f"the unwind table of {pc:#x} leads no farther: {error}"
                return
            except Unreadable as error:
                self.ended = f"the frame of {pc:#x} is not in memory: {error}"
                return
            pc = caller.pop(_PC)
            registers, returned = caller, not trampoline
        self.ended = f"{MOST_FRAMES:,} frames are enough"

    def _check(
        self, pc: int, returned: bool, trampoline: bool, registers: dict[int, int], caller: dict[int, int]
    ) -> None:
        """Raise _End for a caller that is none."""
        before, after = registers[self._columns.sp], caller[self._columns.sp]
        if not caller[_PC]:
            raise _End
        if not trampoline and (after < before or (after == before and returned)):  # that would have no end
            raise _End(
                f"the caller of {pc:#x} lies no higher on the stack: {after:#x}, not above {before:#x}"
            )

    def function_start(self, pc: int) -> int | None:
        """Where the function around `pc` begins, if its unwind tables tell."""
        function = self._function(pc)
        return None if function is None else function.start

    def _function(self, pc: int) -> Function | None:
        if pc not in self._functions:
            self._functions[pc] = self._find(pc)
        return self._functions[pc]

    def _find(self, pc: int) -> Function | None:
        module = self._modules.at(pc)
        if module is None or not self._is_code(pc) or len(self._functions) > _MOST_PLACES:
            return None
        try:
            if module.unwind_index is not None:
                return find_function(self._memory, module.unwind_index, pc)
            return find_scanned(self._memory, self._scanned(module), pc)
        except (NoFrame, Unreadable, NotElf, Refused):
            return None
        except (ELFError, ELFParseError, DWARFError, AssertionError, LookupError, ValueError, TypeError):
            return None  # a record that is none
        except (AttributeError, struct.error, OverflowError, RecursionError):
            return None

    def _scanned(self, module: Module) -> list[tuple[int, int]]:
        if module.name not in self._tables:
            where = module.unwind_tables()
            self._tables[module.name] = [] if where is None else scan(self._memory, *where)
        return self._tables[module.name]

    def _is_trampoline(self, pc: int, registers: dict[int, int]) -> bool:
        """Whether it is the code that signal handlers return to.

        What follows a call may look the same. Then it counts who is found to have been interrupted.
        """
        if pc not in self._trampolines:
            code = self._memory.read_up_to(pc, _TRAMPOLINE) if self._is_code(pc) else b""
            self._trampolines[pc] = self._columns.trampoline in code
        if not self._trampolines[pc]:
            return False
        try:
            return not self._follows_call(pc) or self._is_code(self._interrupted(registers)[_PC])
        except Unreadable:
            return False

    def _follows_call(self, pc: int) -> bool:
        if self._columns.link is None:
            code = self._memory.read_up_to(pc - _LONGEST_CALL, _LONGEST_CALL)
            return code[-5:-4] == b"\xe8" or any(  # FF /2: the target in a register or in memory
                code[-size] == 0xFF and code[1 - size] >> 3 & 7 == 2 for size in range(2, len(code) + 1)
            )
        word = int.from_bytes(self._memory.read_up_to(pc - 4, 4), "little")
        return word >> 26 == 0b100101 or word & 0xFFFF_FC1F == 0xD63F_0000  # BL, BLR

    def _caller(
        self, pc: int, returned: bool, trampoline: bool, registers: dict[int, int]
    ) -> tuple[dict[int, int], str]:
        """The caller's registers, with its pc under `_PC`, and how they were found."""
        function = self._function(pc - returned)
        if function is not None and (function.signal_frame or not trampoline):
            return self._by_table(pc - returned, function, registers), "table"
        if trampoline:
            return self._interrupted(registers), "signal"
        if not returned and not self._is_code(pc):
            return self._after_call(pc, registers), "call"
        fresh = None if returned else self._by_return_address(pc, registers)
        if fresh is not None:
            return fresh, "return address"
        return self._by_frame_pointer(pc, returned, registers), "frame pointer"

    def _by_table(self, pc: int, function: Function, registers: dict[int, int]) -> dict[int, int]:
        row = self._rows.get(pc)
        if row is None:
            row = self._rows[pc] = _Row.of(function.row(pc))
        if row.expression is not None:
            cfa = evaluate(row.expression, self._with_pc(registers, pc), self._memory, None)
        elif row.register in registers:
            cfa = registers[row.register] + row.offset & _MASK
        else:
            raise NoFrame("a frame by an unknown register")
        caller = registers.copy()
        caller[self._columns.sp] = cfa
        for column, offset in row.saved:
            caller[column] = self._word(cfa + offset)
        for column, how in row.others:
            value = self._restored(how, cfa, registers, pc)
            if value is None:
                caller.pop(column, None)
            else:
                caller[column] = value
        if function.return_column not in caller:
            raise _End
        caller[_PC] = caller[function.return_column]
        return caller

    def _with_pc(self, registers: dict[int, int], pc: int) -> dict[int, int]:
        return {**registers, 16: pc} if self._columns.link is None else registers

    def _restored(self, how: object, cfa: int, registers: dict[int, int], pc: int) -> int | None:
        """A register as it was before the call; None when nobody kept it."""
        kind, argument = getattr(how, "type", ""), getattr(how, "arg", None)
        if kind == "VAL_OFFSET":
            return cfa + int(str(argument)) & _MASK
        if kind == "REGISTER":
            return registers.get(int(str(argument)))
        if kind in ("EXPRESSION", "VAL_EXPRESSION"):
            assert isinstance(argument, (list, bytes, tuple))
            value = evaluate(bytes(argument), self._with_pc(registers, pc), self._memory, cfa)
            return self._word(value) if kind == "EXPRESSION" else value
        return None

    def _after_call(self, pc: int, registers: dict[int, int]) -> dict[int, int]:
        """The registers before a call that led to where no code is."""
        columns = self._columns
        if columns.link is not None:
            target = registers[columns.link]
            caller = dict(registers)
        else:
            target = self._word(registers[columns.sp])
            caller = {**registers, columns.sp: registers[columns.sp] + 8}
        if not self._is_code(target):
            raise _End(f"no code is at {pc:#x}, and none at {target:#x}, where a call would have left from")
        return {**caller, _PC: target}

    def _interrupted(self, registers: dict[int, int]) -> dict[int, int]:
        """The registers that a signal's frame keeps, at the code that a handler returns to."""
        columns, start = self._columns, registers[self._columns.sp] + self._columns.context
        kept = {name: self._word(start + 8 * index) for index, name in enumerate(columns.kept)}
        caller = {number: kept[name] for number, name in enumerate(columns.names) if name in kept}
        return {**caller, _PC: kept[columns.pc]}

    def _by_frame_pointer(self, pc: int, returned: bool, registers: dict[int, int]) -> dict[int, int]:
        """By the row of frames that begins at the frame pointer."""
        columns = self._columns
        frame, sp = registers.get(columns.frame, 0), registers[columns.sp]
        name = columns.names[columns.frame]
        why = f"no unwind table covers {pc - returned:#x}, and {name}, {frame:#x},"
        if not frame and self._is_start(pc):
            raise _End
        if not frame:
            raise _End(f"{why} ends the row of frames")
        if frame < sp or frame % 8:
            raise _End(f"{why} is no frame pointer")
        try:
            target, outer = self._word(frame + 8), self._word(frame)
        except Unreadable:
            raise _End(f"{why} points to nothing") from None
        if target and not self._is_return_address(target):
            raise _End(f"{why} leads to {target:#x}, which no call left")
        return {**registers, columns.frame: outer, columns.sp: frame + 16, _PC: target}

    def _by_return_address(self, pc: int, registers: dict[int, int]) -> dict[int, int] | None:
        """As in a function that has kept nothing: where its call left the return address."""
        columns, sp = self._columns, registers[self._columns.sp]
        if columns.link is not None:
            link, frame = registers.get(columns.link, 0), registers.get(columns.frame, 0)
            saved = int.from_bytes(self._memory.read_up_to(frame + 8, 8), "little") if frame >= sp else 0
            # Otherwise it has kept it, and has returned from a call of its own.
            fresh = (
                self._is_code(link)
                and link not in (saved, pc)
                and self._own_start(link) != self._own_start(pc)
            )
            return {**registers, _PC: link} if fresh else None
        target = int.from_bytes(self._memory.read_up_to(sp, 8), "little")
        if not self._is_return_address(target) or self._keeps_frame_pointer(pc):
            return None
        return {**registers, columns.sp: sp + 8, _PC: target}

    def _own_start(self, pc: int) -> int:
        """Where the function around `pc` begins by its symbol; `pc` itself if that is not known."""
        module = self._modules.at(pc)
        found = None if module is None else module.symbol(pc)
        return pc if found is None else pc - found[1]

    def _is_start(self, pc: int) -> bool:
        """Whether it is in the code that a program starts with, which nobody has called."""
        module = self._modules.at(pc)
        return module is not None and (
            self._own_start(pc) == module.entry or 0 <= pc - module.entry < _LONGEST_START
        )

    def _keeps_frame_pointer(self, pc: int) -> bool:
        """Whether an x86_64 function has begun with `push rbp`, which is behind it at `pc`."""
        start = self._own_start(pc)
        code = self._memory.read_up_to(start, min(max(pc - start, 0), _PROLOGUE))
        return code.removeprefix(_ENDBR64).startswith(_PUSH_RBP)

    def _is_return_address(self, address: int) -> bool:
        """Whether it lies in code, behind a call, or is what signal handlers return to."""
        if not self._is_code(address - 1):
            return False
        return self._follows_call(address) or self._columns.trampoline in self._memory.read_up_to(
            address, _TRAMPOLINE
        )

    def _word(self, address: int) -> int:
        """Eight bytes of memory, which does not change any more."""
        address &= _MASK
        page, offset = address >> 12, address & 0xFFF
        if offset > 0xFF8:
            value: int = _WORD.unpack(self._memory.read(address, 8))[0]
            return value
        if page not in self._pages:
            self._pages[page] = self._memory.read(page << 12, 4096)
        value = _WORD.unpack_from(self._pages[page], offset)[0]
        return value

    def _is_code(self, address: int) -> bool:
        area = self._space.areas.find(address)
        return area is not None and bool(area.protection & Protection.EXECUTE)
