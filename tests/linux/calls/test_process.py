"""Calls on the process itself: its group and session."""

from __future__ import annotations

import errno

from tests.linux.calls.twin import Served

PID = 17


def test_the_process_leads_the_only_group(served: Served) -> None:
    for pid in (0, PID):
        assert served("getpgid", pid) == served("getsid", pid) == PID
        assert served("setpgid", pid, 0) == served("setpgid", pid, PID) == 0
        assert served("setpgid", pid, PID + 1) == -errno.EPERM
    assert served("getpgid", PID + 1) == served("getsid", -1) == -errno.ESRCH
    assert served("setpgid", PID + 1, 0) == -errno.ESRCH
    assert served("setsid") == -errno.EPERM
