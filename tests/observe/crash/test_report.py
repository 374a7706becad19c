"""What the report says of real crashes, on both ISAs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aether_emu.linux.abi.signal import SIGABRT, SignalInfo
from tests.observe.crash.crashing import CRASH, crashed, functions, told
from tests.small_programs import written

ISAS = ("x86_64", "arm64")
_ROOT = ["main", "start", "_start"]


def _crash(isa: str, way: str, cwd: Path) -> dict[str, list[str]]:
    return crashed(CRASH / isa / "crash", isa, cwd, way)


@pytest.mark.parametrize("isa", ISAS)
def test_a_null_pointer(isa: str, tmp_path: Path) -> None:
    sections = _crash(isa, "null", tmp_path)
    assert re.search(r"tried a write to 0x10, at 0x[0-9a-f]+ null\+0x[0-9a-f]+ in /", told(sections))
    assert "a null pointer, and 0x10 bytes behind it" in told(sections)
    assert functions(sections) == ["null", *_ROOT]
    (marked,) = [line for line in sections["Code"] if "=>" in line]
    assert re.search(r"\bmov dword ptr \[|\bstr w", marked)
    assert len(sections["Code"]) > 4
    assert sections["Areas"][0].endswith("=> 0x10 lies before them all")
    assert any("absent" in line for line in sections["Walk"])
    register = {"x86_64": "rip", "arm64": "pc"}[isa]
    pc = marked.split()[1].removeprefix("0x")
    assert any(f"{register} {pc:0>16}" in line for line in sections["Registers"])


@pytest.mark.parametrize("isa", ISAS)
def test_memory_that_is_gone(isa: str, tmp_path: Path) -> None:
    sections = _crash(isa, "hole", tmp_path)
    assert "Nothing is mapped there." in told(sections)
    found = re.search(r"These addresses were unmapped at ([0-9.]+) s", told(sections))
    assert found is not None
    assert sections["Last changes of mappings"][-1].split()[:2] == [found[1], "unmapped"]
    assert any("lies between" in line for line in sections["Areas"])


@pytest.mark.parametrize("isa", ISAS)
def test_a_string_literal(isa: str, tmp_path: Path) -> None:
    sections = _crash(isa, "constant", tmp_path)
    assert re.search(r"bytes into /\S+ \(r-[-x]p\), which may be read", told(sections))
    assert "and not written" in told(sections)
    assert "string literals" in told(sections)
    assert functions(sections) == ["constant", *_ROOT]
    assert any(line.startswith("  =>") for line in sections["Areas"])


@pytest.mark.parametrize("isa", ISAS)
def test_a_jump_to_nowhere_names_who_jumped(isa: str, tmp_path: Path) -> None:
    sections = _crash(isa, "jump", tmp_path)
    assert told(sections).startswith("The program tried a jump to 0x123456789000.")
    assert functions(sections) == ["?", "jump", *_ROOT]
    assert sections["Code"] == ["  there is none at 0x123456789000"]


@pytest.mark.parametrize("isa", ISAS)
def test_a_jump_to_data(isa: str, tmp_path: Path) -> None:
    sections = _crash(isa, "data", tmp_path)
    assert "which may be read and written, and not executed" in told(sections)
    assert functions(sections)[1:] == ["data", *_ROOT]


@pytest.mark.parametrize("isa", ISAS)
def test_a_recursion_without_an_end_is_abbreviated(isa: str, tmp_path: Path) -> None:
    sections = _crash(isa, "deep", tmp_path)
    assert "bytes below the stack, which has 8192 KiB" in told(sections)
    assert "RLIMIT_STACK" in told(sections)
    assert functions(sections) == ["deeper", "deeper", "deep", *_ROOT]
    assert any(re.search(r"and [0-9,]{6} more such frames", line) for line in sections["Backtrace"])


@pytest.mark.parametrize("isa", ISAS)
def test_a_page_without_permissions(isa: str, tmp_path: Path) -> None:
    sections = _crash(isa, "protected", tmp_path)
    assert "tried a read of" in told(sections)
    assert "anonymous memory (---p), which permits nothing (PROT_NONE)" in told(sections)
    assert "These addresses were protected at" in told(sections)


@pytest.mark.parametrize("isa", ISAS)
def test_the_end_of_a_file(isa: str, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"abc")
    sections = _crash(isa, "end-of-file", tmp_path)
    assert sections[""][0].endswith(": SIGBUS")
    assert "/short, 0x1ffd bytes behind its end: the file has 0x3 bytes" in told(sections)


@pytest.mark.parametrize("isa", ISAS)
def test_an_address_of_the_supervisor(isa: str, tmp_path: Path) -> None:
    sections = _crash(isa, "kernel", tmp_path)
    assert "belongs to the supervisor" in told(sections)
    assert sections["Areas"][-1].endswith(" lies behind them all")


def test_what_is_no_address(tmp_path: Path) -> None:
    x86, arm = (told(_crash(isa, "wild", tmp_path)) for isa in ISAS)
    assert "It used 0x34567812345678, which is no address: bits 63 to 47 of one are alike" in x86
    assert "It is no address: those of this machine have 48 bits" in arm


def test_instructions_that_trap(tmp_path: Path) -> None:
    assert told(_crash("x86_64", "trap", tmp_path)) == "The CPU refuses the instruction ud2."
    assert told(_crash("arm64", "trap", tmp_path)) == "It met a breakpoint or a trap instruction."
    assert "divided an integer by zero" in told(_crash("x86_64", "divide", tmp_path))
    assert _crash("arm64", "divide", tmp_path) == {}


@pytest.mark.parametrize("isa", ISAS)
def test_a_crash_in_a_handler_leads_back_to_what_it_interrupted(isa: str, tmp_path: Path) -> None:
    sections = _crash(isa, "handler", tmp_path)
    way_back = {"x86_64": "sigreturn_trampoline", "arm64": "__kernel_rt_sigreturn"}[isa]
    assert functions(sections) == ["null", "handler", way_back, "raise", "in_handler", *_ROOT]


@pytest.mark.parametrize("isa", ISAS)
def test_a_signal_that_the_program_sends_is_not_called_an_abort(isa: str, tmp_path: Path) -> None:
    source = {
        "x86_64": "mov edi, 1000; mov esi, 11; mov eax, 62; syscall",
        "arm64": "mov x0, #1000; mov x1, #11; mov x8, #129; svc #0",
    }[isa]
    sections = crashed(written(tmp_path, isa, source), isa, tmp_path)
    assert told(sections) == "The program sent SIGSEGV to itself, by kill() or its like."


@pytest.mark.parametrize("isa", ISAS)
def test_abort_of_a_stripped_program_with_glibc(isa: str, tmp_path: Path) -> None:
    """It has no index of its unwind tables and no symbols. Every frame is found all the same."""
    sections = crashed(CRASH / isa / "control-glibc", isa, tmp_path)
    assert "sent SIGABRT to itself" in told(sections)
    frames = [line for line in sections["Backtrace"] if "#" in line]
    assert len(frames) >= 6
    assert not any("frame pointer" in line for line in frames)


@pytest.mark.parametrize("isa", ISAS)
def test_a_signal_that_the_program_did_not_make_by_a_mistake_has_no_report(isa: str, tmp_path: Path) -> None:
    assert _crash(isa, "terminated", tmp_path) == {}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("int4", "an overflow (int 4)"),
        ("gp", "Only the supervisor may execute hlt."),
        ("noncanonicaljump", "which is no address: bits 63 to 47 of one are alike."),
        ("noncanonicalstack", "which is no address: bits 63 to 47 of one are alike."),
    ],
)
def test_exceptions_of_x86_64(fault: str, words: str, tmp_path: Path) -> None:
    program = CRASH.parents[2] / "guest/bin/x86_64/faults"
    assert words in told(crashed(program, "x86_64", tmp_path, fault))


def test_larger_pages(tmp_path: Path) -> None:
    program = CRASH.parents[2] / "guest/bin/arm64/faults"
    sections = crashed(program, "arm64", tmp_path, "wild", page_size=65536)
    assert "Nothing is" in told(sections)


@pytest.mark.parametrize("isa", ISAS)
def test_a_signal_of_another_process_is_not_called_its_own(isa: str, tmp_path: Path) -> None:
    spin = Path(__file__).parents[3] / "guest" / "bin" / isa / "spin"
    sections = crashed(spin, isa, tmp_path, sent=SignalInfo(SIGABRT, pid=77))
    assert told(sections) == "Process 77 sent it SIGABRT."
