"""Counting executed blocks, and stopping the engine before the first that is too many."""

from __future__ import annotations

import ctypes

from aether_emu.machine import native

SOURCE = """
    sub qword ptr [rcx], 1          # user_data: a Count
    js spent
    ret
spent:
    add qword ptr [rcx], 1          # this block will not run: it costs nothing
    mov byte ptr [rcx + 16], 1
    jmp qword ptr [rcx + 8]         # uc_emu_stop(engine), whose argument is still in rdi
"""
CODE = bytes.fromhex("488329017801c348830101c6411001ff6108")


class Count(ctypes.Structure):
    """What the block hook's user data points to: `stop` is the address of `uc_emu_stop`."""

    _fields_ = (("value", ctypes.c_int64), ("stop", ctypes.c_uint64), ("spent", ctypes.c_bool))
    value: int
    stop: int
    spent: bool


_BlockCallback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)


def _count_block(engine: int, _address: int, _size: int, user_data: int) -> None:
    count = Count.from_address(user_data)
    if count.value > 0:
        count.value -= 1
    else:
        count.spent = True
        native.StopFunction(count.stop)(engine)


_python_callback = _BlockCallback(_count_block)


class BlockCounter:
    """Counts executed blocks down and stops the engine before the first one that is too many.

    Install `callback` and `user_data`, two addresses, by `uc_hook_add` as a UC_HOOK_BLOCK for all addresses,
    and keep this object as long as the engine. Set `value` before a run; the blocks executed are the
    difference afterwards, exactly: the engine checks for a stop between a block's hook and its first
    instruction (`gen_tb_start` in Unicorn 2.1.4's translator), so the block that is too many neither runs
    nor counts, and the program counter is its first instruction. `spent` tells that stop from others.
    """

    def __init__(self, stop_function: int) -> None:
        """`stop_function` is the address of `uc_emu_stop`."""
        self._count = Count(0, stop_function, False)
        self.words = memoryview(self._count).cast("B").cast("q")
        """`words[0]` is `value` and `words[2]` is `spent`, read and set in a third of the time."""
        self.callback = native.routine(CODE, _python_callback)
        self.user_data = ctypes.addressof(self._count)

    @property
    def value(self) -> int:
        """Blocks that may still run, never negative. Setting it clears `spent`."""
        return self._count.value

    @value.setter
    def value(self, blocks: int) -> None:
        self._count.spent = False
        self._count.value = blocks

    def suspend(self) -> tuple[int, bool]:
        """Count nothing until `resume`, to which the result goes."""
        kept = self._count.value, self._count.spent
        self._count.value = 1 << 62
        return kept

    def resume(self, kept: tuple[int, bool]) -> None:
        """Go on where `suspend` was called."""
        self._count.value, self._count.spent = kept

    @property
    def spent(self) -> bool:
        """Whether the counter stopped the engine since `value` was set."""
        return self._count.spent
