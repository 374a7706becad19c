"""System V semaphores and message queues: operations, messages, and what their control calls tell."""

from __future__ import annotations

from aether_emu.observe.strace import names
from aether_emu.observe.strace.kinds import Kind, Made, early, items, octal, pointed, unpack
from aether_emu.observe.strace.words import MOST_BYTES, address, bare, quoted, signed

_SET = 1
_STATS = {"semctl": (2, 18, 20), "msgctl": (2, 11, 13)}
_USAGES = {"semctl": (3, 19), "msgctl": (3, 12)}


def _flags(_call: Made, value: int) -> str:
    """Those of semget and msgget, and the permissions."""
    flags, mode = value & 0xFFFF_FE00, octal(value & 0o777)
    return f"{names.SHARING.bits(flags)}|{mode}" if flags else mode


SHARING_FLAGS = Kind(_flags)
KEY = Kind(lambda _call, value: bare(value & 0xFFFF_FFFF) if value & 0xFFFF_FFFF else "IPC_PRIVATE")


def _operation(call: Made, at: int) -> str:
    number, change, flags = unpack(call, at, "Hhh")
    return f"{{sem_num={number}, sem_op={change}, sem_flg={names.SEMAPHORE.bits(flags & 0xFFFF)}}}"


OPERATIONS = early(lambda call, value: items(call, value, call.arguments[2] & 0xFFFF_FFFF, 6, _operation))


def _message(call: Made, value: int) -> str:
    """A type, and as many bytes as the call names."""
    size = call.arguments[2]
    data = call.memory.read(value + 8, min(size, MOST_BYTES))
    return f"{{mtype={unpack(call, value, 'q')[0]}, mtext={quoted(data, more=size > MOST_BYTES)}}}"


SENT_MESSAGE = early(_message)
RECEIVED_MESSAGE = Kind(
    lambda call, value: address(value) if call.refused else pointed(_message)(call, value), late=True
)


def _permissions(call: Made, at: int, *, whole: bool) -> str:
    key, uid, gid, creator, group, mode = unpack(call, at, "iIIIII")
    rest = f", key={bare(key & 0xFFFF_FFFF)}, cuid={creator}, cgid={group}" if whole else ""
    return f"{{uid={uid}, gid={gid}, mode={octal(mode)}{rest}}}"


def _semaphores_stat(call: Made, at: int) -> str:
    layout = "qqQ" if call.isa == "arm64" else "q8xq8xQ"
    operated, changed, size = unpack(call, at + 48, layout)
    owner = _permissions(call, at, whole=True)
    return f"{{sem_perm={owner}, sem_otime={operated}, sem_ctime={changed}, sem_nsems={size}}}"


def _queue_stat(call: Made, at: int) -> str:
    fields = ("msg_stime", "msg_rtime", "msg_ctime", "", "msg_qnum", "msg_qbytes", "msg_lspid", "msg_lrpid")
    found = zip(fields, unpack(call, at + 48, "3q3Qii"), strict=True)
    shown = ", ".join(f"{field}={value}" for field, value in found if field)
    return f"{{msg_perm={_permissions(call, at, whole=True)}, {shown}}}"


_SEMAPHORE_LIMITS = (
    *("semmap", "semmni", "semmns", "semmnu", "semmsl"),
    *("semopm", "semume", "semusz", "semvmx", "semaem"),
)
_QUEUE_LIMITS = ("msgpool", "msgmap", "msgmax", "msgmnb", "msgmni", "msgssz", "msgtql", "msgseg")


def _limits(call: Made, at: int) -> str:
    of_sets = call.name == "semctl"
    fields, layout = (_SEMAPHORE_LIMITS, "10i") if of_sets else (_QUEUE_LIMITS, "7iH")
    pairs = zip(fields, unpack(call, at, layout), strict=True)
    return "{" + ", ".join(f"{field}={value}" for field, value in pairs) + "}"


def _given(call: Made, at: int) -> str:
    """What IPC_SET changes."""
    if call.name == "semctl":
        return f"{{sem_perm={_permissions(call, at, whole=False)}}}"
    most = unpack(call, at + 88, "Q")[0]
    return f"{{msg_perm={_permissions(call, at, whole=False)}, msg_qbytes={most}}}"


def _control(call: Made, value: int) -> str | None:
    command = signed(call.arguments[2 if call.name == "semctl" else 1], 32)
    if command == _SET:
        return pointed(_given)(call, value)
    if call.refused or not value:
        return address(value)
    if command in _STATS[call.name]:
        return pointed(_semaphores_stat if call.name == "semctl" else _queue_stat)(call, value)
    if command in _USAGES[call.name]:
        return pointed(_limits)(call, value)
    return address(value)


CONTROL = Kind(_control, late=True)
