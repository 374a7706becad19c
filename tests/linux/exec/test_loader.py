"""Starting programs, above all those that nobody should have made: no file may do more than fail."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aether_emu.errors import ProgramError
from aether_emu.grants import Grants
from aether_emu.linux.exec import loader, stack
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.streams import BufferStream
from aether_emu.policy.aslr import AddressLayout, choose_layout
from aether_emu.system import Machine
from tests.guests.running import LARGE_PAGES, TARGETS, Target, program
from tests.linux.exec.crafted import (
    CODE,
    EXECUTE,
    GNU_STACK,
    INTERP,
    ISAS,
    PROGRAMS,
    READ,
    WRITE,
    Header,
    crafted,
    data_header,
    outcome,
)

_END = {"x86_64": 0x7FFF_FFFF_F000, "arm64": 1 << 48}
_SAMPLE, _SWEEP = 150, 10_000
_TOP = 1 << 64
_WORDS = (0, 1, 0xFFF, 1 << 31, 1 << 32, (1 << 47) - 4096, 1 << 47, 1 << 48, 1 << 63, _TOP - 1, _TOP - 4096)
_HEADERS = 64 + 56 * 6
X86_64, SMALL_PAGES = TARGETS[0], TARGETS[:2]

every_target = pytest.mark.parametrize("target", TARGETS, ids=str)


def _outcome(tmp_path: Path, content: bytes, target: Target, **options: object) -> str:
    (tmp_path / "p").write_bytes(content)
    return outcome(tmp_path / "p", target.isa, options={"page_size": target.page_size, **options})


def _mutated(seed: int) -> tuple[Target, bytes]:
    """A guest program cut off, with flipped bits, or with bytes or words of its headers replaced."""
    programs = [(t, path) for t in TARGETS for path in sorted((PROGRAMS / t.isa).iterdir())]
    target, path = programs[seed % len(programs)]
    chance, content = random.Random(seed), bytearray(path.read_bytes())
    match chance.randrange(4):
        case 0:
            del content[chance.randrange(len(content)) :]
        case 1:
            for _ in range(chance.randrange(1, 6)):
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        case 2:
            for _ in range(chance.randrange(1, 4)):
                content[chance.randrange(_HEADERS)] = chance.randrange(256)
        case _:
            struct.pack_into("<Q", content, 8 * chance.randrange(_HEADERS // 8), chance.choice(_WORDS))
    return target, bytes(content)


def _survives(tmp_path: Path, seeds: range) -> set[str]:
    kinds = set()
    for seed in seeds:
        target, content = _mutated(seed)
        try:
            kinds.add(_outcome(tmp_path, content, target).split(" ")[0])
        except Exception as error:
            raise AssertionError(f"mutation {seed} for {target}: {error!r}") from error
    return kinds


def test_a_damaged_program_is_refused_exits_or_dies(tmp_path: Path) -> None:
    kinds = _survives(tmp_path, range(_SAMPLE))
    assert kinds == {"refused:", "exit", "signal", "budget"}, "the sample must reach every way to end"


@pytest.mark.slow
def test_very_many_damaged_programs(tmp_path: Path) -> None:
    _survives(tmp_path, range(_SAMPLE, _SWEEP))


_PLACES = {
    "as large as memory": (Header(memory_size=8 << 20), "exit 7", "exit 7"),
    "larger than memory": (Header(memory_size=9 << 20), "ENOMEM", "ENOMEM"),
    "memory of 64 TiB": (Header(memory_size=1 << 46), "ENOMEM", "ENOMEM"),
    "memory of all addresses": (Header(memory_size=_TOP - 1), "EINVAL", "EINVAL"),
    "at 0": (Header(address=0), "EPERM", "exit 7"),
    "below user_base": (Header(address=0x10000 - 1), "EPERM", "exit 7"),  # a page below
    "at user_base": (Header(address=0x10000), "exit 7", "exit 7"),
    "at the last page": (Header(address=_TOP - 1), "EINVAL", "EINVAL"),
    "in the kernel's half": (Header(address=0xFFFF_8000_0000_0000), "EINVAL", "EINVAL"),
    "alignment 1 GiB": (Header(align=1 << 30), "exit 7", "exit 7"),
    "alignment 0": (Header(align=0), "exit 7", "exit 7"),
    "alignment 3": (Header(align=3), "exit 7", "exit 7"),
    "alignment of the highest bit": (Header(align=1 << 63), "exit 7", "exit 7"),
    "no access": (Header(flags=0), "signal 11", "signal 11"),
    "not executable": (Header(flags=READ | WRITE), "signal 11", "signal 11"),
    "cleared tail": (Header(flags=7, file_size=0xC00, memory_size=0x2800), "exit 7", "exit 7"),
    "zeros that may not be cleared": (Header(file_size=0xC00, memory_size=0x2800), "exit 7", "exit 7"),
    "nothing of the file": (Header(file_size=0), "signal", "EPERM"),
    "more of the file than memory": (Header(memory_size=0xFFF), "EINVAL", "EINVAL"),
    "more than the file": (Header(file_size=0x10000, memory_size=0x10000), "exit 7", "exit 7"),
    "zeros behind more than the file": (
        Header(flags=7, file_size=0x10001, memory_size=0x20000),
        "EFAULT",
        "EFAULT",
    ),
    "all bytes there can be": (Header(file_size=_TOP - 1, memory_size=_TOP - 1), "EINVAL", "EINVAL"),
    "behind the end of the file": (Header(offset=1 << 20), "signal 7", "signal 7"),
    "behind the end of all files": (Header(offset=_TOP - 0x10000), "EOVERFLOW", "EOVERFLOW"),
}


@every_target
@pytest.mark.parametrize("name", _PLACES)
def test_a_strange_segment(tmp_path: Path, target: Target, name: str) -> None:
    header, fixed, independent = _PLACES[name]
    header = header.but(address=header.address & -target.page_size)
    entry = header.address + CODE & _TOP - 1
    for kind, expected in ((2, fixed), (3, independent)):
        ended = _outcome(tmp_path, crafted([header], isa=target.isa, entry=entry, kind=kind), target)
        if expected.startswith("E"):
            assert ended.startswith(f"refused: {tmp_path}/p: {expected}: a segment at {header.address:#x}: ")
        else:
            assert ended.startswith(expected)


@every_target
def test_the_heap_of_a_static_independent_program_stands_where_images_go(
    tmp_path: Path, target: Target
) -> None:
    """Two thirds of the addresses up (ELF_ET_DYN_BASE), which is no multiple of a page: the next one."""
    (tmp_path / "p").write_bytes(crafted(isa=target.isa, kind=3))
    machine = Machine(target.isa, page_size=target.page_size, ram="8M", aperture="4M", aslr=False)
    try:
        space = machine.load(tmp_path / "p", grants=Grants(cwd=tmp_path)).mm
        assert space.heap_start == -(-(_END[target.isa] // 3 * 2) // target.page_size) * target.page_size
    finally:
        machine.close()


@every_target
def test_a_hole_as_large_as_the_address_space_takes_no_time(tmp_path: Path, target: Target) -> None:
    """Room for all segments is reserved at once, and given back: an image of 2 ** 46 bytes with two pages."""
    far = Header(address=0x400000 + (1 << 46))
    content = crafted([Header(), far, *[Header(memory_size=0, file_size=0)] * 20], isa=target.isa, kind=3)
    assert _outcome(tmp_path, content, target) == "exit 7"


@every_target
def test_a_program_without_segments_starts_and_dies(tmp_path: Path, target: Target) -> None:
    stack = Header(kind=GNU_STACK, flags=READ | WRITE)
    for kind in (2, 3):
        assert _outcome(tmp_path, crafted([stack], isa=target.isa, kind=kind), target) == "signal 11"


@every_target
def test_a_segment_where_the_stack_goes(tmp_path: Path, target: Target) -> None:
    """The stack begins with room for 132 KiB, in whole pages."""
    page, end = target.page_size, _END[target.isa]
    lowest = end - (132 << 10) & -page
    for address in (end - page, end - 2 * page, lowest):
        content = crafted([Header(address=address)], isa=target.isa, entry=address + CODE)
        assert "where the stack goes" in _outcome(tmp_path, content, target, aslr=False)
    content = crafted([Header(address=lowest - page)], isa=target.isa, entry=lowest - page + CODE)
    assert _outcome(tmp_path, content, target, aslr=False) == "exit 7"


@pytest.mark.parametrize("target", SMALL_PAGES, ids=str)
def test_a_segment_that_replaces_all_of_another(tmp_path: Path, target: Target) -> None:
    """Two segments in one page: the later decides for all of it (MAP_FIXED in Linux's elf_map)."""
    first = Header(flags=READ | WRITE, file_size=0x100, memory_size=0x100)
    second = Header(offset=CODE, address=0x400000 + CODE, file_size=0x100, memory_size=0x100)
    assert _outcome(tmp_path, crafted([first, second], isa=target.isa), target) == "exit 7"
    first, second = first.but(flags=READ | EXECUTE), second.but(flags=READ | WRITE)
    assert _outcome(tmp_path, crafted([first, second], isa=target.isa), target) == "signal 11"


@pytest.mark.parametrize("target", LARGE_PAGES, ids=str)
@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [
        (READ | EXECUTE, READ | EXECUTE, "exit 7"),
        (READ, READ | EXECUTE, "exit 7"),  # what a linker makes of constants and code: 16K Linux runs it
        (READ | WRITE, READ | EXECUTE, "permissions"),
        (READ | EXECUTE, READ | WRITE, "permissions"),
    ],
)
def test_segments_laid_out_for_smaller_pages_share_one_only_if_the_later_gives_what_both_need(
    tmp_path: Path, target: Target, low: int, high: int, ends: str
) -> None:
    """Two segments 4 KiB apart in memory and in the file, the code in the second."""
    first = Header(flags=low, file_size=0x1000, memory_size=0x1000)
    second = Header(flags=high, offset=0x1000, address=0x401000)
    file = crafted([first, second], isa=target.isa, entry=0x401000 + CODE)
    ended = _outcome(tmp_path, file + file, target)
    if ends == "permissions":
        kib = target.page_size >> 10
        words = f"two segments with different permissions share a page of {kib}K (see --granule)"
        assert ended == f"refused: {tmp_path}/p: {words}"
    else:
        assert ended == ends


@pytest.mark.parametrize("target", LARGE_PAGES, ids=str)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Header(memory_size=0x1800), Header(offset=0x2000, address=0x402000)),
        (Header(), Header(offset=0x1000 + (64 << 10), address=0x401000)),
    ],
    ids=["zeros", "another place in the file"],
)
def test_what_the_later_segment_would_not_show_is_refused(
    tmp_path: Path, target: Target, first: Header, second: Header
) -> None:
    content = crafted([first, second], isa=target.isa).ljust(128 << 10, b"\0")
    words = f"two segments with different contents share a page of {target.page_size >> 10}K"
    assert words in _outcome(tmp_path, content, target)


@pytest.mark.parametrize("target", LARGE_PAGES, ids=str)
def test_segments_that_are_not_aligned_to_the_page_in_the_file_are_refused(
    tmp_path: Path, target: Target
) -> None:
    content = crafted([Header(address=0x401000)], isa=target.isa, entry=0x401000 + CODE)
    words = f"its segments are not aligned to pages of {target.page_size >> 10}K (see --granule)"
    assert _outcome(tmp_path, content, target) == f"refused: {tmp_path}/p: {words}"
    assert _outcome(tmp_path, content, Target("arm64", 4096)) == "exit 7"


@every_target
@pytest.mark.parametrize("entry", [0, 0x3FF000, None, 1 << 47, 1 << 63, 0xFFFF_8000_0000_0000, _TOP - 4])
def test_an_entry_outside_the_program_kills_it(tmp_path: Path, target: Target, entry: int | None) -> None:
    entry = 0x400000 + target.page_size if entry is None else entry
    assert _outcome(tmp_path, crafted(isa=target.isa, entry=entry), target) == "signal 11"


@every_target
def test_program_headers_that_claim_more_than_there_are(tmp_path: Path, target: Target) -> None:
    assert _outcome(tmp_path, crafted(isa=target.isa, count=2), target) == "exit 7"


def test_a_program_larger_than_the_memory_limit(tmp_path: Path) -> None:
    content = crafted([Header(memory_size=1 << 30)])
    assert "ENOMEM" in _outcome(tmp_path, content, X86_64, memory_limit="64M")
    content = crafted([Header(memory_size=1 << 30)], kind=3)
    assert "ENOMEM" in _outcome(tmp_path, content, X86_64, memory_limit="64M")


def _with_interpreter(name: bytes, isa: str) -> bytes:
    return crafted([Header(), data_header(INTERP, len(name) + 1)], isa=isa, data=name + b"\0")


@every_target
def test_the_interpreter_starts_in_the_programs_place(tmp_path: Path, target: Target) -> None:
    (tmp_path / "ld.so").write_bytes(crafted(isa=target.isa, kind=3))
    content = _with_interpreter(bytes(tmp_path / "ld.so"), target.isa)
    damaged = content[:CODE] + bytes(16) + content[CODE + 16 :]
    assert _outcome(tmp_path, damaged, target) == "exit 7"


@pytest.mark.parametrize("target", LARGE_PAGES, ids=str)
def test_an_interpreter_that_was_laid_out_for_smaller_pages_is_named(tmp_path: Path, target: Target) -> None:
    (tmp_path / "ld.so").write_bytes(crafted([Header(address=0x1000)], isa=target.isa, kind=3, entry=0x1800))
    words = _outcome(tmp_path, _with_interpreter(bytes(tmp_path / "ld.so"), target.isa), target)
    assert words.startswith(f"refused: {tmp_path}/ld.so: its segments are not aligned to pages of")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (b"/lib64/no-such-ld.so", "its interpreter /lib64/no-such-ld.so is not visible"),
        (b"/etc/passwd", "its interpreter /etc/passwd is not visible"),
        (b"\xff\n\x1b[2J", r"its interpreter \xff\n\x1b[2J is not visible"),
        (b"/", "/: is not a regular file"),
        (b"/dev/null", "/dev/null: is not a regular file"),
        (b"/proc/self/maps", "/proc/self/maps: is not a regular file"),
        (b"text", "text: is not an ELF program"),
    ],
)
def test_an_interpreter_that_is_none(tmp_path: Path, name: bytes, words: str) -> None:
    (tmp_path / "text").write_text("words")
    assert words in _outcome(tmp_path, _with_interpreter(name, "x86_64"), X86_64)


def test_an_interpreter_for_another_isa(tmp_path: Path) -> None:
    (tmp_path / "ld.so").write_bytes(crafted(isa="arm64", kind=3))
    words = _outcome(tmp_path, _with_interpreter(b"ld.so", "x86_64"), X86_64)
    assert words == f"refused: {tmp_path}/p: its interpreter ld.so is for arm64"


def test_a_program_that_is_its_own_interpreter(tmp_path: Path) -> None:
    content = bytearray(_with_interpreter(b"p", "x86_64"))
    struct.pack_into("<H", content, 16, 3)
    assert _outcome(tmp_path, bytes(content), X86_64) == "exit 7"


@pytest.mark.parametrize("target", SMALL_PAGES, ids=str)
def test_a_program_for_the_other_isa(tmp_path: Path, target: Target) -> None:
    (other,) = set(ISAS) - {target.isa}
    words = _outcome(tmp_path, crafted(isa=other), target)
    assert words == f"refused: {tmp_path}/p: is a program for {other}, this machine is {target.isa}"


@every_target
def test_ram_that_is_too_small_ends_in_one_line_or_a_death(target: Target) -> None:
    """From the smallest RAM on, page by page: never another exception, and at last it works."""
    seen, page = [], target.page_size
    for size in (*range(2 << 20, 2560 << 10, page), *range(2560 << 10, 4 << 20, 65536)):
        options = {"ram": size, "page_size": page}
        seen.append(outcome(PROGRAMS / target.isa / "hello", target.isa, options=options, blocks=100_000))
        assert seen[-1].startswith(("refused", "signal 9", "exit 0"))
    assert seen[-1] == "exit 0"


@pytest.fixture(params=TARGETS, ids=str)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    target: Target = request.param
    machine = Machine(
        target.isa, page_size=target.page_size, ram="8M", aperture="4M", aslr=False, stack_limit="128K"
    )
    yield machine
    machine.close()


def _load(machine: Machine, argv: list[str], env: dict[str, str] | None = None) -> None:
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    path = program(machine.abi.isa, "hello")
    machine.load(path, argv, env=env, grants=Grants(cwd=path.parent), streams=streams)


@pytest.mark.parametrize("environment", [False, True])
def test_arguments_and_environment_have_128_kib_of_a_small_stack(machine: Machine, environment: bool) -> None:
    text = "x" * 100_000
    env = {"A": "y" * 31_100} if environment else None
    argv = ["hello", text] if environment else ["hello", text, "y" * 31_100]
    with pytest.raises(ProgramError, match="E2BIG") as caught:
        _load(machine, argv, env)
    assert caught.value.exit_status == 126


def test_very_many_small_arguments_are_too_much(machine: Machine) -> None:
    with pytest.raises(ProgramError, match="E2BIG"):
        _load(machine, ["a"] * 14_000)


def test_the_initial_stack_holds_what_execve_promises(machine: Machine) -> None:
    """The layout of the System V ABI, read back word by word."""
    _load(machine, ["hello", "", "two words", "\udcff"], {"A": "1", "B": ""})
    process = machine.process
    assert process is not None
    cpu, sp = machine.cpu, process.program.stack_pointer
    assert sp % 16 == 0

    def word(at: int) -> int:
        return int.from_bytes(cpu.copy_from_user(at, 8), "little")

    def text(at: int) -> bytes:
        return cpu.copy_from_user(at, min(64, _END[machine.abi.isa] - at)).split(b"\0")[0]

    assert word(sp) == 4
    assert [text(word(sp + 8 + 8 * i)) for i in range(4)] == [b"hello", b"", b"two words", b"\xff"]
    assert word(sp + 40) == 0
    assert [text(word(sp + 48 + 8 * i)) for i in range(2)] == [b"A=1", b"B="]
    assert word(sp + 64) == 0
    vector = cpu.copy_from_user(sp + 72, len(process.program.auxiliary))
    assert vector == process.program.auxiliary
    auxiliary = dict(struct.iter_unpack("<QQ", vector))
    assert vector[-16:] == bytes(16), "AT_NULL is the last"
    assert auxiliary[stack.AT_PAGESZ] == machine.config.page_size
    assert auxiliary[stack.AT_ENTRY] == process.program.entry == cpu.pc
    assert auxiliary[stack.AT_UID] == auxiliary[stack.AT_EUID] == machine.config.uid
    assert auxiliary[stack.AT_SECURE] == auxiliary[stack.AT_BASE] == 0
    assert text(auxiliary[stack.AT_EXECFN]) == bytes(program(machine.abi.isa, "hello"))
    assert text(auxiliary[stack.AT_PLATFORM]) == machine.abi.machine.encode()
    headers = cpu.copy_from_user(auxiliary[stack.AT_PHDR], auxiliary[stack.AT_PHNUM] * 56)
    content = program(machine.abi.isa, "hello").read_bytes()
    assert headers == content[64 : 64 + len(headers)]
    chance = cpu.copy_from_user(auxiliary[stack.AT_RANDOM], 16)
    assert chance != bytes(16)


@every_target
def test_the_last_segment_that_holds_the_program_headers_says_where_they_are(
    tmp_path: Path, target: Target
) -> None:
    """Of ET_EXEC and ET_DYN; where none holds them, it is what was added to all addresses."""
    first, second = Header(address=0x400000), Header(address=0x500000)
    elsewhere = Header(offset=0x10000, address=0x600000)
    for kind in (2, 3):
        for headers, at in (([first, second, elsewhere], 0x500040), ([elsewhere], 0)):
            (tmp_path / "p").write_bytes(crafted(headers, isa=target.isa, kind=kind))
            machine = Machine(target.isa, page_size=target.page_size, ram="8M", aperture="4M")
            try:
                program = machine.load(tmp_path / "p", grants=Grants(cwd=tmp_path)).program
                auxiliary = dict(struct.iter_unpack("<QQ", program.auxiliary))
                bias = auxiliary[stack.AT_ENTRY] - (0x400000 + CODE)
                assert auxiliary[stack.AT_PHDR] - bias == at
            finally:
                machine.close()


@every_target
def test_the_file_reaches_the_guest_byte_for_byte(tmp_path: Path, target: Target) -> None:
    """Segments show the file; what follows the file's bytes in the last page is zero."""
    data = bytes(range(1, 256)) * 8
    header = Header(flags=READ | WRITE | EXECUTE, file_size=0xC00, memory_size=0x2000)
    (tmp_path / "p").write_bytes(crafted([header], isa=target.isa, data=data[:0x6F0]))
    content = (tmp_path / "p").read_bytes()
    machine = Machine(target.isa, page_size=target.page_size, ram="8M", aperture="4M")
    try:
        machine.load(tmp_path / "p", grants=Grants(cwd=tmp_path))
        assert machine.cpu.copy_from_user(0x400000, 0x2000) == content[:0xC00] + bytes(0x1400)
    finally:
        machine.close()
    assert (tmp_path / "p").read_bytes() == content


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("once", [False, True])
def test_all_programs_of_a_run_may_get_the_same_random_addresses(
    isa: str, once: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = []

    def choose(*arguments: Any, **named: Any) -> AddressLayout:
        chosen.append(choose_layout(*arguments, **named))
        return chosen[-1]

    monkeypatch.setattr(loader, "choose_layout", choose)
    grants = Grants(cwd=tmp_path, binds=[Bind(tmp_path, str(tmp_path), writable=True)])
    with Machine(isa, aslr_once=once, seed=7) as machine:
        streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
        machine.load(
            Path(__file__).parents[2] / "programs" / "bin" / isa / "exec",
            ["exec"],
            grants=grants,
            streams=streams,
        )
        machine.run()
    assert len(chosen) > 3
    places = [layout.image_base for layout in chosen]  # one of them without chance, by its personality
    assert len(set(places)) == (2 if once else len(places))
