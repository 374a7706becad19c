"""Who a task is: users, groups, capabilities, and what of that prctl(2) has (credentials(7)).

Every thread has its own; libc changes them for all threads of a process by signals. Rules and their order are
those of Linux 6.6 (kernel/sys.c, kernel/capability.c, security/commoncap.c).
"""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux import credentials as cr
from aether_emu.linux.calls.arguments import read_path
from aether_emu.linux.calls.user import read_struct, s32, u32, write_struct
from aether_emu.linux.task.task import Task
from aether_emu.mm.merging import set_merge_any
from aether_emu.mm.space import EXEC_GAIN_NOT_INHERITED, EXEC_GAIN_REFUSED

_UNCHANGED = 0xFFFF_FFFF
_MOST_GROUPS = 1 << 16
_VERSIONS = {0x1998_0330: 1, 0x2007_1026: 2, 0x2008_0522: 2}  # words of each set
_NEWEST = 0x2008_0522
_AMBIENT_IS_SET, _AMBIENT_RAISE, _AMBIENT_LOWER, _AMBIENT_CLEAR = 1, 2, 3, 4

_Quad = tuple[int, int, int, int]


# ---- who it is


def sys_getuid(task: Task, *_: int) -> int:
    return task.credentials.uid


def sys_geteuid(task: Task, *_: int) -> int:
    return task.credentials.euid


def sys_getgid(task: Task, *_: int) -> int:
    return task.credentials.gid


def sys_getegid(task: Task, *_: int) -> int:
    return task.credentials.egid


def sys_getresuid(task: Task, real: int, effective: int, saved: int, *_: int) -> int:
    who = task.credentials
    for address, uid in ((real, who.uid), (effective, who.euid), (saved, who.suid)):
        write_struct(task.cpu, address, "I", uid)
    return 0


def sys_getresgid(task: Task, real: int, effective: int, saved: int, *_: int) -> int:
    who = task.credentials
    for address, gid in ((real, who.gid), (effective, who.egid), (saved, who.sgid)):
        write_struct(task.cpu, address, "I", gid)
    return 0


def sys_getgroups(task: Task, size: int, result: int, *_: int) -> int:
    groups = task.credentials.groups
    if s32(size) < 0 or 0 < s32(size) < len(groups):
        raise Refused(errno.EINVAL, f"{len(groups)} groups do not fit")
    if s32(size):
        task.cpu.copy_to_user(result, struct.pack(f"<{len(groups)}I", *groups))
    return len(groups)


# ---- who it becomes


def _become(task: Task, **identities: int) -> int:
    task.become(task.credentials.become(**identities))
    return 0


def sys_setuid(task: Task, uid: int, *_: int) -> int:
    uid, who = _valid(uid), task.credentials
    if who.has(cr.SETUID):
        return _become(task, uid=uid, euid=uid, suid=uid, fsuid=uid)
    if uid not in (who.uid, who.suid):
        raise Refused(errno.EPERM, f"it cannot become user {uid}")
    return _become(task, euid=uid, fsuid=uid)


def sys_setgid(task: Task, gid: int, *_: int) -> int:
    gid, who = _valid(gid), task.credentials
    if who.has(cr.SETGID):
        return _become(task, gid=gid, egid=gid, sgid=gid, fsgid=gid)
    if gid not in (who.gid, who.sgid):
        raise Refused(errno.EPERM, f"it cannot become of group {gid}")
    return _become(task, egid=gid, fsgid=gid)


def _valid(number: int) -> int:
    if u32(number) == _UNCHANGED:
        raise Refused(errno.EINVAL, "-1 is nobody")
    return u32(number)


def sys_setreuid(task: Task, real: int, effective: int, *_: int) -> int:
    who = task.credentials
    present = (who.uid, who.euid, who.suid)
    uid, euid, suid = _real_and_effective(present, real, effective, free=who.has(cr.SETUID))
    return _become(task, uid=uid, euid=euid, suid=suid, fsuid=euid)


def sys_setregid(task: Task, real: int, effective: int, *_: int) -> int:
    who = task.credentials
    present = (who.gid, who.egid, who.sgid)
    gid, egid, sgid = _real_and_effective(present, real, effective, free=who.has(cr.SETGID))
    return _become(task, gid=gid, egid=egid, sgid=sgid, fsgid=egid)


def _real_and_effective(
    present: tuple[int, int, int], real: int, effective: int, *, free: bool
) -> tuple[int, int, int]:
    """What setreuid(2) makes of the real, effective and saved number. EPERM unless it is `free` to choose."""
    before, now, saved = present
    real, effective = u32(real), u32(effective)
    if not free and (
        real not in (_UNCHANGED, before, now) or effective not in (_UNCHANGED, before, now, saved)
    ):
        raise Refused(errno.EPERM, f"it cannot become {real} and {effective}")
    chosen = now if effective == _UNCHANGED else effective
    if real != _UNCHANGED or effective not in (_UNCHANGED, before):
        saved = chosen
    return before if real == _UNCHANGED else real, chosen, saved


def sys_setresuid(task: Task, real: int, effective: int, saved: int, *_: int) -> int:
    who = task.credentials
    present = (who.uid, who.euid, who.suid)
    uid, euid, suid = _all_three(present, (real, effective, saved), free=who.has(cr.SETUID))
    return _become(task, uid=uid, euid=euid, suid=suid, fsuid=euid)


def sys_setresgid(task: Task, real: int, effective: int, saved: int, *_: int) -> int:
    who = task.credentials
    present = (who.gid, who.egid, who.sgid)
    gid, egid, sgid = _all_three(present, (real, effective, saved), free=who.has(cr.SETGID))
    return _become(task, gid=gid, egid=egid, sgid=sgid, fsgid=egid)


def _all_three(
    present: tuple[int, int, int], wanted: tuple[int, int, int], *, free: bool
) -> tuple[int, int, int]:
    chosen = [u32(number) for number in wanted]
    if not free and any(number != _UNCHANGED and number not in present for number in chosen):
        raise Refused(errno.EPERM, f"it cannot become {chosen}")
    one, two, three = (
        before if number == _UNCHANGED else number for before, number in zip(present, chosen, strict=True)
    )
    return one, two, three


def sys_setfsuid(task: Task, uid: int, *_: int) -> int:
    """setfsuid(2): the user for files before, whether or not it changes."""
    who, uid = task.credentials, u32(uid)
    if uid != _UNCHANGED and (uid in (who.uid, who.euid, who.suid, who.fsuid) or who.has(cr.SETUID)):
        task.become(who.for_files_as(uid))
    return who.fsuid


def sys_setfsgid(task: Task, gid: int, *_: int) -> int:
    who, gid = task.credentials, u32(gid)
    if gid != _UNCHANGED and (gid in (who.gid, who.egid, who.sgid, who.fsgid) or who.has(cr.SETGID)):
        task.become(who.but(fsgid=gid))
    return who.fsgid


def sys_setgroups(task: Task, size: int, groups: int, *_: int) -> int:
    if not task.credentials.has(cr.SETGID):
        raise Refused(errno.EPERM, "it may not choose its groups")
    count = u32(size)
    if count > _MOST_GROUPS:
        raise Refused(errno.EINVAL, f"{count} groups")
    chosen = struct.unpack(f"<{count}I", task.cpu.copy_from_user(groups, 4 * count)) if count else ()
    if _UNCHANGED in chosen:
        raise Refused(errno.EINVAL, "-1 is no group")
    task.become(task.credentials.but(groups=tuple(sorted(chosen))))
    return 0


# ---- capabilities


def _words(task: Task, header: int) -> int:
    """How many words a set has in the version that the header names. None: 0, and it is told the newest."""
    (version,) = read_struct(task.cpu, header, "I")
    words = _VERSIONS.get(version, 0)
    if not words:
        write_struct(task.cpu, header, "I", _NEWEST)
    return words


def sys_capget(task: Task, header: int, data: int, *_: int) -> int:
    words = _words(task, header)
    if not words or not data:
        if data:
            raise Refused(errno.EINVAL, "an unknown version")
        return 0
    (pid,) = read_struct(task.cpu, header + 4, "i")
    if pid < 0:
        raise Refused(errno.EINVAL, "a negative number")
    other = task.process.registry.tasks.get(pid) if pid else task
    if other is not None:
        assert isinstance(other, Task), "a member of the registry"
        who = other.credentials
    elif pid in task.process.registry.processes:
        who = task.process.registry.processes[pid].credentials
    else:
        raise Refused(errno.ESRCH, f"no task {pid}")
    sets = (who.effective, who.permitted, who.inheritable)
    numbers = [value >> 32 * word & _UNCHANGED for word in range(words) for value in sets]
    task.cpu.copy_to_user(data, struct.pack(f"<{len(numbers)}I", *numbers))
    return 0


def sys_capset(task: Task, header: int, data: int, *_: int) -> int:
    words = _words(task, header)
    if not words:
        raise Refused(errno.EINVAL, "an unknown version")
    (pid,) = read_struct(task.cpu, header + 4, "i")
    if pid not in (0, task.tid):
        raise Refused(errno.EPERM, "another's capabilities")
    numbers = read_struct(task.cpu, data, f"{3 * words}I")
    effective, permitted, inheritable = (
        sum(numbers[3 * word + at] << 32 * word for word in range(words)) & cr.EVERY for at in range(3)
    )
    who = task.credentials
    inherits_any = who.has(cr.SETPCAP)
    if (
        (not inherits_any and inheritable & ~(who.inheritable | who.permitted))
        or inheritable & ~(who.inheritable | who.bounding)
        or permitted & ~who.permitted
        or effective & ~permitted
    ):
        raise Refused(errno.EPERM, "capabilities that it does not have")
    ambient = who.ambient & permitted & inheritable
    task.become(who.but(effective=effective, permitted=permitted, inheritable=inheritable, ambient=ambient))
    return 0


# ---- prctl(2)


def get_keep(task: Task, _arguments: _Quad) -> int:
    """PR_GET_KEEPCAPS."""
    return int(bool(task.credentials.securebits & cr.KEEP_CAPS))


def set_keep(task: Task, arguments: _Quad) -> int:
    """PR_SET_KEEPCAPS: capabilities outlive the next change of the user."""
    who = task.credentials
    if arguments[0] > 1:
        raise Refused(errno.EINVAL, "neither 0 nor 1")
    if who.securebits & cr.KEEP_CAPS << 1:
        raise Refused(errno.EPERM, "it is locked")
    kept = cr.KEEP_CAPS if arguments[0] else 0
    task.become(who.but(securebits=who.securebits & ~cr.KEEP_CAPS | kept))
    return 0


def read_bound(task: Task, arguments: _Quad) -> int:
    """PR_CAPBSET_READ."""
    return task.credentials.bounding >> _capability(arguments[0]) & 1


def drop_bound(task: Task, arguments: _Quad) -> int:
    """PR_CAPBSET_DROP: no execve gives it back."""
    who = task.credentials
    if not who.has(cr.SETPCAP):
        raise Refused(errno.EPERM, "it may not change its bounds")
    task.become(who.but(bounding=who.bounding & ~(1 << _capability(arguments[0]))))
    return 0


def _capability(number: int) -> int:
    if number > cr.CHECKPOINT_RESTORE:
        raise Refused(errno.EINVAL, f"no capability {number}")
    return number


def get_bits(task: Task, _arguments: _Quad) -> int:
    """PR_GET_SECUREBITS."""
    return task.credentials.securebits


def set_bits(task: Task, arguments: _Quad) -> int:
    """PR_SET_SECUREBITS."""
    who, wanted = task.credentials, arguments[0]
    locked = who.securebits & cr.ALL_LOCKS
    if (
        (locked >> 1) & (who.securebits ^ wanted)
        or locked & ~wanted
        or wanted & ~(cr.ALL_LOCKS | cr.ALL_BITS)
        or not who.has(cr.SETPCAP)
    ):
        raise Refused(errno.EPERM, f"securebits {wanted:#x}")
    task.become(who.but(securebits=wanted))
    return 0


def change_ambient(task: Task, arguments: _Quad) -> int:
    """PR_CAP_AMBIENT: capabilities that every execve keeps."""
    what, number, *rest = arguments
    who = task.credentials
    if what == _AMBIENT_CLEAR:
        if number or any(rest):
            raise Refused(errno.EINVAL, "arguments that are not 0")
        task.become(who.but(ambient=0))
        return 0
    if number > cr.CHECKPOINT_RESTORE or any(rest):
        raise Refused(errno.EINVAL, "no such capability, or arguments that are not 0")
    bit = 1 << number
    if what == _AMBIENT_IS_SET:
        return who.ambient >> number & 1
    if what not in (_AMBIENT_RAISE, _AMBIENT_LOWER):
        raise Refused(errno.EINVAL, f"no operation {what}")
    if what == _AMBIENT_RAISE:
        if not who.permitted & who.inheritable & bit or who.securebits & cr.NO_CAP_AMBIENT_RAISE:
            raise Refused(errno.EPERM, "it is not permitted and inheritable")
        task.become(who.but(ambient=who.ambient | bit))
    else:
        task.become(who.but(ambient=who.ambient & ~bit))
    return 0


def set_no_new_privileges(task: Task, arguments: _Quad) -> int:
    """PR_SET_NO_NEW_PRIVS. No execve gives any here: it is kept and shown."""
    if arguments[0] != 1 or any(arguments[1:]):
        raise Refused(errno.EINVAL, "it can only be set")
    task.no_new_privileges = 1
    return 0


def get_no_new_privileges(task: Task, arguments: _Quad) -> int:
    """PR_GET_NO_NEW_PRIVS."""
    if any(arguments):
        raise Refused(errno.EINVAL, "arguments that are not 0")
    return task.no_new_privileges


def get_dumpable(task: Task, _arguments: _Quad) -> int:
    """PR_GET_DUMPABLE."""
    return task.process.dumpable


def set_dumpable(task: Task, arguments: _Quad) -> int:
    """PR_SET_DUMPABLE: whether others of its user may look into it."""
    if arguments[0] not in (0, 1):
        raise Refused(errno.EINVAL, "neither 0 nor 1")
    task.process.dumpable = arguments[0]
    return 0


def set_no_huge_pages(task: Task, arguments: _Quad) -> int:
    """PR_SET_THP_DISABLE: no huge pages from now on, for this program and those that it becomes."""
    if any(arguments[1:]):
        raise Refused(errno.EINVAL, "arguments that are not 0")
    task.process.mm.no_huge = bool(arguments[0])
    return 0


def get_no_huge_pages(task: Task, arguments: _Quad) -> int:
    """PR_GET_THP_DISABLE."""
    if any(arguments):
        raise Refused(errno.EINVAL, "arguments that are not 0")
    return int(task.process.mm.no_huge)


def set_merge(task: Task, arguments: _Quad) -> int:
    """PR_SET_MEMORY_MERGE: all private memory may be merged from now on, or none. fork and execve keep it."""
    if any(arguments[1:]):
        raise Refused(errno.EINVAL, "arguments that are not 0")
    set_merge_any(task.process.mm, on=bool(arguments[0]))
    return 0


def get_merge(task: Task, arguments: _Quad) -> int:
    """PR_GET_MEMORY_MERGE."""
    if any(arguments):
        raise Refused(errno.EINVAL, "arguments that are not 0")
    return int(task.process.mm.merge_any)


def set_exec_gain(task: Task, arguments: _Quad) -> int:
    """PR_SET_MDWE: memory that is not executable never becomes so from now on. There is no way back."""
    wanted, space = arguments[0], task.process.mm
    known = EXEC_GAIN_REFUSED | EXEC_GAIN_NOT_INHERITED
    if any(arguments[1:]) or wanted & ~known or wanted == EXEC_GAIN_NOT_INHERITED:
        raise Refused(errno.EINVAL, "arguments that are not 0, or unknown bits")
    if space.exec_gain and space.exec_gain != wanted:
        raise Refused(errno.EPERM, "it was asked for already")
    space.exec_gain = wanted
    return 0


def get_exec_gain(task: Task, arguments: _Quad) -> int:
    """PR_GET_MDWE."""
    if any(arguments):
        raise Refused(errno.EINVAL, "arguments that are not 0")
    return task.process.mm.exec_gain


PRCTL = {
    3: get_dumpable, 4: set_dumpable, 7: get_keep, 8: set_keep, 23: read_bound, 24: drop_bound, 27: get_bits,
    28: set_bits, 38: set_no_new_privileges, 39: get_no_new_privileges, 41: set_no_huge_pages,
    42: get_no_huge_pages, 47: change_ambient, 65: set_exec_gain, 66: get_exec_gain, 67: set_merge,
    68: get_merge,
}  # fmt: skip
"""The options of prctl(2) about identities, and others that few programs use.

Called with the task, and the second to fifth argument.
"""


# ---- the root directory


def sys_chroot(task: Task, path: int, *_: int) -> int:
    """chroot(2): the directory must be one that may be searched; then CAP_SYS_CHROOT is asked for."""
    task.files.chroot(read_path(task, path), allowed=task.credentials.has(cr.SYS_CHROOT))
    return 0
