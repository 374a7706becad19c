"""execve(2): another program takes a process over.

find the file, follow `#!` lines, read the headers      a refusal is the call's errno
---- the point of no return
other threads end; new address space; load               a refusal is SIGSEGV (Linux: bprm_execve)
"""

from __future__ import annotations

import contextlib
import errno
import os

from aether_emu.errors import OutOfFrames, ProgramError, Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.exec.elf import ELF_HEADER
from aether_emu.linux.exec.loader import image_of, load_program
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.task.process import NAME_MAX, READ_IMPLIES_EXEC
from aether_emu.linux.task.program import Program
from aether_emu.linux.task.resource_limits import RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK, RLIMIT_STACK
from aether_emu.linux.task.robust import leave_locks
from aether_emu.linux.task.task import Task
from aether_emu.mm.merging import set_merge_any
from aether_emu.mm.space import AddressSpace

_HEAD = 256  # BINPRM_BUF_SIZE: what is read to see what a file is
_MOST_SCRIPTS = 5


def replace_program(
    task: Task, fd: int, name: bytes, arguments: list[bytes], environment: list[bytes], flags: int
) -> None:
    """Run another program in `task`'s process. Raises Refused as execve(2); then nothing has changed."""
    process = task.process
    closes = _is_closing(task.files, fd, name)
    with contextlib.ExitStack() as opened:
        file = _hold(opened, task.files.open_program(fd, name, flags))
        name = executed_name(fd, name)
        file, arguments = _interpreted(task, opened, file, name, arguments, closes)
        _check_interpreter(task.files, file, process.abi.isa)
        try:
            space = process.kernel.new_space()
        except OutOfFrames:
            raise Refused(errno.ENOMEM, "no memory is left for its tables") from None
        _begin(task, space, Program(file.link(), arguments, environment, executed=name))
        try:
            load_program(task, file)
        except ProgramError as error:
            process.die(sig.SIGSEGV, f"execve: {error}")


def executed_name(fd: int, name: bytes) -> bytes:
    """What a program is told that it was executed as (`bprm->filename`)."""
    if fd == fl.AT_FDCWD or name.startswith(b"/"):
        return name
    return b"/dev/fd/%d" % fd + (b"/" + name if name else b"")


def _begin(task: Task, space: AddressSpace, program: Program) -> None:
    """The point of no return: the old program's memory is gone, and what else does not outlive it."""
    process = task.process
    _end_others(task)
    task.clear_number()
    before = process.mm
    space.no_huge = before.no_huge
    set_merge_any(space, on=before.merge_any)
    space.exec_gain = before.exec_gain_of_others
    if process.uses_parents_memory:
        process.uses_parents_memory = False
        process.left_parent.wake()
    task.move_to(space)
    before.let_go()
    _change_identity(task)
    process.program = program
    process.has_executed = True
    process.exit_signal = sig.SIGCHLD
    process.personality &= ~READ_IMPLIES_EXEC
    process.signals.reset(keeps_ignored=True)
    process.clear_timers(keeps_intervals=True)
    process.keep_files(task)
    task.files.unshare_table()
    task.files.close_on_exec()
    for resource in (RLIMIT_STACK, RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK):
        process.limits.apply(resource)
    task.name = program.executed.rsplit(b"/", 1)[-1][:NAME_MAX]
    task.signals.stack = sig.DISARMED
    task.set_child_tid = 0
    task.robust_list, task.sequences = (0, 0), None
    process.barriers = 0


def _change_identity(task: Task) -> None:
    """Who the new program is. Files lend nothing out: all are mounted nosuid."""
    process, who = task.process, task.credentials.executed()
    process.dumpable = int(not who.is_secure)
    if who.lends_rights(task.credentials):
        process.dumpable = 0
    if who.is_secure:
        task.death_signal = 0
    task.credentials = who


def _hold(opened: contextlib.ExitStack, file: HostData) -> HostData:
    """The file, which is held: until the context ends."""
    opened.callback(file.let_go)
    return file


def _is_closing(files: Files, fd: int, name: bytes) -> bool:
    """Whether a name below /dev/fd means nothing to an interpreter, since the descriptor closes."""
    if fd == fl.AT_FDCWD or name.startswith(b"/"):
        return False
    return files.table.descriptor(fd).cloexec


def _interpreted(
    task: Task,
    opened: contextlib.ExitStack,
    file: HostData,
    name: bytes,
    arguments: list[bytes],
    closes: bool,
) -> tuple[HostData, list[bytes]]:
    """The program that `#!` lines lead to, and its arguments. It is for this ISA."""
    for depth in range(_MOST_SCRIPTS + 1):
        head = os.pread(file.host_fd, _HEAD, 0)
        if head[:2] != b"#!":
            _check_program(file, task.process.abi.isa)
            return file, arguments
        interpreter, argument = script_line(head)
        if closes and not depth:
            raise Refused(errno.ENOENT, "the interpreter could not open the script: its descriptor closes")
        arguments = [interpreter, *([argument] if argument else []), name, *arguments[1:]]
        file, name = (
            _hold(opened, task.files.open_program(fl.AT_FDCWD, interpreter or b".")),
            interpreter,
        )
    raise Refused(errno.ELOOP, "scripts that run scripts")


def script_line(head: bytes) -> tuple[bytes, bytes]:
    """Interpreter and argument of a `#!` line, given the first 256 bytes of the file. ENOEXEC.

    As Linux's load_script: what is behind the first NUL of either is not part of it, a line without an end is
    cut off at the last byte, and an interpreter's name that is cut off so is refused.
    """
    buffer = head.ljust(_HEAD, b"\0")
    text = buffer.split(b"\0", 1)[0]
    end = text.find(b"\n")
    if end < 0:
        end = _HEAD - 1
        first = _skip(buffer, 2, end)
        if first > end or not any(c in b" \t\0" for c in buffer[first : end + 1]):
            raise Refused(errno.ENOEXEC, "the interpreter's name is missing or cut off")
    line = buffer[2:end].rstrip(b" \t").lstrip(b" \t")
    if not line:
        raise Refused(errno.ENOEXEC, "a script that names no interpreter")
    stop = next((at for at, c in enumerate(line) if c in b" \t\0"), len(line))
    argument = b"" if line[stop : stop + 1] == b"\0" else line[stop:].lstrip(b" \t").split(b"\0", 1)[0]
    return line[:stop], argument


def _skip(buffer: bytes, at: int, last: int) -> int:
    """Where the spaces and tabs from `at` on end, at most behind `last`."""
    while at <= last and buffer[at] in b" \t":
        at += 1
    return at


def _check_program(file: HostData, isa: str) -> None:
    """ENOEXEC for what is no program of this ISA."""
    try:
        image = image_of(file, "it")
    except ProgramError as error:
        raise Refused(errno.ENOEXEC, str(error)) from None
    if image.isa != isa:
        raise Refused(errno.ENOEXEC, f"a program for {image.isa}")


def _check_interpreter(files: Files, file: HostData, isa: str) -> None:
    """What a program's own interpreter (PT_INTERP) is refused for. EIO and ELIBBAD, or as `open_program`."""
    interpreter = image_of(file, "it").interpreter
    if interpreter is None:
        return
    with contextlib.ExitStack() as opened:
        found = _hold(opened, files.open_program(fl.AT_FDCWD, interpreter or b"."))
        if found.size() < ELF_HEADER:
            raise Refused(errno.EIO, "its interpreter is too short")
        try:
            wrong = image_of(found, "it").isa != isa
        except ProgramError as error:
            raise Refused(errno.ELIBBAD, str(error)) from None
        if wrong:
            raise Refused(errno.ELIBBAD, "its interpreter is for another ISA")


def _end_others(task: Task) -> None:
    """The threads of a process end when one of them executes another program; that one is the first then."""
    process, registry = task.process, task.process.registry
    for other in process.tasks:
        assert isinstance(other, Task), "a member"
        leave_locks(other)
        if other is not task:
            other.ended = True
            process.kernel.run_queue.look_at(process)
    if task.tid != process.pid:
        registry.tasks.pop(task.tid, None)
        task.tid = process.pid
        process.lead(task)
    registry.tasks[task.tid] = task
