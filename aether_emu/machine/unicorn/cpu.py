"""What both Unicorn CPUs share: the run loop, the block budget, copying to and from user memory."""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from unicorn import UC_HOOK_BLOCK, UC_HOOK_CODE, UC_HOOK_EDGE_GENERATED, UC_HOOK_MEM_WRITE, UC_PROT_ALL

from aether_emu.arch.paging import Access
from aether_emu.errors import EngineError
from aether_emu.interruption import Undisturbed, undisturbed
from aether_emu.machine import native
from aether_emu.machine.cpu import Cpu, Exit, ExitReason, Registers, Saved, Trap, UserFault
from aether_emu.machine.unicorn import engine
from aether_emu.machine.unicorn.abort_guard import ABORTED, AbortGuard
from aether_emu.machine.unicorn.block_counter import BlockCounter
from aether_emu.machine.unicorn.halts import MEMORY, Halts

if TYPE_CHECKING:
    from aether_emu.machine.unicorn.scan_time import ScanTime

PROT_READ, PROT_WRITE, PROT_EXECUTE = 1, 2, 4  # UC_PROT_*
MASK = (1 << 64) - 1
BUFFER = 1 << 16
FETCH_UNMAPPED = 8  # UC_ERR_FETCH_UNMAPPED
_UNLIMITED = 1 << 62
_NONE_LEFT = memoryview(bytes(24)).cast("q")  # as a counter that stands at 0
_SPENT = Exit(ExitReason.BUDGET)
_ANEW = Exit(ExitReason.STOPPED, "to be entered anew at once")  # never returned
_CUT_REACH = 256  # bytes from its start in which a block is cut
_TAG_SHIFT = 56  # no user address has bits from here on; ARM64's MMU would ignore them (TBI), Linux does not
_FAULT_TRIES = 4  # faults of one page: absent, then read-only, then stale in the TLB; more means no progress
_ACCESS = {PROT_READ: int(Access.USER | Access.READ), PROT_WRITE: int(Access.USER | Access.WRITE)}


class Context(Saved):
    """A context of the engine, at host address `address`, with the register of the page table as it was then,
    and the number of the CPU.

    `kept` frees the engine's memory when it goes. `extra` is a field in it that the CPU changes.
    """

    __slots__ = ("address", "extra", "kept", "number", "root")

    extra: memoryview

    def __init__(self, uc: Any) -> None:
        self.kept = uc.context_save()
        self.address = native.address_of(self.kept.context)
        self.root = self.number = 0


class UnicornCpu(Cpu):
    """A CPU whose engine is `uc`. `ranges` are (guest-physical start, host address, length), mapped once."""

    def __init__(self, uc: Any, ranges: list[tuple[int, int, int]]) -> None:
        self._uc = uc
        self._handle = engine.handle_of(uc)
        self._entries = AbortGuard()
        self.stop_call = engine.EMU_STOP_ADDRESS, self._handle
        for start, host, length in ranges:
            uc.mem_map_ptr(start, length, UC_PROT_ALL, host)
        self._buffer = ctypes.create_string_buffer(BUFFER)
        self._buffer_address = ctypes.addressof(self._buffer)
        self._buffer_view = memoryview(self._buffer).cast("B")
        self._exit: Exit | None = None
        self._failure: BaseException | None = None
        self._interrupted = False
        self._inside = False  # whether the engine runs the guest, or a callback of that run
        self._stale = False  # whether translations are to be dropped before the next entry
        self._counter: BlockCounter | None = None
        self._left = _NONE_LEFT  # of the counter, if there is one
        self._last_block = 0  # how many blocks will have been executed when the counter is at 0
        self._hooks: list[object] = []
        self._root = self._tag = 0  # what the register of the page table holds, and its tag
        register = (ctypes.c_uint64 * 2)()
        self._register = memoryview(register).cast("B").cast("Q")
        self._register_address = ctypes.addressof(register)
        self._at_cut = engine.CODE(self._cut_here)
        self._cut_hook = 0
        self._cut_left, self._cut_last, self._cut_hit = 0, -1, False
        self._look = 0
        self._scanner = 0, 0
        self._scan_time: ScanTime | None = None
        self.halting = self.halts = Halts(self, self._handle, self._uncount)
        self.on_fault = self._unplugged
        self.on_system_call = lambda *_arguments: None
        self.on_trap = self._unplugged_trap
        self.resolve = lambda _va, _access: False
        self.on_rewrite = None
        self.code_changes = True
        self.holds_code = lambda _physical: True
        self.return_work = None

    @staticmethod
    def _unplugged(va: int, access: int) -> None:
        raise EngineError(f"fault at {va:#x} (access {access:#x}) before a kernel was plugged in")

    @staticmethod
    def _unplugged_trap(trap: Trap) -> None:
        raise EngineError(f"{trap.kind.value} before a kernel was plugged in")

    def _look_at_blocks(self, callback: int, user_data: int) -> None:
        """Have the machine code at `callback` look at each new block before it runs."""
        kind = UC_HOOK_EDGE_GENERATED
        self._scanner = callback, user_data
        self._look = engine.hook_add(self._handle, kind, callback, user_data=user_data)

    def time_looking(self) -> ScanTime:
        """From now on, tell how long the look at new blocks takes. Call it before anything has run."""
        from aether_emu.machine.unicorn.scan_time import ScanTime  # noqa: PLC0415  # only a benchmark asks

        engine.hook_del(self._handle, self._look)
        self._scan_time = timed = ScanTime(*self._scanner)
        self._look_at_blocks(timed.callback, timed.user_data)
        return timed

    def _add_hook(self, kind: int, callback: object, *extra: int) -> None:
        engine.hook_add(self._handle, kind, callback, *extra)
        self._hooks.append(callback)

    # ---- callbacks (an exception in one is kept and raised by `run`)

    def _fail(self, failure: BaseException) -> None:
        self._failure = failure
        self._exit = Exit(ExitReason.STOPPED)

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as failure:
            self._fail(failure)
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """At the end of every callback. A nested run inside it may have swallowed an interrupt's stop."""
        if self._exit is not None or self._interrupted:
            engine.emu_stop(self._handle)

    def show_registers(self, start: int, size: int, registers: Registers) -> None:
        from aether_emu.machine.unicorn import mmio  # noqa: PLC0415  # few runs have devices

        def fail(failure: BaseException) -> None:
            self._fail(failure)
            engine.emu_stop(self._handle)

        self._hooks.extend(mmio.show(self._handle, start, size, registers, fail))
        self.count_blocks()  # not in a call: to begin with it the engine is stopped

    def tell_stores(self, start: int, size: int, told: Callable[[int, int], None]) -> None:
        def stored(_uc: int, _kind: int, physical: int, width: int, _value: int, _data: int) -> None:
            self._guarded(lambda: told(physical, width))

        callback = MEMORY(stored)
        engine.hook_add(self._handle, UC_HOOK_MEM_WRITE, callback, only_at=start, length=size)
        self._hooks.append(callback)
        self.flush_code()

    # ---- running

    def _before_entry(self) -> None:
        """Whatever the engine needs before each entry."""

    def _after_entry(self, _code: int) -> bool:
        """Handle a stop that the CPU itself asked for; True when that was it."""
        return False

    def run(self, budget: int | None = None) -> Exit:
        if undisturbed():
            if not self._cut_hook:
                return self._run(budget)
            try:
                return self._run(budget)
            finally:
                self._end_cut()
        limit = None if budget is None else self.blocks + budget
        while True:
            block = Undisturbed(self.interrupt)
            try:
                with block:
                    ended = self._run(budget)
            finally:
                if self._cut_hook:
                    self._end_cut()
                if block.asked:
                    self._interrupted = False
            if block.program_ends:
                raise SystemExit
            if not block.asked or ended.reason is not ExitReason.INTERRUPTED:
                return ended
            budget = None if limit is None else max(0, limit - self.blocks)

    def _run(self, budget: int | None) -> Exit:
        if budget is None:
            self._set_counter(_UNLIMITED)
        else:
            if self._counter is None:
                self.count_blocks()
            self._set_counter(budget)
        self._exit = None
        while True:
            if self._interrupted:
                self._interrupted = False
                return Exit(ExitReason.INTERRUPTED)
            if self._stale:
                self._stale = False
                self._uc.ctl_flush_tb()
            self._before_entry()
            self._inside = True
            code = self._entries.start(self._handle, self.pc, 0, 0, 0)
            self._inside = False
            enters_anew = self._exit is _ANEW
            if enters_anew:
                self._exit = None
            if self._cut_hit and self._failure is None and self._exit is None and not self.halts.hit:
                self._uncount()
                return _SPENT
            if self.halts.hit and self._failure is None:
                self._halted()
                if self._cut_hit and self._failure is None and self._exit is None:
                    return _SPENT
                handled = True
            else:
                handled = self._failure is None and self._after_entry(code)
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            if self._exit is not None:
                return self._exit
            if not handled and not self._interrupted:
                if self._spent():
                    return _SPENT
                if code or not enters_anew:
                    return self._unexplained(code)

    def _spent(self) -> bool:
        """Whether the last stop was the block counter's."""
        return self._left[2] != 0

    @staticmethod
    def _unexplained(code: int) -> Exit:
        """The engine came back by itself: an access to a hole, somebody's stop, or its own limit."""
        if code in (6, 7, FETCH_UNMAPPED):  # UC_ERR_READ/WRITE_UNMAPPED
            return Exit(ExitReason.BUS, detail="physical address without memory")
        if code == ABORTED:
            return Exit(ExitReason.ENGINE, detail="the engine cannot translate the code there")
        if code:
            return Exit(ExitReason.ENGINE, detail=engine.error_text(code))
        return Exit(ExitReason.STRAY)

    def cut(self, instructions: int) -> None:
        pc = self.pc
        self._cut_left, self._cut_last, self._cut_hit = instructions, -1, False
        self._cut_hook = engine.hook_add(
            self._handle, UC_HOOK_CODE, self._at_cut, only_at=pc, length=_CUT_REACH
        )
        self._uc.ctl_remove_cache(pc, pc + 1)  # its block is translated anew, with the hook

    @property
    def cut_left(self) -> int:
        return self._cut_left + (self._cut_last == self.pc)

    def _cut_here(self, _uc: int, pc: int, _size: int, _data: int) -> None:
        if pc <= self._cut_last:  # made again after a fault, or again by its own prefix
            return
        self._cut_last = pc
        self._cut_left -= 1
        if self._cut_left < 0:
            self._cut_hit = True
            engine.emu_stop(self._handle)

    def _end_cut(self) -> None:
        engine.hook_del(self._handle, self._cut_hook)
        self._cut_hook, self._cut_hit = 0, False

    def limit(self, budget: int) -> None:
        if self._counter is None:
            self.stop()  # counting drops the translation that runs now
        elif budget < self._counter.value:
            self._set_counter(budget)

    def stop(self) -> None:
        if self._exit is None or self._exit is _ANEW:
            self._exit = Exit(ExitReason.STOPPED)

    def interrupt(self) -> None:
        self._interrupted = True
        engine.emu_stop(self._handle)

    @property
    def interrupted(self) -> bool:
        return self._interrupted

    def take_interrupt(self) -> bool:
        pending, self._interrupted = self._interrupted, False
        return pending

    def _halted(self) -> None:
        """In front of an instruction: tell, outside the engine. The block entered anew then counts once."""
        self.halts.hit = False
        self._uncount()
        self.halts.go_past()
        self.halts.on_halt()

    def _uncount(self) -> None:
        """The block that runs now is entered again for no reason of the guest's."""
        if self._counter is not None:
            self._counter.value += 1

    # ---- counting blocks

    def count_blocks(self) -> None:
        if self._counter is None:
            self._counter = BlockCounter(engine.EMU_STOP_ADDRESS)
            self._counter.value = _UNLIMITED
            self._left = self._counter.words
            self._last_block += _UNLIMITED
            callback, user_data = self._counter.callback, self._counter.user_data
            engine.hook_add(self._handle, UC_HOOK_BLOCK, callback, user_data=user_data)
            self.flush_code()  # blocks translated before carry no counter

    def _set_counter(self, value: int) -> None:
        if self._counter is not None:
            words = self._left
            self._last_block += value - words[0]
            words[0], words[2] = value, 0

    @property
    def blocks(self) -> int:
        return self._last_block - self._left[0]

    def blocks_state(self) -> tuple[bool, int]:
        """(counting, blocks executed), for capture."""
        return self._counter is not None, self.blocks

    def restore_blocks(self, state: tuple[bool, int]) -> None:
        """Go on counting where a captured CPU stood."""
        counting, blocks = state
        if counting:
            self.count_blocks()
        self._set_counter(_UNLIMITED)
        self._last_block += blocks - self.blocks

    def _run_stub(self, address: int) -> int:
        """Run supervisor code to its end. It counts no blocks, and no spent budget stops it.

        It leaves the engine halted. Inside a callback the program would go on so, and sleep for ever at its
        next `pause`: then the engine is left, and entered again. Returns the engine's error number.
        """
        if self._inside and self._exit is None:
            self._exit = _ANEW
        counter = self._counter
        if counter is None:
            return self._entries.start_nested(self._handle, address, 0, 0, 0)
        kept = counter.suspend()
        code = self._entries.start_nested(self._handle, address, 0, 0, 0)
        counter.resume(kept)
        return code

    # ---- translation

    def flush_all(self) -> None:
        engine.flush_tlb(self._uc)

    def flush_tag(self, tag: int, va: int | None = None) -> None:
        if tag != self._tag:
            return  # the engine holds nothing of it
        if va is None:
            self.flush_all()
        else:
            self.flush_page(va)

    def working_set(self, pages: int) -> None:
        # The engine's TLB starts with 256 entries, and doubles when it is flushed while it is full. Large
        # working sets then run twice as fast; beyond the last size a full flush costs more than it brings.
        if 512 <= pages <= 16384:
            engine.flush_tlb(self._uc)

    def flush_code(self) -> None:
        """As `Cpu`. In a callback the block that made it may still run on, and what a nested run translates
        would overwrite it: then the engine is left first, and entered again.
        """
        if not self._inside:
            self._uc.ctl_flush_tb()
            return
        self._stale = True
        if self._exit is None:
            self._exit = _ANEW

    def forget_code(self) -> None:
        self._stale = True

    # ---- registers

    def _read_register(self, number: int) -> int:
        """One by the engine's number, of up to 128 bits; by the wrapper it takes four times as long."""
        value = self._register
        value[0] = value[1] = 0
        engine.reg_read(self._handle, number, self._register_address)
        return value[0] | value[1] << 64

    def _write_register(self, number: int, wanted: int) -> None:
        value = self._register
        value[0], value[1] = wanted & MASK, wanted >> 64 & MASK
        engine.reg_write(self._handle, number, self._register_address)

    def save(self, into: Saved | None = None) -> Saved:
        saved = into if isinstance(into, Context) else Context(self._uc)
        engine.context_save(self._handle, saved.address)
        saved.root, saved.number = self._root, self.number
        return saved

    def restore(self, saved: Saved) -> None:
        assert isinstance(saved, Context), "another kind of CPU saved it"
        engine.context_restore(self._handle, saved.address)
        if saved.number != self.number:
            self._take_place()
        if saved.root != self._root:
            self._walk()

    @abstractmethod
    def _walk(self) -> None:
        """Let the engine walk the table that `_root` names, tag and all, with an empty TLB."""

    def _take_place(self) -> None:
        """A context of another CPU was restored: put right what is this CPU's own."""

    def load_registers(self, values: dict[str, int]) -> None:
        for name, value in values.items():
            self.write(name, value)

    # ---- user memory

    def copy_from_user(self, va: int, length: int) -> bytes:
        if va >> _TAG_SHIFT:
            raise UserFault(f"{va:#x} is no user address")
        if length <= BUFFER:
            address = self._buffer_address
            if engine.vmem_read(self._handle, va, PROT_READ, address, length):
                self._retry(engine.vmem_read, va, PROT_READ, length)
            return bytes(self._buffer_view[:length])
        out = bytearray()
        while len(out) < length:
            out += self.copy_from_user(va + len(out) & MASK, min(BUFFER, length - len(out)))
        return bytes(out)

    def copy_to_user(self, va: int, data: bytes | bytearray | memoryview) -> None:
        if va >> _TAG_SHIFT:
            raise UserFault(f"{va:#x} is no user address")
        length = len(data)
        if length <= BUFFER:
            self._buffer_view[:length] = data
            if engine.vmem_write(self._handle, va, PROT_WRITE, self._buffer_address, length):
                self._retry(engine.vmem_write, va, PROT_WRITE, length)
            if self.on_rewrite is not None:
                self.on_rewrite(va, length)
            return
        view = memoryview(data)
        for start in range(0, length, BUFFER):
            self.copy_to_user(va + start & MASK, view[start : start + BUFFER])

    def _forget_probe(self) -> None:
        """Clear what a failed access by the host leaves behind in the engine."""

    def _retry(self, access: Callable[..., int], va: int, kind: int, length: int) -> None:
        """Resolve the faults of an access that the MMU refused, and make it again."""
        try:
            self._fault_in(va, length, kind)
            if access(self._handle, va, kind, self._buffer_address, length):
                raise UserFault(f"{va:#x}+{length:#x} cannot be accessed")
        finally:
            self._forget_probe()

    def _fault_in(self, va: int, length: int, kind: int) -> None:
        """Resolve the faults of an access page by page, asking the MMU itself each time."""
        spare = ctypes.c_uint64()
        where = ctypes.addressof(spare)
        end = va + length
        if end > 1 << 64:
            raise UserFault(f"{va:#x}+{length:#x} wraps around")
        while va < end:
            for _ in range(_FAULT_TRIES):
                if not engine.vmem_translate(self._handle, va, kind, where):
                    break
                if not self.resolve(va, _ACCESS[kind]):
                    raise UserFault(f"{va:#x} cannot be accessed")
            else:
                raise UserFault(f"{va:#x} cannot be accessed")
            va = (va | 0xFFF) + 1  # 4 KiB is the smallest page; a larger one is only asked for again

    def close(self) -> None:
        self._hooks.clear()
        self._uc = None  # the engine is freed when its wrapper goes
