"""Errors keep what they say and carry on their way from a worker process to whoever tells the user."""

from __future__ import annotations

import errno
import pickle

import pytest

from aether_emu.computer import LeakError
from aether_emu.errors import AddressError, AetherError, ConfigError, OutOfFrames, ProgramError, Refused
from aether_emu.machine.memory.host import HostMemoryError

ERRORS: tuple[AetherError, ...] = (
    AddressError("virtual address", 1 << 60, "not canonical"),
    ConfigError("ram", "1T", "at most 512G"),
    HostMemoryError("mmap", errno.ENOMEM, 0x1000, 4096),
    LeakError([]),
    OutOfFrames(3),
    ProgramError("prog: is not an ELF file", 126),
    Refused(errno.EINVAL, "the length is zero"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_from_another_process_is_the_same(error: AetherError) -> None:
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), copied.args) == (type(error), str(error), error.args)
    assert vars(copied) == vars(error)
