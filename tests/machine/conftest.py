"""Fixtures that tests of the emulated computer share."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

_PR_SET_THP_DISABLE = 41


@pytest.fixture
def exact_pages() -> Iterator[None]:
    """Keep the host from answering one touch with a huge page, so that pages can be counted."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    yield
    libc.prctl(_PR_SET_THP_DISABLE, 0, 0, 0, 0)
