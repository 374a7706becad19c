"""Every call that is served has its declaration, and no argument breaks one."""

from __future__ import annotations

import random
from typing import cast

import pytest

from aether_emu.linux.abi.arm64 import ArmAbi
from aether_emu.linux.abi.x86_64 import X86Abi
from aether_emu.linux.calls import served
from aether_emu.mm.space import AddressSpace
from aether_emu.observe.peek import PeekMemory, Unreadable
from aether_emu.observe.strace.declarations import CALLS
from aether_emu.observe.strace.kinds import Made, answer

_ODD = (0, 1, 7, 0x1000, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 100)


def test_every_call_of_the_list_is_declared() -> None:
    names = {*served(X86Abi().system_calls), *served(ArmAbi().system_calls)}
    assert names <= set(CALLS), names - set(CALLS)


class _Noise(PeekMemory):
    """Memory that has anything at every address, but for some."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(cast(AddressSpace, None))
        self._chance = chance

    def read_up_to(self, va: int, length: int) -> bytes:
        if self._chance.random() < 0.1:
            return b""
        filled = self._chance.choice((b"\0", b"\xff", None))
        return self._chance.randbytes(length) if filled is None else filled * length

    def string(self, va: int, most: int) -> tuple[bytes, bool]:
        if self._chance.random() < 0.1:
            raise Unreadable(hex(va))
        return self._chance.randbytes(20), self._chance.random() < 0.5

    def read(self, va: int, length: int) -> bytes:
        assert 0 <= length <= 1 << 20, "a line never looks at so much"
        data = self.read_up_to(va, length)
        if len(data) < length:
            raise Unreadable(hex(va))
        return data


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_any_argument_and_any_memory_is_shown(isa: str) -> None:
    chance = random.Random(7)
    for name, declared in CALLS.items():
        for result in (0, 1, -4, -22, 1 << 62, 100, None):
            for _ in range(6):
                arguments = [chance.choice((*_ODD, chance.getrandbits(64))) for _ in range(6)]
                made = Made(name, arguments, _Noise(chance), isa, result)
                texts = [
                    kind.show(made, value) for kind, value in zip(declared.arguments, arguments, strict=False)
                ]
                shown = "".join(filter(None, texts)) + answer(made, declared.result)
                assert "\n" not in shown
                assert len(shown) < 20_000
