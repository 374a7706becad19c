"""What a process may take (getrlimit(2)), and how memory, files and time obey it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from aether_emu.clock import LAST_NS
from aether_emu.config import Config
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.credentials import IPC_LOCK, Credentials
from aether_emu.linux.files.files import Files
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.task.file_sizes import RLIMIT_FSIZE, FileSizes
from aether_emu.linux.task.real_time import RLIMIT_RTTIME, watch_real_time
from aether_emu.linux.task.registry import Registry
from aether_emu.linux.task.timers import PROFILED, ProcessorTimers
from aether_emu.linux.task.usage import Usage
from aether_emu.mm.space import AddressSpace

RLIM_INFINITY = (1 << 64) - 1
RLIMITS = 16
RLIMIT_CPU, RLIMIT_DATA, RLIMIT_STACK, RLIMIT_CORE, RLIMIT_NPROC, RLIMIT_NOFILE = 0, 2, 3, 4, 6, 7
RLIMIT_MEMLOCK, RLIMIT_AS, RLIMIT_SIGPENDING, RLIMIT_MSGQUEUE = 8, 9, 11, 12
RLIMIT_NICE, RLIMIT_RTPRIO = 13, 14
_LOCKED_BYTES, _QUEUE_BYTES = 8 << 20, 819_200  # Linux's MLOCK_LIMIT and MQ_BYTES_MAX
# Linux admits half as many signals as stacks of 16 KiB fit into an eighth of RAM.
_RAM_PER_SIGNAL = 2 * 8 * (16 << 10)
_SECOND = 10**9  # ns


class Limited(Protocol):
    """A process, as far as limits concern it."""

    kernel: Kernel
    config: Config
    mm: AddressSpace
    files: Files
    credentials: Credentials

    @property
    def registry(self) -> Registry[Any, Any]: ...
    @property
    def pid(self) -> int: ...
    @property
    def tasks(self) -> Sequence[Any]: ...
    @property
    def limits(self) -> ResourceLimits: ...
    def used(self) -> Usage: ...
    def post(self, info: SignalInfo) -> object: ...
    def processor_timers(self, clock: int) -> ProcessorTimers | None: ...


class ResourceLimits(dict[int, tuple[int, int]]):
    """The (soft, hard) limits of a process by resource. What is set is obeyed once it is applied."""

    def __init__(self, process: Limited) -> None:
        super().__init__(dict.fromkeys(range(RLIMITS), (RLIM_INFINITY, RLIM_INFINITY)))
        self._process = process
        self._processor = ProcessorLimit(process)
        space, config = process.mm.limits, process.config
        self[RLIMIT_STACK] = (space.stack, RLIM_INFINITY)
        self[RLIMIT_NPROC] = (process.registry.most // 2,) * 2
        self[RLIMIT_NOFILE] = (config.open_files, config.open_files)
        signals = max(config.ram // _RAM_PER_SIGNAL, 1)
        self[RLIMIT_SIGPENDING] = (signals, signals)
        if space.address_space is not None:
            self[RLIMIT_AS] = (space.address_space, space.address_space)
        self[RLIMIT_MEMLOCK] = (_LOCKED_BYTES, _LOCKED_BYTES)
        self[RLIMIT_CORE] = (0, RLIM_INFINITY)
        self[RLIMIT_MSGQUEUE] = (_QUEUE_BYTES, _QUEUE_BYTES)
        self[RLIMIT_NICE] = self[RLIMIT_RTPRIO] = (0, 0)

    def apply(self, resource: int) -> None:
        """Let memory and files obey what is said of a resource; with CAP_IPC_LOCK all may be locked."""
        soft, hard = (None if value == RLIM_INFINITY else value for value in self[resource])
        process = self._process
        space = process.mm.limits
        if resource == RLIMIT_STACK:
            space.stack = RLIM_INFINITY if soft is None else soft
        elif resource == RLIMIT_AS:
            space.address_space = soft
        elif resource == RLIMIT_DATA:
            space.data, space.data_most = soft, hard
        elif resource == RLIMIT_MEMLOCK:
            space.locked = None if process.credentials.has(IPC_LOCK) else soft
        elif resource == RLIMIT_CPU:
            self._processor.set()
        elif resource == RLIMIT_RTTIME:
            for task in process.tasks:
                watch_real_time(task)
        elif resource == RLIMIT_FSIZE and soft is not None and process.files.namespace.sizes is None:
            process.files.namespace.sizes = FileSizes(process.kernel.current)
        elif resource == RLIMIT_NOFILE:
            most = process.config.open_files
            process.files.table.limit = min(RLIM_INFINITY if soft is None else soft, most)


class ProcessorLimit:
    """RLIMIT_CPU: SIGXCPU at each second from the soft limit on, SIGKILL at the hard one.

    As on Linux the soft limit moves on by a second with each signal.
    """

    def __init__(self, process: Limited) -> None:
        self._process = process
        self.deadline: int | None = None

    def set(self) -> None:
        """The limit has changed."""
        process, (soft, _) = self._process, self._process.limits[RLIMIT_CPU]
        self.deadline = None if soft >= LAST_NS // _SECOND else soft * _SECOND
        timers = process.processor_timers(~process.pid << 3)
        if self.deadline is not None and timers is not None:
            process.kernel.observe_time()
            timers.add(self, self.deadline, PROFILED, self._expire)

    def _expire(self) -> None:
        process, (soft, hard) = self._process, self._process.limits[RLIMIT_CPU]
        if hard != RLIM_INFINITY and process.used().time >= hard * _SECOND:
            process.post(SignalInfo(sig.SIGKILL, sig.SI_KERNEL))
            return
        process.post(SignalInfo(sig.SIGXCPU, sig.SI_KERNEL))
        process.limits[RLIMIT_CPU] = (soft + 1, hard)
        self.set()
