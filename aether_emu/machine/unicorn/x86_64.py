"""The x86_64 CPU on Unicorn: bring-up, hooks, and what the engine does otherwise than a CPU.

Ring 3 is entered once, at boot, by a real `iretq`; afterwards the CPU rests at CPL 3 between
runs, so that user memory is always accessed with user rights. Supervisor code runs as nested
stubs (`arch.x86_64.stubs`): `X86Cpu.supervisor` lowers the privilege in the CPU state and puts it back.

Engine behaviour handled here (unicorn 2.1.4):
- `old_exception` is never cleared: reset before every run and in every exception hook.
- a software `int n` arrives as vector n: told apart by `is_int`, it is a #GP unless 3 or 4; more of this
  kind is in `x86_traps`.
- `syscall` makes no transition: rcx and r11 are set here, and a pc written meanwhile gets +2. A TF written
  meanwhile would trap behind the call, and not behind the next instruction: it is set when the run goes on.
- far returns at ring 3 read their frames with supervisor rights, which SMAP refuses: done in `x86_traps`.
- a store through one address makes code of another stale if its TLB entry is older than the code:
  where such stores can be, every new block drops the TLB.
- a block is translated whole before it runs, and what cannot be fetched faults too early: see `x86_ahead`.
- the FPU starts with zeros; CS/SS written by register keep CPL 0.
- a run to an `until` address leaves a page fault pending: runs end by other means.
- VEX code runs wrongly, port I/O is allowed, RDRAND and RDTSC are the host's: see `x86_blocks`.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from unicorn import (
    UC_ARCH_X86,
    UC_HOOK_CODE,
    UC_HOOK_INSN,
    UC_HOOK_INSN_INVALID,
    UC_HOOK_INTR,
    UC_HOOK_MEM_WRITE_PROT,
    UC_MODE_64,
    x86_const,
)

from aether_emu.arch.x86_64 import registers as regs
from aether_emu.arch.x86_64 import stubs, syndrome
from aether_emu.errors import EngineError
from aether_emu.interruption import Undisturbed
from aether_emu.machine.cpu import Saved
from aether_emu.machine.unicorn import engine, x86_blocks, x86_calibrate, x86_operand
from aether_emu.machine.unicorn.cpu import FETCH_UNMAPPED, MASK
from aether_emu.machine.unicorn.x86_ahead import LookAhead
from aether_emu.machine.unicorn.x86_blocks import Special
from aether_emu.machine.unicorn.x86_registers import CONTROL, GENERAL_NAMES, NUMBERS, X87_NAMES, X87_NUMBERS
from aether_emu.machine.unicorn.x86_scan import BlockScan
from aether_emu.machine.unicorn.x86_state import ContextState, LiveState, State
from aether_emu.machine.unicorn.x86_traps import ILLEGAL, PROTECTION, X86Traps
from aether_emu.records import dataclass

if TYPE_CHECKING:
    from aether_emu.machine.unicorn.scan_time import ScanTime

_GENERAL = {name: index for index, name in enumerate(GENERAL_NAMES)}
_WRITABLE = {**NUMBERS, **dict(zip(X87_NAMES, X87_NUMBERS, strict=True))}
_ALL = {**_WRITABLE, **CONTROL}
_OTHERS = [(name, n) for name, n in _WRITABLE.items() if name not in _GENERAL and name != "rflags"]
_GDT_LIMIT = regs.CPU_NUMBER | 7  # the last byte of the last descriptor
_STACK_TOP, _TSS, _IRET_FRAME = 0xFF0, 0x100, 0xF00

# Indexed by the low six bits of the error code: a user's load or store as a neutral access, else None.
_DATA_ACCESS = tuple(
    access if code & syndrome.USER and not code & syndrome.FETCH else None
    for code, access in enumerate(syndrome.ACCESS_OF_ERROR)
)


def _ignore(_va: int, _access: int) -> None:
    """Takes the pending page fault that a failed access by the host left: the guest did not make it."""


@dataclass(frozen=True, slots=True)
class SupervisorResult:
    """What a ring-0 stub left: rax, and the fault that ended it as (va, access), if any."""

    rax: int
    fault: tuple[int, int] | None


class X86Cpu(X86Traps):
    """One x86_64 CPU. `ranges` are (guest-physical start, host address, length), mapped once.

    `time_stamp` and `random` answer RDTSC and RDRAND; `levels` of page tables are 4, or 5 (CR4.LA57). With
    `pcids` CR3 holds one (CR4.PCIDE).
    `live_state=False` forces the slower state access that needs nothing but the engine's API.
    """

    isa = "x86_64"
    one_root = True
    misses_stores = True

    def __init__(
        self,
        ranges: list[tuple[int, int, int]],
        *,
        time_stamp: Callable[[], int],
        random: Callable[[], int],
        levels: int = 4,
        live_state: bool = True,
        pcids: bool = False,
    ) -> None:
        self._scan = BlockScan(self._block_found)
        super().__init__(engine.open_engine(UC_ARCH_X86, UC_MODE_64, x86_calibrate.MODEL), ranges)
        self._time_stamp, self._random, self._levels = time_stamp, random, levels
        self._pcids = pcids
        self._address_bits = 12 + 9 * levels
        layout = x86_calibrate.measure()
        base = x86_calibrate.find_state(self._uc) if live_state else None
        self.live_state = base is not None
        self._state: State = ContextState(self._uc, layout) if base is None else LiveState(base, layout)
        self.general = self._state.general
        self._ahead = LookAhead(self._state, layout.shadow)
        self._hole_ahead = False
        self._trap_flag = False  # TF was written in a system call and is not set yet
        self._bias = 0  # what the engine adds to rip when the current callback returns
        self._new_special: tuple[int, int, x86_blocks.Found] | None = None
        self._specials: set[int] = set()  # addresses, each with a hook that stops in front
        self._stop_before = engine.CODE(self._before_special)
        self._let_pass = -1
        self._text = self._data = 0
        self._flags = ctypes.c_uint64()
        self._flags_address = ctypes.addressof(self._flags)

    # ---- bring-up

    @staticmethod
    def text_page() -> bytes:
        """The supervisor text page: every stub at its offset."""
        page = bytearray(b"\xf4" * 4096)
        for stub in stubs.ALL:
            page[stub.offset : stub.offset + len(stub.code)] = stub.code
        return bytes(page)

    @staticmethod
    def data_page(va: int, number: int = 0) -> bytes:
        """The supervisor data page of CPU `number`, to be mapped at `va`: GDT, task state, a stack."""
        page = bytearray(4096)
        gdt = [*regs.GDT, *regs.task_state_descriptor(va + _TSS, 0x67)]
        struct.pack_into(f"<{len(gdt)}Q", page, 0, *gdt)
        struct.pack_into("<Q", page, regs.CPU_NUMBER & ~7, regs.cpu_number_descriptor(number))
        struct.pack_into("<Q", page, _TSS + 4, va + _STACK_TOP)  # RSP0
        struct.pack_into("<H", page, _TSS + 102, 0x68)  # I/O map base behind the limit: no port allowed
        iret = (0, regs.USER_CODE, regs.RFLAGS_FIXED | regs.RFLAGS_IF, 0, regs.USER_DATA)
        struct.pack_into("<5Q", page, _IRET_FRAME, *iret)
        return bytes(page)

    def boot(self, root: int, text: int, data: int) -> None:
        """Turn paging on with `root`, whose kernel half maps the two pages above, and enter ring 3."""
        uc = self._uc
        x86_calibrate.enable_paging(uc, root, self._levels)
        more = regs.CR4_PKE | (regs.CR4_PCIDE if self._pcids else 0)
        uc.reg_write(x86_const.UC_X86_REG_CR4, uc.reg_read(x86_const.UC_X86_REG_CR4) | more)
        self._root = root
        self._text, self._data = text, data
        self._take_place()
        self._install_hooks()
        arrived: list[int] = []

        def expect(va: int, _access: int) -> None:
            arrived.append(va)
            engine.emu_stop(self._handle)

        self.on_fault, kernel = expect, self.on_fault
        self._state.old_exception[0] = -1
        self.write("rsp", data + _IRET_FRAME)
        with Undisturbed():
            code = engine.emu_start(self._handle, text + stubs.IRET.offset, 0, 0, 0)
        self.on_fault = kernel
        if self._failure is not None:
            raise self._failure
        if code or arrived != [0] or self._state.hflags[0] & 3 != 3:
            raise EngineError(f"ring 3 was not reached: engine error {code}, faults {arrived}")

    def _take_place(self) -> None:
        """Use the CPU's own descriptors and task state."""
        self._uc.reg_write(x86_const.UC_X86_REG_GDTR, (0, self._data, _GDT_LIMIT, 0))
        self._uc.reg_write(x86_const.UC_X86_REG_TR, (regs.TASK_STATE, self._data + _TSS, 0x67, 0x8900))

    def _install_hooks(self) -> None:
        insn = UC_HOOK_INSN
        for kind, callback, extra in (
            (UC_HOOK_INTR, engine.INTERRUPT(self._interrupt_hook()), ()),
            (insn, engine.INSTRUCTION(self._system_call_hook()), (x86_const.UC_X86_INS_SYSCALL,)),
            (UC_HOOK_INSN_INVALID, engine.INVALID(self._invalid), ()),
            (insn, engine.SKIPPABLE(self._rdtsc), (x86_const.UC_X86_INS_RDTSC,)),
            (insn, engine.SKIPPABLE(self._rdtscp), (x86_const.UC_X86_INS_RDTSCP,)),
        ):
            self._add_hook(kind, callback, *extra)
        self._look_at_blocks(self._scan.callback, self._scan.user_data)

    # ---- hooks (an exception in one is kept and raised by `run`)

    def _interrupt_hook(self) -> Callable[[int, int, int], None]:
        state, handle = self._state, self._handle
        old, is_int, cr2, error = state.old_exception, state.is_int, state.cr2, state.error_code

        def interrupt(_uc: int, vector: int, _data: int) -> None:
            old[0] = -1
            try:
                if vector == 14 and not is_int[0]:
                    access = _DATA_ACCESS[error[0] & 63]
                    if access is not None:
                        self.on_fault(cr2[0], access)
                    else:
                        self._other_page_fault()
                else:
                    self._exception(vector)
            except BaseException as failure:
                self._fail(failure)
            if self._exit is not None or self._interrupted:
                engine.emu_stop(handle)

        return interrupt

    def _system_call_hook(self) -> Callable[[int, int], None]:
        state, handle = self._state, self._handle
        g, rip = state.general, state.rip

        def system_call(_uc: int, _data: int) -> None:
            self._bias = 2
            try:
                result = self.on_system_call(g[0], g[7], g[6], g[2], g[10], g[8], g[9])
                if result is not None:
                    g[0] = result & MASK
                    g[1] = rip[0] + 2
                    g[11] = 0x202  # arithmetic flags are not reproduced here
                if self.return_work is not None:
                    if result is not None:
                        g[11] = self.read("rflags")  # a signal frame shows the two alike
                    self.return_work()
            except BaseException as failure:
                self._fail(failure)
            self._bias = 0
            if self._exit is not None or self._interrupted or self._trap_flag:
                engine.emu_stop(handle)

        return system_call

    def _other_page_fault(self) -> None:
        """A page fault of a fetch, of a stub, or of the engine's on a user's behalf."""
        state = self._state
        code = state.error_code[0]
        if code & syndrome.FETCH and self._ahead.put_off():
            return
        if code & syndrome.USER or not state.hflags[0] & 3:
            self.on_fault(state.cr2[0], syndrome.ACCESS_OF_ERROR[code & 63])
        else:
            self._far_return()

    def _invalid(self, _uc: int, _data: int) -> bool:
        self._state.old_exception[0] = -1
        self._guarded(self._illegal)
        return True

    def _rdtsc(self, _uc: int, _data: int) -> int:
        def answer() -> None:
            now = self._time_stamp()
            self.general[0], self.general[2] = now & 0xFFFF_FFFF, now >> 32 & 0xFFFF_FFFF

        self._guarded(answer)
        return 1

    def _rdtscp(self, uc: int, data: int) -> int:
        self.general[1] = self.number
        return self._rdtsc(uc, data)

    def _before_special(self, _uc: int, pc: int, _size: int, _data: int) -> None:
        if pc == self._let_pass:
            self._let_pass = -1
            return
        try:
            passes = self.live_state and not self.halts.halts_anywhere and self._touches_what_is_there()
        except BaseException as failure:
            self._fail(failure)
            passes = False
        if not passes:
            engine.emu_stop(self._handle)

    def time_looking(self) -> ScanTime:
        timed = super().time_looking()
        self._stop_before = engine.CODE(timed.around(self._before_special))
        return timed

    def _block_found(self, pc: int, code: bytes, offset: int) -> bool:
        """A block was translated and is about to run: is its instruction at `offset` a special one?"""
        found = x86_blocks.special_at(code, offset)
        if found is not None and pc + offset not in self._specials:
            self._new_special = (pc, len(code), found)
            engine.emu_stop(self._handle)
        return found is not None

    # ---- running

    def _before_entry(self) -> None:
        self._state.old_exception[0] = -1
        self._ahead.forget()
        if self._hole_ahead:
            self._hole_ahead = False
            self._ahead.alone()

    def _after_entry(self, code: int) -> bool:
        if self._trap_flag:
            self.write("rflags", self.read("rflags"))
        elif self._new_special is not None:
            self._plant_special()
        elif code == FETCH_UNMAPPED and not self._ahead.running_alone:
            self._hole_ahead = True
        elif not code and self._exit is None and not self._spent() and self._state.rip[0] in self._specials:
            self._meet_special()
        else:
            return False
        return True

    def _plant_special(self) -> None:
        """Translate a block again, now with a stop in front of its first special instruction."""
        planted, self._new_special = self._new_special, None
        assert planted is not None
        pc, size, found = planted
        place = pc + found.offset
        self._specials.add(place)
        engine.hook_add(self._handle, UC_HOOK_CODE, self._stop_before, only_at=place)
        self._uc.ctl_remove_cache(pc, pc + size)

    def _meet_special(self) -> None:
        """The run stopped in front of a special instruction; look again, code may have changed."""
        if self.halts.halts_instead(self.pc):
            self._halted()
            return
        code = self._code_here()
        found = x86_blocks.first_special(code)
        if found is None or found.offset:
            self._pass()
            return
        self._guarded(lambda: self._instead_of(found, code))

    def _instead_of(self, found: x86_blocks.Found, code: bytes) -> None:
        """Do what is to be done instead of the special instruction at pc, whose bytes are `code`."""
        passes = False
        match found.special:
            case Special.ILLEGAL:
                self.on_trap(ILLEGAL)
            case Special.PRIVILEGED:
                self.on_trap(PROTECTION)
            case Special.RANDOM:
                self._answer_random(found)
            case Special.NEGATE:
                self._negate(code)
            case Special.FLAGS:
                self._move_flags(code)
            case Special.TOUCH:
                passes = self._touch(code)
                if passes:
                    self._uncount()  # as if the engine had not stopped, which it need not do for each
            case Special.BASE:
                passes = x86_operand.canonical(self.general[found.register], self._address_bits)
                if not passes:
                    self.on_trap(PROTECTION)
        if passes:
            self._pass()

    def _pass(self) -> None:
        """Let the instruction at pc execute as it is."""
        self._let_pass = self.halts.again = self.pc

    def _answer_random(self, found: x86_blocks.Found) -> None:
        """RDRAND and RDSEED always succeed: CF=1, the other arithmetic flags 0 (Intel SDM 2)."""
        value = self._random()
        if found.width == 8:
            self.general[found.register] = value
        elif found.width == 4:
            self.general[found.register] = value & 0xFFFF_FFFF
        else:
            kept = self.general[found.register] & ~0xFFFF
            self.general[found.register] = kept | value & 0xFFFF
        self.write("rflags", self.read("rflags") & ~regs.RFLAGS_ARITHMETIC | regs.RFLAGS_CF)
        self._state.rip[0] = self._state.rip[0] + found.size

    # ---- translation

    @property
    def code_changes(self) -> bool:
        return self._scan.changes

    @code_changes.setter
    def code_changes(self, changes: bool) -> None:
        self._scan.changes = changes

    def watch_stores(self, pa: int, length: int) -> None:
        # To the engine a page is free of code after one store by an address that cannot be executed, and it
        # takes the next stores there for harmless, whatever else is translated of the page. It does not where
        # a hook waits for refused stores; nothing of ours is ever refused by physical address.
        kind = UC_HOOK_MEM_WRITE_PROT
        engine.hook_add(self._handle, kind, engine.EMU_STOP_ADDRESS, only_at=pa, length=length)
        self.flush_all()

    def set_root(self, root: int, tag: int = 0, *, keep: bool = False) -> None:
        self._root, self._tag = root | tag, tag
        self._walk()

    def _walk(self) -> None:
        # Without bit 63, which asks to keep translations: the engine keeps none, but would show it in CR3.
        self._uc.reg_write(x86_const.UC_X86_REG_CR3, self._root)

    def flush_page(self, va: int) -> None:
        state = self._state
        flags, rip, rdi = state.hflags[0], state.rip[0], self.general[7]
        state.hflags[0] = flags & ~3
        self.general[7] = va
        code = self._run_quietly(stubs.INVLPG)
        state.hflags[0] = flags
        state.rip[0] = rip
        self.general[7] = rdi
        if code:
            raise EngineError(f"invlpg stub: engine error {code}")

    def _run_quietly(self, stub: stubs.Stub) -> int:
        """Run a stub inside a hook, keeping the arithmetic flags: entering the engine anew forgets them."""
        engine.reg_read(self._handle, x86_const.UC_X86_REG_EFLAGS, self._flags_address)
        kept = self._flags.value
        code = self._run_stub(self._text + stub.offset)
        self._flags.value = kept
        engine.reg_write(self._handle, x86_const.UC_X86_REG_EFLAGS, self._flags_address)
        return code

    def _forget_probe(self) -> None:
        """A failed `uc_vmem_*` leaves its page fault pending: it would arrive at the engine's next stop.

        A run of a stub takes delivery of it here, where it is ignored.
        """
        state = self._state
        flags, rip = state.hflags[0], state.rip[0]
        self.on_fault, kernel = _ignore, self.on_fault
        state.hflags[0] = flags & ~3
        code = self._run_quietly(stubs.HALT)
        self.on_fault = kernel
        state.hflags[0] = flags
        state.rip[0] = rip
        if code:
            raise EngineError(f"halt stub: engine error {code}")

    def supervisor(self, stub: stubs.Stub, *, rdi: int = 0, rax: int = 0) -> SupervisorResult:
        """Run a ring-0 stub, with EFLAGS.AC clear as a kernel entry leaves it; all registers survive."""
        state = self._state
        kept = [self.general[i] for i in range(16)]
        flags, rip, rflags = state.hflags[0], state.rip[0], self.read("rflags")
        faults: list[tuple[int, int]] = []

        def record(va: int, access: int) -> None:
            faults.append((va, access))
            engine.emu_stop(self._handle)

        self.on_fault, kernel = record, self.on_fault
        self.write("rflags", rflags & ~regs.RFLAGS_AC)
        state.hflags[0] = flags & ~3
        self.general[0], self.general[7] = rax, rdi
        state.old_exception[0] = -1
        code = self._run_stub(self._text + stub.offset)
        result = self.general[0]
        self.on_fault = kernel
        state.hflags[0] = flags
        for index, value in enumerate(kept):
            self.general[index] = value
        self.write("rflags", rflags)
        state.rip[0] = rip
        if code:
            raise EngineError(f"stub at {stub.offset:#x}: engine error {code}")
        return SupervisorResult(result, faults[0] if faults else None)

    # ---- registers

    def read(self, name: str) -> int:
        if name == "rip":
            return self.pc
        if name == "cpuid_1_edx":
            return self.supervisor(stubs.FEATURES).rax
        if name == "pkru":
            return self._state.pkru[0]
        if name == "rflags" and self._trap_flag:
            return self._read_register(NUMBERS[name]) | regs.RFLAGS_TF
        return self._read_register(_ALL[name])

    def write(self, name: str, value: int) -> None:
        if name == "rip":
            self.pc = value
        elif name == "pkru":
            self._set_rights(value)
        elif name in _GENERAL:
            self.general[_GENERAL[name]] = value & MASK
        elif name == "rflags":
            self._trap_flag = bool(self._bias and value & regs.RFLAGS_TF)
            self._write_register(NUMBERS[name], value & ~regs.RFLAGS_TF if self._trap_flag else value)
        else:
            self._write_register(_WRITABLE[name], value)

    def _set_rights(self, value: int) -> None:
        """Change PKRU. The engine's TLB holds rights as they were when it was filled."""
        if self._state.pkru[0] != value:
            self._state.pkru[0] = value
            self._walk()

    @property
    def pc(self) -> int:
        return self._state.rip[0] + self._bias & MASK

    @pc.setter
    def pc(self, value: int) -> None:
        self._state.rip[0] = value - self._bias & MASK

    @property
    def sp(self) -> int:
        return self.general[4]

    @sp.setter
    def sp(self, value: int) -> None:
        self.general[4] = value & MASK

    def save(self, into: Saved | None = None) -> Saved:
        rip = self._state.rip
        here = rip[0]
        rip[0] = self.pc
        saved = super().save(into)
        rip[0] = here
        return saved

    def restore(self, saved: Saved) -> None:
        rights = self._state.pkru[0]
        super().restore(saved)
        if self._state.pkru[0] != rights:
            self._walk()  # the engine's TLB holds rights as they were when it was filled
        if self._bias:
            self.pc = self._state.rip[0]

    def registers(self) -> dict[str, int]:
        values = {"rip": self.pc, **{name: self.general[i] for name, i in _GENERAL.items()}}
        values["rflags"], values["pkru"] = self.read("rflags"), self._state.pkru[0]
        read = self._read_register
        values.update([(name, read(number)) for name, number in _OTHERS])
        return values
