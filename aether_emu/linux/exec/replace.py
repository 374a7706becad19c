"""execve(2): another program takes a process over.

find the file, follow `#!` lines, read the headers      a refusal is the call's errno
---- the point of no return
other threads end; new address space; load               a refusal is SIGSEGV (Linux: bprm_execve)
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from aether_emu.errors import OutOfFrames, ProgramError, Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.exec.elf import read_image
from aether_emu.linux.exec.loader import load_program
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.task.process import RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK, RLIMIT_STACK, Program
from aether_emu.linux.task.robust import leave_locks
from aether_emu.linux.task.task import NAME_MAX, Task

_HEAD = 256  # BINPRM_BUF_SIZE: what is read to see what a file is
_MOST_SCRIPTS = 5


def replace_program(
    task: Task, fd: int, name: bytes, arguments: list[bytes], environment: list[bytes], flags: int
) -> None:
    """Run another program in `task`'s process. Raises Refused as execve(2); then nothing has changed."""
    process = task.process
    path, executed, arguments = _find(process.files, process.abi.isa, fd, name, arguments, flags)
    try:
        space = process.kernel.new_space()
    except OutOfFrames:
        raise Refused(errno.ENOMEM, "no memory is left for its tables") from None
    _end_others(task)
    before = process.mm
    if process.uses_parents_memory:
        process.uses_parents_memory = False
        process.left_parent.wake()
    task.move_to(space)
    before.let_go()
    process.program = Program(path, arguments, environment, executed=executed)
    process.has_executed = True
    process.exit_signal = sig.SIGCHLD
    process.signals.reset(keeps_ignored=True)
    process.timers.clear(keeps_intervals=True)
    process.files = process.files.alone()
    process.files.close_on_exec()
    for resource in (RLIMIT_STACK, RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK):
        process.apply_limit(resource)
    task.name = executed.rsplit(b"/", 1)[-1][:NAME_MAX]
    task.signals.stack = sig.DISARMED
    task.set_child_tid = task.clear_child_tid = 0
    task.robust_list, task.sequences = (0, 0), None
    process.barriers = 0
    try:
        load_program(task)
    except ProgramError as error:
        process.die(sig.SIGSEGV, f"execve: {error}")


def _find(
    files: Files, isa: str, fd: int, name: bytes, arguments: list[bytes], flags: int
) -> tuple[bytes, bytes, list[bytes]]:
    """(path of the program, what the call executed, arguments), scripts replaced by their interpreters."""
    executed = name
    for _ in range(_MOST_SCRIPTS + 1):
        with _opened(files, fd, name, flags) as file:
            head = os.pread(file.host_fd, _HEAD, 0)
            path = file.link()
            if head[:2] != b"#!":
                _check_program(files, file, isa)
                return path, executed, arguments
        if not name.startswith(b"/") and fd != fl.AT_FDCWD:
            shown = b"/dev/fd/%d" % fd + (b"/" + name if name else b"")
            executed = name = shown
        interpreter, argument = _script(head)
        arguments = [interpreter, *([argument] if argument else []), name, *arguments[1:]]
        fd, name, flags = fl.AT_FDCWD, interpreter, 0
    raise Refused(errno.ELOOP, "scripts that run scripts")


@contextlib.contextmanager
def _opened(files: Files, fd: int, name: bytes, flags: int) -> Iterator[HostData]:
    """A file that may be executed, open while the context is. ENOENT, EACCES, ELOOP."""
    if flags & fl.AT_EMPTY_PATH and not name:
        file = files.table.held(fd)
        if not isinstance(file, HostData):
            raise Refused(errno.EACCES, "it is no regular file")
        files.access(fd, b"", os.X_OK, fl.AT_EMPTY_PATH)
        yield file
        return
    if not name:
        raise Refused(errno.ENOENT, "no name")
    nofollow = fl.O_NOFOLLOW if flags & fl.AT_SYMLINK_NOFOLLOW else 0
    status = files.stat(fd, name, flags & fl.AT_SYMLINK_NOFOLLOW)
    if nofollow and status.mode & 0o170000 == 0o120000:
        raise Refused(errno.ELOOP, "a symbolic link")
    if status.mode & 0o170000 != 0o100000:
        raise Refused(errno.EACCES, "it is no regular file")
    files.access(fd, name, os.X_OK, flags & fl.AT_SYMLINK_NOFOLLOW)
    number = files.open(fd, name, fl.O_RDONLY | fl.O_CLOEXEC | nofollow)
    try:
        opened = files.table.file(number)
        if not isinstance(opened, HostData):
            raise Refused(errno.EACCES, "it is no regular file")
        yield opened
    finally:
        files.close(number)


def _script(head: bytes) -> tuple[bytes, bytes]:
    """Interpreter and argument of a `#!` line (Linux: load_script). ENOEXEC."""
    line, newline, _rest = head[2:].partition(b"\n")
    if not newline:
        line = line.split(b"\0", 1)[0]
        inner = line.lstrip(b" \t")
        if len(head) == _HEAD and not any(c in inner for c in (b" ", b"\t")):
            raise Refused(errno.ENOEXEC, "the interpreter's name is cut off")
    line = line.strip(b" \t")
    if not line:
        raise Refused(errno.ENOEXEC, "a script that names no interpreter")
    interpreter, _space, argument = line.partition(b"\t" if b"\t" in line.split(b" ")[0] else b" ")
    return interpreter.split(b"\0")[0], argument.strip(b" \t").split(b"\0")[0]


def _check_program(files: Files, file: HostData, isa: str) -> None:
    """ENOEXEC for what is no program of this ISA, and what its interpreter is refused for."""
    with open(file.host_fd, "rb", closefd=False) as stream:
        stream.seek(0)
        try:
            image = read_image(stream, "it")
        except ProgramError as error:
            raise Refused(errno.ENOEXEC, str(error)) from None
    if image.isa != isa:
        raise Refused(errno.ENOEXEC, f"a program for {image.isa}")
    if image.interpreter is not None:
        with (
            _opened(files, fl.AT_FDCWD, image.interpreter, 0) as found,
            open(found.host_fd, "rb", closefd=False) as stream,
        ):
            stream.seek(0)
            try:
                if read_image(stream, "it").isa != isa:
                    raise Refused(errno.ELIBBAD, "its interpreter is for another ISA")
            except ProgramError as error:
                raise Refused(errno.ELIBBAD, str(error)) from None


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
    registry.tasks[task.tid] = task
