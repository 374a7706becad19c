"""The ARM64 CPU on Unicorn: bring-up, the exception hook, and what the engine does otherwise than a CPU.

The CPU rests at EL0 between runs. Every exception arrives at one hook with a class number of the
engine's own; the true syndrome is in the CPU state. Engine behaviour handled here (unicorn 2.1.4):
- target pages are 1 KiB unless set before anything else (`arm64_calibrate.open_cpu`): they are the granule.
- a PSTATE write does not change the effective level: a system-register write must follow.
- TTBR0 writes flush nothing when the ASID stays: `set_root` drops the TLB itself.
- CNTVCT_EL0 is the host's: CNTKCTL_EL1 is 0, so reads trap and answer from the virtual clock.
- IC IVAU is a no-op: SCTLR_EL1.UCI is 0, so cache maintenance traps and drops translations.
- RNDR answers from the host's entropy and cannot be made to trap. A hook on `mrs` makes each ten times slower
  (0.8 to 8 ns), so it is set when the first block with an RNDR is translated.
- new blocks are announced only once some block has ended without an exception: `boot` runs two.
- code at a misaligned pc is executed; its block is caught when it is translated.
- cache maintenance never faults: the page it names is asked for here, as for a read.
Left as the engine has it, and shown by tests: dropping a page inside a block drops the whole TLB; a table
in a hole reads as empty, a leaf in one is a bus exit, neither an external abort nor an address-size fault;
misaligned stack pointers, acquires and releases pass; pointer authentication does nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache

from unicorn import UC_HOOK_INSN, UC_HOOK_INTR, arm64_const

from aether_emu.arch.arm64 import id_registers, stubs, syndrome
from aether_emu.arch.arm64 import registers as regs
from aether_emu.errors import EngineError
from aether_emu.interruption import Undisturbed
from aether_emu.machine.cpu import Saved, Trap, TrapKind, UserFault
from aether_emu.machine.unicorn import arm64_calibrate, arm64_lines, engine
from aether_emu.machine.unicorn.arm64_random import RandomReads
from aether_emu.machine.unicorn.arm64_scan import BlockScan
from aether_emu.machine.unicorn.arm64_state import ArmState
from aether_emu.machine.unicorn.batch import Batch
from aether_emu.machine.unicorn.cpu import MASK, PROT_EXECUTE, PROT_READ, Context, UnicornCpu
from aether_emu.records import dataclass

_SVC, _FETCH_ABORT, _DATA_ABORT, _UNDEFINED, _BREAKPOINT = 2, 3, 4, 1, 7
_INSTRUCTION = 4
_ZERO_REGISTER = 31
_MAINTENANCE = (1, 3, 7)  # op0, op1, CRn of cache maintenance by address
_IC_IVAU = (5, 1)  # CRm, op2
_LINE = 64  # bytes that IC IVAU is for: CTR_EL0.IminLine of the engine's CPU
# IC IVAU, DC CVAC, CVAU, CVAP, CVADP, CIVAC. CFP, DVP and CPP RCTX stand beside them and touch no address.
_BY_ADDRESS = frozenset({_IC_IVAU, (10, 1), (11, 1), (12, 1), (13, 1), (14, 1)})
_CNTFRQ, _CNTPCT, _CNTVCT = (3, 3, 14, 0, 0), (3, 3, 14, 0, 1), (3, 3, 14, 0, 2)
_COUNTERS = frozenset({_CNTFRQ, _CNTPCT, _CNTVCT})
_MISALIGNED_PC = syndrome.EC_PC_ALIGNMENT << 26 | syndrome.IL

NUMBERS: dict[str, int] = {
    **{f"x{i}": arm64_const.UC_ARM64_REG_X0 + i for i in range(29)},
    "x29": arm64_const.UC_ARM64_REG_X29,
    "x30": arm64_const.UC_ARM64_REG_X30,
    "sp": arm64_const.UC_ARM64_REG_SP,
    "nzcv": arm64_const.UC_ARM64_REG_NZCV,
    "tpidr_el0": arm64_const.UC_ARM64_REG_TPIDR_EL0,
    "fpcr": arm64_const.UC_ARM64_REG_FPCR,
    "fpsr": arm64_const.UC_ARM64_REG_FPSR,
    **{f"v{i}": arm64_const.UC_ARM64_REG_V0 + i for i in range(32)},
}
_SYSTEM = {"ttbr0_el1": regs.TTBR0_EL1, "ttbr1_el1": regs.TTBR1_EL1, "tcr_el1": regs.TCR_EL1.encoding}
_MANY = 12  # registers: fewer are written one by one
_TARGETS = {NUMBERS[f"x{i}"]: i for i in range(31)}


@lru_cache(maxsize=1 << 10)  # a program may try what it likes
def _emulated(word: int) -> tuple[tuple[int, ...] | None, int]:
    """What a trapped access to a system register is, and its general register (Arm ARM D19.2, EC 0x18).

    A counter's whole encoding, CRm and op2 of cache maintenance by address, or None for any other.
    """
    op0, op2, op1 = word >> 20 & 3, word >> 17 & 7, word >> 14 & 7
    crn, target, crm, read = word >> 10 & 15, word >> 5 & 31, word >> 1 & 15, word & 1
    if read and (op0, op1, crn, crm, op2) in _COUNTERS:
        return (op0, op1, crn, crm, op2), target
    if (op0, op1, crn) == _MAINTENANCE and (crm, op2) in _BY_ADDRESS:
        return (crm, op2), target
    return None, target


@dataclass(frozen=True, slots=True)
class SupervisorResult:
    """What an EL1 stub left: x0, and the fault that ended it as (va, access), if any."""

    x0: int
    fault: tuple[int, int] | None


class ArmCpu(UnicornCpu):
    """One ARM64 CPU that translates with pages of `granule` bytes and `virtual_bits` address bits.

    `ranges` are (guest-physical start, host address, length), mapped once, in multiples of the granule.
    `time_stamp` gives ticks of CNTVCT_EL0 at `frequency`; `random` gives the 64 bits of an RNDR. ASIDs have 8
    or 16 bits (TCR_EL1.AS).
    `live_state=False` forces the slower state access that needs nothing but the engine's API.
    """

    isa = "arm64"
    one_root = False

    def __init__(
        self,
        ranges: list[tuple[int, int, int]],
        *,
        time_stamp: Callable[[], int],
        frequency: int,
        random: Callable[[], int],
        granule: int = 4096,
        virtual_bits: int = 48,
        live_state: bool = True,
        asid_bits: int = 8,
    ) -> None:
        self.granule = granule
        self.translation = regs.tcr_value(granule, virtual_bits, asid_bits)
        super().__init__(arm64_calibrate.open_cpu(granule), ranges)
        self._all = Batch(self._handle, list(NUMBERS.values()))
        self._time_stamp, self._frequency, self._random = time_stamp, frequency, random
        state = ArmState(self._uc, live=live_state)
        self.live_state = state.live
        self.general, self._pc = state.general, state.pc
        self._syndrome, self._address = state.syndrome, state.address
        self._reserved = state.reserved
        self._state = state  # keeps alive the memory that the fields above are views of
        self._text = 0
        self._physical = ctypes.c_uint64()  # where `uc_vmem_translate` stores its result
        self._physical_address = ctypes.addressof(self._physical)
        self._scan = BlockScan(engine.VMEM_READ_ADDRESS, self._block_found)
        self._found: int | None = None
        self._maintained_at = -1  # pc of the cache maintenance that trapped last
        self._reported: tuple[int, int] | None = None  # syndrome and address of an abort that we raise
        self._random_reads: RandomReads | None = None

    # ---- bring-up

    @staticmethod
    def text_page() -> bytes:
        """What the supervisor text page begins with: every stub at its offset."""
        page = bytearray(max(stub.offset + len(stub.code) for stub in stubs.ALL))
        for stub in stubs.ALL:
            page[stub.offset : stub.offset + len(stub.code)] = stub.code
        return bytes(page)

    @staticmethod
    def data_page(_va: int, _number: int = 0) -> bytes:
        """What the supervisor data page begins with: nothing that this CPU's hardware would read."""
        return b""

    def boot(self, root: int, text: int, _data: int) -> None:
        """Turn translation on with `root` for the kernel half, and rest at EL0."""
        arm64_calibrate.enable_paging(self._uc, root, self.translation)
        self._root = root
        self._text = text
        self._add_hook(UC_HOOK_INTR, engine.INTERRUPT(self._exception_hook()))
        self._look_at_blocks(self._scan.callback, self._scan.user_data)
        with Undisturbed():
            self.supervisor(stubs.JUMP, x1=text + stubs.LOAD.offset + len(stubs.LOAD.code) - _INSTRUCTION)

    def _exception_hook(self) -> Callable[[int, int, int], None]:
        handle, x = self._handle, self.general
        status, address, pc = self._syndrome, self._address, self._pc
        untagged = regs.untagged
        known: dict[int, int] = {}  # syndrome -> what `_abort_access` returned for it

        def exception(_uc: int, number: int, _data: int) -> None:
            try:
                if number == _SVC:
                    result = self.on_system_call(x[8], x[0], x[1], x[2], x[3], x[4], x[5])
                    if result is not None:
                        x[0] = result & MASK
                    if self.return_work is not None:
                        self.return_work()
                elif number == _DATA_ABORT or (number == _FETCH_ABORT and not pc[0] & 3):
                    access = known.get(status[0])
                    if access is None:
                        access = self._abort_access(known)
                    if access < 0:
                        self._other(number)
                    else:
                        va = address[0]
                        self.on_fault(untagged(va) if va >> 55 else va, access)
                elif number == _FETCH_ABORT:
                    self._misaligned()
                else:
                    self._other(number)
            except BaseException as failure:
                self._fail(failure)
            if self._exit is not None or self._interrupted:
                engine.emu_stop(handle)

        return exception

    def _abort_access(self, known: dict[int, int]) -> int:
        """Decode an abort's new syndrome, into `known` too; -1 for one that page tables do not decide."""
        word = self._syndrome[0]
        known[word] = access = int(syndrome.access_of(word)) if syndrome.is_translation_abort(word) else -1
        return access

    def _other(self, number: int) -> None:
        word = self._syndrome[0]
        kind = word >> 26
        if number == _BREAKPOINT:
            self.on_trap(Trap(TrapKind.BREAKPOINT, kind, word))
        elif number in (_DATA_ABORT, _FETCH_ABORT):
            self.on_trap(Trap(TrapKind.ALIGNMENT, kind, word, self._address[0]))
        elif kind == syndrome.EC_SYSREG and self._emulate(word):
            return
        elif kind == syndrome.EC_WFX:
            self.pc = self.pc + _INSTRUCTION  # waiting for an interrupt that never comes: go on
        elif kind == syndrome.EC_UNKNOWN and self._identify():
            self.pc = self.pc + _INSTRUCTION
        elif number == _UNDEFINED:
            self.on_trap(Trap(TrapKind.ILLEGAL, kind, word))
        else:
            raise EngineError(f"unexpected exception {number} (syndrome {word:#x}) at {self.pc:#x}")

    def _emulate(self, word: int) -> bool:
        """A trapped system register or instruction, if it is one of ours.

        Cache maintenance needs what a read needs.
        """
        what, target = _emulated(word)
        if what is None:
            return False
        if what in _COUNTERS:
            value = self._frequency if what == _CNTFRQ else self._time_stamp()
            if target != _ZERO_REGISTER:
                self.general[target] = value
        else:
            address = 0 if target == _ZERO_REGISTER else self.general[target]
            if engine.vmem_translate(self._handle, address, PROT_READ, self._physical_address):
                self._maintenance_fault(address)
                return True  # if the handler mapped the page, the guest executes the instruction again
            physical, last = self._physical.value, self._last_line(address, target)
            if what == _IC_IVAU:
                self._renew_lines(address & -_LINE, (last | _LINE - 1) + 1, physical)
        self.pc = self.pc + _INSTRUCTION
        return True

    def _last_line(self, address: int, target: int) -> int:
        """Where the maintenance of this trap ends: at `address`, or in a loop that runs, where `arm64_lines`
        says. The loop's register `target` is there then.
        """
        pc, before = self.pc, self._maintained_at
        self._maintained_at = pc
        if pc != before or pc % self.granule > self.granule - arm64_lines.LOOP or self._is_looked_at():
            return address
        try:
            code = self.copy_from_user(pc, arm64_lines.LOOP)
        except UserFault:
            return address
        last = arm64_lines.last_line(code, self.general, self.granule)
        if last is None:
            return address
        self.general[target] = last
        return last

    def _is_looked_at(self) -> bool:
        """Whether somebody counts instructions, or stops in front of some."""
        return bool(self._cut_hook) or self.halts.halts_anywhere

    def _renew_lines(self, address: int, end: int, physical: int) -> None:
        """Drop what is translated of lines of code in one page, whichever address it was translated at.

        The engine finds them by a fetch. Where none is allowed everything is dropped, unless the page
        never had code: a program may do this to megabytes of data, line by line.
        """
        if engine.vmem_translate(self._handle, address, PROT_EXECUTE, self._physical_address):
            if not self.holds_code(physical):
                return
            self.flush_code()
        else:
            self._uc.ctl_remove_cache(address, end)
        for peer in self.peers:
            peer.forget_code()

    def _maintenance_fault(self, address: int) -> None:
        """Report the abort that cache maintenance of `address` meets, not its trap (Arm ARM D7.5.9)."""
        self._uc.cpr_write(*regs.AT_S1E0R, address)
        result = self._uc.cpr_read(*regs.PAR_EL1)
        status = result >> 1 & 0x3F if result & 1 else syndrome.FSC_TRANSLATION
        word = syndrome.maintenance_abort(status)
        self._reported = word, address
        try:
            self.on_fault(regs.untagged(address), int(syndrome.access_of(word)))
        finally:
            self._reported = None

    def _identify(self) -> bool:
        """An `mrs` of an ID register, as Linux answers it: the instruction is read by the user's rights."""
        try:
            word = int.from_bytes(self.copy_from_user(self.pc, _INSTRUCTION), "little")
        except UserFault:
            return False
        read = regs.decode_mrs(word)
        if read is None:
            return False
        register, target = read
        value = id_registers.user_value(register)
        if value is None:
            return False
        if target != _ZERO_REGISTER:
            self.general[target] = value
        return True

    # ---- blocks that must not run as they are

    def _block_found(self, address: int) -> None:
        """A misaligned block, or one with an RNDR, was translated and is about to run: stop before it."""
        if address & 3 or self._random_reads is None:
            self._found = address
            engine.emu_stop(self._handle)

    def _after_entry(self, _code: int) -> bool:
        if self._found is None:
            return False
        address, self._found = self._found, None
        if address & 3:
            self._guarded(self._misaligned)
        else:
            self._random_reads = reads = RandomReads(self._answer_random)
            kind, instruction = UC_HOOK_INSN, arm64_const.UC_ARM64_INS_MRS
            engine.hook_add(self._handle, kind, reads.callback, instruction, user_data=reads.user_data)
        self.flush_code()  # a misaligned block is announced again, and an RNDR needs the hook in its block
        return True

    def _misaligned(self) -> None:
        """A misaligned pc comes before anything that the fetch itself meets (Arm ARM D1.3.5)."""
        self.on_trap(Trap(TrapKind.ALIGNMENT, syndrome.EC_PC_ALIGNMENT, _MISALIGNED_PC, self.pc))

    def _answer_random(self, target: int) -> None:
        """RNDR and RNDRRS always succeed: NZCV is 0000 (Arm ARM D19.2, RNDR)."""

        def answer() -> None:
            value = self._random()
            if target in _TARGETS:
                self.general[_TARGETS[target]] = value & MASK
            self.write("nzcv", 0)

        self._guarded(answer)

    # ---- translation

    def watch_stores(self, pa: int, length: int) -> None:
        """Nothing: programs tell of stores to code themselves, by IC IVAU."""

    def set_root(self, root: int, tag: int = 0, *, keep: bool = False) -> None:
        self._root, self._tag = root | tag << regs.ASID_SHIFT, tag
        self._walk()

    def _walk(self) -> None:
        self._uc.cpr_write(*regs.TTBR0_EL1, self._root)
        self.flush_all()

    def flush_page(self, va: int) -> None:
        self._uc.cpr_write(
            *regs.TLBI_VAE1, va >> 12 & (1 << 44) - 1
        )  # in units of 4 KiB whatever the granule

    def supervisor(self, stub: stubs.Stub, *, x0: int = 0, x1: int = 0, pan: bool = True) -> SupervisorResult:
        """Run an EL1 stub, with PAN set unless told otherwise; all registers survive."""
        saved = self._uc.context_save()
        flags = self.read("nzcv")
        faults: list[tuple[int, int]] = []

        def record(va: int, access: int) -> None:
            faults.append((va, access))
            engine.emu_stop(self._handle)

        self.on_fault, kernel = record, self.on_fault
        arm64_calibrate.enter_el(self._uc, regs.PSTATE_EL1 | (regs.PSTATE_PAN if pan else 0))
        self.general[0], self.general[1] = x0, x1
        code = self._run_stub(self._text + stub.offset)
        result = self.general[0]
        self.on_fault = kernel
        self._uc.context_restore(saved)
        arm64_calibrate.enter_el(self._uc, regs.PSTATE_EL0)
        self.write("nzcv", flags)
        if code:
            raise EngineError(f"stub at {stub.offset:#x}: engine error {code}")
        return SupervisorResult(result, faults[0] if faults else None)

    # ---- registers

    def read(self, name: str) -> int:
        if name == "pc":
            return self.pc
        if name in _SYSTEM:
            return int(self._uc.cpr_read(*_SYSTEM[name]))
        return self._read_register(NUMBERS[name])

    def write(self, name: str, value: int) -> None:
        if name == "pc":
            self.pc = value
        else:
            self._write_register(NUMBERS[name], value)

    @property
    def pc(self) -> int:
        return self._pc[0]

    @pc.setter
    def pc(self, value: int) -> None:
        self._pc[0] = value & MASK

    @property
    def sp(self) -> int:
        return self.read("sp")

    @sp.setter
    def sp(self, value: int) -> None:
        self.write("sp", value & MASK)

    @property
    def syndrome(self) -> int:
        """What ESR_ELx would show of the last exception: true while its callback runs."""
        return self._reported[0] if self._reported is not None else self._syndrome[0]

    @property
    def fault_address(self) -> int:
        """What FAR_ELx would show likewise: of aborts alone, the tag included."""
        return self._reported[1] if self._reported is not None else self._address[0]

    def save(self, into: Saved | None = None) -> Saved:
        saved = super().save(into)
        assert isinstance(saved, Context), "it is ours"
        if saved is not into:
            saved.extra = engine.view(saved.address + self._reserved, "Q", 1)
        saved.extra[0] = MASK  # CLREX
        return saved

    def reservation(self) -> tuple[int, ...]:
        return tuple(self._held(UnicornCpu.save(self)))

    def reserve(self, reservation: tuple[int, ...]) -> None:
        saved = UnicornCpu.save(self)
        held = self._held(saved)
        for index, value in enumerate(reservation):
            held[index] = value
        self.restore(saved)

    def _held(self, saved: Saved) -> memoryview:
        """The address of a reservation, and the two words that were loaded from there."""
        assert isinstance(saved, Context), "it is ours"
        return engine.view(saved.address + self._reserved, "Q", 3)

    def registers(self) -> dict[str, int]:
        return {"pc": self.pc, **dict(zip(NUMBERS, self._all.read(), strict=True))}

    def load_registers(self, values: dict[str, int]) -> None:
        if len(values) < _MANY:
            super().load_registers(values)
        else:  # the others become what they are
            merged = self.registers() | values
            self.pc = merged["pc"]
            self._all.write(merged[name] for name in NUMBERS)
