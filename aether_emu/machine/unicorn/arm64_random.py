"""Answering RNDR: a filter in front of every `mrs` lets all others pass without a call into Python."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from aether_emu.machine import native

SOURCE = """
    movabs rax, 0x400000002         # rdx: a SystemAccess; its CRm and CRn
    cmp [rdx], rax
    jne pass
    movabs rax, 0x300000003         # op1 and op0
    cmp [rdx + 8], rax
    jne pass
    cmp dword ptr [rdx + 16], 1     # op2: 0 is RNDR, 1 is RNDRRS
    ja pass
    jmp [rcx]                       # user_data: the address of the callback, which gets our arguments
pass:
    xor eax, eax                    # the engine executes the instruction itself
    ret
"""
CODE = bytes.fromhex("48b80200000004000000483902751848b80300000003000000483942087508837a10017702ff2131c0c3")


class SystemAccess(ctypes.Structure):
    """`uc_arm64_cp_reg`: the register that an `mrs` is about to read."""

    _fields_ = (
        ("crn", ctypes.c_uint32),
        ("crm", ctypes.c_uint32),
        ("op0", ctypes.c_uint32),
        ("op1", ctypes.c_uint32),
        ("op2", ctypes.c_uint32),
        ("value", ctypes.c_uint64),
    )
    crn: int
    crm: int
    op0: int
    op1: int
    op2: int


_ReadCallback = ctypes.CFUNCTYPE(
    ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p
)


def _filter_read(engine: int, target: int, access: int, user_data: int) -> int:
    read = SystemAccess.from_address(access)
    if (read.op0, read.op1, read.crn, read.crm) != (3, 3, 2, 4) or read.op2 > 1:
        return 0
    callback = _ReadCallback(ctypes.c_uint64.from_address(user_data).value)
    return int(callback(engine, target, access, user_data))


_python_filter = _ReadCallback(_filter_read)


class RandomReads:
    """Answers a guest's RNDR and RNDRRS by `answer` and lets every other `mrs` pass (Arm ARM D19.2, RNDR).

    Install `callback` and `user_data`, two addresses, by `uc_hook_add` as a UC_HOOK_INSN for
    UC_ARM64_INS_MRS, and keep this object as long as the engine. `answer` gets the engine's number of the
    target register; the instruction itself is skipped. It must not raise.
    """

    def __init__(self, answer: Callable[[int], None]) -> None:
        def read(_engine: int, target: int, _access: int, _user_data: int) -> int:
            answer(target)
            return 1

        self._read = _ReadCallback(read)
        self._pointer = ctypes.c_uint64(native.address_of(self._read))
        self.callback = native.routine(CODE, _python_filter)
        self.user_data = ctypes.addressof(self._pointer)
