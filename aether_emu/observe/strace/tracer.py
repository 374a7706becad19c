"""Listens to a machine and writes a line for each system call, page fault and signal.

    [1000] 0.000002160 openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 3
    [1000] 0.000003160 page-fault(0x7ffd1230, write, user) = demand-zero, frame 0x1234000
    [1000] 0.000004000 --- SIGSEGV {si_signo=SIGSEGV, si_code=SEGV_MAPERR, si_addr=0x10} ---

A line begins with the task, and with the virtual time in seconds at which it is written: a call's is that of
its answer. A call that waits is written once, when it is done; in two parts if another task has a line
meanwhile, as strace -f does. The first part has the time when the wait began:

    [1000] 0.000126600 wait4(-1, <unfinished ...>
    [1001] 0.000131500 exit_group(0)                           = ?
    [1001] 0.000131500 +++ exited with 0 +++
    [1000] 0.000131900 <... wait4 resumed>[{WIFEXITED(s) && WEXITSTATUS(s) == 0}], 0, NULL) = 1001

Nothing here changes what it shows: memory is only looked at, and the clock is read without a guest's
noticing.
"""

from __future__ import annotations

from collections.abc import Callable

from aether_emu.arch.paging import Access
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.kernel import Moment
from aether_emu.linux.observers import (
    Answer,
    Attachment,
    FaultSeen,
    ProcessSeen,
    SignalSeen,
    SystemCall,
    TaskSeen,
)
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED, AccessError, Blocked, BusError, OutOfMemory
from aether_emu.mm.tables.damage import TableDamaged
from aether_emu.observe.peek import PeekMemory
from aether_emu.observe.strace import names
from aether_emu.observe.strace.declarations import CALLS, Declaration
from aether_emu.observe.strace.kinds import HEX, Made, answer, decimal, signal_name
from aether_emu.observe.strace.selection import EVERYTHING, Selection
from aether_emu.observe.strace.words import address, bare, clipped, listed, quoted, signed
from aether_emu.records import dataclass
from aether_emu.system import Machine

_COLUMN = 40  # where strace puts the equals sign, if the call leaves room
_UNDECLARED = Declaration((HEX,) * 6, decimal)
_RESULT_REGISTER = {"x86_64": "rax", "arm64": "x0"}
_WITH_ADDRESS = (sig.SIGILL, sig.SIGFPE, sig.SIGSEGV, sig.SIGBUS)
_SENT = (sig.SI_USER, sig.SI_TKILL)
_CHILD_CODES = dict(
    enumerate(("CLD_EXITED", "CLD_KILLED", "CLD_DUMPED", "CLD_TRAPPED", "CLD_STOPPED", "CLD_CONTINUED"), 1)
)
_DID = {
    Event.FAULT_STACK: "stack-growth",
    Event.FAULT_ZERO_PAGE: "zero-page",
    Event.FAULT_DEMAND_ZERO: "demand-zero",
    Event.HUGE_FAULT: "huge-page",
    Event.HUGE_ZERO_PAGE: "huge-zero-page",
    Event.HUGE_RUN: "run-of-pages",
    Event.FAULT_UPGRADE: "write-upgrade",
    Event.FAULT_COPY: "copy-on-write",
    Event.FAULT_FILE: "file",
    Event.FAULT_SHARED: "shared",
    Event.FAULT_SWAP: "from swap",
    Event.FAULT_SWAP_CACHE: "from the swap cache",
    Event.FAULT_SPURIOUS: "spurious",
    Event.FAULT_ACCESS_FLAG: "access-noted",
}


@dataclass(slots=True)
class _Pending:
    """A call without an answer.

    It waits `since` then, if it does. `written` of its arguments are in a line already, if it `is_written`.
    """

    task: Task
    made: Made
    texts: list[str | None]
    since: Moment | None = None
    is_written: bool = False
    written: int = 0


class Tracer:
    """Writes what `selection` shows of a machine's run, until `close`. `write` gets each line with its end.

    The machine has its program, which has not run. What `write` raises ends the run, at the caller of it.
    """

    def __init__(
        self, machine: Machine, write: Callable[[str], object], selection: Selection = EVERYTHING
    ) -> None:
        self._kernel, self._abi, self._write, self._selection = machine.kernel, machine.abi, write, selection
        self._pending: dict[int, _Pending] = {}
        self._attachment: Attachment = machine.observers.attach(
            call_entered=self._entered,
            call_answered=self._answered,
            fault=self._fault if selection.faults else None,
            signal=self._signal if selection.signals else None,
            ended=self._ended,
        )
        self._first = ""  # a line that is written when the run has begun
        if machine.process is not None and selection.shows("execve"):
            self._first = self._executed(machine.process)

    def close(self) -> None:
        """The run is over, or is left where it is: calls that have no answer are shown without."""
        self._attachment.detach()
        for pending in list(self._pending.values()):
            self._leave_unfinished(pending)
        self._pending.clear()

    # ---- calls

    def _executed(self, process: Process) -> str:
        """The call that nobody made: it brought the program there."""
        program = process.program
        words = listed(clipped(word) for word in program.arguments)
        count, start = len(program.environment), program.strings[1]
        variables = f"{address(start)} /* {count} var{'' if count == 1 else 's'} */"
        return self._dated(process.pid, f"execve({quoted(program.path)}, {words}, {variables}) = 0")

    def _entered(self, call: SystemCall) -> None:
        name = call.name or f"syscall_{call.number:#x}"
        if not self._selection.shows(name):
            return
        space = _itself(call.task).process.mm
        made = Made(name, call.arguments, PeekMemory(space), self._abi.isa, page_size=space.page_size)
        texts = [
            "" if kind.late else kind.show(made, value)
            for kind, value in zip(_declared(name).arguments, call.arguments, strict=False)
        ]
        self._pending[call.task.tid] = _Pending(_itself(call.task), made, texts)

    def _answered(self, told: Answer) -> None:
        task = _itself(told.call.task)
        pending = self._pending.get(task.tid)
        if pending is None:
            return
        if told.wait is not None:
            pending.since = pending.since or self._kernel.moment()
            return
        del self._pending[task.tid]
        made, texts = pending.made, pending.texts
        declared = _declared(made.name)
        made.result, made.blocked = self._result(told), task.signals.blocked
        for index, (kind, value) in enumerate(zip(declared.arguments, made.arguments, strict=False)):
            if kind.late:
                texts[index] = kind.show(made, value)
        shown = ", ".join(text for text in texts[pending.written :] if text is not None)
        start = f"<... {made.name} resumed>" if pending.is_written else f"{made.name}("
        self._call_line(task.tid, f"{start}{shown})", answer(made, declared.result))
        if task.is_over and not task.process.is_over:  # else its process's end is told
            self._line(task.tid, f"+++ exited with {made.arguments[0] & 0xFF} +++")

    def _result(self, told: Answer) -> int | None:
        """The answer; that of rt_sigreturn is what it has put into the register."""
        task = _itself(told.call.task)
        if task.is_over and told.call.name in ("exit", "exit_group"):
            return None
        if any(owner.pending.has(sig.SIGKILL) for owner in (task.signals, task.process.signals)):
            return None  # nobody stops at the end of a call any more (Linux: ptrace_stop)
        if told.result is not None:
            return told.result
        return signed(task.cpu.read(_RESULT_REGISTER[self._abi.isa])) if task.running else None

    def _call_line(self, tid: int, text: str, result: str) -> None:
        self._line(tid, f"{text:<{_COLUMN - 1}} = {result}")

    # ---- faults

    def _fault(self, seen: FaultSeen) -> None:
        access = seen.access
        kind = "fetch" if access & Access.EXECUTE else "write" if access & Access.WRITE else "read"
        by = "call" if seen.in_call else "user"
        self._line(seen.task.tid, f"page-fault({seen.address:#x}, {kind}, {by}) = {_outcome(seen)}")

    # ---- signals

    def _signal(self, seen: SignalSeen) -> None:
        if seen.info.number == sig.SIGKILL:  # no tracer is told of it, only of the end (Linux: get_signal)
            return
        name = signal_name(seen.info.number)
        self._line(seen.task.tid, f"--- {name} {{si_signo={name}, {details(seen.info)}}} ---")

    def _ended(self, process: ProcessSeen) -> None:
        ended = process.ended
        for tid, pending in list(self._pending.items()):
            if pending.task.process is process:
                del self._pending[tid]
                made = pending.made
                start = f"<... {made.name} resumed> " if pending.is_written else f"{made.name}("
                known = "" if pending.is_written else _joined(pending.texts)
                self._call_line(tid, f"{start}{known}<unfinished ...>)", "?")
        if ended is None:
            return
        if ended.signal:
            self._line(process.pid, f"+++ killed by {signal_name(ended.signal)} +++")
        else:
            self._line(process.pid, f"+++ exited with {ended.code & 0xFF} +++")

    def _leave_unfinished(self, pending: _Pending) -> None:
        """Write what is known of a call that has no answer, once."""
        if pending.is_written:
            return
        pending.is_written, texts = True, pending.texts
        pending.written = texts.index("") if "" in texts else len(texts)
        line = f"{pending.made.name}({_joined(texts)}<unfinished ...>"
        self._put(self._dated(pending.task.tid, line, pending.since))

    def _line(self, tid: int, text: str) -> None:
        for other, pending in self._pending.items():
            if other != tid and pending.since is not None:
                self._leave_unfinished(pending)
        self._put(self._dated(tid, text))

    def _put(self, line: str) -> None:
        first, self._first = self._first, ""
        self._write(first + line)

    def _dated(self, tid: int, text: str, moment: Moment | None = None) -> str:
        kernel = self._kernel
        seconds, nanoseconds = divmod(kernel.time_seen() if moment is None else kernel.time_of(moment), 10**9)
        return f"[{tid}] {seconds}.{nanoseconds:09d} {text}\n"


def _declared(name: str) -> Declaration:
    return CALLS.get(name, _UNDECLARED)


def _joined(texts: list[str | None]) -> str:
    """What is known of a call that has no answer: the arguments up to the first that the kernel fills in."""
    known = texts[: texts.index("")] if "" in texts else texts
    shown = "".join(f"{text}, " for text in known if text is not None)
    return shown if "" in texts else f"{shown.removesuffix(', ')} "


def _outcome(seen: FaultSeen) -> str:
    """What became of a fault, and the frame that stands at the address now."""
    match seen.outcome:
        case AccessError(_, mapped):
            return "denied, not permitted there" if mapped else "denied, nothing mapped there"
        case BusError():
            return "bus error, nothing behind the page"
        case OutOfMemory():
            return "out of memory"
        case Blocked():
            return "waits for the page"
    if seen.outcome is not RESOLVED:
        return "damaged page table"
    did = ", ".join(word for event, word in _DID.items() if event in seen.did)
    return f"{did}, frame {_frame(seen.task, seen.address):#x}"


def _itself(task: TaskSeen) -> Task:
    """The task: listeners in general are promised less of one."""
    assert isinstance(task, Task), "there are no others"
    return task


def _frame(task: TaskSeen, va: int) -> int:
    """The physical address of the page's frame."""
    table = _itself(task).process.mm.table
    try:
        found = table.find(va)
    except TableDamaged:
        return 0
    if found is None:
        return 0
    page = va & -table.format.page_size
    return table.format.leaf_address(found.entry, found.level) + page - found.start


def _of_file(info: SignalInfo) -> str:
    """A signal by which a file tells that it may be ready. strace knows only those by SIGIO."""
    if info.number == sig.SIGIO:
        code = names.FAULT_CODES[info.number].one(info.code)
        return f"si_code={code}, si_band={info.value}, si_fd={info.file}"
    code = names.SENT_CODE.one(info.code) if info.code < 0 else bare(info.code)
    value = f", si_int={info.file}, si_ptr={address(info.file or 0)}" if info.file else ""
    return f"si_code={code}, si_pid={info.value}, si_uid=0{value}"


def details(info: SignalInfo) -> str:
    """What siginfo says beside the number."""
    code = names.SENT_CODE.one(info.code)
    if info.is_fault:
        table = names.FAULT_CODES[info.number]
        return f"si_code={table.one(info.code)}, si_addr={address(info.address)}"
    if info.number == sig.SIGCHLD and info.code in _CHILD_CODES:
        exited = info.code == sig.CLD_EXITED
        status = str(info.value) if exited else signal_name(info.value)
        child = f"si_code={_CHILD_CODES[info.code]}, si_pid={info.pid}, si_uid={info.uid}, si_status={status}"
        return f"{child}, si_utime={info.used[0]}, si_stime={info.used[1]}"
    if info.file is not None:
        return _of_file(info)
    if info.code == names.SI_QUEUE:
        value = f"si_int={signed(info.value, 32)}, si_ptr={address(info.value)}"
        return f"si_code={code}, si_pid={info.pid}, si_uid={info.uid}, {value}"
    if info.code in _SENT:
        return f"si_code={code}, si_pid={info.pid}, si_uid={info.uid}"
    if info.number in _WITH_ADDRESS:
        return f"si_code={code}, si_addr={address(info.address)}"
    return f"si_code={code}"
