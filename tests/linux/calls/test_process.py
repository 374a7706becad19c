"""Calls on the process itself: its group and session."""

from __future__ import annotations

import errno

from tests.linux.calls.twin import Served

PID = 17


def test_the_first_process_leads_the_only_session_and_stays_in_its_group(served: Served) -> None:
    for pid in (0, PID):
        assert served("getpgid", pid) == served("getsid", pid) == PID
        for group in (0, PID, PID + 1):
            assert served("setpgid", pid, group) == -errno.EPERM
    assert served("getpgid", PID + 1) == served("getsid", -1) == -errno.ESRCH
    assert served("setpgid", PID + 1, 0) == -errno.ESRCH
    assert served("setsid") == -errno.EPERM
