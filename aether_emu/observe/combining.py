"""Write combining on the framebuffer, modelled: which bursts on a bus a CPU's stores would become.

    stores to a line of 64 bytes  -->  one of a few buffers of the CPU  -->  a burst when it is let go

A buffer is let go when all its bytes were stored, when another line needs one (the oldest goes first), and
when the program enters the kernel, whose way back drains them all. The engine has no such buffers: it tells
of each store, and this counts. It does not see fences: a program that drains its buffers by SFENCE, a locked
operation or DSB makes more bursts than are counted. Which buffers there are, and when they go, is the affair
of each processor (Intel SDM 3A 12.3.1).
"""

from __future__ import annotations

from aether_emu.system import Machine

LINE = 64
_FULL = (1 << LINE) - 1


class Buffers:
    """Those of one CPU, `count` of them."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lines: dict[int, int] = {}  # by line: a bit for each byte that was stored, the oldest first
        self.stores = self.full = self.partial = self.displaced = 0

    def store(self, address: int, width: int) -> None:
        """`width` bytes are stored at an address."""
        self.stores += 1
        line, first = divmod(address, LINE)
        inside = min(width, LINE - first)
        self._fill(line, first, inside)
        if inside < width:
            self._fill(line + 1, 0, width - inside)

    def _fill(self, line: int, first: int, width: int) -> None:
        lines = self._lines
        if line not in lines and len(lines) == self._count:
            self._let_go(next(iter(lines)))
            self.displaced += 1
        lines[line] = lines.get(line, 0) | (1 << width) - 1 << first
        if lines[line] == _FULL:
            self._let_go(line)

    def _let_go(self, line: int) -> None:
        if self._lines.pop(line) == _FULL:
            self.full += 1
        else:
            self.partial += 1

    def drain(self) -> None:
        """All of them are let go."""
        for line in list(self._lines):
            self._let_go(line)


class Combining:
    """The buffers of all CPUs of a machine with a framebuffer, from now on."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._buffers = [Buffers(machine.config.write_combining) for _ in machine.computer.cpus]
        assert machine.board is not None and machine.board.framebuffer is not None, "Config asks for one"
        memory = machine.board.framebuffer.memory
        for cpu, buffers in zip(machine.computer.cpus, self._buffers, strict=True):
            cpu.tell_stores(memory.address, len(memory.bytes), buffers.store)
        machine.observers.attach(call_entered=self._enters, fault=self._enters)

    def _enters(self, _event: object) -> None:
        """The program that runs enters the kernel."""
        self._buffers[self._machine.physical.tlb.running].drain()

    def collect(self) -> dict[str, int]:
        """What was counted, once what is left is let go."""
        for buffers in self._buffers:
            buffers.drain()
        return {
            "buffers": self._machine.config.write_combining,
            "stores": sum(each.stores for each in self._buffers),
            "full_bursts": sum(each.full for each in self._buffers),
            "partial_bursts": sum(each.partial for each in self._buffers),
            "displaced": sum(each.displaced for each in self._buffers),
        }
