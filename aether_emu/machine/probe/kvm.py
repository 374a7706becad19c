"""The x86_64 prober on the host's own CPU, by KVM: the same loops as on Unicorn, and a ring 0 of its own.

    rcx  accesses left      rsi  next address in the list      rdi  next place for a result
    rax  the address        r15  where a fetch comes back to, and a fault
    r13  as rcx at first    r14  PKRU      r10  whether it counts      r12  the log      rdx  CR3

A batch begins in ring 0, which loads CR3 and goes to the loop by `iretq`. A fault in the loop leaves
rcx alone; its handler writes vector, error code and CR2 into the log, puts r15 into its frame and
returns, so that Python waits for one entry of the CPU whatever happens in it. `hlt` ends a batch: in
ring 3 it is a fault, whose handler finds rcx 0 and halts in turn. Accesses to addresses without memory
come to Python one by one, as device accesses.

Ring 3 sees the code, the list and the results, with protection key 15. Tables, log and stack of the
handler are the supervisor's, so that neither SMEP nor SMAP touches it.
"""

from __future__ import annotations

import mmap

import numpy as np

from aether_emu.arch.x86_64 import registers as regs
from aether_emu.arch.x86_64.stage1 import A, D, P, U, W
from aether_emu.errors import EngineError
from aether_emu.machine.kvm import vm as kvm
from aether_emu.machine.kvm.vm import ExitReason, Register
from aether_emu.machine.probe.prober import BATCH, Attempts, Happened, Numbers, Operation, Words
from aether_emu.machine.probe.x86_64 import ACCESSES, HEAD, NEXT

LANDING_CODE = bytes.fromhex("41ffe7")  # jmp r15

_PAGE = mmap.PAGESIZE
_SIZE = 1 << 20
_RING0 = 1024  # offset in the code page of what only ring 0 runs
_LIST = _PAGE
_RESULTS = _LIST + BATCH * 8
_SHARED = _RESULTS + BATCH * 8  # from here on the supervisor's alone
_RECORD = 32  # bytes: vector, error code, CR2, unused
_LOG = _SHARED
_IDT = _LOG + (BATCH * _RECORD + _RECORD + _PAGE - 1) // _PAGE * _PAGE
_STUBS = _IDT + _PAGE
_GDT = _STUBS + _PAGE
_TSS = _GDT + 0x100
_STACK = _GDT + _PAGE  # grows down into the page of GDT and TSS
_TABLES = _STACK
_KEY = 15 << 59

_COLD = ("mov cr3, rdx", "0f22da")
_WARM = (
    "test r10d, r10d; jz enter; mov eax, r14d; xor ecx, ecx; xor edx, edx; wrpkru;enter: mov rcx, r13; iretq",
    "4585d2740a4489f031c931d20f01ef4c89e948cf",
)
_HANDLER = (
    "jrcxz over; mov r8, r13; sub r8, rcx; shl r8, 5; add r8, r12; pop qword ptr [r8];"
    "pop qword ptr [r8 + 8]; mov r9, cr2; mov [r8 + 16], r9; mov [rsp], r15; iretq; over: hlt",
    "e3224d89e84929c849c1e0054d01e0418f00418f4008410f20d14d8948104c893c2448cff4",
)
_STRIDE = 64  # bytes of code for each operation
_STUB = 16  # bytes for each vector; the handler stands behind the last
_VECTORS = 32
_WITH_ERROR_CODE = (8, 10, 11, 12, 13, 14, 17, 21, 29, 30)  # 3A 6.3.1 table 6-1, and AMD's #VC and #SX
_PAGE_FAULT = 14
_NOTHING = 0xFF  # in the log where no fault came
_SECONDS = 20.0


def _routine(operation: Operation) -> tuple[bytes, int]:
    """The code of one operation, and the offset where it goes on after the access."""
    head = HEAD[1] + ACCESSES[operation][1]
    body = head + NEXT[1]
    return body + bytes([0x75, -len(body) - 2 & 0xFF, 0xF4]), len(head)  # jnz to the head; hlt


def _stubs() -> bytes:
    """What the interrupt gates lead to: for each vector push it, behind an error code; then the handler."""
    code = b""
    for vector in range(_VECTORS):
        stub = b"" if vector in _WITH_ERROR_CODE else b"\x6a\x00"
        stub += bytes([0x6A, vector, 0xE9])
        distance = _VECTORS * _STUB - (len(code) + len(stub) + 4)
        code += (stub + distance.to_bytes(4, "little")).ljust(_STUB, b"\xcc")
    return code + bytes.fromhex(_HANDLER[1])


class KvmProber:
    """A CPU over `memory`, page-aligned (`kvm.vm.page_aligned`), whose words are guest-physical from 0 on.

    As `X86Prober`: the tables under `root` must hold `own_entries`, and fetchable pages LANDING_CODE at
    offset LANDING. `offer` says which control bits can be set. Belongs to the thread that made it, and
    not to its forks. Raises KvmUnavailable; EngineError where this host has no 5 levels.
    """

    def __init__(
        self,
        memory: Words,
        *,
        levels: int = 4,
        user_slot: int = 0,
        supervisor_slot: int = 511,
        seconds: float = _SECONDS,
    ) -> None:
        self.offer = kvm.offer()
        if levels == 5 and not self.offer.la57:
            raise EngineError("KVM on this host has no 5-level paging")
        self.physical_bits = self.offer.physical_bits
        self._physical = (1 << self.offer.usable_bits) - _SIZE
        self._seconds = seconds
        scratch = kvm.page_aligned(_SIZE)
        self._words, self._bytes = scratch, scratch.view(np.uint8)
        self._vm = kvm.VirtualMachine()
        try:
            self._vm.add_memory(0, memory)
            self._vm.add_memory(self._physical, scratch)
        except EngineError:
            self._vm.close()
            raise
        top = 12 + 9 * (levels - 1)
        canonical = -1 << top + 9 & (1 << 64) - 1
        self._bases = (supervisor_slot << top | canonical, user_slot << top)  # by `user`
        self.own_entries = {
            supervisor_slot: self._map(0, levels, _TABLES // _PAGE, 0),
            user_slot: self._map(levels - 1, levels, _SHARED // _PAGE, U),
        }
        self._resume = {}
        for operation in ACCESSES:
            code, self._resume[operation] = _routine(operation)
            self._put(operation * _STRIDE, code)
        self._put(_RING0, bytes.fromhex(_COLD[1] + _WARM[1]))
        self._put(_STUBS, _stubs())
        self._describe(self._bases[0])
        self._cr4 = regs.CR4_PAE | regs.CR4_OSFXSR | (regs.CR4_LA57 if levels == 5 else 0)
        self._controls = (regs.CR0_KERNEL, self._cr4, regs.EFER_KERNEL)
        self._set: tuple[int, int, int, int] | None = None

    def _put(self, offset: int, code: bytes) -> None:
        self._bytes[offset : offset + len(code)] = np.frombuffer(code, np.uint8)

    def _map(self, first: int, levels: int, pages: int, user: int) -> int:
        """Map so many pages of ours from slot 0 of each table on, by tables `first` and following.

        Gives the entry for the root.
        """
        at, bits = _TABLES + first * _PAGE, P | W | A | user
        for table in range(at, at + (levels - 2) * _PAGE, _PAGE):
            self._words[table // 8] = self._physical + table + _PAGE | bits
        leaf = (at + (levels - 2) * _PAGE) // 8
        frames = self._physical + np.arange(0, pages * _PAGE, _PAGE, dtype=np.uint64)
        self._words[leaf : leaf + pages] = frames | np.uint64(bits | D | (_KEY if user else 0))
        return self._physical + at | bits

    def _describe(self, base: int) -> None:
        """Fill GDT, TSS and IDT, whose linear addresses begin at `base`. All gates use the TSS's IST1."""
        gdt = (*regs.GDT, *regs.task_state_descriptor(base + _TSS, kvm.TSS_SIZE - 1))
        self._words[_GDT // 8 : _GDT // 8 + len(gdt)] = np.array(gdt, np.uint64)
        stack = (base + _STACK).to_bytes(8, "little")
        self._put(_TSS + 4, stack)  # RSP0
        self._put(_TSS + 0x24, stack)  # IST1
        for vector in range(_VECTORS):
            to = base + _STUBS + vector * _STUB
            low = to & 0xFFFF | regs.KERNEL_CODE << 16 | 1 << 32 | 0x8E << 40
            self._words[_IDT // 8 + 2 * vector] = low | (to >> 16 & 0xFFFF) << 48
            self._words[_IDT // 8 + 2 * vector + 1] = to >> 32

    def configure(self, *, wp: bool, smep: bool, smap: bool, pke: bool, nxe: bool) -> None:
        """Set the control registers for the batches that follow. EngineError for a bit not on offer."""
        for name, wanted in (("smep", smep), ("smap", smap), ("pke", pke), ("nxe", nxe)):
            if wanted and not getattr(self.offer, name):
                raise EngineError(f"KVM on this host has no {name.upper()}")
        cr4 = self._cr4 | smep * regs.CR4_SMEP | smap * regs.CR4_SMAP | pke * regs.CR4_PKE
        cr0 = regs.CR0_KERNEL if wp else regs.CR0_KERNEL & ~regs.CR0_WP
        self._controls = (cr0, cr4, regs.EFER_KERNEL if nxe else regs.EFER_KERNEL & ~regs.EFER_NXE)

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
    ) -> Attempts:
        """As `X86Prober.run`.

        Raises GuestHangs when the batch takes longer than it may.
        """
        count = addresses.size
        if not 0 < count <= BATCH:
            raise EngineError(f"a batch has 1 to {BATCH} accesses, not {count}")
        words, base = self._words, self._bases[user]
        words[_LIST // 8 : _LIST // 8 + count] = addresses
        log = words[_LOG // 8 : _LOG // 8 + 4 * count].reshape(count, 4)
        log[:, 0] = _NOTHING
        self._enter(root, flush)
        loop = base + operation * _STRIDE
        frame = (
            loop,
            regs.USER_CODE if user else regs.KERNEL_CODE,
            regs.RFLAGS_FIXED | (regs.RFLAGS_AC if ac else 0),
            self._bases[0] + _STACK,
            regs.USER_DATA if user else regs.KERNEL_DATA,
        )
        words[_STACK // 8 - 5 : _STACK // 8] = np.array(frame, np.uint64)
        resume = loop + self._resume[operation]
        start = self._bases[0] + _RING0 + (0 if flush else len(_COLD[1]) // 2)
        values = [0] * len(Register)
        values[Register.RSI], values[Register.RDI] = base + _LIST, base + _RESULTS
        values[Register.RDX], values[Register.RSP] = root, self._bases[0] + _STACK - 40
        values[Register.R10] = bool(self._controls[1] & regs.CR4_PKE)
        values[Register.R12], values[Register.R13] = self._bases[0] + _LOG, count
        values[Register.R14], values[Register.R15] = pkru, resume
        values[Register.RIP], values[Register.RFLAGS] = start, regs.RFLAGS_FIXED
        self._vm.set_registers(values)
        happened, address = np.full(count, Happened.DONE, np.int64), np.zeros(count, np.uint64)
        with self._vm.watched(self._seconds):
            self._to_the_end(operation, happened, address)
        # KVM emulates accesses to holes, a read-modify-write in two halves: a fault of the second counts.
        vectors = log[:, 0]
        faults = vectors == _PAGE_FAULT
        others = (vectors != _NOTHING) & ~faults
        happened[faults], happened[others] = Happened.FAULT, Happened.OTHER
        address[faults], address[others] = log[faults, 2], 0
        code = np.where(faults, log[:, 1], np.where(others, vectors, np.uint64(0)))
        return Attempts(happened, code, address, words[_RESULTS // 8 : _RESULTS // 8 + count].copy())

    def _enter(self, root: int, flush: bool) -> None:
        cr0, cr4, efer = self._controls
        if self._set != (root, *self._controls):
            base = self._bases[0]
            self._vm.set_system(
                cr0=cr0, cr3=root, cr4=cr4, efer=efer, gdt=base + _GDT, tss=base + _TSS, idt=base + _IDT
            )
            self._set = (root, *self._controls)
        if flush and not self.offer.second_stage:
            self._vm.forget_shadows(self._physical - _SIZE)

    def _to_the_end(self, operation: Operation, happened: Numbers, address: Words) -> None:
        """Run until `hlt`, noting holes."""
        while (reason := self._vm.run()) is not ExitReason.HLT:
            now = self._vm.registers()
            index = happened.size - now[Register.RCX]
            at = now[Register.RIP]
            fetched = operation is Operation.FETCH and at == now[Register.RAX]
            if reason is ExitReason.MMIO and 0 <= index < happened.size:
                if happened[index] != Happened.HOLE:  # a read-modify-write comes twice
                    happened[index], address[index] = Happened.HOLE, self._vm.touched
            elif reason is ExitReason.INTERNAL_ERROR and fetched and self._vm.suberror == 1:
                physical = self._vm.translate(at)
                happened[index] = Happened.HOLE
                address[index] = 0 if physical is None else physical
                now[Register.RIP] = now[Register.R15]
                self._vm.set_registers(now)
            else:
                raise EngineError(f"the prober stopped at {at:#x}: KVM exit {reason.name.lower()}")

    def close(self) -> None:
        """Let go of the virtual machine."""
        self._vm.close()
