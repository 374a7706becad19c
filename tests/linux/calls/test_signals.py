"""Sending signals, beside the real kernel."""

from __future__ import annotations

import errno

import pytest

from tests.linux.calls.twin import Twin


@pytest.mark.parametrize(("group", "thread"), [(0, 1), (-1, 1), (1, 0), (1, -1), (0, 0)])
def test_tgkill_refuses_numbers_that_name_nobody(twin: Twin, group: int, thread: int) -> None:
    assert twin.call("tgkill", group, thread, 0) == -errno.EINVAL
