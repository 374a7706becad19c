"""Backtraces where a program says little of itself, or wrong things: names, ways back, and why they end."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from tests.observe.crash.altered import Altered
from tests.observe.crash.crashing import functions, told

ISAS = ("x86_64", "arm64")


def _ways(sections: dict[str, list[str]]) -> list[str]:
    """How each frame was found; "" for those that are certain."""
    frames = [line for line in sections["Backtrace"] if line.lstrip().startswith("#")]
    found = [re.search(r"\(by ([a-z ]+)\)$", line) for line in frames]
    return [one[1] if one else "" for one in found]


def _end(sections: dict[str, list[str]]) -> str:
    """Why the backtrace ends, as one line; "" if it does not say."""
    text = " ".join(line.strip() for line in sections["Backtrace"])
    return text.partition("It ends here: ")[2]


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        (b"_ZN4shop4Till4takeEi", "shop::Till::take(int)"),
        (
            b"_ZNSt6vectorISsSaISsEE9push_backERKSs",
            "std::vector<std::string, std::allocator<",
        ),
        (b"_ZlsRSoRK3Bad", "operator<<(std::ostream&, Bad const&)"),
        (b"_Z5checkv.cold", "check() (.cold)"),
        (b"_ZN4core6option13unwrap_failed17h0123456789abcdefE", "core::option::unwrap_failed"),
        (
            b"_ZN66_$LT$alloc..vec..Vec$LT$T$GT$$u20$as$u20$core..ops..drop..Drop$GT$4drop17h0123456789abcdefE",
            "<alloc::vec::Vec<T> as core::ops::drop::Drop>::drop",
        ),
        (b"_RNvNtCs15kBYyAo9fc_7mycrate3foo3bar", "mycrate::foo::bar"),
        (b"_Znonsense", "_Znonsense"),
        (b"_ZN99_$LT$of.too.large.a.length.for.what.is.there$GT$1f17h0123456789abcdefE", "_ZN99_$LT$of"),
        (b"_Z1f1AIiE" + b"S_I" + b"S0_" * 60 + b"E", None),
    ],
)
def test_names_are_those_of_the_source(mangled: bytes, name: str | None, tmp_path: Path) -> None:
    sections = Altered("x86_64").renamed(b"null", mangled).run(tmp_path)
    assert f"{name or 'f'}" in told(sections)
    assert functions(sections)[-3:] == ["main", "start", "_start"]


def test_a_long_name_does_not_hide_the_function(tmp_path: Path) -> None:
    mangled = b"_ZN4shop4TillISt6vectorISsSaISsEEE4takeERKS4_Pi"
    (line, *_) = Altered("x86_64").renamed(b"null", mangled).run(tmp_path)["Backtrace"]
    assert re.search(r"shop::Till<std::.*>::take\+0x", line)


@pytest.mark.parametrize("isa", ISAS)
def test_a_label_reaches_no_farther_than_its_section(isa: str, tmp_path: Path) -> None:
    altered = Altered(isa)
    struct.pack_into("<H", altered.data, altered.symbol(b"null") + 6, altered.section(b".eh_frame"))
    struct.pack_into("<Q", altered.data, altered.symbol(b"null") + 16, 0)
    assert functions(altered.run(tmp_path))[:2] == ["?", "main"]


@pytest.mark.parametrize("isa", ISAS)
def test_a_page_of_the_file_that_shows_two_segments(isa: str, tmp_path: Path) -> None:
    """The code's own segment says how its addresses are moved, not the one that ends on the same page."""
    altered = Altered(isa)
    start, count = (
        struct.unpack_from("<Q", altered.data, 32)[0],
        struct.unpack_from("<H", altered.data, 56)[0],
    )
    segments = [start + 56 * index for index in range(count)]
    (code,) = [at for at in segments if struct.unpack_from("<II", altered.data, at) == (1, 5)]
    offset, address = struct.unpack_from("<QQ", altered.data, code + 8)
    # One more, in the place of a segment that nobody needs: readable, and ending where the code begins.
    spare = next(
        at for at in segments if struct.unpack_from("<I", altered.data, at)[0] not in (1, 0x6474E550)
    )
    fields = (1, 4, offset, address - 0x10000, address - 0x10000, 16, 16, 0x1000)
    other = altered.data[segments[0] : spare]
    altered.data[segments[0] + 56 : spare + 56] = other
    struct.pack_into("<II6Q", altered.data, segments[0], *fields)
    assert functions(altered.run(tmp_path)) == ["null", "main", "start", "_start"]


def test_a_function_that_has_kept_nothing_has_its_return_address_on_the_stack(tmp_path: Path) -> None:
    sections = Altered("x86_64").without_tables().run(tmp_path)
    assert functions(sections) == ["null", "main"]
    assert _ways(sections) == ["", "return address"]
    assert re.match(
        r"no unwind table covers 0x[0-9a-f]+, and rbp, 0x4, is no frame pointer\.$", _end(sections)
    )


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        ("mov rbp, 3", "0x3, is no frame pointer"),
        ("mov rbp, rsp; add rbp, 4", "is no frame pointer"),
        ("mov rbp, 0x7fffffffe000", "0x7fffffffe000, points to nothing"),
        ("lea rbp, [rsp + 16]; mov qword ptr [rbp + 8], 0x1234", "leads to 0x1234, which no call left"),
        ("lea rbp, [rsp + 16]; lea rax, [rip]; mov [rbp + 8], rax", ", which no call left"),
        ("mov rbp, rsp; mov qword ptr [rbp], rbp", "is no frame pointer"),
    ],
)
def test_frame_pointers_that_are_none(frame: str, why: str, tmp_path: Path) -> None:
    code = f"push rbp; {frame}; mov dword ptr [0x10], eax".replace("; ", "\n")
    sections = Altered("x86_64").without_tables().coded(code).run(tmp_path)
    assert _end(sections).startswith("no unwind table covers 0x")
    assert why in _end(sections)


def test_frame_pointers_of_x86_64(tmp_path: Path) -> None:
    code = "push rbp\nmov rbp, rsp\nsub rsp, 32\nmov dword ptr [0x10], eax"
    sections = Altered("x86_64").without_tables().coded(code).run(tmp_path)
    assert functions(sections) == ["null", "main"]
    assert _ways(sections) == ["", "frame pointer"]


@pytest.mark.parametrize("isa", ISAS)
def test_a_return_to_where_nothing_is(isa: str, tmp_path: Path) -> None:
    code = {
        "x86_64": "mov rax, 0x10\nmov [rsp], rax\nmov [rsp + 8], rax\nret",
        "arm64": "movz x30, #0x1000\nret",
    }[isa]
    sections = Altered(isa).coded(code).run(tmp_path)
    assert functions(sections) == ["?"]
    assert re.match(r"no code is at (0x[0-9a-f]+), and none at \1, where", _end(sections))


def test_a_tag_is_told_beside_the_address(tmp_path: Path) -> None:
    code = "movz x0, #0x10\nmovk x0, #0x5a00, lsl #48\nstr w0, [x0]"
    words = told(Altered("arm64").coded(code).run(tmp_path))
    assert words.startswith("The program tried a write to 0x10 (given with a tag, 0x5a00000000000010), at 0x")


def test_misalignment_on_arm64_names_the_address(tmp_path: Path) -> None:
    jump = told(Altered("arm64").coded("movz x0, #0x1002\nbr x0").run(tmp_path))
    assert jump == "It jumped to 0x1002: instructions lie at multiples of 4."
    atomic = told(Altered("arm64").coded("movz x0, #0x1002\nldaxr x1, [x0]").run(tmp_path))
    assert atomic == "It used 0x1002, which is misaligned for its instruction."


@pytest.mark.parametrize("isa", ISAS)
def test_registers_stand_apart(isa: str, tmp_path: Path) -> None:
    for line in Altered(isa).run(tmp_path)["Registers"]:
        assert re.fullmatch(r"(?: +[a-z0-9_]+ [0-9a-f]{16}){1,3}", line), line
