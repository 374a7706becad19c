"""TLBSan and tags: what a CPU keeps of a space that it has left is flushed before its tag is used again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aether_emu.errors import ConfigError
from aether_emu.linux.files.streams import BufferStream
from aether_emu.machine.memory.ram import Ram
from aether_emu.mm.tags import Asids, Context, Tags
from aether_emu.mm.tlb_faults import FaultyTlb
from aether_emu.system import Machine
from aether_emu.verify.tlbsan import Finding, Sanitizer
from aether_emu.verify.tlbsan.finding import Rule
from aether_emu.verify.tlbsan.rules import Rules

_PROGRAMS = Path(__file__).resolve().parents[1] / "programs" / "bin"
_BASE, _PAGE, _FRAMES = 1 << 30, 4096, 64
_OTHER = _BASE + 32 * _PAGE  # another root, of nothing
every_isa = pytest.mark.parametrize("isa", ["x86_64", "arm64"])


class _Tables:
    """Tables that map eight pages from 0 on, the frames from 16 on. CPU 0 has walked them under tag 1."""

    def __init__(self, isa: str, user_bit: int = 0) -> None:
        self.isa, self.user_bit = isa, user_bit
        self.ram = Ram(_BASE, _FRAMES * _PAGE, _PAGE)
        rules = Rules("x86_64-4level" if isa == "x86_64" else "arm64-4K")
        self.sanitizer = Sanitizer(rules, self.ram, _FRAMES, 2)
        self.sanitizer.have_tags(user_bit)
        for table in range(3):
            self.ram.words[table * 512] = _BASE + (table + 1) * _PAGE | (7 if isa == "x86_64" else 3)
        leaf = 0x67 if isa == "x86_64" else 3 | 1 << 6 | 1 << 10 | 3 << 8 | 3 << 53
        for number in range(8):
            self.ram.words[3 * 512 + number] = _BASE + (16 + number) * _PAGE | leaf
        self.use(_BASE, 1)
        self.use(_OTHER, 2)
        self.root = self.sanitizer.roots[_BASE]

    def use(self, root: int, tag: int, *, keep: bool = True) -> None:
        self.sanitizer.set_root(0, root, lambda: None, tag | self.user_bit, keep=keep)

    def flush(self, tag: int, va: int | None = None) -> None:
        self.sanitizer.flush_tag(0, tag, va, lambda: None)

    def unmap(self, *numbers: int) -> None:
        """CPU 1 takes pages away."""
        self.sanitizer.works(1)
        self.sanitizer.hint(self.root, 0, 8 * _PAGE)
        for number in numbers:
            self.ram.words[3 * 512 + number] = 0
        self.sanitizer.look()
        self.sanitizer.freed_many(np.array([16 + number for number in numbers]))  # nobody executes with them
        self.sanitizer.to_user(1)
        self.sanitizer.works(0)


def _found(do: Callable[..., object], *arguments: Any) -> Finding:
    with pytest.raises(Finding) as caught:
        do(*arguments)
    assert caught.value.rule is Rule.TAG
    return caught.value


@every_isa
def test_a_tag_is_used_again_while_nobody_has_edited_its_tables(isa: str) -> None:
    tables = _Tables(isa)
    tables.use(_BASE, 1)
    tables.use(_OTHER, 2)
    tables.use(_BASE, 1)
    assert tables.sanitizer.finding is None


@every_isa
def test_what_was_edited_meanwhile_is_flushed_before_its_tag_is_used(isa: str) -> None:
    for by_switch in (False, True):
        tables = _Tables(isa)
        tables.unmap(2)
        if by_switch:
            tables.use(_BASE, 1, keep=False)
        else:
            tables.flush(1)
            tables.use(_BASE, 1)
    tables = _Tables(isa)
    tables.unmap(2)
    tables.flush(2)  # of another tag
    found = _found(tables.use, _BASE, 1)
    assert (found.va, found.frame, found.cpu, found.edited.place.cpu) == (2 * _PAGE, 18, 0, 1)


def test_on_arm64_a_broadcast_drops_one_page_after_the_other() -> None:
    for dropped in ((2, 3), (2,)):
        tables = _Tables("arm64")
        tables.unmap(2, 3)
        for number in dropped:
            tables.flush(1, number * _PAGE)
        if len(dropped) == 2:
            tables.use(_BASE, 1)
        else:
            assert _found(tables.use, _BASE, 1).va == 3 * _PAGE


def test_what_is_not_kept_is_one_tag_on_x86_64_and_everything_on_arm64() -> None:
    for isa in ("x86_64", "arm64"):
        tables = _Tables(isa)
        tables.unmap(2)
        tables.use(_OTHER, 3, keep=False)
        if isa == "arm64":
            tables.use(_BASE, 1)
        else:
            _found(tables.use, _BASE, 1)


@every_isa
def test_another_root_under_a_tag_has_it_flushed(isa: str) -> None:
    tables = _Tables(isa)
    tables.use(_OTHER, 1, keep=False)
    tables = _Tables(isa)
    found = _found(tables.use, _OTHER, 1)
    assert f"{_BASE:#x} under tag 1" in str(found)
    assert found.report.splitlines()[3].startswith("  used        CPU 0, ")


@every_isa
def test_a_root_whose_frame_comes_back_is_another_one(isa: str) -> None:
    tables = _Tables(isa)
    tables.sanitizer.freed(0)
    _found(tables.use, _BASE, 1)


@every_isa
def test_what_a_cpu_has_not_dropped_when_it_leaves_it_must_have_when_it_returns(isa: str) -> None:
    for flushed in (True, False):
        tables = _Tables(isa)
        tables.use(_BASE, 1)
        tables.sanitizer.hint(tables.root, 0, 8 * _PAGE)
        tables.ram.words[3 * 512 + 2] = 0
        if flushed:
            tables.flush(1)
        tables.use(_OTHER, 2)
        assert tables.sanitizer.behind == []
        if flushed:
            tables.use(_BASE, 1)
        else:
            _found(tables.use, _BASE, 1)


@every_isa
def test_with_two_roots_both_tags_are_flushed(isa: str) -> None:
    bit = 2048 if isa == "x86_64" else 1
    for both in (True, False):
        tables = _Tables(isa, user_bit=bit)
        tables.use(_BASE, 4)
        tables.use(_OTHER, 8)
        tables.unmap(2)
        tables.flush(4 | bit)
        if both:
            tables.flush(4)
            tables.use(_BASE, 4)
        else:
            _found(tables.use, _BASE, 4)


# ---- whole machines


def _run(isa: str, program: str, *arguments: str, **options: Any) -> tuple[Machine, Finding | None]:
    machine = Machine(isa, ram="64M", seed=3, tlbsan=True, **options)
    streams = {name: BufferStream(b"") for name in ("stdin", "stdout", "stderr")}
    machine.load(_PROGRAMS / isa / program, [program, *arguments], streams=streams)
    tags = machine.physical.tags
    if isinstance(tags, Asids):
        tags._taken[4:] = b"\1" * len(tags._taken[4:])  # so that generations are short
    try:
        assert machine.run().status == 0
        assert isinstance(machine.tlbsan, Sanitizer)
        machine.tlbsan.check()
    except Finding as found:
        return machine, found
    finally:
        machine.abandon()
    return machine, None


def _many_spaces(isa: str, cpus: int) -> tuple[str, ...]:
    """A program of which more spaces live than the CPU has tags; ended ones have been broadcast on arm64."""
    return ("sysv",) if isa == "arm64" and cpus > 1 else ("spaces", "12")


@pytest.mark.parametrize(
    ("isa", "options"),
    [
        ("x86_64", {}),
        ("x86_64", {"pcids": 1, "cpus": 2}),
        ("x86_64", {"pcids": 2, "kpti": True}),
        ("arm64", {"asid_bits": 8}),
        ("arm64", {"kpti": True, "cpus": 2}),
    ],
)
def test_spaces_that_take_turns_are_clean(isa: str, options: dict[str, Any]) -> None:
    machine, found = _run(isa, "spaces", "8", **options)
    assert found is None
    tags = machine.physical.tags
    assert tags is not None
    assert tags.rollovers > 0 or isa == "x86_64"


@every_isa
@pytest.mark.parametrize("cpus", [1, 2])
def test_tags_that_are_never_flushed_are_found(isa: str, cpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tags, "keeps", lambda _tags, _valid: True)
    _machine, found = _run(isa, *_many_spaces(isa, cpus), cpus=cpus)
    assert found is not None
    assert found.rule is Rule.TAG
    assert "a change to the root" in found.relied.place.what


@every_isa
def test_a_space_that_does_not_count_its_flushes_is_found(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "flushed", lambda _context, _pages: None)
    _machine, found = _run(isa, "clone", cpus=2)
    assert found is not None
    assert found.rule is Rule.TAG
    assert "system call" in found.edited.place.what


def test_a_broadcast_that_reaches_nobody_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Asids, "broadcast_to_others", lambda _asids, _context, _pages: None)
    _machine, found = _run("arm64", "clone", cpus=2)
    assert found is not None
    assert found.rule is Rule.TAG


@every_isa
@pytest.mark.parametrize("cpus", [1, 2])
def test_the_fault_reuse_tag_strikes_and_is_found(isa: str, cpus: int) -> None:
    machine, found = _run(isa, *_many_spaces(isa, cpus), cpus=cpus, tlb_fault="reuse-tag")
    tlb = machine.physical.tlb
    assert isinstance(tlb, FaultyTlb)
    assert tlb.struck > 0
    assert found is not None
    assert found.rule is Rule.TAG
    _machine, found = _run(isa, "spaces", "2", cpus=cpus, tlb_fault="reuse-tag", tlb_fault_one_in=1_000_000)
    assert found is None


def test_the_fault_reuse_tag_needs_tags() -> None:
    with pytest.raises(ConfigError, match="pcids above 0"):
        Machine("x86_64", ram="64M", pcids=0, tlb_fault="reuse-tag")
