"""The ARM64 prober on Unicorn.

    x0  the address        x1  next in the list     x2  next place for a result
    x3  accesses left      x4  where a fetch comes back to

As on x86_64 a fault leaves x3 alone, so the hook knows which access it was, and resumes behind it;
`brk` ends a batch. The half that is not under test maps the prober's own pages twice, for EL0 and for
EL1, by tables of its own: the root under test is the cases' alone.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

import numpy as np
from unicorn import (
    UC_HOOK_INTR,
    UC_HOOK_MEM_FETCH_UNMAPPED,
    UC_HOOK_MEM_READ_UNMAPPED,
    UC_HOOK_MEM_WRITE_UNMAPPED,
    UC_PROT_ALL,
)

from aether_emu.arch.arm64 import registers as regs
from aether_emu.arch.arm64.stage1 import ArmFormat
from aether_emu.arch.paging import Attributes, PageFlags
from aether_emu.errors import EngineError
from aether_emu.interruption import Undisturbed
from aether_emu.machine.probe.prober import BATCH, Attempts, Happened, Memory, Operation, Words, placed
from aether_emu.machine.unicorn import arm64_calibrate, engine
from aether_emu.machine.unicorn.arm64_state import ArmState

SCRATCH = (1 << 47) - (1 << 20)
"""Physical address of the prober's own pages: an entry with a few wrong bits does not lead there."""

LANDING_CODE = bytes.fromhex("df2403d580001fd6")  # bti jc; br x4: a guarded page admits the branch

_SIZE = 1 << 20
_SOURCES: dict[Operation, tuple[str, str]] = {
    Operation.READ: ("ldr x5, [x0]; str x5, [x2]", "050040f9450000f9"),
    Operation.WRITE: ("str x0, [x0]", "000000f9"),
    Operation.FETCH: ("br x0", "00001fd6"),
    Operation.MODIFY: ("ldadd x0, x5, [x0]; str x5, [x2]", "050020f8450000f9"),
    Operation.CROSS_READ: ("ldr x5, [x0]; str x5, [x2]", "050040f9450000f9"),
    Operation.CROSS_WRITE: ("str x0, [x0]", "000000f9"),
    Operation.UNPRIVILEGED_READ: ("ldtr x5, [x0]; str x5, [x2]", "050840f8450000f9"),
    Operation.UNPRIVILEGED_WRITE: ("sttr x0, [x0]", "000800f8"),
    Operation.INVALIDATE: ("ubfx x5, x0, #12, #44; tlbi vae1, x5", "05dc4cd3258708d5"),
    Operation.STORE: ("ldr x5, [x2]; str x5, [x0]", "450040f9050000f9"),
    Operation.INVALIDATE_ALL: ("tlbi vmalle1", "1f8708d5"),
}
_HEAD = ("ldr x0, [x1], #8", "208440f8")
_NEXT = ("add x2, x2, #8; subs x3, x3, #1", "42200091630400f1")
_END = "000020d4"  # brk #0
_STRIDE = 64
_FETCH_ABORT, _DATA_ABORT, _BREAKPOINT = 3, 4, 7
_SYNDROME = 0x3F << 26 | 1 << 6 | 0x3F  # EC, WnR, status: what an answer is compared by


def _routine(operation: Operation) -> tuple[bytes, int]:
    """The code of one operation, and the offset where it goes on after the access."""
    head = bytes.fromhex(_HEAD[1] + _SOURCES[operation][1])
    body = head + bytes.fromhex(_NEXT[1])
    back = (-len(body) >> 2) & (1 << 19) - 1
    branch = (0x5400_0001 | back << 5).to_bytes(4, "little")  # b.ne to the head
    return body + branch + bytes.fromhex(_END), len(head)


class ArmProber:
    """A CPU over `memory` (`placed` tells where it stands), with one granule and width.

    `upper` tells which half is under test: the one that TTBR1_EL1 translates, or TTBR0_EL1's.
    """

    physical_bits = 48

    def __init__(
        self, memory: Memory, *, granule: int = 4096, virtual_bits: int = 48, upper: bool = False,
        live_state: bool = True,
    ) -> None:  # fmt: skip
        self._uc = arm64_calibrate.open_cpu(granule)
        self._handle = engine.handle_of(self._uc)
        self._memory = placed(memory)  # the engine keeps no reference
        for start, words in self._memory:
            self._uc.mem_map_ptr(start, words.nbytes, UC_PROT_ALL, words.ctypes.data)
        self._scratch = mmap.mmap(-1, _SIZE)
        host = ctypes.addressof(ctypes.c_char.from_buffer(self._scratch))
        self._uc.mem_map_ptr(SCRATCH, _SIZE, UC_PROT_ALL, host)
        self._words = np.frombuffer(self._scratch, np.uint64)
        self.own_entries: dict[int, int] = {}  # nothing of ours stands in the root under test
        self._upper, self._granule = upper, granule
        self._format = ArmFormat(granule, virtual_bits, 48)
        self._list = granule  # offsets of our parts: code, list, results, tables
        self._results = self._list + -(-BATCH * 8 // granule) * granule
        self._tables = self._results + -(-BATCH * 8 // granule) * granule
        # Not at 0: that is where `emu_start` is told to stop.
        top = 1 << 20 if upper else -(1 << virtual_bits) & (1 << 64) - 1
        self._bases = (top, top + self._tables)  # virtual address of our pages, by `user`
        own_root = self._build()
        for operation in _SOURCES:
            code, _resume = _routine(operation)
            self._scratch[operation * _STRIDE : operation * _STRIDE + len(code)] = code
        self._resume = self._count = 0
        self._happened = np.zeros(BATCH, np.int64)
        self._code = np.zeros(BATCH, np.uint64)
        self._address = np.zeros(BATCH, np.uint64)
        self._translation = regs.tcr_value(granule, virtual_bits) & ~regs.TCR_EL1.value(TBI0=1)
        arm64_calibrate.enable_paging(self._uc, own_root, self._translation)
        self._state = ArmState(self._uc, live=live_state)
        self._x = self._state.general
        self._hooks = (engine.INTERRUPT(self._exception_hook()), engine.UNMAPPED(self._unmapped))
        engine.hook_add(self._handle, UC_HOOK_INTR, self._hooks[0])
        for kind in (UC_HOOK_MEM_READ_UNMAPPED, UC_HOOK_MEM_WRITE_UNMAPPED, UC_HOOK_MEM_FETCH_UNMAPPED):
            engine.hook_add(self._handle, kind, self._hooks[1])

    def _build(self) -> int:
        """Tables that map our pages for EL1 and behind them for EL0; the root's physical address."""
        fmt, pages = self._format, self._tables // self._granule
        at = SCRATCH + self._tables
        for level in range(fmt.top, 1, -1):
            slot = self._slot(at, level)
            at += self._granule
            self._words[slot] = fmt.table_entry(at)
        for user in (False, True):
            for page in range(pages):
                slot = self._slot(at, 1) + user * pages + page
                address = SCRATCH + page * self._granule
                self._words[slot] = fmt.leaf_entry(address, Attributes(_own_flags(user=user, code=page == 0)))
        return SCRATCH + self._tables

    def _slot(self, table: int, level: int) -> int:
        spec = self._format.levels[level - 1]
        return (table - SCRATCH >> 3) + (self._bases[0] >> spec.shift & spec.entries - 1)

    def _exception_hook(self) -> Callable[[int, int, int], None]:
        handle, state = self._handle, self._state
        x, pc, syndrome, fault = state.general, state.pc, state.syndrome, state.address
        happened, code, address = self._happened, self._code, self._address

        def exception(_uc: int, number: int, _data: int) -> None:
            left = x[3]
            if number == _BREAKPOINT or not left:
                engine.emu_stop(handle)
                return
            index = self._count - left
            if number in (_FETCH_ABORT, _DATA_ABORT):
                happened[index] = Happened.FAULT
                code[index] = syndrome[0] & _SYNDROME
                address[index] = fault[0]
            else:
                happened[index] = Happened.OTHER
                code[index] = number
            pc[0] = self._resume

        return exception

    def _unmapped(self, _uc: int, _kind: int, physical: int, _size: int, _value: int, _data: int) -> bool:
        index = self._count - self._x[3]
        self._happened[index] = Happened.HOLE
        self._address[index] = physical
        return False

    def configure(self, *, wxn: bool, tbi: bool, epd: bool, hpd: bool) -> None:
        """Set SCTLR_EL1.WXN, and TBI, EPD and HPD of the half under test, for the batches that follow."""
        half = int(self._upper)
        bits = {f"TBI{half}": int(tbi), f"EPD{half}": int(epd), f"HPD{half}": int(hpd)}
        self._uc.cpr_write(*regs.TCR_EL1.encoding, self._translation | regs.TCR_EL1.value(**bits))
        control = regs.SCTLR_VALUE | regs.SCTLR_EL1.value(WXN=int(wxn))
        self._uc.cpr_write(*regs.SCTLR_EL1.encoding, control)

    def run(
        self, root: int, addresses: Words, operation: Operation, *, user: bool, pan: bool = False,
        uao: bool = False, flush: bool = True, values: Words | None = None,
    ) -> Attempts:  # fmt: skip
        """Make one access at each address, in order. `flush` False keeps the TLB. Raises EngineError.

        `values` are what STORE stores, one an address.
        """
        count = self._count = addresses.size
        if not 0 < count <= BATCH:
            raise EngineError(f"a batch has 1 to {BATCH} accesses, not {count}")
        uc, x, base = self._uc, self._x, self._bases[user]
        self._words[self._list // 8 : self._list // 8 + count] = addresses
        if values is not None:
            self._words[self._results // 8 : self._results // 8 + count] = values
        self._happened[:count] = Happened.DONE
        if flush:
            uc.cpr_write(*(regs.TTBR1_EL1 if self._upper else regs.TTBR0_EL1), root)
            engine.flush_tlb(uc)
        privileged = regs.PSTATE_EL1 | pan * regs.PSTATE_PAN | uao * regs.PSTATE_UAO
        arm64_calibrate.enter_el(uc, regs.PSTATE_EL0 if user else privileged)
        start = base + operation * _STRIDE
        self._resume = start + _RESUME[operation]
        x[1], x[2], x[3], x[4] = base + self._list, base + self._results, count, self._resume
        at = start
        while True:
            with Undisturbed():
                code = engine.emu_start(self._handle, at, 0, 0, 0)
            if not code:
                break
            if code not in (6, 7, 8):  # UC_ERR_READ/WRITE/FETCH_UNMAPPED: noted by the hook
                raise EngineError(f"the prober stopped: {engine.error_text(code)}")
            at = self._resume
        happened = self._happened[:count].copy()
        noted = happened != Happened.DONE
        first = self._results // 8
        return Attempts(
            happened,
            np.where(noted, self._code[:count], np.uint64(0)),
            np.where(noted, self._address[:count], np.uint64(0)),
            self._words[first : first + count].copy(),
        )

    def translated(self, address: int, kind: int) -> int:
        """Where an access went that was just DONE: `kind` is 1 for a load, 2 for a store, 4 for a fetch."""
        physical = ctypes.c_uint64()
        if engine.vmem_translate(self._handle, address, kind, ctypes.addressof(physical)):
            raise EngineError(f"{address:#x} was accessed, and does not translate")
        return physical.value

    def close(self) -> None:
        """Let go of the engine, and then of the memory."""
        self._uc = None
        self._memory = []


_RESUME = {operation: _routine(operation)[1] for operation in _SOURCES}


def _own_flags(*, user: bool, code: bool) -> PageFlags:
    flags = PageFlags.READ | PageFlags.ACCESSED | PageFlags.GLOBAL
    flags |= PageFlags.EXECUTE if code else PageFlags.WRITE | PageFlags.DIRTY
    return flags | PageFlags.USER if user else flags
