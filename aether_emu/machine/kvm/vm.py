"""Linux's /dev/kvm by ioctl: a virtual machine with one CPU, and what this host's KVM offers a guest.

Numbers and layouts are those of <linux/kvm.h> for x86_64 (Documentation/virt/kvm/api.rst).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

import numpy as np

from aether_emu.arch.x86_64 import registers as regs
from aether_emu.errors import AetherError, EngineError
from aether_emu.machine.probe.prober import Words
from aether_emu.records import dataclass

DEVICE = Path("/dev/kvm")

_API_VERSION = 12
_GET_API_VERSION, _CREATE_VM, _CHECK_EXTENSION, _GET_VCPU_MMAP_SIZE = 0xAE00, 0xAE01, 0xAE03, 0xAE04
_CREATE_VCPU, _SET_TSS_ADDR, _RUN = 0xAE41, 0xAE47, 0xAE80
_GET_SUPPORTED_CPUID, _SET_CPUID2 = 0xC008AE05, 0x4008AE90
_SET_USER_MEMORY_REGION, _SET_IDENTITY_MAP_ADDR, _ENABLE_CAP = 0x4020AE46, 0x4008AE48, 0x4068AEA3
_GET_REGS, _SET_REGS, _GET_SREGS, _SET_SREGS = 0x8090AE81, 0x4090AE82, 0x8138AE83, 0x4138AE84
_TRANSLATE, _SET_SIGNAL_MASK = 0xC018AE85, 0x4004AE8B
_CAP_EXIT_ON_EMULATION_FAILURE = 204

_CPUID_ENTRIES = 256
_INTEL_PAGES = 0x7FFF_B000
"""Guest-physical address of four pages that KVM wants to itself on Intel CPUs (KVM_SET_TSS_ADDR)."""

TSS_SIZE = 0x68
_DATA, _CODE, _BUSY_TASK = 0x3, 0xB, 0xB  # segment types, marked as accessed and as in use (3A 3.4.5.1, 3.5)

_SECOND_STAGE = {"kvm_intel": "ept", "kvm_amd": "npt"}
_MODULES = Path("/sys/module")


class KvmUnavailable(AetherError):
    """This host has no KVM that we can use. `str()` says why in one line."""


class GuestHangs(EngineError):
    """The guest did not come to its end in the time that it was given."""


class ExitReason(IntEnum):
    """Why KVM_RUN came back (`kvm_run.exit_reason`): those that a prober can meet."""

    HLT = 5
    MMIO = 6
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTERNAL_ERROR = 17


class Register(IntEnum):
    """The order of struct kvm_regs."""

    RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP = range(8)
    R8, R9, R10, R11, R12, R13, R14, R15 = range(8, 16)
    RIP, RFLAGS = 16, 17


@dataclass(frozen=True, slots=True)
class Offer:
    """What KVM shows a guest of the host's CPU (by CPUID), and who translates the guest's addresses.

    `second_stage`: the CPU itself, by EPT or NPT. Without it KVM walks the guest's tables in software, and
    the CPU only sees shadow tables that KVM makes of them. `under_hypervisor`: the host is a guest too.
    `usable_bits` of a physical address can lead to memory; entries may have `physical_bits`.
    """

    physical_bits: int
    usable_bits: int
    smep: bool
    smap: bool
    pke: bool
    nxe: bool
    la57: bool
    gigabyte_pages: bool
    second_stage: bool
    under_hypervisor: bool
    module: str
    vendor: str

    def __str__(self) -> str:
        if not self.second_stage:
            return f"KVM on this host, not silicon: {self.module} has no second stage and walks in software"
        return f"{self.module} with a second stage{', under a hypervisor' if self.under_hypervisor else ''}"


def offer() -> Offer:
    """Ask this host's KVM. Raises KvmUnavailable."""
    device = _open()
    try:
        leaves = _leaves(_supported(device))
    finally:
        os.close(device)
    _, seven_b, seven_c, _ = leaves.get((7, 0), (0, 0, 0, 0))
    extended = leaves.get((0x8000_0001, 0), (0, 0, 0, 0))[3]
    sizes = leaves.get((0x8000_0008, 0), (36, 0, 0, 0))[0]
    module = next((path.name for path in sorted(_MODULES.glob("kvm_*"))), "kvm")
    return Offer(
        sizes & 0xFF,
        sizes >> 16 & 0xFF or sizes & 0xFF,
        smep=bool(seven_b >> 7 & 1),
        smap=bool(seven_b >> 20 & 1),
        pke=bool(seven_c >> 3 & 1),
        nxe=bool(extended >> 20 & 1),
        la57=bool(seven_c >> 16 & 1),
        gigabyte_pages=bool(extended >> 26 & 1),
        second_stage=_has_second_stage(module),
        under_hypervisor=_is_a_guest(),
        module=module,
        vendor=struct.pack("<3I", *(leaves[0, 0][number] for number in (1, 3, 2))).decode("ascii", "replace"),
    )


def _is_a_guest() -> bool:
    """Whether the host's own CPUID has the hypervisor bit. What KVM offers has it for every guest."""
    try:
        return " hypervisor" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def _has_second_stage(module: str) -> bool:
    try:
        setting = (_MODULES / module / "parameters" / _SECOND_STAGE[module]).read_text(encoding="ascii")
    except (KeyError, OSError):
        return False
    return setting.strip() in ("Y", "1")


def page_aligned(size: int) -> Words:
    """`size` bytes of zeroes that begin at a page boundary, which a memory slot must."""
    return np.frombuffer(mmap.mmap(-1, size), np.uint64)


def _open() -> int:
    """The device, or KvmUnavailable."""
    if platform.machine() != "x86_64":
        raise KvmUnavailable(f"the host is {platform.machine()}, not x86_64")
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise KvmUnavailable(f"{DEVICE}: {error.strerror}") from None
    try:
        version = fcntl.ioctl(device, _GET_API_VERSION, 0)
        if version != _API_VERSION:
            raise KvmUnavailable(f"{DEVICE} speaks version {version}, not {_API_VERSION}")
        if fcntl.ioctl(device, _CHECK_EXTENSION, _CAP_EXIT_ON_EMULATION_FAILURE) <= 0:
            raise KvmUnavailable("the host's KVM is older than Linux 5.14")
        os.close(fcntl.ioctl(device, _CREATE_VM, 0))
    except OSError as error:
        os.close(device)
        raise KvmUnavailable(f"{DEVICE} refuses a virtual machine: {error.strerror}") from None
    except KvmUnavailable:
        os.close(device)
        raise
    return device


def _supported(device: int) -> bytearray:
    """struct kvm_cpuid2 with all that the host supports."""
    table = bytearray(8 + 40 * _CPUID_ENTRIES)
    struct.pack_into("<I", table, 0, _CPUID_ENTRIES)
    fcntl.ioctl(device, _GET_SUPPORTED_CPUID, table, True)
    return table


def _leaves(table: bytearray) -> dict[tuple[int, int], tuple[int, int, int, int]]:
    """EAX, EBX, ECX, EDX by function and index."""
    found = {}
    for number in range(struct.unpack_from("<I", table)[0]):
        function, index, _flags, *values = struct.unpack_from("<7I", table, 8 + 40 * number)
        found[function, index] = tuple(values)
    return found


class VirtualMachine:
    """One CPU in 64-bit mode and the memory that is given to it. Belongs to the thread that made it.

    Raises KvmUnavailable; afterwards a call that KVM refuses is an EngineError.
    """

    def __init__(self) -> None:
        device = _open()
        self._closing: list[Callable[[], object]] = []
        self._own(device)
        try:
            self._vm = self._own(fcntl.ioctl(device, _CREATE_VM, 0))
            self._call(self._vm, _SET_IDENTITY_MAP_ADDR, struct.pack("<Q", _INTEL_PAGES))
            self._call(self._vm, _SET_TSS_ADDR, _INTEL_PAGES + mmap.PAGESIZE)
            enable = struct.pack("<IIQ88x", _CAP_EXIT_ON_EMULATION_FAILURE, 0, 1)
            self._call(self._vm, _ENABLE_CAP, enable)
            self._cpu = self._own(fcntl.ioctl(self._vm, _CREATE_VCPU, 0))
            self._call(self._cpu, _SET_CPUID2, _supported(device))
            self._shared = mmap.mmap(self._cpu, fcntl.ioctl(device, _GET_VCPU_MMAP_SIZE, 0))
            self._closing.append(self._shared.close)
        except OSError as error:
            self.close()
            raise KvmUnavailable(f"{DEVICE} refuses a virtual machine: {error.strerror}") from None
        self._slots = 0
        self._spare = page_aligned(mmap.PAGESIZE)
        self._memory: list[Words] = [self._spare]  # KVM keeps no reference
        self._alarm = _Alarm()
        self._closing.append(self._alarm.close)
        self._set_signal_mask()

    def _own(self, descriptor: int) -> int:
        self._closing.append(lambda: os.close(descriptor))
        return descriptor

    def _call(self, descriptor: int, request: int, argument: bytes | bytearray | int) -> None:
        if isinstance(argument, bytearray):
            fcntl.ioctl(descriptor, request, argument, True)
        else:
            fcntl.ioctl(descriptor, request, argument)

    def _set_signal_mask(self) -> None:
        """Let the alarm's signal end KVM_RUN, while outside of it the signal stays blocked."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        mask = sum(1 << number - 1 for number in blocked - {_Alarm.SIGNAL})
        self._call(self._cpu, _SET_SIGNAL_MASK, struct.pack("<IQ", 8, mask))

    # ---- memory

    def add_memory(self, physical: int, memory: Words) -> None:
        """Put page-aligned `memory` at guest-physical address `physical`, for good."""
        self._memory.append(memory)
        self._region(self._slots, physical, memory.nbytes, memory.ctypes.data)
        self._slots += 1

    def _region(self, slot: int, physical: int, size: int, host: int) -> None:
        try:
            region = struct.pack("<IIQQQ", slot, 0, physical, size, host)
            self._call(self._vm, _SET_USER_MEMORY_REGION, region)
        except OSError as error:
            raise EngineError(f"KVM refuses memory at {physical:#x}: {error.strerror}") from None

    def forget_shadows(self, physical: int) -> None:
        """Make KVM throw away all shadow tables: give the guest a page at `physical` and take it back.

        Shadow tables follow what a guest writes to its tables and what it flushes; edits from outside the
        guest are neither.
        """
        self._region(self._slots, physical, self._spare.nbytes, self._spare.ctypes.data)
        self._region(self._slots, physical, 0, self._spare.ctypes.data)

    # ---- registers

    def set_registers(self, values: list[int]) -> None:
        """All of `Register`, in its order. Clears an exception that waits to be delivered."""
        fcntl.ioctl(self._cpu, _SET_REGS, struct.pack("<18Q", *values))

    def registers(self) -> list[int]:
        """All of `Register`, in its order."""
        return list(struct.unpack("<18Q", fcntl.ioctl(self._cpu, _GET_REGS, bytes(144))))

    def set_system(self, *, cr0: int, cr3: int, cr4: int, efer: int, gdt: int, tss: int, idt: int) -> None:
        """64-bit mode at ring 0 with these control registers; the tables' linear addresses."""
        system = bytearray(312)
        fcntl.ioctl(self._cpu, _GET_SREGS, system, True)
        data = _segment(0, 0xFFFF_FFFF, regs.KERNEL_DATA, _DATA, g=1)
        task = _segment(tss, TSS_SIZE - 1, regs.TASK_STATE, _BUSY_TASK, s=0)
        system[:168] = _segment(0, 0xFFFF_FFFF, regs.KERNEL_CODE, _CODE, long=1, g=1) + data * 5 + task
        gdt_limit, idt_limit = 8 * len(regs.GDT) + 16 - 1, 16 * 256 - 1
        struct.pack_into("<QH6xQH6x", system, 192, gdt, gdt_limit, idt, idt_limit)
        struct.pack_into("<QQQQQQ", system, 224, cr0, 0, cr3, cr4, 0, efer)
        try:
            fcntl.ioctl(self._cpu, _SET_SREGS, system, True)
        except OSError as error:
            raise EngineError(f"KVM refuses CR4 {cr4:#x}, EFER {efer:#x}: {error.strerror}") from None

    def translate(self, linear: int) -> int | None:
        """Where KVM's own walk of the guest's tables, in software, leads; None if nowhere."""
        answer = bytearray(struct.pack("<QQQ", linear, 0, 0))
        fcntl.ioctl(self._cpu, _TRANSLATE, answer, True)
        physical, valid = struct.unpack_from("<8xQB", answer)
        return int(physical) if valid else None

    # ---- running

    @contextmanager
    def watched(self, seconds: float) -> Iterator[None]:
        """A time for all `run`s inside, together; they raise GuestHangs when it is over.

        EngineError in a thread or process that did not make the machine.
        """
        with self._alarm.set(seconds):
            yield

    def run(self) -> ExitReason:
        """Go on until the guest needs something. Only inside `watched`. Raises GuestHangs, EngineError."""
        while True:
            try:
                fcntl.ioctl(self._cpu, _RUN, 0)
                break
            except InterruptedError:
                if self._alarm.rang():
                    raise GuestHangs(f"the guest did not stop in {self._alarm.seconds} s") from None
            except OSError as error:
                raise EngineError(f"KVM_RUN: {error.strerror}") from None
        number = struct.unpack_from("<I", self._shared, 8)[0]
        try:
            return ExitReason(number)
        except ValueError:
            raise EngineError(f"the guest stopped with KVM exit reason {number}") from None

    @property
    def touched(self) -> int:
        """The physical address of the access that an exit with MMIO is about."""
        return int(struct.unpack_from("<Q", self._shared, 32)[0])

    @property
    def suberror(self) -> int:
        """What an exit with INTERNAL_ERROR is about: 1 when KVM could not emulate an instruction."""
        return int(struct.unpack_from("<I", self._shared, 32)[0])

    def close(self) -> None:
        """Let go of everything."""
        while self._closing:
            self._closing.pop()()


def _segment(
    base: int, limit: int, selector: int, kind: int, *, s: int = 1, long: int = 0, g: int = 0
) -> bytes:
    """struct kvm_segment, present and of privilege 0."""
    return struct.pack("<QIH10B", base, limit, selector, kind, 1, 0, 0, s, long, g, 0, 0, 0)


class _Alarm:
    """A timer of the kernel that ends KVM_RUN of this thread by a signal, for which no handler is needed.

    The signal is blocked except inside KVM_RUN, which never delivers it: it stays pending and is taken
    back here. So a host program's own handlers and alarms are left alone.
    """

    SIGNAL = signal.SIGRTMIN + 9
    _CREATE, _SET_TIME, _DELETE = 222, 223, 226  # system calls of x86_64
    _THREAD = 4  # SIGEV_THREAD_ID

    def __init__(self) -> None:
        self._system = ctypes.CDLL(None, use_errno=True).syscall
        event = struct.pack("<QiiI44x", 0, self.SIGNAL, self._THREAD, threading.get_native_id())
        timer = ctypes.c_int()
        if self._system(self._CREATE, 1, event, ctypes.byref(timer)):
            raise EngineError(f"no timer: {os.strerror(ctypes.get_errno())}")
        self._timer = timer.value
        self.seconds = 0.0
        self._thread = threading.get_native_id()

    @contextmanager
    def set(self, seconds: float) -> Iterator[None]:
        """Ring once, in `seconds`, unless the block has ended."""
        if threading.get_native_id() != self._thread:
            raise EngineError("a virtual machine runs in the thread that made it alone")
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {self.SIGNAL})
        self.seconds = seconds
        self._arm(seconds)
        try:
            yield
        finally:
            self._arm(0)
            self.rang()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _arm(self, seconds: float) -> None:
        whole = int(seconds)
        when = struct.pack("<qqqq", 0, 0, whole, int((seconds - whole) * 1e9))
        self._system(self._SET_TIME, self._timer, 0, when, None)

    def rang(self) -> bool:
        """Whether the signal has come since; takes it back."""
        return signal.sigtimedwait({self.SIGNAL}, 0) is not None

    def close(self) -> None:
        """Give the timer back."""
        self._system(self._DELETE, self._timer)
