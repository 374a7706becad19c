"""Calls whose further arguments depend on a command: fcntl, ioctl, futex, prctl, arch_prctl, mmap's offset.

Each kind here is of the last argument that is always there; what it shows has the further ones behind it.
"""

from __future__ import annotations

from aether_emu.observe.strace import names, structs, terminals, user_faults
from aether_emu.observe.strace.kinds import (
    Kind,
    Made,
    Show,
    number,
    pointed,
    signal_name,
    timespec,
    unpack,
    word,
)
from aether_emu.observe.strace.words import address, bare, quoted, signed

# ---- fcntl

_DUP, _GETFD, _SETFD, _GETFL, _SETFL = 0, 1, 2, 3, 4
_LOCKS, _LOCK_QUERIES = (6, 7, 37, 38), (5, 36)
_DUP_CLOEXEC, _PIPE_SIZE, _ADD_SEALS, _GET_SEALS = 1030, 1031, 1033, 1034
_SETOWN, _SETSIG, _SETOWN_EX, _OWNER_FOUND, _SETLEASE = 8, 10, 15, 16, 1024
_GETSIG, _OWNER_USERS = 11, 17
_NO_ARGUMENT = (_GETFD, _GETFL, 9, 11, 1025, 1032, _GET_SEALS)


def _fcntl(call: Made, value: int) -> str | None:
    command = call.arguments[1] & 0xFFFF_FFFF
    if command in _NO_ARGUMENT:
        return None
    if command == _SETFD:
        return names.FD_FLAGS.bits(value)
    if command == _SETFL:
        return structs.open_flags(call, value)
    if command in _LOCKS:
        return pointed(structs.lock)(call, value)
    if command == _ADD_SEALS:
        return names.SEALS.bits(value)
    if command in (_DUP, _DUP_CLOEXEC, _PIPE_SIZE, _SETOWN):
        return str(signed(value, 32))
    if command == _SETLEASE:
        return names.LOCK_TYPE.one(value)
    if command == _SETSIG:
        number_of = signed(value, 32)
        return signal_name(number_of) if 0 <= number_of <= 64 else str(number_of)
    if command == _SETOWN_EX:
        return pointed(_owner)(call, value)
    return bare(value)


def _owner(call: Made, value: int) -> str:
    kind, pid = unpack(call, value, "ii")
    return f"{{type={names.OWNER.one(kind)}, pid={pid}}}"


def _fcntl_late(call: Made, value: int) -> str | None:
    """What F_GETLK and F_GETOWN_EX have found; the argument of any other command, which stays as it is."""
    command = call.arguments[1] & 0xFFFF_FFFF
    if command == _OWNER_FOUND:
        return address(value) if call.refused else pointed(_owner)(call, value)
    if command == _OWNER_USERS:
        return address(value)
    if command in _LOCK_QUERIES:
        return address(value) if call.refused else pointed(structs.lock)(call, value)
    return _fcntl(call, value)


FCNTL_ARGUMENT = Kind(_fcntl_late, late=True)


def fcntl_result(call: Made, result: int) -> str:
    """Flags with their names."""
    command = call.arguments[1] & 0xFFFF_FFFF
    if command == _GETFL:
        return f"{result:#x} (flags {structs.open_flags(call, result)})"
    if command == _GETFD and result:
        return f"{result:#x} (flags {names.FD_FLAGS.bits(result)})"
    if command == _GETSIG and result:
        return f"{result} ({signal_name(result)})"
    if command == _GET_SEALS and result:
        return f"{result:#x} (seals {names.SEALS.bits(result)})"
    return str(result)


# ---- ioctl

_TERMINAL, _WINDOW, _READABLE, _GROUP = 0x5401, 0x5413, 0x541B, 0x540F
_FOUND: dict[int, Show] = {
    _TERMINAL: terminals.terminal,
    _WINDOW: terminals.window_size,
    _READABLE: number,
    _GROUP: number,
    0x8903: number,
    0x8904: number,
}
_TERMINAL_GIVEN = (0x5402, 0x5403, 0x5404)
_WITHOUT = (0x5450, 0x5451, 0x5422)
_GIVEN_INT = (0x5410, 0x5421, 0x5452, 0x8901, 0x8902)


def _ioctl(call: Made, value: int) -> str | None:
    command = call.arguments[1] & 0xFFFF_FFFF
    if command in _WITHOUT:
        return None
    if command in _TERMINAL_GIVEN:
        return pointed(terminals.terminal)(call, value)
    if command in _GIVEN_INT:
        return pointed(number)(call, value)
    if command in user_faults.CONTROLS:
        return pointed(user_faults.CONTROLS[command])(call, value)
    if command in _FOUND:
        return address(value) if call.refused else pointed(_FOUND[command])(call, value)
    return bare(value)


IOCTL_ARGUMENT = Kind(_ioctl, late=True)


def _ioctl_name(_call: Made, value: int) -> str:
    command = value & 0xFFFF_FFFF
    known = names.IOCTL.one(command)
    if "/*" not in known:
        return known
    kinds = ("_IOC_NONE", "_IOC_WRITE", "_IOC_READ", "_IOC_READ|_IOC_WRITE")
    parts = (command >> 8 & 0xFF, command & 0xFF, command >> 16 & 0x3FFF)
    return f"_IOC({kinds[command >> 30]}, {', '.join(map(bare, parts))})"


IOCTL_COMMAND = Kind(_ioctl_name)


# ---- futex

_WAIT, _WAKE, _REQUEUE, _CMP_REQUEUE, _WAKE_OP, _LOCK_PI, _UNLOCK_PI, _TRYLOCK_PI = 0, 1, 3, 4, 5, 6, 7, 8
_WAIT_BITSET, _WAKE_BITSET, _WAIT_REQUEUE_PI, _CMP_REQUEUE_PI, _LOCK_PI2 = 9, 10, 11, 12, 13


def _futex_operation(_call: Made, value: int) -> str:
    value &= 0xFFFF_FFFF
    private, realtime = value & 128, value & 256
    name = names.FUTEX_OPERATION.one(value & ~384)
    if "/*" in name:
        return names.FUTEX_OPERATION.one(value)
    return name + ("_PRIVATE" if private else "") + ("|FUTEX_CLOCK_REALTIME" if realtime else "")


FUTEX_OPERATION = Kind(_futex_operation)


def _futex_rest(call: Made, value: int) -> str | None:
    """What follows the operation."""
    _where, operation, val, timeout, second, bits = (*call.arguments[:6],)
    command, val, count = operation & 0x7F, val & 0xFFFF_FFFF, timeout & 0xFFFF_FFFF
    bits &= 0xFFFF_FFFF
    shown_time = pointed(timespec)(call, timeout)
    mask = "FUTEX_BITSET_MATCH_ANY" if bits == 0xFFFF_FFFF else bare(bits)
    match command:
        case 0:
            return f"{val}, {shown_time}"
        case 1 | 2:
            return f"{val}"
        case 9:
            return f"{val}, {shown_time}, {mask}"
        case 10:
            return f"{val}, {mask}"
        case 3:
            return f"{val}, {count}, {address(second)}"
        case 4 | 12:
            return f"{val}, {count}, {address(second)}, {bits}"
        case 5:
            return f"{val}, {count}, {address(second)}, {_wake_operation(bits)}"
        case 6 | 13:
            return str(shown_time)
        case 7 | 8:
            return None
        case 11:
            return f"{val}, {shown_time}, {address(second)}"
    return f"{val}, {address(timeout)}, {address(second)}, {bare(bits)}"


def _wake_operation(bits: int) -> str:
    operations = ("SET", "ADD", "OR", "ANDN", "XOR")
    comparisons = ("EQ", "NE", "LT", "LE", "GT", "GE")
    operation, comparison = bits >> 28 & 7, bits >> 24 & 15
    shift = "FUTEX_OP_OPARG_SHIFT<<28|" if bits >> 31 else ""
    first = f"FUTEX_OP_{operations[operation]}<<28" if operation < 5 else f"{operation:#x}<<28"
    second = f"FUTEX_OP_CMP_{comparisons[comparison]}<<24" if comparison < 6 else f"{comparison:#x}<<24"
    return f"{shift}{first}|{bare(bits >> 12 & 0xFFF)}<<12|{second}|{bare(bits & 0xFFF)}"


FUTEX_REST = Kind(_futex_rest)


# ---- prctl, arch_prctl

_GET_DUMPABLE, _SET_DUMPABLE, _SET_NAME, _GET_NAME = 3, 4, 15, 16


_PRCTL_ALONE = (3, 7, 21, 27, 30)  # commands that take nothing more
_PRCTL_NUMBER = (1, 8, 23, 24, 29)


def _process_control(call: Made, value: int) -> str | None:
    command = call.arguments[0] & 0xFFFF_FFFF
    if command in _PRCTL_ALONE:
        return None
    if command == _SET_NAME or (command == _GET_NAME and not call.refused):
        return pointed(_command_name)(call, value)
    if command == _GET_NAME:
        return address(value)
    if command == _SET_DUMPABLE:
        return names.DUMPABLE.one(value)
    if command in _PRCTL_NUMBER:
        return str(value)
    return ", ".join(str(n) if n < 10 else f"{n:#x}" for n in call.arguments[1:5])


def prctl_result(call: Made, result: int) -> str:
    """A number that some commands have names for."""
    if call.arguments[0] & 0xFFFF_FFFF == _GET_DUMPABLE:
        return f"{result} ({names.DUMPABLE.one(result)})"
    return str(result)


def _membarrier_flags(call: Made, value: int) -> str:
    """The flags, and the CPU that counts with one of them."""
    text = names.MEMBARRIER_FLAGS.bits(value & 0xFFFF_FFFF)
    return f"{text}, {signed(call.arguments[2], 32)}" if value & 0xFFFF_FFFF else text


MEMBARRIER_FLAGS = Kind(_membarrier_flags)


def membarrier_result(call: Made, result: int) -> str:
    """What there is, if that was asked."""
    return f"{result:#x} ({names.MEMBARRIER.bits(result)})" if result else "0"


def _command_name(call: Made, value: int) -> str:
    return quoted(call.memory.string(value, 16)[0])


PRCTL_REST = Kind(_process_control, late=True)


def _word_behind(call: Made, value: int) -> str:
    """A word, by its address."""
    return pointed(word)(call, value) or address(value)


def _architecture(call: Made, value: int) -> str:
    if call.arguments[0] & 0xFFFF_FFFF in (0x1003, 0x1004) and not call.refused:
        return _word_behind(call, value)
    return bare(value)


ARCH_ADDRESS = Kind(_architecture, late=True)


# ---- memory


def _protection(call: Made, value: int) -> str:
    table = names.PROTECTION_ARM64 if call.isa == "arm64" else names.PROTECTION
    return table.bits(value)


PROTECTION = Kind(_protection)


def _map_flags(call: Made, value: int) -> str:
    table = names.MAP_ARM64 if call.isa == "arm64" else names.MAP
    kind, rest = value & 0xF, value & ~0xF
    shift = rest >> 26 & 0x3F
    rest &= ~(0x3F << 26) if shift else ~0
    text = names.MAP_TYPE.one(kind)
    if rest:
        text += f"|{table.bits(rest, behind=True)}"
    return text + (f"|{shift}<<MAP_HUGE_SHIFT" if shift else "")


def _memory_file(_call: Made, value: int) -> str:
    shift, rest = value >> 26 & 0x3F, value & 0xFFFF_FFFF & ~(0x3F << 26)
    parts = ([names.MEMFD.bits(rest)] if rest or not shift else []) + (
        [f"{shift}<<MFD_HUGE_SHIFT"] if shift else []
    )
    return "|".join(parts)


MEMFD_FLAGS = Kind(_memory_file)
MAP_FLAGS = Kind(_map_flags)
FILE_OFFSET = Kind(lambda _call, value: bare(value))


def _remap_target(call: Made, value: int) -> str | None:
    return address(value) if call.arguments[3] & 3 == 3 else None


REMAP_TARGET = Kind(_remap_target)


def _personality(_call: Made, value: int) -> str:
    return personality(value & 0xFFFF_FFFF)


def personality(value: int) -> str:
    """personality(2)'s word."""
    if value == 0xFFFF_FFFF:
        return "0xffffffff"
    kind, flags = value & 0xFF, value & ~0xFF
    text = names.PERSONALITY.one(kind)
    return f"{text}|{names.PERSONALITY_FLAGS.bits(flags, behind=True)}" if flags else text


PERSONALITY = Kind(_personality)


def personality_result(_call: Made, result: int) -> str:
    """The word that was in force."""
    return f"{result:#x} ({personality(result & 0xFFFF_FFFF)})" if result else f"0 ({personality(0)})"


# ---- xattr, sockets, times


def _socket_type(_call: Made, value: int) -> str:
    value &= 0xFFFF_FFFF
    kind = value & 0xF
    if not names.SOCKET_TYPE.knows(kind):
        return names.SOCKET_FLAGS.bits(value)
    flags = value & ~0xF
    text = names.SOCKET_TYPE.one(kind)
    return f"{text}|{names.SOCKET_FLAGS.bits(flags, behind=True)}" if flags else text


SOCKET_TYPE = Kind(_socket_type)


_PROTOCOLS = {2: names.INET_PROTOCOL, 10: names.INET_PROTOCOL, 16: names.NETLINK_PROTOCOL}


def _protocol(call: Made, value: int) -> str:
    table = _PROTOCOLS.get(call.arguments[0] & 0xFFFF_FFFF)
    return str(signed(value, 32)) if table is None else table.one(value & 0xFFFF_FFFF)


PROTOCOL = Kind(_protocol)


def _left_of_sleep(call: Made, value: int) -> str:
    """What is left of a sleep, which is there only if it was interrupted."""
    interrupted = call.result == -4
    absolute = call.name == "clock_nanosleep" and call.arguments[1] & 1
    shown: str | None = pointed(timespec)(call, value) if interrupted and not absolute else None
    return shown or address(value)


LEFT_OF_SLEEP = Kind(_left_of_sleep, late=True)


def _clone_flags(call: Made, _value: int) -> str:
    value = call.arguments[0]
    signal = names.SIGNAL.one(value & 0xFF).split(" ")[0] if value & 0xFF else ""
    flags = value & ~0xFF
    shown = "|".join(part for part in (names.CLONE.bits(flags) if flags else "", signal) if part)
    return f"flags={shown or '0'}"


def _clone_argument(name: str, at: dict[str, int], used_with: int) -> Kind:
    """An argument of clone that counts with some of the flags, by ISA."""

    def show(call: Made, _value: int) -> str | None:
        if not call.arguments[0] & used_with:
            return None
        return f"{name}={address(call.arguments[at[call.isa]])}"

    return Kind(show)


CLONE_ARGUMENTS = (
    Kind(lambda call, _value: f"child_stack={address(call.arguments[1])}"),
    Kind(_clone_flags),
    _clone_argument("parent_tid", {"x86_64": 2, "arm64": 2}, 0x0010_1000),  # PARENT_SETTID, PIDFD
    _clone_argument("tls", {"x86_64": 4, "arm64": 3}, 0x0008_0000),  # SETTLS
    _clone_argument("child_tidptr", {"x86_64": 3, "arm64": 4}, 0x0120_0000),  # CHILD_SETTID, CHILD_CLEARTID
)
"""In strace's order, which is not the kernel's."""
