"""A guest with real signal frames that can be changed byte by byte before it returns through them.

The guest faults; its handler stands still in the frame. `forge` puts a changed frame there and lets the guest
call rt_sigreturn. `privileged_outcomes` then lets it try what only the kernel may.
"""

from __future__ import annotations

from random import Random
from types import TracebackType

from aether_emu.linux.abi.signal import SA_ONSTACK, SA_RESTORER, SA_SIGINFO, SIGSEGV, Action
from aether_emu.linux.task.ended import Ended
from tests.linux.task.scripts import CODE, DATA, STACK, Several

SPIN, HANDLER, RESTORER, FAULT, READ_KERNEL, PRIVILEGED, STEPS = (CODE + 0x40 * i for i in range(7))
ADDRESS = 0x123_0000
"""What FAULT loads from: nothing is there."""
_X86 = {
    SPIN: "ebfe",
    HANDLER: "ebfe",
    RESTORER: "b80f0000000f05",  # mov eax, 15; syscall
    FAULT: "8b00ebfc",  # mov eax, [rax]
    READ_KERNEL: "8b00ebfc",
    PRIVILEGED: "faebfd",  # cli
    STEPS: "90ebfd",  # nop
}
_ARM64 = {
    SPIN: "00000014",
    HANDLER: "00000014",
    RESTORER: "681180d2010000d4",  # mov x8, #139; svc #0
    FAULT: "000040b9ffffff17",  # ldr w0, [x0]
    READ_KERNEL: "000040b9ffffff17",
    PRIVILEGED: "002038d5ffffff17",  # mrs x0, ttbr0_el1
}
_BLOCKS = 16
MAX = (1 << 64) - 1


class Forging:
    """One guest of an ISA. `frame` are the bytes of a real frame, from `sp` to `top`."""

    def __init__(self, isa: str) -> None:
        self.isa, self._several = isa, Several(isa)
        code = _X86 if isa == "x86_64" else _ARM64
        image = bytearray(0x200)
        for address, words in code.items():
            image[address - CODE : address - CODE + len(words) // 2] = bytes.fromhex(words)
        self.task = self._several.calls(code=bytes(image))
        self.process, self.cpu = self.task.process, self._several.machine.cpu
        self.kernel = self._several.machine.kernel_half.pages[0][1]
        self._pc, self._a = ("rip", "rax") if isa == "x86_64" else ("pc", "x0")
        self.top = STACK + 0x8000
        self._action = Action(HANDLER, SA_SIGINFO | SA_RESTORER | SA_ONSTACK, RESTORER)
        self.process.signals.actions[SIGSEGV] = self._action
        self.entry = self._several.machine.entry
        self._run(FAULT, self.top, ADDRESS)
        assert self.cpu.pc == HANDLER, "the guest does not stand in its handler"
        self.sp = self.cpu.sp
        self.frame = self.cpu.copy_from_user(self.sp, self.top - self.sp)
        self._signals = self.task.signals.capture()

    def __enter__(self) -> Forging:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._alive()
        self._several.__exit__()

    def fault(self, sp: int) -> Ended | None:
        """Load from ADDRESS with this stack pointer. How the process ended, if it did."""
        self.task.signals.blocked = 0
        self._run(FAULT, sp, ADDRESS)
        return self.process.ended

    def forge(self, frame: bytes, *, shift: int = 0, tag: int = 0, handled: bool = False) -> Ended | None:
        """Return through `frame`, put `shift` bytes from where it was. How the process ended, if it did."""
        self._alive()
        self.process.signals.actions[SIGSEGV] = self._action if handled else Action()
        self.task.signals.restore(self._signals)
        self.cpu.copy_to_user(self.sp + shift, frame)
        popped = 8 if self.isa == "x86_64" else 0  # the handler's ret took the return address
        self._run(RESTORER, self.sp + shift + popped | tag, 0)
        return self.process.ended

    def privileged_outcomes(self) -> tuple[str, str]:
        """Why the guest dies of a load of the kernel's data, and of an instruction that is the kernel's."""
        outcomes = []
        for code in (READ_KERNEL, PRIVILEGED):
            self._alive()
            self.process.signals.actions[SIGSEGV] = Action()
            self._run(code, self.top, self.kernel)
            outcomes.append(self.process.ended.why if self.process.ended else "")
        return outcomes[0], outcomes[1]

    @property
    def refusals(self) -> tuple[str, str]:
        """What `privileged_outcomes` must be."""
        illegal = "SIGSEGV" if self.isa == "x86_64" else f"SIGILL at {PRIVILEGED:#x}"
        return f"SIGSEGV at {self.kernel:#x}", illegal

    def _alive(self) -> None:
        """Whatever became of the process, it lives again."""
        self.process.ended = None
        if self.task.wait is not None:
            self.task.leave_queues()
            self.task.done_waiting()

    def _run(self, pc: int, sp: int, address: int) -> None:
        values = {self._pc: pc, self._a: address}
        if self.isa == "x86_64":
            values["rflags"] = self.cpu.read("rflags") & ~0x100  # a forged TF would come first
        self.cpu.load_registers(values)
        self.cpu.sp = sp
        self.entry.percpu.run(_BLOCKS)


def changed(frame: bytes, random: Random, kernel: int, where: tuple[int, ...]) -> bytes:
    """The frame with one to three fields changed, half of them at one of the offsets `where`."""
    forged = bytearray(frame)
    for _ in range(random.randint(1, 3)):
        size = random.choice((1, 2, 4, 8, 8, 8))
        at = random.choice(where) if random.random() < 0.5 else random.randrange(len(frame))
        at = min(at, len(frame) - size)
        old = int.from_bytes(forged[at : at + size], "little")
        value = random.choice(
            (
                *(0, 1, MAX, 1 << 63, 0x8000_0000, 0x7FFF_FFFF, 0x0008_0000_0000_0000),
                *(kernel, kernel & -(1 << 32), SPIN, HANDLER, DATA, STACK, STACK + 0xFFF8),
                *(old + 1, old - 1, old + 8, old - 8, old + 16, old ^ 0xFF, random.getrandbits(64)),
                *(old ^ 1 << random.randrange(8 * size) for _ in range(6)),
                *(old | random.choice((4, 5, 8, 13, 0x10, 0x1F, 0x3C0, 0x3000, 0x2_7000, 0x10_0000)),) * 4,
                *(random.choice((0x08, 0x10, 0x18, 0x1B, 0x23, 0x28, 0x2B, 0x33, 0x40, 0x43, 0x1234)),) * 2,
                *(random.choice((0x4650_8001, 0x4553_5201, 0x4558_5401, 0x5356_4501)),) * 2,
                *(random.choice((8, 12, 15, 16, 32, 512, 528, 576, 580, 4096)),) * 2,
            )
        )
        forged[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    return bytes(forged)
