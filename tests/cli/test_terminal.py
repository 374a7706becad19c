"""`aether run` at a terminal: the program has it while that runs, with its modes and the keys it wants."""

from __future__ import annotations

import signal
import termios
from pathlib import Path

import pytest

from tests.cli.command import ISAS, PROGRAMS
from tests.cli.sitting import sitting
from tests.small_programs import DATA, written

every_isa = pytest.mark.parametrize("isa", ISAS)
CALLS = {
    "x86_64": {"ioctl": 16, "read": 0, "write": 1, "rt_sigaction": 13},
    "arm64": {"ioctl": 29, "read": 63, "write": 64, "rt_sigaction": 134},
}
ARGUMENTS = {"x86_64": ("rdi", "rsi", "rdx", "r10"), "arm64": ("x0", "x1", "x2", "x3")}
TCGETS, TCSETS = 0x5401, 0x5402
MODES, ACTION, TEXT, KEY = DATA, DATA + 0x100, DATA + 0x200, DATA + 0x300
RAW = 0xFFFF_FFF4  # without ISIG, ICANON, ECHO


def call(isa: str, name: str, *values: int) -> str:
    """A system call."""
    number = CALLS[isa][name]
    if isa == "x86_64":
        loads = [f"mov {register}, {value}" for register, value in zip(ARGUMENTS[isa], values, strict=False)]
        return "; ".join([*loads, f"mov eax, {number}", "syscall"]) + "\n"
    loads = [load(f"x{register}", value) for register, value in enumerate(values)]
    return "; ".join([*loads, f"mov x8, #{number}", "svc #0"]) + "\n"


def load(register: str, value: int) -> str:
    low, high = value & 0xFFFF, value >> 16 & 0xFFFF
    return f"movz {register}, #{low}; movk {register}, #{high}, lsl #16"


def say(isa: str, text: bytes) -> str:
    """Write up to four bytes to the terminal."""
    word = int.from_bytes(text, "little")
    if isa == "x86_64":
        store = f"mov dword ptr [{TEXT}], {word}\n"
    else:
        store = f"{load('x1', TEXT)}; {load('x2', word)}; str w2, [x1]\n"
    return store + call(isa, "write", 1, TEXT, len(text))


def make_raw(isa: str) -> str:
    """Set the terminal to raw mode, say so."""
    if isa == "x86_64":
        change = f"and dword ptr [{MODES + 12}], {RAW}\n"
    else:
        change = f"{load('x1', MODES + 12)}; ldr w2, [x1]; {load('x3', RAW)}; and w2, w2, w3; str w2, [x1]\n"
    return (
        call(isa, "ioctl", 0, TCGETS, MODES)
        + change
        + call(isa, "ioctl", 0, TCSETS, MODES)
        + say(isa, b"raw\n")
    )


def exit_with_key(isa: str) -> str:
    """Read a byte, and exit with it."""
    read = call(isa, "read", 0, KEY, 1)
    if isa == "x86_64":
        return read + f"movzx edi, byte ptr [{KEY}]; mov eax, 231; syscall\n"
    return read + f"{load('x1', KEY)}; ldrb w0, [x1]; mov x8, #94; svc #0\n"


def handle(isa: str, number: int, rest: str) -> str:
    """Say "got" at each signal of a number; what else the program does."""
    if isa == "x86_64":
        return (
            f"lea rax, [rip + handler]; mov [{ACTION}], rax; mov qword ptr [{ACTION + 8}], 0x4000000\n"
            f"lea rax, [rip + back]; mov [{ACTION + 16}], rax\n"
            + call(isa, "rt_sigaction", number, ACTION, 0, 8) + say(isa, b"on\n") + rest
            + "handler:\n" + say(isa, b"got\n") + "ret\nback: mov eax, 15; syscall\n"
        )  # fmt: skip
    return (
        f"adr x1, handler; {load('x2', ACTION)}; str x1, [x2]\n"
        + call(isa, "rt_sigaction", number, ACTION, 0, 8) + say(isa, b"on\n") + rest
        + "handler:\n" + say(isa, b"got\n") + "ret\n"
    )  # fmt: skip


SPIN = {"x86_64": "spin: jmp spin\n", "arm64": "spin: b spin\n"}


@every_isa
def test_ctrl_c_ends_a_program_that_takes_no_notice(isa: str) -> None:
    with sitting("run", PROGRAMS / isa / "spin") as at:
        at.wait(b"spinning")
        at.type(b"\x03")
        assert at.status() == 130


@every_isa
def test_ctrl_c_is_the_programs_that_handles_it_and_two_in_a_second_are_the_users(
    isa: str, tmp_path: Path
) -> None:
    with sitting("run", written(tmp_path, isa, handle(isa, signal.SIGINT, SPIN[isa]))) as at:
        at.wait(b"on")
        at.type(b"\x03")
        at.wait(b"got")
        while not at.ended():  # on a busy host more than a second may pass
            at.type(b"\x03")
            at.wait_a_moment()
        assert at.status() == 130


@every_isa
def test_in_raw_mode_ctrl_c_is_a_character(isa: str, tmp_path: Path) -> None:
    with sitting("run", written(tmp_path, isa, make_raw(isa) + exit_with_key(isa))) as at:
        at.wait(b"raw")
        local = at.modes[3]
        assert isinstance(local, int) and not local & (termios.ICANON | termios.ECHO)
        at.type(b"\x03")
        assert at.status() == 3


@pytest.mark.parametrize("how", ["two", "backslash", "timeout", "terminate", "fault"])
def test_the_terminal_is_as_it_was_whatever_ends_a_program_in_raw_mode(how: str, tmp_path: Path) -> None:
    rest = "xor eax, eax; mov [rax], eax\n" if how == "fault" else SPIN["x86_64"]
    options = ["--timeout", "1"] if how == "timeout" else []
    with sitting("run", *options, written(tmp_path, "x86_64", make_raw("x86_64") + rest)) as at:
        at.wait(b"raw")
        if how == "two":
            while not at.ended():
                at.type(b"\x03")
                at.wait_a_moment()
        elif how == "backslash":
            at.type(b"\x1c")
        elif how == "terminate":
            at.kill(signal.SIGTERM)
        assert (
            at.status() == {"two": 130, "backslash": 131, "timeout": 124, "terminate": 143, "fault": 139}[how]
        )


def test_ctrl_z_stops_the_run_with_the_terminal_as_it_was_and_it_goes_on_with_its_own(tmp_path: Path) -> None:
    rest = call("x86_64", "read", 0, KEY, 1) + make_raw("x86_64") + exit_with_key("x86_64")
    with sitting("run", written(tmp_path, "x86_64", say("x86_64", b"on\n") + rest)) as at:
        at.wait(b"on")
        at.type(b"\x1a")
        at.wait(b"stopped by 20")
        assert at.modes == at.modes_before
        at.type(b"\nx\n")
        at.wait(b"raw")
        at.wait_for_own_modes()
        at.type(b"\x0a")
        assert at.status() == 10


def test_a_window_that_changes_is_told_to_the_program(tmp_path: Path) -> None:
    with sitting("run", written(tmp_path, "x86_64", handle("x86_64", signal.SIGWINCH, SPIN["x86_64"]))) as at:
        at.wait(b"on")
        at.resize(30, 100)
        at.wait(b"got")
        at.type(b"\x03")
        assert at.status() == 130
