"""Structures that no program here passes, as strace shows them."""

from __future__ import annotations

import struct
from typing import cast

import pytest

from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.mm.space import AddressSpace
from aether_emu.observe.peek import PeekMemory
from aether_emu.observe.strace import structs, terminals
from aether_emu.observe.strace.commands import fcntl_result
from aether_emu.observe.strace.declarations import CALLS
from aether_emu.observe.strace.kinds import Made
from aether_emu.observe.strace.tracer import details


class _Bytes(PeekMemory):
    """Memory that has some bytes at 0x1000."""

    def __init__(self, data: bytes) -> None:
        super().__init__(cast(AddressSpace, None))
        self._data = data

    def read_up_to(self, va: int, length: int) -> bytes:
        return self._data[va - 0x1000 :][:length]


def test_the_modes_of_a_terminal() -> None:
    """Those of a fresh pseudo-terminal, and what `stty raw -echo` makes of them."""
    fresh = Made(
        "ioctl", (0, 0x5401, 0x1000), _Bytes(struct.pack("<4I", 0x500, 5, 0xBF, 0x8A3B)), "x86_64", 0
    )
    assert terminals.terminal(fresh, 0x1000) == (
        "{c_iflag=ICRNL|IXON, c_oflag=NL0|CR0|TAB0|BS0|VT0|FF0|OPOST|ONLCR, c_cflag=B38400|CS8|CREAD, "
        "c_lflag=ISIG|ICANON|ECHO|ECHOE|ECHOK|IEXTEN|ECHOCTL|ECHOKE, ...}"
    )
    raw = Made("ioctl", (0, 0x5403, 0x1000), _Bytes(struct.pack("<4I", 0, 4, 0xBF, 0x8A30)), "x86_64", 0)
    assert terminals.terminal(raw, 0x1000) == (
        "{c_iflag=, c_oflag=NL0|CR0|TAB0|BS0|VT0|FF0|ONLCR, c_cflag=B38400|CS8|CREAD, "
        "c_lflag=ECHOE|ECHOK|IEXTEN|ECHOCTL|ECHOKE, ...}"
    )


def test_who_owns_a_file() -> None:
    """As strace 6.1 writes them."""
    memory = _Bytes(struct.pack("<ii", 2, 7))
    rows: list[tuple[str, tuple[int, ...], str | None]] = [
        ("fcntl", (3, 15, 0x1000), "{type=F_OWNER_PGRP, pid=7}"),
        ("fcntl", (3, 16, 0x1000), "{type=F_OWNER_PGRP, pid=7}"),
        ("fcntl", (3, 10, 29), "SIGIO"),
        ("fcntl", (3, 10, 40), "SIGRT_8"),
        ("fcntl", (3, 10, 99), "99"),
        ("fcntl", (3, 9, 0), None),
        ("fcntl", (3, 17, 0x1000), "0x1000"),
        ("ioctl", (3, 0x5452, 0x1000), "[2]"),
        ("ioctl", (3, 0x8901, 0x1000), "[2]"),
        ("ioctl", (3, 0x8904, 0x1000), "[2]"),
    ]
    for name, arguments, shown in rows:
        call = Made(name, arguments, memory, "x86_64", 0)
        assert CALLS[name].arguments[2].show(call, arguments[2]) == shown, arguments
    assert fcntl_result(Made("fcntl", (3, 11, 0), memory, "x86_64", 40), 40) == "40 (SIGRT_8)"


def test_signals_that_tell_of_files() -> None:
    """Likewise; of real-time signals it knows only what they have in common."""
    assert details(SignalInfo(29, 1, value=65, file=3)) == "si_code=POLL_IN, si_band=65, si_fd=3"
    assert details(SignalInfo(40, 1, value=65, file=3)) == (
        "si_code=0x1, si_pid=65, si_uid=0, si_int=3, si_ptr=0x3"
    )
    assert details(SignalInfo(40, 1, value=65, file=0)) == "si_code=0x1, si_pid=65, si_uid=0"


def test_a_device_has_its_numbers() -> None:
    data = struct.pack("<QQQIIIIQq", 1, 2, 1, 0o20620, 0, 0, 0, 0x8800, 0)
    call = Made("fstat", (0, 0x1000), _Bytes(data), "x86_64", 0)
    assert structs.STAT.show(call, 0x1000) == "{st_mode=S_IFCHR|0620, st_rdev=makedev(0x88, 0), ...}"


@pytest.mark.parametrize(
    ("isa", "arguments"),
    [
        ("x86_64", (0x0139_0000, 0, 0x1000, 0x2000, 0x3000)),
        ("arm64", (0x0139_0000, 0, 0x1000, 0x3000, 0x2000)),
    ],
)
def test_clone_has_its_arguments_in_strace_s_order_on_every_isa(isa: str, arguments: tuple[int, ...]) -> None:
    call = Made("clone", arguments, _Bytes(b""), isa)
    shown = [kind.show(call, value) for kind, value in zip(CALLS["clone"].arguments, arguments, strict=True)]
    assert shown == [
        "child_stack=NULL",
        "flags=CLONE_THREAD|CLONE_SETTLS|CLONE_PARENT_SETTID|CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID",
        "parent_tid=0x1000",
        "tls=0x3000",
        "child_tidptr=0x2000",
    ]


def test_an_argument_of_clone_that_no_flag_uses_is_left_out() -> None:
    call = Made("clone", (17, 0x1000, 1, 2, 3), _Bytes(b""), "x86_64")
    shown = [kind.show(call, 0) for kind in CALLS["clone"].arguments]
    assert shown == ["child_stack=0x1000", "flags=SIGCHLD", None, None, None]


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (0x137F, "[{WIFSTOPPED(s) && WSTOPSIG(s) == SIGSTOP}]"),
        (0xFFFF, "[{WIFCONTINUED(s)}]"),
        (0x0009, "[{WIFSIGNALED(s) && WTERMSIG(s) == SIGKILL}]"),
        (0x008B, "[{WIFSIGNALED(s) && WTERMSIG(s) == SIGSEGV && WCOREDUMP(s)}]"),
        (0x0300, "[{WIFEXITED(s) && WEXITSTATUS(s) == 3}]"),
    ],
)
def test_what_became_of_a_child(status: int, shown: str) -> None:
    call = Made("wait4", (1001, 0x1000, 0, 0), _Bytes(struct.pack("<i", status)), "x86_64", 1001)
    assert structs.WAIT_STATUS.show(call, 0x1000) == shown
