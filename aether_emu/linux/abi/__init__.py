"""What differs between the ISAs in Linux's interface to programs: one `Abi` each.

Everything else in `linux/` is written once. An `Abi` carries the system-call numbers, the encodings
that Linux lays out per ISA, the signal frame, and what a program is told about the machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from aether_emu.linux.abi.signal import Delivery, Restored, SignalInfo
from aether_emu.linux.files.stat import Stat
from aether_emu.machine.cpu import Cpu, Trap
from aether_emu.policy.aslr import Entropy

RELEASE = "6.6.0"
"""The version of Linux that programs are told."""


class Abi(ABC):
    """One ISA's Linux interface."""

    isa: str
    machine: str  # uname -m, and AT_PLATFORM
    system_calls: Mapping[int, str]  # number -> name
    user_end: int  # TASK_SIZE_MAX: the end of the user half
    window: int  # DEFAULT_MAP_WINDOW: where mappings end that no hint puts higher
    entropy: Entropy

    @abstractmethod
    def encode_stat(self, stat: Stat) -> bytes:
        """`struct stat`."""

    @abstractmethod
    def hardware_capabilities(self, cpu: Cpu) -> tuple[int, int]:
        """AT_HWCAP and AT_HWCAP2, as true of the emulated CPU."""

    @abstractmethod
    def start(self, cpu: Cpu, entry: int, stack_pointer: int) -> None:
        """Set every register for a new program."""

    @abstractmethod
    def finish_call(self, cpu: Cpu, result: int) -> None:
        """Set the registers as a system call leaves them that was made outside the CPU's own callback."""

    @abstractmethod
    def restart_call(self, cpu: Cpu, number: int, argument: int) -> None:
        """Let the program make its system call anew: `number` with `argument` as its first one."""

    @abstractmethod
    def child_registers(self, cpu: Cpu, stack: int, tls: int | None) -> dict[str, int]:
        """What a new task has otherwise than its maker, which is in its call on `cpu`.

        `stack` 0 and `tls` None are the maker's.
        """

    # ---- signals

    minimum_signal_stack: int  # AT_MINSIGSTKSZ
    signal_return: bytes = b""  # symbol of the vDSO that handlers return to, where the ISA has one

    # ---- the vDSO, and what was before it

    broadcasts = False  # whether one instruction invalidates translations of all CPUs
    has_vsyscalls = False  # whether the ISA has a page of calls at fixed addresses (`calls.vsyscall`)

    counter_hz: int  # frequency of the counter that it reads: a tick is a whole number of ns
    time_pages: int  # pages of [vvar]
    vdso_above_stack: bool  # whether it goes there, or where a mapping without a hint goes

    smallest_stack: int  # MINSIGSTKSZ: what sigaltstack accepts

    @abstractmethod
    def fault_signal(self, cpu: Cpu | None, number: int, code: int, va: int, access: int) -> SignalInfo:
        """The signal of a refused access. `cpu` has just reported it; None for one that it did not see."""

    @abstractmethod
    def trap_signal(self, cpu: Cpu, trap: Trap) -> SignalInfo:
        """The signal that an exception becomes."""

    def untagged(self, address: int) -> int:
        """A fault's address as a handler is told it that asked for no tags."""
        return address

    @abstractmethod
    def push_frame(self, cpu: Cpu, delivery: Delivery) -> None:
        """Build the signal frame on the user stack and enter the handler. Raises UserFault."""

    @abstractmethod
    def pop_frame(self, cpu: Cpu, is_below_an_area: Callable[[int], bool]) -> Restored:
        """rt_sigreturn: put the registers of the frame back, as far as the frame is good.

        `is_below_an_area` tells whether any memory is mapped at an address or above it.
        """
