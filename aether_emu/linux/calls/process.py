"""Identity, limits, threads' bookkeeping, randomness, and the end of a process."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from aether_emu.errors import Refused
from aether_emu.linux.calls.user import (
    read_string,
    read_struct,
    require_user,
    s32,
    scatter,
    u32,
    write_struct,
)
from aether_emu.linux.files.open_file import MOST_PER_CALL
from aether_emu.linux.task.process import Ended
from aether_emu.machine.cpu import UserFault

if TYPE_CHECKING:
    from aether_emu.linux.task.process import Process

RELEASE = "6.6.0"
_RLIM_INFINITY = (1 << 64) - 1
RLIMIT_STACK, RLIMIT_NPROC, RLIMIT_NOFILE, RLIMIT_AS = 3, 6, 7, 9
_RLIMITS = 16

_ARCH_SET_GS, _ARCH_SET_FS, _ARCH_GET_FS, _ARCH_GET_GS = 0x1001, 0x1002, 0x1003, 0x1004
_PR_GET_DUMPABLE = 3
_PR_SET_NAME, _PR_GET_NAME, _PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS = 15, 16, 38, 39
_FUTEX_WAIT, _FUTEX_WAKE, _FUTEX_REQUEUE, _FUTEX_CMP_REQUEUE = 0, 1, 3, 4
_FUTEX_WAKE_OP, _FUTEX_WAIT_BITSET, _FUTEX_WAKE_BITSET = 5, 9, 10
_FUTEX_PRIVATE = 128
_FUTEX_FLAGS = _FUTEX_PRIVATE | 256  # and CLOCK_REALTIME
_GRND_KNOWN = 7


class ProcessCalls:
    """Everything about the process that is not memory, files, signals or time."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._cpu = process.cpu
        self._config = process.config
        self._random = process.kernel.streams.stream("getrandom")
        self._pid, self._parent = process.pid, process.parent_pid
        self._limits = process.limits
        if not self._limits:
            self._limits.update(self._initial_limits())

    def _initial_limits(self) -> dict[int, tuple[int, int]]:
        limits = dict.fromkeys(range(_RLIMITS), (_RLIM_INFINITY, _RLIM_INFINITY))
        space = self._process.space.limits
        limits[RLIMIT_STACK] = (space.stack, _RLIM_INFINITY)
        limits[RLIMIT_NPROC] = (1, 1)
        limits[RLIMIT_NOFILE] = (self._config.open_files, self._config.open_files)
        if space.address_space is not None:
            limits[RLIMIT_AS] = (space.address_space, space.address_space)
        return limits

    # ---- the end

    def sys_exit(self, code: int, *_: int) -> int:
        self._process.end(Ended(code=code & 0xFF))
        return 0

    def sys_exit_group(self, code: int, *_: int) -> int:
        return self.sys_exit(code)

    # ---- identity

    def sys_getpid(self, *_: int) -> int:
        return self._pid

    def sys_gettid(self, *_: int) -> int:
        return self._pid

    def sys_getppid(self, *_: int) -> int:
        return self._parent

    def sys_getpgrp(self, *_: int) -> int:
        return self._pid

    def sys_getpgid(self, pid: int, *_: int) -> int:
        return self._of_self(pid)

    def sys_getsid(self, pid: int, *_: int) -> int:
        return self._of_self(pid)

    def sys_setpgid(self, pid: int, group: int, *_: int) -> int:
        self._of_self(pid)
        if s32(group) not in (0, self._pid):
            raise Refused(errno.EPERM, "there is no other process group")
        return 0

    def sys_setsid(self, *_: int) -> int:
        raise Refused(errno.EPERM, "the process leads its group already")

    def _of_self(self, pid: int) -> int:
        if s32(pid) not in (0, self._pid):
            raise Refused(errno.ESRCH, f"no process {s32(pid)}")
        return self._pid

    def sys_getuid(self, *_: int) -> int:
        return self._config.uid

    def sys_geteuid(self, *_: int) -> int:
        return self._config.uid

    def sys_getgid(self, *_: int) -> int:
        return self._config.gid

    def sys_getegid(self, *_: int) -> int:
        return self._config.gid

    def sys_getresuid(self, real: int, effective: int, saved: int, *_: int) -> int:
        for address in (real, effective, saved):
            write_struct(self._cpu, address, "I", self._config.uid)
        return 0

    def sys_getresgid(self, real: int, effective: int, saved: int, *_: int) -> int:
        for address in (real, effective, saved):
            write_struct(self._cpu, address, "I", self._config.gid)
        return 0

    def sys_getgroups(self, size: int, result: int, *_: int) -> int:
        if s32(size) < 0:
            raise Refused(errno.EINVAL, "a negative size")
        if s32(size):
            write_struct(self._cpu, result, "I", self._config.gid)
        return 1

    def sys_setuid(self, uid: int, *_: int) -> int:
        return self._keep(u32(uid), self._config.uid)

    def sys_setgid(self, gid: int, *_: int) -> int:
        return self._keep(u32(gid), self._config.gid)

    def sys_setresuid(self, real: int, effective: int, saved: int, *_: int) -> int:
        return self._keep_all(self._config.uid, real, effective, saved)

    def sys_setresgid(self, real: int, effective: int, saved: int, *_: int) -> int:
        return self._keep_all(self._config.gid, real, effective, saved)

    @staticmethod
    def _keep(wanted: int, present: int) -> int:
        if wanted != present:
            raise Refused(errno.EPERM, "identities cannot change")
        return 0

    def _keep_all(self, present: int, *wanted: int) -> int:
        for value in wanted:
            if u32(value) != 0xFFFF_FFFF:
                self._keep(u32(value), present)
        return 0

    def sys_uname(self, result: int, *_: int) -> int:
        abi = self._process.abi
        fields = ("Linux", self._config.hostname, RELEASE, "#1 SMP aether_emu", abi.machine, "(none)")
        self._cpu.copy_to_user(result, b"".join(text.encode()[:64].ljust(65, b"\0") for text in fields))
        return 0

    def sys_personality(self, wanted: int, *_: int) -> int:
        if u32(wanted) not in (0, 0xFFFF_FFFF):
            raise Refused(errno.EINVAL, "only PER_LINUX")
        return 0

    # ---- threads

    def sys_set_tid_address(self, address: int, *_: int) -> int:
        self._process.clear_child_tid = address
        return self._pid

    def sys_set_robust_list(self, _head: int, length: int, *_: int) -> int:
        """Only a thread that dies while others live has its list walked: there are none."""
        if length != 24:
            raise Refused(errno.EINVAL, "the list head has another size")
        return 0

    def sys_arch_prctl(self, code: int, address: int, *_: int) -> int:
        cpu = self._cpu
        operation = s32(code)
        if operation in (_ARCH_SET_FS, _ARCH_SET_GS):
            if address >= self._process.abi.user_end:
                raise Refused(errno.EPERM, "the base is no user address")
            cpu.write("fs_base" if operation == _ARCH_SET_FS else "gs_base", address)
        elif operation in (_ARCH_GET_FS, _ARCH_GET_GS):
            base = cpu.read("fs_base" if operation == _ARCH_GET_FS else "gs_base")
            write_struct(cpu, address, "Q", base)
        else:
            raise Refused(errno.EINVAL, f"no operation {operation:#x}")
        return 0

    def sys_prctl(self, option: int, argument: int, *_: int) -> int:
        option = s32(option)
        if option == _PR_SET_NAME:
            self._process.name = self._cpu_name(argument)
        elif option == _PR_GET_NAME:
            self._cpu.copy_to_user(argument, self._process.name.ljust(16, b"\0"))
        elif option == _PR_GET_DUMPABLE:
            return 1
        elif option == _PR_SET_NO_NEW_PRIVS and argument == 1:
            self._process.no_new_privileges = 1
        elif option == _PR_GET_NO_NEW_PRIVS:
            return self._process.no_new_privileges
        else:
            raise Refused(errno.EINVAL, f"no option {option}")
        return 0

    def _cpu_name(self, address: int) -> bytes:
        try:
            return read_string(self._cpu, address, 16)
        except Refused:  # a longer name is cut, not refused
            return self._cpu.copy_from_user(address, 15)

    def sys_futex(self, address: int, operation: int, value: int, timeout: int, *_: int) -> int:
        """With one thread there is nobody to wake and nobody who could wake."""
        kind = s32(operation) & ~_FUTEX_FLAGS
        waits = kind in (_FUTEX_WAIT, _FUTEX_WAIT_BITSET)
        seconds, rest = read_struct(self._cpu, timeout, "qq") if waits and timeout else (0, 0)
        if seconds < 0 or not 0 <= rest < 10**9:
            raise Refused(errno.EINVAL, "no such time")
        if address & 3:
            raise Refused(errno.EINVAL, "a futex is aligned to four bytes")
        require_user(address, 4, self._process.abi.user_end)
        if kind in (_FUTEX_WAKE, _FUTEX_WAKE_BITSET, _FUTEX_REQUEUE, _FUTEX_CMP_REQUEUE, _FUTEX_WAKE_OP):
            if not operation & _FUTEX_PRIVATE:  # a shared one is named by what is mapped there
                read_struct(self._cpu, address, "I")
            return 0
        if not waits:
            raise Refused(errno.ENOSYS, f"futex operation {kind}")
        if read_struct(self._cpu, address, "I")[0] != u32(value):
            raise Refused(errno.EAGAIN, "the value has changed")
        kernel = self._process.kernel
        if not timeout:
            kernel.deadlock("a futex")
            return 0
        length = seconds * 10**9 + rest
        kernel.clock.advance(length if kind == _FUTEX_WAIT else max(0, length - kernel.observe_time()))
        raise Refused(errno.ETIMEDOUT, "nobody woke it")

    def sys_sched_yield(self, *_: int) -> int:
        return 0

    def sys_sched_getaffinity(self, pid: int, size: int, result: int, *_: int) -> int:
        self._of_self(pid)
        if size < 8 or size & 7:
            raise Refused(errno.EINVAL, "the mask is too small")
        write_struct(self._cpu, result, "Q", 1)
        return 8

    def sys_sched_setaffinity(self, pid: int, size: int, mask: int, *_: int) -> int:
        self._of_self(pid)
        wanted = self._cpu.copy_from_user(mask, min(size, 8))
        if not wanted or not wanted[0] & 1:
            raise Refused(errno.EINVAL, "no CPU of the mask exists")
        return 0

    def sys_getcpu(self, cpu: int, node: int, *_: int) -> int:
        for address in (cpu, node):
            if address:
                write_struct(self._cpu, address, "I", 0)
        return 0

    def sys_getpriority(self, which: int, who: int, *_: int) -> int:
        if s32(which) not in (0, 1, 2):
            raise Refused(errno.EINVAL, "no such target")
        return 20

    def sys_membarrier(self, command: int, *_: int) -> int:
        """One thread sees its own stores: only the query has an answer."""
        if s32(command):
            raise Refused(errno.EINVAL, f"no command {s32(command)}")
        return 0

    # ---- children: there are none yet

    def sys_wait4(self, *_: int) -> int:
        raise Refused(errno.ECHILD, "there are no children")

    def sys_waitid(self, *_: int) -> int:
        raise Refused(errno.ECHILD, "there are no children")

    # ---- resources

    def sys_prlimit64(self, pid: int, resource: int, new: int, old: int, *_: int) -> int:
        self._of_self(pid)
        if not 0 <= s32(resource) < _RLIMITS:
            raise Refused(errno.EINVAL, f"no resource {s32(resource)}")
        resource = s32(resource)
        wanted = read_struct(self._cpu, new, "QQ") if new else None
        before = self._limits[resource]
        if wanted is not None:
            soft, hard = wanted
            if soft > hard:
                raise Refused(errno.EINVAL, "the soft limit is over the hard one")
            if hard > before[1]:
                raise Refused(errno.EPERM, "the hard limit cannot grow")
            self._limits[resource] = (soft, hard)
            self._apply(resource, soft)
        if old:
            write_struct(self._cpu, old, "QQ", *before)
        return 0

    def _apply(self, resource: int, soft: int) -> None:
        space = self._process.space.limits
        if resource == RLIMIT_STACK:
            space.stack = soft
        elif resource == RLIMIT_AS:
            space.address_space = None if soft == _RLIM_INFINITY else soft
        elif resource == RLIMIT_NOFILE:
            self._process.files.table.limit = min(soft, self._config.open_files)

    def sys_getrlimit(self, resource: int, result: int, *_: int) -> int:
        return self.sys_prlimit64(0, resource, 0, result)

    def sys_setrlimit(self, resource: int, new: int, *_: int) -> int:
        return self.sys_prlimit64(0, resource, new, 0)

    def sys_getrusage(self, who: int, result: int, *_: int) -> int:
        if s32(who) not in (0, -1, 1):
            raise Refused(errno.EINVAL, "nobody to account for")
        usage = [0] * 18
        if s32(who) != -1:
            kernel = self._process.kernel
            seconds, rest = divmod(kernel.observe_time(), 10**9)
            usage[0], usage[1] = seconds, rest // 1000
            usage[4] = kernel.peak_memory() >> 10
            usage[8] = kernel.minor_faults()
        write_struct(self._cpu, result, "18q", *usage)
        return 0

    def sys_sysinfo(self, result: int, *_: int) -> int:
        kernel = self._process.kernel
        page, buddy = self._process.space.page_size, kernel.physical.buddy
        total, free = buddy.total * page, buddy.free_frames * page
        uptime = kernel.observe_time() // 10**9
        packed = struct.pack("<q3Q6QHHI2QI4x", uptime, 0, 0, 0, total, free, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1)
        self._cpu.copy_to_user(result, packed)
        return 0

    def sys_getrandom(self, address: int, length: int, flags: int, *_: int) -> int:
        if u32(flags) & ~_GRND_KNOWN or u32(flags) & 6 == 6:
            raise Refused(errno.EINVAL, "unknown flags")
        require_user(address, length, self._process.abi.user_end)
        length = min(length, MOST_PER_CALL)
        done = 0
        while done < length:
            part = self._random.bytes(min(1 << 16, length - done))
            written = scatter(self._cpu, [(address + done, len(part))], part)
            done += written
            if written < len(part):
                if not done:
                    raise UserFault(f"{address:#x} cannot be written")
                break
        return done
