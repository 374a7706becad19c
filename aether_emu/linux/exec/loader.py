"""Starting a program: map its segments, its interpreter, and build the initial stack (execve(2)).

high    strings: program name, environment, arguments
        platform, 16 random bytes
        auxiliary vector, environment pointers, argument pointers
sp ->   argument count
low     (the stack grows down)
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from aether_emu.errors import OutOfFrames, ProgramError, Refused
from aether_emu.linux.calls.mappable import file_backing
from aether_emu.linux.exec.elf import Image, Segment, read_image
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import Cpu, UserFault
from aether_emu.mm import mapping
from aether_emu.mm.objects.protocol import Backing
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import STACK_GUARD_PAGES, AddressSpace
from aether_emu.policy.aslr import AddressLayout, choose_layout

(
    AT_NULL, AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_BASE, AT_FLAGS, AT_ENTRY, AT_UID, AT_EUID, AT_GID,
    AT_EGID, AT_PLATFORM, AT_HWCAP, AT_CLKTCK, AT_SECURE, AT_RANDOM, AT_HWCAP2, AT_EXECFN, AT_MINSIGSTKSZ,
) = (0, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 23, 25, 26, 31, 51)  # fmt: skip
_INITIAL_STACK = 132 << 10
_SMALLEST_PAGE = 4096  # with these, programs may rely on what Linux makes of such a page
_RW = Protection.READ | Protection.WRITE


@dataclass(frozen=True, slots=True)
class _Loaded:
    """One ELF file in memory: what was added to its addresses, and its parsed image."""

    image: Image
    bias: int
    name: bytes

    @property
    def entry(self) -> int:
        return self.image.entry + self.bias

    @property
    def end(self) -> int:
        return self.image.high + self.bias

    @property
    def headers(self) -> int:
        """Where the program headers are in memory (0 when no segment holds them)."""
        for segment in self.image.segments:
            if segment.offset <= self.image.header_offset < segment.offset + segment.file_size:
                return segment.address + self.bias + self.image.header_offset - segment.offset
        return 0


def load_program(task: Task) -> None:
    """Map the program that `task.process.program` names and set the registers to start it.

    Raises ProgramError with the shell's exit status when it cannot be run.
    """
    name = _shown(task.process.program.path)
    try:
        _load(task, name)
    except Refused as refused:
        raise _unloadable(name, refused) from refused
    except (OutOfFrames, UserFault) as error:
        raise ProgramError(f"{name}: does not fit into {task.process.config.ram} bytes of RAM") from error


def program_image(files: Files, path: bytes) -> Image:
    """The parsed header of a program of the guest's file system. Raises ProgramError as `load_program`."""
    try:
        with _opened(files, path) as (image, _file):
            return image
    except Refused as refused:
        raise _unloadable(_shown(path), refused) from refused


def _unloadable(name: str, refused: Refused) -> ProgramError:
    if refused.errno == errno.ENOENT:
        return ProgramError(f"{name}: no such file in the guest", 127)
    return ProgramError(f"{name}: {refused}")


def _shown(path: bytes) -> str:
    """A path for a message of one line."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _load(task: Task, name: str) -> None:
    config, abi, space = task.process.config, task.process.abi, task.process.mm
    stream = task.process.kernel.streams.stream("aslr") if config.aslr else None
    layout = choose_layout(
        abi.entropy,
        user_end=abi.window,
        stack_limit=config.stack_limit,
        guard=STACK_GUARD_PAGES * space.page_size,
        page_size=space.page_size,
        stream=stream,
    )
    space.mmap_base = layout.mmap_base
    with (
        _opened(task.process.files, task.process.program.path) as (image, file),
        _attached(task, file) as backing,
    ):
        if image.isa != abi.isa:
            raise ProgramError(f"{name}: is a program for {image.isa}, this machine is {abi.isa}")
        task.process.program.path = file.link()
        main = _map_main(task, image, backing, layout)
    _note_extents(task, main)
    interpreter = None
    if image.interpreter is not None:
        interpreter = _load_interpreter(task, image.interpreter)
    # The heap follows the image; a static position-independent program's stands where images go.
    static_pie = image.position_independent and interpreter is None
    space.heap_start = (
        abi.entropy.image_base if static_pie else space.page_up(main.end)
    ) + layout.heap_offset
    space.heap_end = space.heap_start
    _map_stack(space, layout, executable=image.executable_stack)
    _map_signal_return(task)
    task.process.program.entry = interpreter.entry if interpreter is not None else main.entry
    builder = _StackBuilder(task, layout)
    task.process.program.stack_pointer = builder.build(main, interpreter)
    abi.start(task.cpu, task.process.program.entry, task.process.program.stack_pointer)


@contextlib.contextmanager
def _opened(files: Files, path: bytes) -> Iterator[tuple[Image, HostData]]:
    """An ELF file of the guest's file system, parsed, open while the context is."""
    fd = files.open(fl.AT_FDCWD, path, fl.O_RDONLY | fl.O_NONBLOCK)
    try:
        file = files.table.file(fd)
        if not isinstance(file, HostData):
            raise ProgramError(f"{_shown(path)}: is not a regular file")
        with open(file.host_fd, "rb", closefd=False) as stream:
            stream.seek(0)
            image = read_image(stream, _shown(path))
        yield image, file
    finally:
        files.close(fd)


@contextlib.contextmanager
def _attached(task: Task, file: HostData) -> Iterator[Backing]:
    """The file in memory. Held while it is mapped: one segment may replace all that shows of another."""
    backing = file_backing(task.process.kernel, file, writable=False)
    backing.hold()
    try:
        yield backing
    finally:
        backing.let_go()


def _map_main(task: Task, image: Image, backing: Backing, layout: AddressLayout) -> _Loaded:
    space = task.process.mm
    if not image.position_independent:
        bias = 0
    elif image.interpreter is not None:
        bias = (layout.image_base & -max(image.align, space.page_size)) - _page_down(space, image.low)
    else:
        bias = _free_place(space, image)
    return _map_image(task, _Loaded(image, bias, task.process.program.path), backing)


def _load_interpreter(task: Task, path: bytes) -> _Loaded:
    name, program = _shown(path), _shown(task.process.program.path)
    try:
        with _opened(task.process.files, path) as (image, file), _attached(task, file) as backing:
            if image.isa != task.process.abi.isa:
                raise ProgramError(f"{program}: its interpreter {name} is for {image.isa}")
            return _map_image(task, _Loaded(image, _free_place(task.process.mm, image), path), backing)
    except Refused as refused:
        if refused.errno == errno.ENOMEM:
            raise
        raise ProgramError(
            f"{program}: its interpreter {name} is not visible to it; give it with --root or --bind"
        ) from refused


def _note_extents(task: Task, main: _Loaded) -> None:
    """Where the program's code is, and how much data comes with it (it counts for the limit of the heap)."""
    segments = [(s.address + main.bias, s.address + main.bias + s.file_size, s) for s in main.image.segments]
    code = [(start, end) for start, end, segment in segments if segment.protection & Protection.EXECUTE]
    if code:
        task.process.program.code = min(start for start, _ in code), max(end for _, end in code)
    last = max(start for start, _end, _segment in segments)
    task.process.mm.program_data = max(end for _start, end, _segment in segments) - last


def _page_down(space: AddressSpace, address: int) -> int:
    return address & -space.page_size


def _free_place(space: AddressSpace, image: Image) -> int:
    """The bias that puts an image at the top of the free space below `mmap_base`."""
    low = _page_down(space, image.low)
    align = max(image.align, space.page_size)
    length = space.page_up(image.high) - low
    found = space.areas.gap_below(length + align - space.page_size, space.limits.user_base, space.mmap_base)
    if found is None:
        raise Refused(errno.ENOMEM, "no room for the image")
    return (found + align - 1 & -align) - low


def _map_image(task: Task, loaded: _Loaded, backing: Backing) -> _Loaded:
    space = task.process.mm
    low, high = loaded.image.low + loaded.bias, loaded.end
    name = _shown(loaded.name)
    if low < space.limits.user_base or high > space.limits.user_end:
        raise ProgramError(f"{name}: a segment lies outside the user address space")
    _check_granule(space, loaded.image, name)
    for segment in loaded.image.segments:
        _map_segment(task, segment, loaded.bias, backing)
    return loaded


def _check_granule(space: AddressSpace, image: Image, name: str) -> None:
    """Refuse an image whose segments were laid out for smaller pages than these.

    Of a page that two segments share, the later one decides (Linux maps each by MAP_FIXED). That is well
    where it permits and shows all that the earlier one has in that page.
    """
    page = space.page_size
    kib = f"{page >> 10}K"
    if any((segment.address - segment.offset) & page - 1 for segment in image.segments):
        raise ProgramError(f"{name}: its segments are not aligned to pages of {kib} (see --granule)")
    for low, high in pairwise(image.segments) if page > _SMALLEST_PAGE else ():
        if _page_down(space, high.address) >= space.page_up(low.address + low.memory_size):
            continue
        if low.protection & ~high.protection:
            raise ProgramError(
                f"{name}: two segments with different permissions share a page of {kib} (see --granule)"
            )
        if low.memory_size > low.file_size or low.address - low.offset != high.address - high.offset:
            raise ProgramError(
                f"{name}: two segments with different contents share a page of {kib} (see --granule)"
            )


def _map_segment(task: Task, segment: Segment, bias: int, backing: Backing) -> None:
    """File pages in place, the rest of the last one cleared, whole zero pages behind it."""
    space = task.process.mm
    start = segment.address + bias
    first = _page_down(space, start)
    file_end, memory_end = start + segment.file_size, start + segment.memory_size
    mapped_end = space.page_up(file_end) if segment.file_size else first
    if segment.file_size:
        offset = _page_down(space, segment.offset) >> space.table.format.page_shift
        shown = space.new_area(
            first, mapped_end, segment.protection, backing=backing, offset=offset, name=backing.name
        )
        space.replace(shown)
    if memory_end > mapped_end:
        end = space.page_up(memory_end)
        space.replace(space.new_area(mapped_end, end, segment.protection))
    has_tail = segment.memory_size > segment.file_size and file_end < mapped_end
    if has_tail and segment.protection & Protection.WRITE:
        # To the end of the page, not of the segment: glibc's ld.so allocates from what is left of it.
        task.cpu.copy_to_user(file_end, bytes(mapped_end - file_end))


def _map_stack(space: AddressSpace, layout: AddressLayout, *, executable: bool) -> None:
    protection = _RW | Protection.EXECUTE if executable else _RW
    start = layout.stack_top - _INITIAL_STACK & -space.page_size
    if space.areas.overlapping(start, layout.stack_top):
        raise Refused(errno.ENOMEM, "a segment lies where the stack goes")
    area = space.new_area(start, layout.stack_top, protection, grows_down=True, name="[stack]")
    space.insert(area)


def _map_signal_return(task: Task) -> None:
    """A page of code that handlers return to, on an ISA whose kernel provides it in its vDSO."""
    code, space = task.process.abi.signal_return, task.process.mm
    if not code:
        return
    start = space.areas.gap_below(space.page_size, space.limits.user_base, space.mmap_base)
    if start is None:
        raise Refused(errno.ENOMEM, "no room for the signal return page")
    area = space.new_area(start, start + space.page_size, _RW, name="[vdso]")
    space.insert(area)
    task.cpu.copy_to_user(start, code)
    mapping.protect_memory(space, start, space.page_size, int(Protection.READ | Protection.EXECUTE))
    task.process.signals.signal_return = start


class _StackBuilder:
    """Writes the initial stack through the CPU, as the kernel's own user accesses."""

    def __init__(self, task: Task, layout: AddressLayout) -> None:
        self._task = task
        self._cpu: Cpu = task.cpu
        self._sp = layout.stack_top - 8
        self._layout = layout

    def build(self, main: _Loaded, interpreter: _Loaded | None) -> int:
        """Returns the stack pointer of the program's first instruction."""
        program = self._task.process.program
        size = sum(len(text) + 9 for text in (*program.arguments, *program.environment))
        if size > self._task.process.config.stack_limit // 4:
            raise Refused(errno.E2BIG, "arguments and environment take more than a quarter of the stack")
        executed = self._string(program.path)
        environment = self._strings(program.environment)
        arguments = self._strings(program.arguments)
        self._sp = (self._sp - self._layout.stack_offset) & -16
        platform = self._string(self._task.process.abi.machine.encode())
        random = self._push(self._task.process.kernel.streams.stream("at_random").bytes(16))
        auxiliary = self._auxiliary(main, interpreter, executed, platform, random)
        program.auxiliary = auxiliary
        pointers = struct.pack(
            f"<Q{len(arguments)}QQ{len(environment)}QQ", len(arguments), *arguments, 0, *environment, 0
        )
        self._sp = self._sp - len(auxiliary) - len(pointers) & -16
        self._cpu.copy_to_user(self._sp, pointers + auxiliary)
        return self._sp

    def _push(self, data: bytes) -> int:
        self._sp -= len(data)
        self._cpu.copy_to_user(self._sp, data)
        return self._sp

    def _string(self, text: bytes) -> int:
        return self._push(text + b"\0")

    def _strings(self, texts: list[bytes]) -> list[int]:
        """Addresses of the texts, which lie in memory in the order given."""
        return [self._string(text) for text in reversed(texts)][::-1]

    def _auxiliary(
        self, main: _Loaded, interpreter: _Loaded | None, executed: int, platform: int, random: int
    ) -> bytes:
        task = self._task
        config = task.process.config
        hwcap, hwcap2 = task.process.abi.hardware_capabilities(task.cpu)
        vector = (
            (AT_HWCAP, hwcap),
            (AT_PAGESZ, task.process.mm.page_size),
            (AT_CLKTCK, 100),
            (AT_PHDR, main.headers),
            (AT_PHENT, 56),
            (AT_PHNUM, main.image.header_count),
            (AT_BASE, interpreter.bias if interpreter is not None else 0),
            (AT_FLAGS, 0),
            (AT_ENTRY, main.entry),
            (AT_UID, config.uid),
            (AT_EUID, config.uid),
            (AT_GID, config.gid),
            (AT_EGID, config.gid),
            (AT_SECURE, 0),
            (AT_RANDOM, random),
            (AT_HWCAP2, hwcap2),
            (AT_EXECFN, executed),
            (AT_PLATFORM, platform),
            (AT_MINSIGSTKSZ, task.process.abi.minimum_signal_stack),
            (AT_NULL, 0),
        )
        return b"".join(struct.pack("<QQ", *pair) for pair in vector)
