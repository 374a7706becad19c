"""Several processes on one machine, made by hand: each runs a list of system calls, or a real program.

A list of calls becomes straight machine code: load the registers, call, load the registers, call, and at the
end `exit_group` with the last result.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from aether_emu.errors import Refused
from aether_emu.grants import Grants
from aether_emu.linux.calls import find
from aether_emu.linux.exec.loader import load_program
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.streams import BufferStream, StreamFile
from aether_emu.linux.proc.texts import ProcessTexts
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.program import Program
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import UserFault
from aether_emu.mm.protection import Protection
from aether_emu.system import Machine
from tests.guests.running import program

CODE, DATA, STACK = 0x1000_0000, 0x2000_0000, 0x3000_0000
DATA_SIZE = 1 << 20
_LOADS = (b"\x48\xb8", b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9")
_EVERYTHING = Protection.READ | Protection.WRITE | Protection.EXECUTE

Call = tuple[str, *tuple[int, ...]]
"""A system call: its name and its arguments."""
SPIN = {"x86_64": bytes.fromhex("ebfe"), "arm64": bytes.fromhex("00000014")}


def call(task: Task, name: str, *arguments: int) -> int:
    """What the system call answers: its result, or its errno as a negative number."""
    function = find(name)
    assert function is not None
    try:
        return int(function(task, *arguments, *[0] * (6 - len(arguments))) or 0)
    except Refused as refused:
        return -refused.errno
    except UserFault:
        return -errno.EFAULT


def _load(isa: str, register: int, value: int) -> bytes:
    """Set the register of the call's number (0) or of an argument (1 to 6)."""
    value &= (1 << 64) - 1
    if isa == "x86_64":
        return _LOADS[register] + value.to_bytes(8, "little")
    target = 8 if register == 0 else register - 1
    words = [0xD280_0000 | (value & 0xFFFF) << 5 | target]
    words += [0xF280_0000 | part << 21 | (value >> 16 * part & 0xFFFF) << 5 | target for part in (1, 2, 3)]
    return b"".join(word.to_bytes(4, "little") for word in words)


def load_loop(isa: str, address: int) -> bytes:
    """Load from `address`, for ever."""
    if isa == "x86_64":
        return _load(isa, 1, address) + bytes.fromhex("488b07ebfb")  # l: mov rax, [rdi]; jmp l
    return _load(isa, 2, address) + bytes.fromhex("200040f9ffffff17")  # l: ldr x0, [x1]; b l


def count_loop(isa: str, address: int, times: int) -> bytes:
    """Add one to the word at `address` again and again: load, add, store. Then end the thread."""
    if isa == "x86_64":
        code = _load(isa, 1, address) + _load(isa, 2, times)
        code += bytes.fromhex(
            "8b07 83c001 8907 ffce 75f5"
        )  # l: eax=[rdi]; add eax,1; [rdi]=eax; dec esi; jnz
        return code + _load(isa, 1, 0) + _load(isa, 0, 60) + b"\x0f\x05"
    code = _load(isa, 1, address) + _load(isa, 2, times)
    code += bytes.fromhex("020040b9 42040011 020000b9 21040071 81ffff54")  # ldr, add, str, subs, b.ne
    return code + _load(isa, 1, 0) + _load(isa, 0, 93) + bytes.fromhex("010000d4")


def assemble(machine: Machine, calls: Sequence[Call], *, end: str = "exit_group") -> bytes:
    """The machine code of a list of calls."""
    isa, numbers = machine.abi.isa, {name: n for n, name in machine.abi.system_calls.items()}
    trap = b"\x0f\x05" if isa == "x86_64" else bytes.fromhex("010000d4")
    code = b""
    for name, *arguments in calls:
        code += _load(isa, 0, numbers[name])
        code += b"".join(_load(isa, 1 + i, value) for i, value in enumerate(arguments)) + trap
    result = b"\x48\x89\xc7" if isa == "x86_64" else b""  # mov rdi, rax: on arm64 it is in x0 already
    return code + result + _load(isa, 0, numbers[end]) + trap


def made_by(task: Task, name: str, *arguments: int) -> Task:
    """The task that a call of `task`, which is on the CPU, makes; it does not run yet."""
    call = find(name)
    assert call is not None
    number = call(task, *arguments, *[0] * (6 - len(arguments)))
    registry = task.process.registry
    made = next(each for each in registry.arrivals if each.tid == number)
    registry.arrivals.remove(made)
    assert isinstance(made, Task)
    return made


class Several:
    """A machine whose first program, `hello`, is never run: it lends its files to those that are."""

    def __init__(self, isa: str, grants: Grants | None = None, **options: object) -> None:
        self.isa, path = isa, program(isa, "hello")
        self.machine = Machine(isa, ram="32M", aperture="16M", **options)  # type: ignore[arg-type]  # mypy cannot tell options of Config from the rest
        self.out = BufferStream()
        streams = {"stdin": BufferStream(), "stdout": self.out, "stderr": BufferStream()}
        self.first = self.machine.load(path, streams=streams, grants=grants or Grants(cwd=path.parent))
        self.machine.scheduler.remove(self.machine.scheduler.tasks[0])
        self.tasks: list[Task] = []

    def __enter__(self) -> Several:
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.cpu.set_root(self.machine.kernel_half.table.root)
        for task in self.tasks:
            if task.process.released:  # it kept its memory, as processes without a parent do
                task.process.mm.destroy()
        self.machine.close()  # with whoever is left, those that they have forked too

    def _made(self, path: Path) -> Task:
        machine = self.machine
        made = Program(str(path).encode(), [path.name.encode()], [])
        process = Process(
            machine.kernel,
            machine.new_space(),
            made,
            pid=2000 + len(self.tasks),
            registry=self.first.registry,
        )
        process.files = self.first.files.fork(ProcessTexts(process))
        task = Task(process)
        self.tasks.append(task)
        machine.entry.switch(task)
        return task

    def real(self, name: str) -> tuple[Task, BufferStream]:
        """A guest program with an output of its own, ready to run."""
        task, out = self._made(program(self.isa, name)), BufferStream()
        files = task.process.files
        stat = files.fstat(1)
        files.table.place(1, StreamFile("stdout", out, fl.O_WRONLY, stat))
        load_program(task)
        self.machine.scheduler.add(task)
        return task, out

    def calls(self, *calls: Call, data: bytes = b"", code: bytes | None = None) -> Task:
        """A process that makes these calls (or runs `code`), with `data` at DATA, ready to run."""
        task, cpu = self._made(Path(f"calls-{len(self.tasks)}")), self.machine.cpu
        mm = task.process.mm
        for start, size in ((CODE, 1 << 16), (DATA, DATA_SIZE), (STACK, 1 << 16)):
            mm.insert(mm.new_area(start, start + size, _EVERYTHING))
        cpu.copy_to_user(CODE, assemble(self.machine, calls) if code is None else code)
        cpu.copy_to_user(DATA, data)
        self.machine.abi.start(cpu, CODE, STACK + 0x8000)
        self.machine.scheduler.add(task)
        return task

    def thread(self, task: Task, *calls: Call, code: bytes | None = None) -> Task:
        """One more thread of a process, likewise: its code and stack lie above those of the others."""
        process, machine = task.process, self.machine
        index = len(process.tasks)
        thread = Task(process, process.registry.number())
        machine.entry.switch(task)
        here = CODE + 0x1000 * index
        machine.cpu.copy_to_user(here, assemble(machine, calls, end="exit") if code is None else code)
        pc, sp = ("rip", "rsp") if self.isa == "x86_64" else ("pc", "sp")
        thread.registers = {pc: here, sp: STACK + 0x8000 + 0x400 * index}
        machine.scheduler.add(thread)
        return thread

    def pipe(self) -> tuple[int, int]:
        """A pipe that every process made from now on inherits."""
        return self.first.files.pipe()

    def close(self, *fds: int) -> None:
        """Close descriptors of the first process, which is not run and would keep pipes open."""
        for fd in fds:
            self.first.files.close(fd)

    def run(self) -> list[int]:
        """Run all to their ends: the status of each."""
        self.machine.scheduler.run()
        return [task.process.ended.status if task.process.ended else -1 for task in self.tasks]
