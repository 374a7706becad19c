"""System calls, a module for each family; `call_table` is the one table of an ISA.

    memory        the mmap family
    transfer      bytes between files and memory, or files and files
    descriptors   making, duplicating, controlling, syncing and closing descriptors
    paths         making, finding, renaming and removing names
    attributes    what a file is: mode, owner, times, extended attributes
    polling       waiting for one of several, and `epolling`
    signals, time, timers, futexes, process, scheduling
    sequences     membarrier and rseq
    splicing      bytes into pipes and out of them
    locks         locks on files
    sockets       connections between processes, and `messages` with `socket_transfer`
    cloning, executing, waiting    making processes, running programs in them, hearing of their ends
    identities    users, groups, capabilities, the root directory
    user_faults   faults that a program answers itself
    remote        reaching into other processes
    shared_segments    System V shared memory; `semaphores` and `message_queues` as well
    posix_queues  message queues with names
    jobs          sending signals, process groups, sessions; `terminals`: what a terminal asks of a task
    notices       timerfd and pidfd

A function `sys_NAME` serves the call NAME of the ISA's table. It is called with the task that makes the
call, and with six arguments as unsigned 64-bit numbers: it names those it reads and lets `*_` take the
rest. It returns the result as an int (a negative one is -errno), or None when the registers are already as
they should be. It raises `Refused(errno)`, and lets `UserFault` through, which becomes EFAULT; `Wait` when
the task must wait, and then it is called again. A number without a function gets ENOSYS.

Nothing here keeps state: a call finds all of it through its task.

A family is imported when one of its calls is first made: most programs make few kinds of calls, and the
start of a run stays quick. FAMILIES therefore says which module serves which calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import cast

from aether_emu.linux.abi import Abi

Call = Callable[..., int | None]
FAMILIES: dict[str, str] = {
    "memory": """
        brk madvise mincore mlock mlock2 mlockall mmap mprotect mremap mseal msync munlock munlockall
        munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages""",
    "transfer": """
        copy_file_range pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readv sendfile
        write writev""",
    "descriptors": """
        close close_range dup dup2 dup3 eventfd eventfd2 fadvise64 fallocate fcntl fdatasync
        fstat fstatfs fsync ftruncate getdents getdents64 ioctl lseek memfd_create pipe pipe2
        readahead sync sync_file_range syncfs""",
    "paths": """
        chdir creat fchdir getcwd link linkat mkdir mkdirat mknod mknodat open openat openat2
        readlink readlinkat rename renameat renameat2 rmdir symlink symlinkat umask unlink
        unlinkat""",
    "attributes": """
        access chmod chown faccessat faccessat2 fchmod fchmodat fchmodat2 fchown fchownat
        futimesat lchown lstat newfstatat stat statfs statx truncate utime utimensat utimes""",
    "polling": "poll ppoll pselect6 select",
    "epolling": "epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait",
    "signals": """
        pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
        rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sigaltstack""",
    "time": "clock_getres clock_gettime clock_nanosleep gettimeofday nanosleep time times",
    "administration": "adjtimex clock_adjtime clock_settime settimeofday syslog",
    "timers": """
        alarm getitimer setitimer timer_create timer_delete timer_getoverrun timer_gettime
        timer_settime""",
    "futexes": "futex futex_waitv",
    "process": """
        arch_prctl exit exit_group get_robust_list getpid getppid getrandom getrlimit getrusage
        gettid personality prctl prlimit64 set_robust_list set_tid_address setrlimit sysinfo
        uname""",
    "identities": """
        capget capset chroot getegid geteuid getgid getgroups getresgid getresuid getuid setfsgid
        setfsuid setgid setgroups setregid setresgid setresuid setreuid setuid""",
    "scheduling": """
        getcpu getpriority sched_get_priority_max sched_get_priority_min sched_getaffinity
        sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity
        sched_setattr sched_setparam sched_setscheduler sched_yield setpriority""",
    "user_faults": "userfaultfd",
    "remote": "kcmp process_madvise process_mrelease process_vm_readv process_vm_writev",
    "sequences": "membarrier rseq",
    "swapping": "swapoff swapon",
    "shared_segments": "shmat shmctl shmdt shmget",
    "semaphores": "semctl semget semop semtimedop",
    "message_queues": "msgctl msgget msgrcv msgsnd",
    "posix_queues": "mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink",
    "cloning": "clone clone3 fork unshare vfork",
    "executing": "execve execveat",
    "waiting": "wait4 waitid",
    "jobs": "getpgid getpgrp getsid kill setpgid setsid tgkill tkill",
    "notices": """
        pidfd_getfd pidfd_open pidfd_send_signal signalfd signalfd4 timerfd_create
        timerfd_gettime timerfd_settime""",
    "sockets": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg
        recvmsg sendmmsg sendmsg sendto setsockopt shutdown socket socketpair""",
    "locks": "flock",
    "splicing": "splice tee vmsplice",
    "xattrs": """
        fgetxattr flistxattr fremovexattr fsetxattr getxattr lgetxattr listxattr llistxattr
        lremovexattr lsetxattr removexattr setxattr""",
}
TABLE_SIZE = 512
_FAMILY = {name: family for family, names in FAMILIES.items() for name in names.split()}


def find(name: str) -> Call | None:
    """The function that serves a call, or None."""
    family = _FAMILY.get(name)
    if family is None:
        return None
    return cast("Call", getattr(import_module(f"{__name__}.{family}"), f"sys_{name}"))


def call_table(abi: Abi) -> list[Call | None]:
    """The call for each number of an ISA; None where Linux has one and this has not. One for all machines.

    An entry imports its family when it is called, and puts the function in its own place.
    """
    return _table(abi.isa, tuple(abi.system_calls.items()))


@functools.cache
def _table(_isa: str, names: tuple[tuple[int, str], ...]) -> list[Call | None]:
    table: list[Call | None] = [None] * TABLE_SIZE
    for number, name in names:
        if name in _FAMILY:
            table[number] = functools.partial(_first_call, table, number, name)
    return table


def _first_call(table: list[Call | None], number: int, name: str, *arguments: object) -> int | None:
    function = table[number] = find(name)
    assert function is not None, "FAMILIES has it"
    return function(*arguments)


def served(names: Mapping[int, str]) -> list[str]:
    """Names of the calls that have a function, for the documentation."""
    return sorted({name for name in names.values() if name in _FAMILY})
