"""The supervisor's stubs: bytes that an assembler makes of their source, each in its own place."""

from __future__ import annotations

import pytest
from keystone import KS_ARCH_X86, KS_MODE_64, Ks

from aether_emu.arch.x86_64 import stubs


def assembled(source: str) -> bytes:
    encoding, _count = Ks(KS_ARCH_X86, KS_MODE_64).asm(source)
    return bytes(encoding)


def named() -> dict[str, stubs.Stub]:
    return {name: value for name, value in vars(stubs).items() if isinstance(value, stubs.Stub)}


@pytest.mark.parametrize(("name", "stub"), named().items())
def test_a_stub_is_what_its_source_assembles_to(name: str, stub: stubs.Stub) -> None:
    assert assembled(stub.source) == stub.code


def test_every_stub_is_listed_and_none_reaches_into_the_next() -> None:
    assert set(stubs.ALL) == set(named().values())
    ordered = sorted(stubs.ALL, key=lambda stub: stub.offset)
    ends = [stub.offset + len(stub.code) for stub in ordered]
    starts = [stub.offset for stub in ordered[1:]]
    assert all(end <= start for end, start in zip(ends, [*starts, 4096], strict=True))


def test_every_stub_that_returns_to_the_engine_halts() -> None:
    leaving = (stubs.IRET, stubs.JUMP)  # to ring 3, and to where a test wants to be
    assert all(stub.code.endswith(b"\xf4") != (stub in leaving) for stub in stubs.ALL)
