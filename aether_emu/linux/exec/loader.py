"""Starting a program: map its segments, its interpreter, and build the initial stack (execve(2)).

high    strings: program name, environment, arguments
        platform, 16 random bytes
        auxiliary vector, environment pointers, argument pointers
sp ->   argument count
low     (the stack grows down)

The order is Linux's, for what comes later goes around what is there, or replaces it: the stack with its
strings, the segments (`image`), the interpreter, the vDSO, the vectors (`stack`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as modes
from collections.abc import Iterator

from aether_emu.errors import InterpreterError, OutOfFrames, ProgramError, Refused, shown
from aether_emu.linux.exec.elf import Image, read_image
from aether_emu.linux.exec.image import Loaded, map_interpreter, map_program
from aether_emu.linux.exec.stack import InitialStack, map_stack
from aether_emu.linux.exec.vdso import map_vdso
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.mappable import MappedFile
from aether_emu.linux.proc.guard import guard
from aether_emu.linux.task.process import ADDR_NO_RANDOMIZE
from aether_emu.linux.task.resource_limits import RLIMIT_STACK
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import UserFault
from aether_emu.mm.limits import GUARD_PAGES
from aether_emu.mm.protection import Protection
from aether_emu.policy.aslr import AddressLayout, choose_layout
from aether_emu.random import Stream


def load_program(task: Task, file: HostData | None = None) -> None:
    """Map the program that `task.process.program` names and set the registers to start it.

    `file` is the program, if it is open already. Raises ProgramError with the shell's exit status when it
    cannot be run.
    """
    name = shown(task.process.program.path)
    try:
        _load(task, name, file)
    except Refused as refused:
        raise _unloadable(name, refused, task.process.program.path) from refused
    except (OutOfFrames, UserFault) as error:
        raise ProgramError(f"{name}: does not fit into {task.process.config.ram} bytes of RAM") from error


def program_image(files: Files, path: bytes, name: str, *, executable: bool = False) -> Image:
    """The parsed header of a program of the guest's file system. Raises ProgramError as `load_program`.

    `name` is what its user calls it. `executable`: also for a program that execve(2) refuses because its file
    may not be executed, or that of its interpreter.
    """
    try:
        if executable:
            _require_executable(files, path, name)
        with _opened(files, path, name) as (image, _file):
            pass
    except Refused as refused:
        raise _unloadable(name, refused, path) from refused
    if executable and image.interpreter is not None:
        interpreter = f"{name}: its interpreter {shown(image.interpreter)}"
        with contextlib.suppress(Refused):  # `load_program` tells what else is wrong with it
            _require_executable(files, image.interpreter, interpreter)
    return image


def _unloadable(name: str, refused: Refused, path: bytes) -> ProgramError:
    if refused.errno == errno.ENOENT:
        where = "" if path.startswith(b"/") else ", whose working directory is /"
        return ProgramError(f"{name}: no such file in the guest{where}", 127)
    return ProgramError(f"{name}: {refused.about(shown(path))}")


def _load(task: Task, name: str, opened: HostData | None) -> None:
    process = task.process
    config, abi, space = process.config, process.abi, process.mm
    randomised = config.aslr and not process.personality & ADDR_NO_RANDOMIZE
    stream = process.kernel.streams.stream("aslr") if randomised else None
    if randomised and config.aslr_once:
        stream = Stream(config.seed, "aslr")  # from its beginning, each time
    layout = choose_layout(
        abi.entropy,
        user_end=abi.window,
        stack_limit=process.limits[RLIMIT_STACK][0],
        guard=GUARD_PAGES * space.page_size,
        page_size=space.page_size,
        stream=stream,
    )
    space.mmap_base = layout.mmap_base
    stack = InitialStack(task, layout)
    with _opened(process.files, process.program.path, name, opened) as (image, file):
        if image.isa != abi.isa:
            raise ProgramError(f"{name}: is a program for {image.isa}, this machine is {abi.isa}")
        process.program.path, process.program.file = file.link(), file.key
        process.executes(file.key)
        guard(process)
        process.files.namespace.executed = process.registry.executed
        map_stack(space, layout, executable=image.executable_stack)
        lowest = stack.put_strings()
        with _attached(task, file) as mapped:
            main = map_program(task, image, mapped, layout.image_base, process.program.path)
    _note_extents(task, main)
    interpreter = None
    if image.interpreter is not None:
        interpreter = _load_interpreter(task, image.interpreter)
    _place_heap(task, main, layout)
    vdso = map_vdso(task, lowest, stream)
    started = main if interpreter is None else interpreter
    process.program.entry = started.entry
    process.program.stack_pointer = stack.put_vectors(main, interpreter, vdso)
    abi.start(task.cpu, process.program.entry, process.program.stack_pointer)


def _note_extents(task: Task, main: Loaded) -> None:
    """Where the program's code is, and how much data comes with it (it counts for the limit of the heap)."""
    segments = [(s.address + main.bias, s.address + main.bias + s.file_size, s) for s in main.image.segments]
    code = [(start, end) for start, end, segment in segments if segment.protection & Protection.EXECUTE]
    if code:
        task.process.program.code = min(start for start, _ in code), max(end for _, end in code)
    if segments:
        data = (
            max(start for start, _end, _segment in segments),
            max(end for _start, end, _segment in segments),
        )
        task.process.program.data, task.process.mm.program_data = data, data[1] - data[0]


def _place_heap(task: Task, main: Loaded, layout: AddressLayout) -> None:
    """The heap follows the image; a static position-independent program's stands where images go.

    That place (Linux: ELF_ET_DYN_BASE) is no multiple of a page: images are rounded down, the heap up.
    """
    space, image = task.process.mm, main.image
    moved = image.position_independent and image.interpreter is None
    start = task.process.abi.entropy.image_base + space.page_size if moved else space.page_up(main.end)
    space.heap_start = space.heap_end = start + layout.heap_offset


@contextlib.contextmanager
def _opened(
    files: Files, path: bytes, name: str, opened: HostData | None = None
) -> Iterator[tuple[Image, HostData]]:
    """An ELF file of the guest's file system, parsed, open while the context is: `opened`, or by its path."""
    file = files.open_held(path) if opened is None else opened
    try:
        if not isinstance(file, HostData):
            raise ProgramError(f"{name}: is not a regular file")
        yield image_of(file, name), file
    finally:
        if opened is None:
            file.let_go()


def image_of(file: HostData, name: str) -> Image:
    """The parsed headers of an open file. Raises ProgramError (exit status 126)."""
    with open(file.host_fd, "rb", closefd=False) as stream:
        stream.seek(0)
        return read_image(stream, name)


def _require_executable(files: Files, path: bytes, name: str) -> None:
    """Refuse a file that the host would not execute: even the superuser's have one x bit at least."""
    found = files.stat(fl.AT_FDCWD, path, 0)
    if not modes.S_ISREG(found.mode):
        return
    try:
        files.access(fl.AT_FDCWD, path, os.X_OK, 0)
    except Refused as refused:
        if refused.errno != errno.EACCES:
            raise
        hint = "" if found.mode & 0o111 else " (chmod +x)"
        raise ProgramError(f"{name}: has no execute permission{hint}") from refused


@contextlib.contextmanager
def _attached(task: Task, file: HostData) -> Iterator[MappedFile]:
    """The file as it is mapped. Its pages are held: one segment may replace all that shows of another."""
    mapped = MappedFile(task.process.kernel, file)
    backing = mapped.open_backing(shared_writable=False)
    backing.hold()
    try:
        yield mapped
    finally:
        backing.let_go()


def _load_interpreter(task: Task, path: bytes) -> Loaded:
    name, program = shown(path), shown(task.process.program.path)
    with contextlib.ExitStack() as opened:
        try:
            image, file = opened.enter_context(_opened(task.files, path, name))
        except Refused as refused:
            if refused.errno != errno.ENOENT:
                why = refused.about(name)
                raise ProgramError(f"{program}: its interpreter {name}: {why}") from refused
            raise InterpreterError(program, name) from refused
        except ProgramError as error:
            raise ProgramError(f"{program}: its interpreter {error}") from error
        if image.isa != task.process.abi.isa:
            raise ProgramError(f"{program}: its interpreter {name} is for {image.isa}")
        try:
            return map_interpreter(task, image, opened.enter_context(_attached(task, file)), path)
        except Refused as refused:
            raise ProgramError(f"{program}: its interpreter {name}: {refused}") from refused
