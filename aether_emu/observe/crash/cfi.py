"""Call frame information: how one function's frame is undone (DWARF 5 6.4, LSB 5 10.6 for .eh_frame).

The tables are read from memory, where the program has them for its own exceptions. The index (.eh_frame_hdr)
leads to the one record that is needed, and pyelftools decodes that.
"""

from __future__ import annotations

import bisect
import io
import struct
from dataclasses import dataclass, field

from elftools.dwarf.callframe import FDE, CallFrameInfo
from elftools.dwarf.structs import DWARFStructs

from aether_emu.observe.peek import PeekMemory

_MASK = (1 << 64) - 1
_DATA_RELATIVE_S32, _PC_RELATIVE_S32, _UDATA4 = 0x3B, 0x1B, 0x03  # encodings, as every linker writes them
_MOST_BYTES, _MOST_TABLES = 1 << 12, 16 << 20  # of a record, and of all of a file
_MOST_OPERATIONS = 256
_STRUCTS = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)


class NoFrame(Exception):
    """Nothing is known of the frame at a place, or what is said of it makes no sense."""


@dataclass
class Function:
    """What a record says of one function: rules for each stretch of its addresses, in order.

    `signal_frame` when it is the code that a signal handler returns to.
    """

    start: int
    end: int
    rows: list[dict[object, object]] = field(repr=False)
    return_column: int
    signal_frame: bool

    def row(self, pc: int) -> dict[object, object]:
        """The rules in force at an address."""
        at = [row for row in self.rows if int(str(row["pc"])) <= pc]
        if not at:
            raise NoFrame(f"{pc:#x}")
        return at[-1]


def scan(memory: PeekMemory, start: int, size: int) -> list[tuple[int, int]]:
    """(start of the function, address of the record) of all tables at `start`, in order.

    For programs without an index. Records are taken to have the encoding that every linker writes; one that
    has another is found wrong when it is decoded.
    """
    data = memory.read_up_to(start, min(size, _MOST_TABLES))
    found, at = [], 0
    while at + 16 <= len(data):
        length, common = struct.unpack_from("<II", data, at)
        if not length or length > _MOST_BYTES:
            break
        if common:
            found.append((start + at + 8 + struct.unpack_from("<i", data, at + 8)[0] & _MASK, start + at))
        at += 4 + length
    return sorted(found)


def find_scanned(memory: PeekMemory, tables: list[tuple[int, int]], pc: int) -> Function:
    """The record for `pc` among those that `scan` found. Raises as `find_function`."""
    index = bisect.bisect_right(tables, (pc, 1 << 64))
    if not index:
        raise NoFrame(f"{pc:#x} lies before the first function")
    return _around(memory, tables[index - 1][1], pc)


def find_function(memory: PeekMemory, index: int, pc: int) -> Function:
    """The record for `pc` by way of the index at `index`.

    Raises NoFrame, `peek.Unreadable`, and whatever pyelftools raises for a record that is none.
    """
    version, pointer, count_encoding, table = memory.read(index, 4)
    if (
        version != 1
        or pointer != _PC_RELATIVE_S32
        or (count_encoding, table) != (_UDATA4, _DATA_RELATIVE_S32)
    ):
        raise NoFrame("an index of another kind")
    count = struct.unpack("<I", memory.read(index + 8, 4))[0]
    low, high = 0, count
    while low < high:  # the last entry that begins at or below pc
        middle = (low + high) // 2
        start = struct.unpack("<i", memory.read(index + 12 + middle * 8, 4))[0]
        if index + start <= pc:
            low = middle + 1
        else:
            high = middle
    if not low:
        raise NoFrame(f"{pc:#x} lies before the first function")
    record = index + struct.unpack("<i", memory.read(index + 12 + (low - 1) * 8 + 4, 4))[0]
    return _around(memory, record, pc)


def _around(memory: PeekMemory, record: int, pc: int) -> Function:
    function = _decode(memory, record)
    if not function.start <= pc < function.end:
        raise NoFrame(f"{pc:#x} lies between functions")
    return function


def _decode(memory: PeekMemory, record: int) -> Function:
    """One record, from a stream that has nothing but it and what it has in common with others."""
    own = _record(memory, record)
    common_at = record + 4 - struct.unpack_from("<I", own, 4)[0]
    common = _record(memory, common_at)
    own = own[:4] + struct.pack("<I", len(common) + 4) + own[8:]
    data = common + own
    # Addresses in the record are relative to where it stands in memory.
    information = CallFrameInfo(
        io.BytesIO(data), len(data), record - len(common), _STRUCTS, for_eh_frame=True
    )
    entries = [entry for entry in information.get_entries() if isinstance(entry, FDE)]
    if not entries:
        raise NoFrame("no record")
    entry = entries[0]
    start, length = entry.header["initial_location"] & _MASK, entry.header["address_range"]
    cie = entry.cie
    assert cie is not None, "it was read before"
    return Function(
        start,
        start + length,
        [{**row, "pc": row["pc"] & _MASK} for row in entry.get_decoded().table],
        cie.header["return_address_register"],
        b"S" in cie.header["augmentation"],
    )


def _record(memory: PeekMemory, at: int) -> bytes:
    length = struct.unpack("<I", memory.read(at, 4))[0]
    if not 4 <= length <= _MOST_BYTES:
        raise NoFrame("a record of another kind")
    return memory.read(at, length + 4)


# ---- expressions (DWARF 5 2.5): those that linkers and signal trampolines use


def evaluate(expression: bytes, registers: dict[int, int], memory: PeekMemory, first: int | None) -> int:
    """The value of an expression; `first` is on the stack already. Raises NoFrame, `peek.Unreadable`."""
    stack, at = [] if first is None else [first], 0
    code = bytes(expression)
    try:
        for _ in range(_MOST_OPERATIONS):
            if at >= len(code):
                return stack[-1] & _MASK
            at = _operation(code, at, stack, registers, memory)
    except (IndexError, KeyError, struct.error) as error:
        raise NoFrame("an expression that makes no sense") from error
    raise NoFrame("an expression without an end")


def _operation(code: bytes, at: int, stack: list[int], registers: dict[int, int], memory: PeekMemory) -> int:
    """Carry out the operation at `at`; where the next one is."""
    operation, at = code[at], at + 1
    if 0x30 <= operation <= 0x4F:  # DW_OP_lit
        stack.append(operation - 0x30)
    elif 0x70 <= operation <= 0x8F:  # DW_OP_breg
        value, at = _signed(code, at)
        stack.append(registers[operation - 0x70] + value)
    elif operation == 0x92:  # DW_OP_bregx
        number, at = _unsigned(code, at)
        value, at = _signed(code, at)
        stack.append(registers[number] + value)
    elif operation in _CONSTANTS:
        layout = _CONSTANTS[operation]
        stack.append(struct.unpack_from(layout, code, at)[0])
        at += struct.calcsize(layout)
    elif operation in (0x10, 0x23):  # DW_OP_constu, DW_OP_plus_uconst
        value, at = _unsigned(code, at)
        stack.append(value + (stack.pop() if operation == 0x23 else 0))
    elif operation == 0x11:  # DW_OP_consts
        value, at = _signed(code, at)
        stack.append(value)
    elif operation == 0x06:  # DW_OP_deref
        stack.append(struct.unpack("<Q", memory.read(stack.pop() & _MASK, 8))[0])
    elif operation == 0x12:  # DW_OP_dup
        stack.append(stack[-1])
    else:
        second, first = stack.pop(), stack.pop()
        stack.append(_two(operation, first, second))
    return at


_CONSTANTS = {0x08: "<B", 0x09: "<b", 0x0A: "<H", 0x0B: "<h", 0x0C: "<I", 0x0D: "<i", 0x0E: "<Q", 0x0F: "<q"}


def _two(operation: int, first: int, second: int) -> int:
    match operation:
        case 0x1A:
            return first & second
        case 0x1C:
            return first - second
        case 0x21:
            return first | second
        case 0x22:
            return first + second
        case 0x24:
            return first << (second & 63)
        case 0x25:
            return (first & _MASK) >> (second & 63)
        case 0x29:
            return int(first == second)
        case 0x2A:
            return int(first >= second)
    raise NoFrame(f"an operation {operation:#x} that is not known here")


def _unsigned(code: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = code[at], at + 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


def _signed(code: bytes, at: int) -> tuple[int, int]:
    value, end = _unsigned(code, at)
    bits = 7 * (end - at)
    return (value - (1 << bits) if value >> bits - 1 else value), end
