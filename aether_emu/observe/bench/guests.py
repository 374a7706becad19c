"""The guest programs of the source tree, run once on the whole machine or on a bare engine.

Both sides execute the same machine code of the same file with the same arguments. What they print
is a checksum: `same_output` refuses a pair whose sides did not compute the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import aether_emu.linux
from aether_emu.errors import ProgramError, shown
from aether_emu.linux.abi import Abi
from aether_emu.linux.abi.arm64 import ArmAbi
from aether_emu.linux.abi.x86_64 import X86Abi
from aether_emu.linux.exec.elf import read_image
from aether_emu.linux.files.streams import BufferStream
from aether_emu.machine.floors import bare as floors
from aether_emu.machine.floors.arm64 import ArmFlat, ArmPaged
from aether_emu.machine.floors.x86_64 import X86Flat, X86Paged
from aether_emu.mm.protection import Protection
from aether_emu.observe.bench.figure import BenchError
from aether_emu.system import Machine

SOURCE_TREE = Path(aether_emu.linux.__file__).parents[2]
ABIS: Mapping[str, Callable[[], Abi]] = {"x86_64": X86Abi, "arm64": ArmAbi}
"""The ISAs that have figures."""

FLAT: Mapping[str, type[floors.Floor]] = {"x86_64": X86Flat, "arm64": ArmFlat}
PAGED: Mapping[str, type[floors.Paged]] = {"x86_64": X86Paged, "arm64": ArmPaged}
"""Their bare engines."""


def path_of(isa: str, name: str) -> Path:
    """The prebuilt guest program. Raises ProgramError when the package is not in its source tree."""
    path = SOURCE_TREE / "guest" / "bin" / isa / name
    if not path.is_file():
        raise ProgramError(f"{path}: no such program; benchmarks run in a checkout of the sources", 127)
    return path


def command(name: str, arguments: Sequence[int]) -> str:
    """How a person would write it."""
    return " ".join([name, *map(str, arguments)])


def numbers(isa: str, *names: str) -> tuple[int, ...]:
    """The ISA's numbers of some system calls."""
    of_name = {name: number for number, name in ABIS[isa]().system_calls.items()}
    return tuple(of_name[name] for name in names)


class Loaded:
    """A program on a fresh machine, ready to run."""

    def __init__(self, machine: Machine, output: BufferStream) -> None:
        self.machine = machine
        self._output = output

    @property
    def output(self) -> bytes:
        """What the program has written to its standard streams."""
        return bytes(self._output.written)

    def run(self) -> None:
        """Run it to its end. Raises BenchError unless it ends well."""
        ended = self.machine.run()
        if ended.status:
            raise BenchError(f"a benchmark program ended with status {ended.status}: {ended.why}")


@contextmanager
def on_machine(
    isa: str, name: str, arguments: Sequence[int], *, ram: int | None = None, tlbsan: bool = False
) -> Iterator[Loaded]:
    """The program on a machine with default parameters, or with other RAM (bytes), or with TLBSan."""
    path, output = path_of(isa, name), BufferStream()
    machine = Machine(isa, tlbsan=tlbsan) if ram is None else Machine(isa, ram=ram, tlbsan=tlbsan)
    try:
        streams = {"stdin": BufferStream(), "stdout": output, "stderr": output}
        machine.load(path, [name, *map(str, arguments)], streams=streams)
        yield Loaded(machine, output)
    finally:
        machine.close()


def for_floor(isa: str, name: str) -> floors.Program:
    """The program as bare engines take it."""
    path = path_of(isa, name)
    content = path.read_bytes()
    with path.open("rb") as file:
        image = read_image(file, str(path))
    pieces = tuple(
        floors.Piece(
            segment.address,
            content[segment.offset : segment.offset + segment.file_size],
            segment.memory_size,
            bool(segment.protection & Protection.WRITE),
            bool(segment.protection & Protection.EXECUTE),
        )
        for segment in image.segments
    )
    return floors.Program(image.entry, pieces)


def encoded(name: str, arguments: Sequence[int]) -> list[bytes]:
    """The argument vector of a program."""
    return [name.encode(), *(str(argument).encode() for argument in arguments)]


class LeastKernel:
    """The system calls of the benchmark programs on a bare engine: mmap, write, exit_group, no more.

    `read` gives guest memory as bytes: (address, length). Memory is handed out upwards, never reused.
    """

    def __init__(self, isa: str, read: Callable[[int, int], bytes]) -> None:
        self._read = read
        self._mmap, self._write, self._exit = numbers(isa, "mmap", "write", "exit_group")
        self._next = floors.FREE
        self.output = bytearray()

    def __call__(self, number: int, a: int, b: int, c: int, _d: int, _e: int, _f: int) -> int | None:
        if number == self._mmap:
            address = self._next
            self._next += -(-b // floors.PAGE) * floors.PAGE
            return address
        if number == self._write:
            self.output += self._read(b, c)
            return c
        if number == self._exit:
            if a:
                raise BenchError(f"a benchmark program failed: {self.output.decode(errors='replace')}")
            return None
        raise BenchError(f"system call {number} on a bare engine")


def reader(floor: floors.Floor) -> Callable[[int, int], bytes]:
    """Guest memory of a bare engine, whose virtual addresses are physical."""
    return lambda address, length: bytes(floor.ram.bytes[address : address + length])


def same_output(program: str, ours: bytes, floor: bytes) -> None:
    """Raises BenchError unless both sides printed the same, and something."""
    if ours != floor or not ours:
        raise BenchError(
            f"{program}: printed {shown(ours)} on the machine and {shown(floor)} on the bare engine"
        )
