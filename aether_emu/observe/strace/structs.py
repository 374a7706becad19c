"""Structures that calls pass, field by field as strace abbreviates them (Linux include/uapi)."""

from __future__ import annotations

import time

from aether_emu.linux.abi.signal import SA_RESTORER
from aether_emu.linux.files import flags as fl
from aether_emu.observe.strace import names
from aether_emu.observe.strace.kinds import (
    PATH_MAX,
    Kind,
    Made,
    early,
    file_mode,
    items,
    late,
    octal,
    offset,
    signal_set,
    signals,
    timespec,
    timeval,
    unpack,
)
from aether_emu.observe.strace.words import address, bare, listed, quoted

_INFINITY = (1 << 64) - 1
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


# ---- opening


def _bits(call: Made, value: int) -> int:
    """O_* as x86_64 has them, of those of the program's ISA."""
    value &= 0xFFFF_FFFF
    return fl.from_arm64(value) if call.isa == "arm64" else value


DESCRIPTOR_FLAGS = Kind(lambda call, value: names.OPEN.bits(_bits(call, value)))


def open_flags(call: Made, value: int) -> str:
    """O_* of the program's ISA."""
    value = _bits(call, value)
    mode, rest = names.OPEN_ACCESS[value & 3], value & ~3
    return f"{mode}|{names.OPEN.bits(rest, behind=True)}" if rest else mode


def _creates(flags: int) -> bool:
    return bool(flags & (fl.O_CREAT | fl.O_TMPFILE_BIT))


OPEN_FLAGS = Kind(open_flags)


def mode_if_creating(flags: int) -> Kind:
    """The mode, which counts only if argument `flags` creates the file."""
    return Kind(lambda call, value: octal(value) if _creates(call.arguments[flags]) else None)


def _how(call: Made, value: int) -> str:
    flags, mode, resolve = unpack(call, value, "QQQ")
    shown = f"{{flags={open_flags(call, flags)}"
    if mode or _creates(flags):
        shown += f", mode={octal(mode)}"
    return f"{shown}, resolve={names.RESOLVE.bits(resolve)}}}"


OPEN_HOW = early(_how)


# ---- what a file is


def _stat(call: Made, value: int) -> str:
    if call.isa == "arm64":
        _dev, _ino, mode, _links, _uid, _gid, device, _pad, size = unpack(call, value, "QQIIIIQQq")
    else:
        _dev, _ino, _links, mode, _uid, _gid, _pad, device, size = unpack(call, value, "QQQIIIIQq")
    return _mode_and_size(mode, size, _major(device), _minor(device), "st")


def _mode_and_size(mode: int, size: int, major: int, minor: int, prefix: str) -> str:
    if mode & 0o170000 in (0o20000, 0o60000):
        if prefix == "stx":
            rest = f"stx_rdev_major={bare(major)}, stx_rdev_minor={bare(minor)}"
        else:
            rest = f"st_rdev=makedev({bare(major)}, {bare(minor)})"
    else:
        rest = f"{prefix}_size={size}"
    return f"{{{prefix}_mode={file_mode(mode)}, {rest}, ...}}"


def _major(device: int) -> int:
    return device >> 8 & 0xFFF | device >> 32 & 0xFFFF_F000


def _minor(device: int) -> int:
    return device & 0xFF | device >> 12 & 0xFFFF_FF00


STAT = late(_stat)


def device_if_special(mode: int) -> Kind:
    """mknod's device, which counts only for a device."""

    def show(call: Made, value: int) -> str | None:
        if call.arguments[mode] & 0o170000 not in (0o20000, 0o60000):
            return None
        return f"makedev({bare(_major(value))}, {bare(_minor(value))})"

    return Kind(show)


def _statx(call: Made, value: int) -> str:
    mask, _block, attributes = unpack(call, value, "IIQ")
    mode = unpack(call, value + 28, "H")[0]
    size = unpack(call, value + 40, "Q")[0]
    major, minor = unpack(call, value + 128, "II")
    head = f"stx_mask={names.STATX_MASK.bits(mask)}, "
    head += f"stx_attributes={names.STATX_ATTRIBUTES.bits(attributes)}, "
    return "{" + head + _mode_and_size(mode, size, major, minor, "stx")[1:]


STATX = late(_statx)


def statx_flags(_call: Made, value: int) -> str:
    """How a statx looks, and how it finds."""
    sync, rest = value & 0x6000, value & 0xFFFF_9FFF
    text = names.STATX_SYNC.bits(sync)
    return f"{text}|{names.AT.bits(rest, behind=True)}" if rest else text


STATX_FLAGS = Kind(statx_flags)


def _statfs(call: Made, value: int) -> str:
    kind, block, blocks, free, available, files, free_files = unpack(call, value, "7Q")
    low, high = unpack(call, value + 56, "II")
    longest, fragment, flags = unpack(call, value + 64, "3Q")
    counts = f"f_blocks={blocks}, f_bfree={free}, f_bavail={available}, f_files={files}, f_ffree={free_files}"
    return (
        f"{{f_type={names.FILE_SYSTEM.one(kind)}, f_bsize={block}, {counts}, "
        f"f_fsid={{val=[{bare(low)}, {bare(high)}]}}, f_namelen={longest}, f_frsize={fragment}, "
        f"f_flags={names.FILE_SYSTEM_FLAGS.bits(flags)}}}"
    )


STATFS = late(_statfs)


def _entries(call: Made, value: int) -> str:
    """How many directory entries a buffer has."""
    left, count = call.result or 0, 0
    while left > 0:
        length = unpack(call, value + 16, "H")[0]
        if not length:
            break
        value, left, count = value + length, left - length, count + 1
    return f"{count} entries"


def _directory(call: Made, value: int) -> str:
    return f"{address(value)} /* {_entries(call, value)} */"


DIRECTORY = late(_directory)


def _directory_path(call: Made, value: int) -> str:
    return quoted(call.memory.read(value, min(max((call.result or 1) - 1, 0), PATH_MAX)))


DIRECTORY_PATH = late(_directory_path)


def _times(call: Made, value: int) -> str:
    texts = []
    for at in (value, value + 16):
        seconds, rest = unpack(call, at, "qq")
        special = {_UTIME_NOW: "UTIME_NOW", _UTIME_OMIT: "UTIME_OMIT"}.get(rest)
        dated = f"{timespec(call, at)}{_date(seconds, rest)}"
        texts.append(special or dated)
    return listed(texts)


TIMES = early(_times)


def _date(seconds: int, rest: int = 0, digits: int = 9) -> str:
    """The comment with a time's date."""
    part = f".{rest:0{digits}d}" if 0 < rest < 10**digits else ""
    try:
        return f" /* {time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}{part}+0000 */"
    except (OverflowError, ValueError, OSError):
        return ""


def _dated_timeval(call: Made, value: int) -> str:
    seconds, rest = unpack(call, value, "qq")
    return f"{timeval(call, value)}{_date(seconds, rest, 6)}"


TIMEVALS = early(lambda call, value: items(call, value, 2, 16, _dated_timeval))


def _stamp(seconds: int) -> str:
    return f"{seconds}{_date(seconds)}"


def _old_times(call: Made, value: int) -> str:
    accessed, modified = unpack(call, value, "qq")
    return f"{{actime={_stamp(accessed)}, modtime={_stamp(modified)}}}"


OLD_TIMES = early(_old_times)


# ---- descriptors


PIPE = late(lambda call, value: "[{}, {}]".format(*unpack(call, value, "ii")))


def lock(call: Made, value: int) -> str:
    """struct flock."""
    kind, whence = unpack(call, value, "hh")
    start, length = unpack(call, value + 8, "qq")
    pid = unpack(call, value + 24, "i")[0]
    of_owner = f", l_pid={pid}" if call.arguments[1] in (5, 36) else ""
    return (
        f"{{l_type={names.LOCK_TYPE.one(kind)}, l_whence={names.SEEK.one(whence)}, l_start={start}, "
        f"l_len={length}{of_owner}}}"
    )


OFFSET = early(offset)


# ---- tasks


def _cpus(call: Made, value: int) -> str:
    length = call.result if call.name == "sched_getaffinity" else call.arguments[1]
    bits = int.from_bytes(call.memory.read(value, min(length or 0, 128)), "little")
    return f"[{' '.join(str(cpu) for cpu in range(bits.bit_length()) if bits >> cpu & 1)}]"


CPUS, CPUS_FOUND = early(_cpus), late(_cpus)


# ---- signals


def handler(value: int) -> str:
    """What a signal does."""
    return {0: "SIG_DFL", 1: "SIG_IGN"}.get(value, f"{value:#x}")


def _action(call: Made, value: int) -> str:
    function, flags, restorer, mask = unpack(call, value, "4Q")
    shown = f"sa_flags={names.SIGNAL_ACTION.bits(flags)}"
    if flags & SA_RESTORER:
        shown += f", sa_restorer={restorer:#x}"
    return f"{{sa_handler={handler(function)}, sa_mask={signal_set(mask)}, {shown}}}"


ACTION, OLD_ACTION = early(_action), late(_action)
OLD_SIGNALS = late(signals)


def _stack(call: Made, value: int) -> str:
    start, flags, _pad, size = unpack(call, value, "QiiQ")
    return (
        f"{{ss_sp={address(start)}, ss_flags={names.SIGNAL_STACK.bits(flags & 0xFFFFFFFF)}, ss_size={size}}}"
    )


STACK, OLD_STACK = early(_stack), late(_stack)


def _mask_restored(call: Made, _value: int) -> str:
    """The mask in force after rt_sigreturn, which has no argument."""
    return f"{{mask={signal_set(call.blocked)}}}"


MASK_RESTORED = Kind(_mask_restored, late=True)


# ---- limits and the machine


def _limit_value(value: int) -> str:
    if value == _INFINITY:
        return "RLIM64_INFINITY"
    return f"{value >> 10}*1024" if value > 1024 and not value % 1024 else str(value)


def _limit(call: Made, value: int) -> str:
    soft, hard = unpack(call, value, "QQ")
    return f"{{rlim_cur={_limit_value(soft)}, rlim_max={_limit_value(hard)}}}"


LIMIT, OLD_LIMIT = early(_limit), late(_limit)


def _usage(call: Made, value: int) -> str:
    return f"{{ru_utime={timeval(call, value)}, ru_stime={timeval(call, value + 16)}, ...}}"


USAGE = late(_usage)


def seconds(call: Made, value: int) -> str:
    """time_t behind a pointer."""
    return f"[{_stamp(unpack(call, value, 'q')[0])}]"


def time_result(_call: Made, result: int) -> str:
    """time(2)'s answer, with its date."""
    number, _, date = _stamp(result).partition(" /* ")
    return f"{number} ({date.removesuffix(' */')})" if date else number


def _groups(call: Made, value: int) -> str:
    if not call.arguments[0]:
        return address(value)
    return items(call, value, call.result or 0, 4, lambda _call, at: str(unpack(call, at, "I")[0]))


GROUPS = late(_groups)
GIVEN_GROUPS = early(
    lambda call, value: items(
        call, value, call.arguments[0] & 0xFFFF, 4, lambda _call, at: str(unpack(call, at, "I")[0])
    )
)


def _names_of_system(call: Made, value: int) -> str:
    fields = [call.memory.read(value + 65 * index, 65).partition(b"\0")[0] for index in range(6)]
    return f"{{sysname={quoted(fields[0])}, nodename={quoted(fields[1])}, ...}}"


UTSNAME = late(_names_of_system)


def _sysinfo(call: Made, value: int) -> str:
    uptime, *loads = unpack(call, value, "qQQQ")
    total, free, shared, buffer, swap, free_swap = unpack(call, value + 32, "6Q")
    processes = unpack(call, value + 80, "H")[0]
    high, free_high = unpack(call, value + 88, "QQ")
    unit = unpack(call, value + 104, "I")[0]
    return (
        f"{{uptime={uptime}, loads={listed(map(str, loads))}, totalram={total}, freeram={free}, "
        f"sharedram={shared}, bufferram={buffer}, totalswap={swap}, freeswap={free_swap}, procs={processes}, "
        f"totalhigh={high}, freehigh={free_high}, mem_unit={unit}}}"
    )


SYSINFO = late(_sysinfo)


def _process_times(call: Made, value: int) -> str:
    fields = ("tms_utime", "tms_stime", "tms_cutime", "tms_cstime")
    pairs = zip(fields, unpack(call, value, "4Q"), strict=True)
    return "{" + ", ".join(f"{field}={ticks}" for field, ticks in pairs) + "}"


PROCESS_TIMES = late(_process_times)


def _wait_status(call: Made, value: int) -> str:
    status = unpack(call, value, "i")[0]
    if not call.result:
        return f"[{status}]"
    if status == 0xFFFF:
        return "[{WIFCONTINUED(s)}]"
    if status & 0xFF == 0x7F:
        return f"[{{WIFSTOPPED(s) && WSTOPSIG(s) == {names.SIGNAL.one(status >> 8)}}}]"
    if not status & 0x7F:
        return f"[{{WIFEXITED(s) && WEXITSTATUS(s) == {status >> 8 & 0xFF}}}]"
    return f"[{{WIFSIGNALED(s) && WTERMSIG(s) == {names.SIGNAL.one(status & 0x7F)}}}]"


WAIT_STATUS = late(_wait_status)


def _residency(call: Made, value: int) -> str:
    """A bit for each page."""
    pages = -(-call.arguments[1] // call.page_size)
    data = call.memory.read_up_to(value, min(pages, 32))
    return listed([*(str(byte & 1) for byte in data), *(["..."] if pages > 32 else [])])


RESIDENCY = late(_residency)


def _futex_waiters(call: Made, value: int) -> str:
    def one(_call: Made, at: int) -> str:
        expected, where, flags, _pad = unpack(call, at, "QQII")
        return f"{{val={expected:#x}, uaddr={address(where)}, flags={names.FUTEX_WAITER.bits(flags)}}}"

    return items(call, value, call.arguments[1] & 0xFFFF_FFFF, 24, one)


FUTEX_WAITERS = early(_futex_waiters)
