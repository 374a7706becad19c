"""The report on a crash: at most a screen or two of 80 columns, the most telling first."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import replace

from aether_emu.arch.paging import Access
from aether_emu.arch.x86_64.syndrome import VECTOR_OVERFLOW, VECTOR_STACK
from aether_emu.errors import shown
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.kernel import Moment
from aether_emu.mm.allocation import Area
from aether_emu.mm.changes import Change
from aether_emu.mm.space import AddressSpace
from aether_emu.observe.crash import code
from aether_emu.observe.crash.modules import Modules
from aether_emu.observe.crash.reason import Refusal, named, reasons, refusal_of
from aether_emu.observe.crash.recorder import Fatal, Recorder
from aether_emu.observe.crash.unwind import COLUMNS, Frame, Unwinder
from aether_emu.observe.peek import PeekMemory

WIDTH = 80
_GUESSES = ("frame pointer", "return address")
_FIRST, _LAST = 16, 4  # frames that are shown of a long backtrace
_FOLDERS = re.compile(r"(?<= )/(?:[^/ ]*/)+")
_SHOWN = {
    "x86_64": (
        "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15", "rip", "rflags", "fs_base", "gs_base",
    ),
    "arm64": (*(f"x{i}" for i in range(31)), "sp", "pc", "nzcv", "tpidr_el0"),
}  # fmt: skip


def report(recorder: Recorder, fatal: Fatal) -> str:
    """What is known of a crash, when the recorder tells it. A part that fails says so in a line."""
    return "".join(f"{line}\n" for line in _Report(recorder, fatal).lines())


class _Report:
    def __init__(self, recorder: Recorder, fatal: Fatal) -> None:
        self._recorder, self._fatal = recorder, fatal
        self._isa = recorder.machine.abi.isa
        self._space: AddressSpace = fatal.task.process.mm
        self._all_changes = recorder.changes(self._space.number)
        self._state = fatal.task.cpu.registers() if fatal.task.running else fatal.task.registers
        self._pc = self._state[COLUMNS[self._isa].pc]
        self._memory = PeekMemory(self._space, forced=True)
        self._modules = Modules(self._space)
        self._unwinder = Unwinder(self._space, self._modules, self._isa)
        self._refusal: Refusal | None = refusal_of(self._isa, fatal.info)

    def lines(self) -> Iterator[str]:
        """The whole report."""
        parts = (
            ("", self._head),
            ("Backtrace", self._backtrace),
            ("Code", self._code),
            ("Registers", self._registers),
            ("Walk", self._walk),
            ("Areas", self._areas),
            ("Last changes of mappings", self._changes),
        )
        for title, part in parts:
            try:
                lines = list(part())
            except Exception as error:  # a report must not fail: what it reads is the guest's
                lines = [f"  cannot be shown: {type(error).__name__} {error}"]
            if lines and title:
                yield ""
                yield title
            yield from map(_printable, lines)

    # ---- what happened

    def _head(self) -> Iterator[str]:
        info, task = self._fatal.info, self._fatal.task
        name = sig.name_of(info.number)
        seconds = self._recorder.machine.kernel.time_seen() / 10**9
        yield f"Crash of task {task.tid} ({task.name.decode('utf-8', 'replace')}) at {seconds:.9f} s: {name}"
        process = task.process
        if process is not self._recorder.machine.process:
            program = process.program.path.decode("utf-8", "replace")
            yield f"  Process {process.pid}, made by {process.parent_pid}, ran {program}"
        for sentence in self._sentences():
            yield from _wrapped(sentence, "  ", "  ")

    def _sentences(self) -> Iterator[str]:
        info, fatal = self._fatal.info, self._fatal
        name = sig.name_of(info.number)
        if self._refusal is not None:
            yield from self._refused(self._refusal, "The program tried")
        elif not fatal.forced:
            yield self._sent(name)
        elif info.record is None and info.number == sig.SIGSEGV:
            yield "The frame of a signal could not be written or read back: see the stack pointer."
            first = refusal_of(self._isa, replace(info, record=fatal.task.signals.record))
            if first is not None:
                yield from self._refused(first, "Before that the program had tried")
        else:
            yield self._exception()
        if fatal.forced and fatal.blocked >> info.number - 1 & 1:
            yield f"{name} is blocked, so that no handler is asked."

    def _sent(self, name: str) -> str:
        info, process = self._fatal.info, self._fatal.task.process
        if info.code in (sig.SI_USER, sig.SI_TKILL) and info.pid != process.pid:
            return f"Process {info.pid} sent it {name}."
        way = "as abort() does" if info.number == sig.SIGABRT else "by kill() or its like"
        return f"The program sent {name} to itself, {way}."

    def _refused(self, refusal: Refusal, tried: str) -> Iterator[str]:
        where = f", at {self._pc:#x} {self._modules.describe(self._pc)}"
        yield f"{tried} {refusal.words}{'' if refusal.kind == Access.EXECUTE else where}."
        yield from reasons(self._space, refusal)
        for moment, change, start, end in reversed(self._all_changes):
            if start <= refusal.address < end:
                if change is not Change.MAPPED:
                    yield f"These addresses were {change.value} at {self._seconds(moment)} s."
                break

    def _exception(self) -> str:
        """What an exception means that no page made."""
        info = self._fatal.info
        text = ""
        addresses: list[int] = []
        if self._isa == "x86_64":
            text, addresses = code.used(self._memory, self._pc, self._state)
        if info.number == sig.SIGFPE:
            integer = info.code == sig.FPE_INTDIV
            return (
                "It divided an integer by zero, or the quotient does not fit."
                if integer
                else ("A floating-point operation raised an exception that the program does not mask.")
            )
        if info.number == sig.SIGILL:
            return f"The CPU refuses the instruction{f' {text}' if text else ''}."
        if info.number == sig.SIGTRAP:
            return "It met a breakpoint or a trap instruction."
        trap = info.record.trap if info.record is not None else 0
        if self._isa == "x86_64" and trap == VECTOR_OVERFLOW:
            return "It raised the exception for an overflow (int 4)."
        if self._isa == "x86_64" and trap == VECTOR_STACK:
            addresses = [self._state["rsp"], *addresses]
        if self._isa == "arm64" and info.number == sig.SIGBUS:
            if self._pc % 4:
                return f"It jumped to {self._pc:#x}: instructions lie at multiples of 4."
            return f"It used {info.address:#x}, which is misaligned for its instruction."
        bits = self._recorder.machine.format.virtual_bits
        for address in (self._pc, *addresses):
            if address >> bits - 1 not in (0, (1 << 65 - bits) - 1):
                what = f" The instruction is {text}." if text else ""
                alike = f"bits 63 to {bits - 1} of one are alike"
                return f"It used {address:#x}, which is no address: {alike}.{what}"
        if info.number == sig.SIGBUS:
            return "It used a misaligned address."
        return f"Only the supervisor may execute {text or 'this instruction'}."

    def _seconds(self, moment: Moment) -> str:
        return f"{self._recorder.machine.kernel.time_of(moment) / 10**9:.9f}"

    # ---- how it came there

    def _backtrace(self) -> Iterator[str]:
        frames = list(self._unwinder.frames(self._state))
        runs = _runs(frames)
        left_out = len(runs) - _FIRST - _LAST
        for number, (first, count) in enumerate(runs):
            if left_out > 0 and number == _FIRST:
                yield f"  ... {sum(more for _first, more in runs[_FIRST:-_LAST]):,} frames left out"
            if left_out <= 0 or number < _FIRST or number >= _FIRST + left_out:
                yield self._frame(first, frames[first])
                if count > 1:
                    yield f"  ... and {count - 1:,} more such frames, up to #{first + count - 1}"
        if self._unwinder.ended:
            yield from _wrapped(f"It ends here: {self._unwinder.ended}.", "  ", "  ")

    def _frame(self, number: int, frame: Frame) -> str:
        shown = self._modules.describe(frame.pc, returned=frame.returned)
        guess = f"  (by {frame.by})" if frame.by in _GUESSES else ""
        return f"  #{number:<3} {frame.pc:#014x} {shown}{guess}"

    def _code(self) -> Iterator[str]:
        start = self._unwinder.function_start(self._pc)
        module = self._modules.at(self._pc)
        if start is None and module is not None:
            found = module.symbol(self._pc)
            start = None if found is None else self._pc - found[1]
        instructions = code.around(self._memory, self._isa, self._pc, start)
        if not instructions:
            yield f"  there is none at {self._pc:#x}"
        for one in instructions:
            mark = "=>" if one.address == self._pc else "  "
            yield f"  {mark} {one.address:#x}  {one.code.hex():<16}  {one.text}"

    def _registers(self) -> Iterator[str]:
        shown = [f"{name:>10} {self._state[name]:016x}" for name in _SHOWN[self._isa] if name in self._state]
        for first in range(0, len(shown), 3):
            yield "".join(shown[first : first + 3]).removeprefix(" ")

    # ---- where it went

    def _walk(self) -> Iterator[str]:
        if self._refusal is not None and self._space.table.format.canonical(self._refusal.address):
            for line in str(self._space.walk(self._refusal.address)).splitlines():
                indent = " " * (2 + len(line) - len(line.lstrip()))
                yield from _wrapped(line.strip(), indent, f"{indent}    ")

    def _areas(self) -> Iterator[str]:
        address = self._pc if self._refusal is None else self._refusal.address
        areas = self._space.areas
        hit, below, above = areas.find(address), areas.preceding(address), areas.following(address)
        chosen = [area for area in (below, hit, None if hit is above else above) if area is not None]
        if below is None and hit is None and chosen:
            yield f"  => {address:#x} lies before them all"
        for area in chosen:
            yield _line(area, "=>" if area is hit else "  ")
            if area is below and hit is None:
                yield f"  => {address:#x} lies {'behind them all' if above is None else 'between'}"

    def _changes(self) -> Iterator[str]:
        for moment, change, start, end in self._all_changes:
            area = self._space.areas.find(start)
            written = f" {named(area)}" if area is not None and change is not Change.UNMAPPED else ""
            yield f"  {self._seconds(moment)} {change.value:<9} {start:#x}-{end:#x}{written}"


def _wrapped(text: str, first: str, others: str) -> list[str]:
    """Lines that break at blanks alone."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _runs(frames: list[Frame]) -> list[tuple[int, int]]:
    """(number of the first, how many) of frames in a row at the same place."""
    runs: list[tuple[int, int]] = []
    for number, frame in enumerate(frames):
        if runs and frames[runs[-1][0]].pc == frame.pc:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs


def _line(area: Area, mark: str) -> str:
    return f"  {mark} {area.start:012x}-{area.end:012x} {named(area)}"


def _printable(line: str) -> str:
    """Names may hold anything. Of long lines the folders are left out, then their middle."""
    text = shown(line)
    if len(text) > WIDTH:
        text = _FOLDERS.sub(".../", text)
    if len(text) <= WIDTH:
        return text
    half = (WIDTH - 3) // 2
    return f"{text[: WIDTH - 3 - half]}...{text[-half:]}"
