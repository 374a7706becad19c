"""Kinds of arguments: how a number that a program passes is shown, and when it is looked at.

What a program gives is shown as it is when the call is entered; what the kernel fills in is looked at when
the call has been answered, and is a bare address if it was refused. A kind that says None leaves its argument
out.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from aether_emu.observe.peek import PeekMemory, Unreadable
from aether_emu.observe.strace import names
from aether_emu.observe.strace.words import (
    MOST_BYTES,
    Names,
    address,
    bare,
    clipped,
    error_text,
    hexadecimal,
    listed,
    quoted,
    signed,
)

PATH_MAX = 4096
_MOST_ITEMS = 32  # of an array
_ERRORS = 4095  # the last numbers below zero are errnos


@dataclass
class Made:
    """One system call as it is shown. `result` is None until there is one; `blocked` is the task's mask."""

    name: str
    arguments: Sequence[int]
    memory: PeekMemory
    isa: str
    result: int | None = None
    blocked: int = 0
    page_size: int = 4096

    @property
    def refused(self) -> bool:
        """Whether the answer is an errno."""
        return self.result is not None and -_ERRORS <= self.result < 0


Show = Callable[[Made, int], str | None]


@dataclass(frozen=True)
class Kind:
    """How an argument is shown; `late` when the kernel fills it in. `role` is what families are made from."""

    show: Show
    late: bool = False
    role: str = ""


def late(show: Show) -> Kind:
    """What the kernel fills in: an address if the call was refused, or nothing is there."""

    def shown(call: Made, value: int) -> str | None:
        if call.refused or not value:
            return address(value)
        return pointed(show)(call, value)

    return Kind(shown, late=True)


def pointed(show: Show) -> Show:
    """What stands at an address; the address itself where nothing can be read."""

    def shown(call: Made, value: int) -> str | None:
        if not value:
            return "NULL"
        try:
            return show(call, value)
        except Unreadable:
            return address(value)

    return shown


def early(show: Show) -> Kind:
    """What stands at an address when the call is made."""
    return Kind(pointed(show))


# ---- numbers

INT = Kind(lambda _call, value: str(signed(value, 32)))
UINT = Kind(lambda _call, value: str(value & 0xFFFF_FFFF))
LONG = Kind(lambda _call, value: str(signed(value)))
SIZE = Kind(lambda _call, value: str(value))
HEX = Kind(lambda _call, value: bare(value))
HEX_INT = Kind(lambda _call, value: bare(value & 0xFFFF_FFFF))
POINTER = Kind(lambda _call, value: address(value))
ID = INT
FD = Kind(lambda _call, value: str(signed(value, 32)), role="desc")


def dir_fd(value: int) -> str:
    """A directory's descriptor."""
    number = signed(value, 32)
    return "AT_FDCWD" if number == -100 else str(number)


DIR_FD = Kind(lambda _call, value: dir_fd(value), role="desc")


def _segment_flags(_call: Made, value: int) -> str:
    """Those of shmget, and the permissions."""
    flags, mode = value & 0xFFFF_FE00, octal(value & 0o777)
    return f"{names.SEGMENT.bits(flags)}|{mode}" if flags else mode


SEGMENT_FLAGS = Kind(_segment_flags)


def octal(value: int) -> str:
    """A mode: a zero, and three digits in all at least."""
    return f"0{value & 0xFFFF:o}".zfill(3)


MODE = Kind(lambda _call, value: octal(value))


def file_mode(value: int) -> str:
    """A mode with its file type."""
    kind, special = (
        value & 0o170000,
        [
            name
            for bit, name in ((0o4000, "S_ISUID"), (0o2000, "S_ISGID"), (0o1000, "S_ISVTX"))
            if value & bit
        ],
    )
    if kind and not names.FILE_TYPE.knows(kind):
        return octal(value)
    head = [names.FILE_TYPE.one(kind)] if kind else []
    return "|".join((*head, *special, octal(value & 0o777)))


NODE_MODE = Kind(lambda _call, value: file_mode(value & 0xFFFF))


def one_of(table: Names, bits: int = 32) -> Kind:
    """One of several names."""
    return Kind(lambda _call, value: table.one(signed(value, bits)))


def bits_of(table: Names) -> Kind:
    """Names of bits."""
    return Kind(lambda _call, value: table.bits(value & 0xFFFF_FFFF))


# ---- text and bytes


def _path(call: Made, value: int) -> str:
    data, whole = call.memory.string(value, PATH_MAX)
    return quoted(data, more=not whole)


PATH = Kind(pointed(_path), role="file")


def _pointers(call: Made, value: int) -> Iterator[int]:
    """The addresses of an array that ends with 0. Raises Unreadable."""
    while pointer := int.from_bytes(call.memory.read(value, 8), "little"):
        yield pointer
        value += 8


def _strings(call: Made, value: int) -> str:
    texts: list[str] = []
    for pointer in _pointers(call, value):
        if len(texts) == _MOST_STRINGS:
            return listed([*texts, "..."])
        data, whole = call.memory.string(pointer, MOST_BYTES)
        texts.append(quoted(data, more=not whole))
    return listed(texts)


def _variables(call: Made, value: int) -> str:
    count = sum(1 for _ in itertools.islice(_pointers(call, value), _MOST_VARIABLES))
    return f"{address(value)} /* {count} var{'' if count == 1 else 's'} */"


_MOST_STRINGS, _MOST_VARIABLES = 32, 1 << 16
STRINGS, VARIABLES = Kind(pointed(_strings)), Kind(pointed(_variables))
"""The arguments and the environment of a program."""
TARGET = Kind(pointed(_path))  # of a link: a path that is not looked up


def _name(call: Made, value: int) -> str:
    data, whole = call.memory.string(value, 256)
    return quoted(data, more=not whole)


NAME = Kind(pointed(_name))


def given_bytes(length: int) -> Kind:
    """A buffer of as many bytes as argument `length` says."""

    def show(call: Made, value: int) -> str:
        return _bytes(call, value, call.arguments[length])

    return early(show)


def _bytes(call: Made, value: int, length: int) -> str:
    data = call.memory.read(value, min(length, 33))
    return clipped(data)


def _received(call: Made, value: int) -> str:
    return _bytes(call, value, call.result or 0)


RECEIVED = late(_received)
"""A buffer that the kernel has filled with as many bytes as the result says."""
RANDOM = late(lambda call, value: hexadecimal(call.memory.read(value, min(call.result or 0, 33))))


def _attribute(call: Made, value: int) -> str:
    size = call.arguments[3]
    return _bytes(call, value, call.result or 0) if size else address(value)


ATTRIBUTE = late(_attribute)


def _attribute_names(call: Made, value: int) -> str:
    return _bytes(call, value, call.result or 0) if call.arguments[2] else address(value)


ATTRIBUTE_NAMES = late(_attribute_names)

# ---- structures


def unpack(call: Made, value: int, layout: str) -> tuple[int, ...]:
    """A structure's fields. Raises Unreadable."""
    fields: tuple[int, ...] = struct.unpack(
        "<" + layout, call.memory.read(value, struct.calcsize("<" + layout))
    )
    return fields


def number(call: Made, value: int) -> str:
    """A pointer to an int."""
    return f"[{unpack(call, value, 'i')[0]}]"


def offset(call: Made, value: int) -> str:
    """A pointer to a file offset."""
    return f"[{unpack(call, value, 'q')[0]}]"


def word(call: Made, value: int) -> str:
    """A pointer to a word."""
    return f"[{unpack(call, value, 'Q')[0]:#x}]"


def timespec(call: Made, value: int) -> str:
    """struct timespec."""
    seconds, rest = unpack(call, value, "qq")
    return f"{{tv_sec={seconds}, tv_nsec={rest}}}"


def timeval(call: Made, value: int) -> str:
    """struct timeval."""
    seconds, rest = unpack(call, value, "qq")
    return f"{{tv_sec={seconds}, tv_usec={rest}}}"


TIMESPEC, TIMEVAL = early(timespec), early(timeval)


def array(show: Show, size: int, counted_by: int | None = None, count: int = 0) -> Show:
    """An array of structures of `size` bytes: `count`, or what argument `counted_by` says."""

    def shown(call: Made, value: int) -> str:
        many = count if counted_by is None else call.arguments[counted_by] & 0xFFFF_FFFF
        return items(call, value, many, size, show)

    return shown


def items(call: Made, value: int, count: int, size: int, show: Show) -> str:
    """An array's items, up to the first that cannot be read."""
    texts: list[str] = []
    for at in range(value, value + min(count, _MOST_ITEMS) * size, size):
        try:
            texts.append(show(call, at) or "")
        except Unreadable:
            if not texts:
                raise
            texts.append(f"... /* {at:#x} */")
            return listed(texts)
    if count > _MOST_ITEMS:
        texts.append("...")
    return listed(texts)


def vectors(moved: bool, counted_by: int = 2) -> Kind:
    """struct iovec. With `moved` the kernel has filled them with as many bytes as the result says."""

    def show(call: Made, value: int) -> str:
        count = call.arguments[counted_by]
        if count == 0:
            return "[]"
        left = (call.result or 0) if moved else 1 << 62

        def one(_call: Made, at: int) -> str:
            nonlocal left
            base, length = unpack(call, at, "QQ")
            there = min(length, left)
            left -= there
            try:
                text = _bytes(call, base, there) if base else "NULL"
            except Unreadable:
                text = address(base)
            return f"{{iov_base={text}, iov_len={length}}}"

        return items(call, value, count, 16, one)

    return late(show) if moved else early(show)


def places(counted_by: int) -> Kind:
    """struct iovec of another process's memory."""

    def one(call: Made, at: int) -> str:
        base, length = unpack(call, at, "QQ")
        return f"{{iov_base={address(base)}, iov_len={length}}}"

    return early(lambda call, value: items(call, value, call.arguments[counted_by], 16, one))


def signal_set(mask: int) -> str:
    """A set of signals: what it has, or with ~ what it has not."""
    number_of = [number for number in range(1, 65) if mask >> number - 1 & 1]
    negated = len(number_of) > 42
    if negated:
        number_of = [number for number in range(1, 65) if not mask >> number - 1 & 1]
    return f"{'~' if negated else ''}[{' '.join(signal_in_set(number) for number in number_of)}]"


def signal_in_set(value: int) -> str:
    """A signal's name as it stands in a set."""
    return signal_name(value).removeprefix("SIG")


def signal_name(value: int) -> str:
    """SIGSEGV, SIGRT_1."""
    if value >= 32:
        return f"SIGRT_{value - 32}" if value > 32 else "SIGRTMIN"
    return names.SIGNAL.one(value).split(" ")[0]


def signals(call: Made, value: int) -> str:
    """sigset_t."""
    return signal_set(unpack(call, value, "Q")[0])


SIGNALS = early(signals)
SIGNAL = Kind(
    lambda _call, value: (
        signal_name(signed(value, 32)) if 0 < signed(value, 32) <= 64 else str(signed(value, 32))
    )
)


# ---- results

Result = Callable[[Made, int], str]


def decimal(_call: Made, result: int) -> str:
    """A number."""
    return str(result)


def hexadecimal_result(_call: Made, result: int) -> str:
    """An address."""
    return f"{result & (1 << 64) - 1:#x}"


def octal_result(_call: Made, result: int) -> str:
    """A mode."""
    return octal(result)


def answer(call: Made, show: Result) -> str:
    """What stands behind the equals sign."""
    if call.result is None:
        return "?"
    if call.refused:
        return error_text(-call.result)
    return show(call, call.result)
