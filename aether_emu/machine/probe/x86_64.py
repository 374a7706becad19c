"""The x86_64 prober on Unicorn.

    rcx  accesses left      rsi  next address in the list      rdi  next place for a result
    rax  the address        r15  where a fetch comes back to        r14  PKRU        r13  as rcx

A fault leaves rcx alone, so the hook knows which access it was; it notes the exception and resumes
behind the access. `int3` ends a batch. The prober's pages are mapped twice, for ring 3 with protection
key 15 and for the supervisor, and never execute-disabled: then no control bit under test touches them.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

import numpy as np
from unicorn import (
    UC_ARCH_X86,
    UC_HOOK_INTR,
    UC_HOOK_MEM_FETCH_UNMAPPED,
    UC_HOOK_MEM_READ_UNMAPPED,
    UC_HOOK_MEM_WRITE_UNMAPPED,
    UC_MODE_64,
    UC_PROT_ALL,
    x86_const,
)

from aether_emu.arch.x86_64 import registers as regs
from aether_emu.arch.x86_64.stage1 import A, D, P, U, W
from aether_emu.errors import EngineError
from aether_emu.interruption import Undisturbed
from aether_emu.machine.probe.prober import BATCH, Attempts, Happened, Memory, Operation, Words, placed
from aether_emu.machine.unicorn import engine, x86_calibrate
from aether_emu.machine.unicorn.x86_state import ContextState, LiveState, State

SCRATCH = (1 << 40) - (1 << 20)
"""Physical address of the prober's own pages: the top of what the CPU can address."""

LANDING_CODE = bytes.fromhex("41ffe7")  # jmp r15

_PAGE = 4096
_CODE, _LIST, _RESULTS = 0, 1, 1 + BATCH * 8 // _PAGE
_PAGES = _RESULTS + BATCH * 8 // _PAGE
_TABLES = _PAGES  # then the tables: for each privilege one of each level below the root
_SIZE = 1 << 20
_KEY = 15 << 59
ACCESSES: dict[Operation, tuple[str, bytes]] = {
    Operation.READ: ("mov rbx, [rax]; mov [rdi], rbx", bytes.fromhex("488b1848891f")),
    Operation.WRITE: ("mov [rax], rax", bytes.fromhex("488900")),
    Operation.FETCH: ("jmp rax", bytes.fromhex("ffe0")),
    Operation.MODIFY: (
        "mov rbx, rax; lock xadd [rax], rbx; mov [rdi], rbx",
        bytes.fromhex("4889c3f0480fc11848891f"),
    ),
}
ACCESSES[Operation.INVALIDATE] = ("invlpg [rax]", bytes.fromhex("0f0138"))
ACCESSES[Operation.STORE] = ("mov rbx, [rdi]; mov [rax], rbx", bytes.fromhex("488b1f488918"))
ACCESSES[Operation.INVALIDATE_ALL] = ("mov rbx, cr3; mov cr3, rbx", bytes.fromhex("0f20db0f22db"))
ACCESSES[Operation.CROSS_READ] = ACCESSES[Operation.READ]  # the address makes the difference
ACCESSES[Operation.CROSS_WRITE] = ACCESSES[Operation.WRITE]
_KEYS = (  # in front of the loop, entered only with CR4.PKE on
    "mov eax, r14d; xor ecx, ecx; xor edx, edx; wrpkru; mov rcx, r13",
    bytes.fromhex("4489f031c931d20f01ef4c89e9"),
)
HEAD = ("mov rax, [rsi]", bytes.fromhex("488b06"))
NEXT = ("add rsi, 8; add rdi, 8; dec rcx", bytes.fromhex("4883c6084883c70848ffc9"))
_STRIDE = 64  # bytes of code for each operation
_PAGE_FAULT, _BREAKPOINT = 14, 3


def _routine(operation: Operation) -> tuple[bytes, int]:
    """The code of one operation, and the offset where it goes on after the access."""
    head = HEAD[1] + ACCESSES[operation][1]
    body = head + NEXT[1]
    end = bytes([0x75, (-len(body) - 2) & 0xFF, 0xCC])  # jnz to the head; int3
    return _KEYS[1] + body + end, len(_KEYS[1] + head)


_RESUME = {operation: _routine(operation)[1] for operation in ACCESSES}


class X86Prober:
    """A CPU over `memory` (`placed` tells where it stands). `levels` is 4 or 5.

    Before a batch the tables under `root` must hold `own_entries` in root slots `user_slot` and
    `supervisor_slot`, and fetchable pages LANDING_CODE at offset LANDING.
    """

    physical_bits = 40

    def __init__(
        self,
        memory: Memory,
        *,
        levels: int = 4,
        user_slot: int = 0,
        supervisor_slot: int = 511,
        live_state: bool = True,
    ) -> None:
        self._uc = engine.open_engine(UC_ARCH_X86, UC_MODE_64, x86_calibrate.MODEL)
        self._handle = engine.handle_of(self._uc)
        self._memory = placed(memory)  # the engine keeps no reference
        for start, words in self._memory:
            self._uc.mem_map_ptr(start, words.nbytes, UC_PROT_ALL, words.ctypes.data)
        self._scratch = mmap.mmap(-1, _SIZE)
        host = ctypes.addressof(ctypes.c_char.from_buffer(self._scratch))
        self._uc.mem_map_ptr(SCRATCH, _SIZE, UC_PROT_ALL, host)
        self._words = np.frombuffer(self._scratch, np.uint64)
        top = 12 + 9 * (levels - 1)
        canonical = -1 << top + 9 & (1 << 64) - 1
        self._bases = (supervisor_slot << top | canonical, user_slot << top)  # by `user`
        self.own_entries = {
            supervisor_slot: self._build(0, levels, 0),
            user_slot: self._build(1, levels, U),
        }
        for operation in ACCESSES:
            code, _resume = _routine(operation)
            self._scratch[operation * _STRIDE : operation * _STRIDE + len(code)] = code
        self._resume = 0
        self._happened = np.zeros(BATCH, np.int64)
        self._code = np.zeros(BATCH, np.uint64)
        self._address = np.zeros(BATCH, np.uint64)
        self._count, self._keys = 0, False
        x86_calibrate.enable_paging(self._uc, 0)
        self._cr4 = regs.CR4_PAE | regs.CR4_OSFXSR | (regs.CR4_LA57 if levels == 5 else 0)
        layout = x86_calibrate.measure()
        base = x86_calibrate.find_state(self._uc) if live_state else None
        self._state: State = ContextState(self._uc, layout) if base is None else LiveState(base, layout)
        self._hooks = (engine.INTERRUPT(self._interrupt_hook()), engine.UNMAPPED(self._unmapped))
        engine.hook_add(self._handle, UC_HOOK_INTR, self._hooks[0])
        for kind in (UC_HOOK_MEM_READ_UNMAPPED, UC_HOOK_MEM_WRITE_UNMAPPED, UC_HOOK_MEM_FETCH_UNMAPPED):
            engine.hook_add(self._handle, kind, self._hooks[1])

    def _build(self, which: int, levels: int, user: int) -> int:
        """The tables that map our pages from slot 0 of each on; the entry for the root."""
        first = _TABLES + which * (levels - 1)
        bits = P | W | A | user
        for number in range(levels - 2):
            self._words[(first + number) * 512] = SCRATCH + (first + number + 1) * _PAGE | bits
        leaf = (first + levels - 2) * 512
        key = _KEY if user else 0
        for page in range(_PAGES):
            self._words[leaf + page] = SCRATCH + page * _PAGE | bits | D | key
        return SCRATCH + first * _PAGE | bits

    def _interrupt_hook(self) -> Callable[[int, int, int], None]:
        state, handle, general = self._state, self._handle, self._state.general
        old, rip, error, cr2 = state.old_exception, state.rip, state.error_code, state.cr2
        happened, code, address = (memoryview(x) for x in (self._happened, self._code, self._address))  # type: ignore[arg-type]  # numpy arrays are buffers

        def interrupt(_uc: int, vector: int, _data: int) -> None:
            old[0] = -1
            left = general[1]
            if vector == _BREAKPOINT or not left:
                engine.emu_stop(handle)
                return
            index = self._count - left
            if vector == _PAGE_FAULT:
                happened[index] = Happened.FAULT
                code[index] = error[0] & 0xFFFF_FFFF
                address[index] = cr2[0]
            else:
                happened[index] = Happened.OTHER
                code[index] = vector
            rip[0] = self._resume

        return interrupt

    def _unmapped(self, _uc: int, _kind: int, physical: int, _size: int, _value: int, _data: int) -> bool:
        index = self._count - self._state.general[1]
        self._happened[index] = Happened.HOLE
        self._address[index] = physical
        return False

    def configure(self, *, wp: bool, smep: bool, smap: bool, pke: bool, nxe: bool) -> None:
        """Set the control registers for the batches that follow."""
        uc = self._uc
        cr4 = self._cr4 | smep * regs.CR4_SMEP | smap * regs.CR4_SMAP | pke * regs.CR4_PKE
        uc.reg_write(x86_const.UC_X86_REG_CR4, cr4)
        uc.reg_write(x86_const.UC_X86_REG_CR0, regs.CR0_KERNEL if wp else regs.CR0_KERNEL & ~regs.CR0_WP)
        efer = regs.EFER_KERNEL if nxe else regs.EFER_KERNEL & ~regs.EFER_NXE
        uc.reg_write(x86_const.UC_X86_REG_MSR, (regs.EFER, efer))
        self._keys = pke

    def run(
        self,
        root: int,
        addresses: Words,
        operation: Operation,
        *,
        user: bool,
        ac: bool = False,
        pkru: int = 0,
        flush: bool = True,
        values: Words | None = None,
    ) -> Attempts:
        """Make one access at each address, in order, under the controls that were configured.

        `values` are what STORE stores, one an address. Until the first access the TLB is cold, or with
        `flush` False what earlier batches left; it keeps what the accesses of the batch bring in.
        EngineError when the engine fails.
        """
        count = self._count = addresses.size
        if not 0 < count <= BATCH:
            raise EngineError(f"a batch has 1 to {BATCH} accesses, not {count}")
        state, uc, base = self._state, self._uc, self._bases[user]
        self._words[_LIST * 512 : _LIST * 512 + count] = addresses
        if values is not None:
            self._words[_RESULTS * 512 : _RESULTS * 512 + count] = values
        self._happened[:count] = Happened.DONE
        uc.reg_write(x86_const.UC_X86_REG_EFLAGS, regs.RFLAGS_FIXED | (regs.RFLAGS_AC if ac else 0))
        state.hflags[0] = state.hflags[0] & ~3 | (3 if user else 0)
        if flush:
            uc.reg_write(x86_const.UC_X86_REG_CR3, root)
        start = base + operation * _STRIDE
        self._resume = start + _RESUME[operation]
        general = state.general
        general[1] = general[13] = count
        general[14] = pkru
        general[6], general[7] = base + _LIST * _PAGE, base + _RESULTS * _PAGE
        general[15] = self._resume
        at = start if self._keys else start + len(_KEYS[1])
        while True:
            state.old_exception[0] = -1
            with Undisturbed():
                code = engine.emu_start(self._handle, at, 0, 0, 0)
            if not code:
                break
            if code not in (6, 7, 8):  # UC_ERR_READ/WRITE/FETCH_UNMAPPED: noted by the hook
                raise EngineError(f"the prober stopped: {engine.error_text(code)}")
            at = self._resume
        values = self._words[_RESULTS * 512 : _RESULTS * 512 + count].copy()
        happened = self._happened[:count].copy()
        noted = happened != Happened.DONE
        return Attempts(
            happened,
            np.where(noted, self._code[:count], np.uint64(0)),
            np.where(noted, self._address[:count], np.uint64(0)),
            values,
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
