"""The crash of a large program of the host: names from its libraries, frames by their unwind tables."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aether_emu.grants import Grants
from tests.observe.crash.crashing import crashed, functions, told
from tests.programs.run import HOST_ISA

pytestmark = pytest.mark.debian


def test_python_that_reads_a_null_pointer() -> None:
    program, script = Path(sys.executable).resolve(), "import ctypes; ctypes.string_at(0)"
    sections = crashed(program, HOST_ISA, Path("/"), "-S", "-E", "-c", script, grants=Grants(root=Path("/")))
    assert "tried a read of 0x0" in told(sections)
    assert "a null pointer." in told(sections)
    names = functions(sections)
    assert "string_at" in names
    assert names.index("string_at") < names.index("ffi_call")
    assert names[-1] == "_start"
    assert any("libc.so" in line for line in sections["Backtrace"])
