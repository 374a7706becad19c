"""Fixtures that tests of the emulated computer share."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from aether_emu.machine.memory import host
from tests.machine.memory.aperture_files import Files, files_in

_PR_SET_THP_DISABLE = 41


@pytest.fixture
def exact_pages() -> Iterator[None]:
    """Keep the host from answering one touch with a huge page, so that pages can be counted."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    yield
    libc.prctl(_PR_SET_THP_DISABLE, 0, 0, 0, 0)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    """A folder of files and an aperture of three slots with 4K pages."""
    found = files_in(tmp_path)
    yield found
    found.aperture.close()


@pytest.fixture(params=["populate", "older kernel"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of host: one with MADV_POPULATE_READ, one from before Linux 5.14."""
    if request.param == "older kernel":
        monkeypatch.setattr(host, "can_populate", lambda: False)
    return str(request.param)
