"""What TLBSan makes of single events: tables written by hand, and two CPUs that walk them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from aether_emu.machine.memory.ram import Ram
from aether_emu.verify.tlbsan import Finding, Sanitizer
from aether_emu.verify.tlbsan.finding import Rule
from aether_emu.verify.tlbsan.rules import Rules

_BASE, _PAGE, _LARGE = 1 << 30, 4096, 2 << 20
_FRAMES = 2048  # 0 to 3 are tables, the root first
every_isa = pytest.mark.parametrize("isa", ["x86_64", "arm64"])


class _Tables:
    """Four levels of tables that map eight pages from 0 on, the frames from 16 on; CPUs 0 and 1 walk them."""

    def __init__(self, isa: str) -> None:
        self.isa = isa
        self.ram = Ram(_BASE, _FRAMES * _PAGE, _PAGE)
        rules = Rules("x86_64-4level" if isa == "x86_64" else "arm64-4K")
        self.sanitizer = Sanitizer(rules, self.ram, _FRAMES, 2)
        for level in (4, 3, 2):
            self.put(4 - level, 0, self.table(5 - level))
        for number in range(8):
            self.put(3, number, self.leaf(16 + number))
        for cpu in (0, 1):
            self.sanitizer.set_root(cpu, _BASE, lambda: None)
        self.root = self.sanitizer.roots[_BASE]

    def table(self, frame: int, *, writable: bool = True) -> int:
        if self.isa == "x86_64":
            return _BASE + frame * _PAGE | (7 if writable else 5)
        return _BASE + frame * _PAGE | 3 | (0 if writable else 1 << 62)  # APTable

    def leaf(self, frame: int, *, writable: bool = True, level: int = 1) -> int:
        if self.isa == "x86_64":
            bits = 0x65 | 2 * writable | (1 << 7) * (level > 1)
        else:
            bits = 1 | 2 * (level == 1) | 1 << 6 | (1 << 7) * (not writable) | 1 << 10 | 3 << 8 | 3 << 53
        return _BASE + frame * _PAGE | bits

    def put(self, table: int, number: int, entry: int) -> None:
        """Without a word to the sanitizer."""
        self.ram.words[table * 512 + number] = entry

    @contextmanager
    def edit(self, cpu: int = 0) -> Iterator[None]:
        """A CPU edits entries, and says so."""
        self.sanitizer.works(cpu)
        self.sanitizer.hint(self.root, 0, 8 * _PAGE)
        self.sanitizer.hint_upper(self.root)
        yield


@every_isa
def test_each_cpu_holds_an_old_entry_until_it_has_dropped_it(isa: str) -> None:
    tables = _Tables(isa)
    sanitizer = tables.sanitizer
    with tables.edit():
        tables.put(3, 2, 0)
    sanitizer.flush_page(0, 2 * _PAGE)
    sanitizer.to_user(0)
    with pytest.raises(Finding) as caught:
        sanitizer.to_user(1)
    assert (caught.value.rule, caught.value.va, caught.value.frame) == (Rule.RIGHT, 2 * _PAGE, 18)


@every_isa
def test_others_may_go_on_until_the_operation_has_returned(isa: str) -> None:
    tables = _Tables(isa)
    sanitizer = tables.sanitizer
    with tables.edit():
        tables.put(3, 2, 0)
    sanitizer.flush_page(0, 2 * _PAGE)
    sanitizer.works(1)
    sanitizer.to_user(1)  # CPU 0 waits
    sanitizer.flush_page(1, 2 * _PAGE)
    sanitizer.freed(18)
    sanitizer.works(0)
    sanitizer.to_user(0)
    assert sanitizer.behind == []


@every_isa
def test_others_may_not_go_on_when_it_has_returned_meanwhile(isa: str) -> None:
    tables = _Tables(isa)
    sanitizer = tables.sanitizer
    with tables.edit():
        tables.put(3, 2, 0)
    sanitizer.flush_page(0, 2 * _PAGE)
    sanitizer.works(1)
    sanitizer.to_user(1)
    sanitizer.works(0)
    sanitizer.to_user(0)
    sanitizer.works(1)
    with pytest.raises(Finding) as caught:
        sanitizer.to_user(1)
    assert (caught.value.rule, caught.value.cpu) == (Rule.RIGHT, 1)


@every_isa
def test_a_frame_is_free_when_the_last_cpu_has_dropped_it(isa: str) -> None:
    tables = _Tables(isa)
    sanitizer = tables.sanitizer
    with tables.edit():
        tables.put(3, 2, 0)
        tables.put(3, 3, 0)
    for cpu in (0, 1):
        sanitizer.flush_page(cpu, 2 * _PAGE)
    sanitizer.freed(18)
    with pytest.raises(Finding) as caught:
        sanitizer.freed_many(np.array([18, 19]))
    assert (caught.value.rule, caught.value.va, caught.value.frame) == (Rule.REUSE, 3 * _PAGE, 19)


@every_isa
def test_another_root_drops_everything_where_there_are_no_tags(isa: str) -> None:
    tables = _Tables(isa)
    sanitizer = tables.sanitizer
    with tables.edit():
        tables.put(3, 2, 0)
    for cpu in (0, 1):
        sanitizer.set_root(cpu, _BASE + 12 * _PAGE, lambda: None)
    assert sanitizer.behind == []
    assert tables.root.cpus == 0
    sanitizer.freed(18)


@every_isa
def test_walkers_know_a_table_until_they_are_told_to_forget_it(isa: str) -> None:
    for elsewhere in (False, True):
        tables = _Tables(isa)
        sanitizer = tables.sanitizer
        with tables.edit():
            for number in range(8):
                tables.put(3, number, 0)
            tables.put(2, 0, 0)
        for cpu in (0, 1):
            for number in range(8):
                sanitizer.flush_page(cpu, number * _PAGE)
            sanitizer.flush_page(cpu, 64 * _LARGE)
        sanitizer.freed(3)  # INVLPG forgets all tables, TLBI VAE1 those of its address
        tables = _Tables(isa)
        sanitizer = tables.sanitizer
        with tables.edit():
            tables.put(2, 0, 0)
            for number in range(8):
                tables.put(3, number, 0)
        for cpu in (0, 1):
            if elsewhere:
                sanitizer.flush_page(cpu, 64 * _LARGE)
        if isa == "x86_64" and elsewhere:
            sanitizer.freed(3)
            continue
        with pytest.raises(Finding) as caught:
            sanitizer.freed(3)
        assert (caught.value.rule, caught.value.frame) == (Rule.TABLE, 3)


@every_isa
def test_what_a_table_permitted_is_dropped_by_a_full_flush_alone(isa: str) -> None:
    tables = _Tables(isa)
    sanitizer = tables.sanitizer
    with tables.edit():
        tables.put(2, 0, tables.table(3, writable=False))
    for number in range(8):
        sanitizer.flush_page(0, number * _PAGE)
    sanitizer.freed(3)  # it is still the same table
    with pytest.raises(Finding) as caught:
        sanitizer.to_user(0)
    assert (caught.value.rule, caught.value.va) == (Rule.RIGHT, 0)
    tables = _Tables(isa)
    with tables.edit():
        tables.put(2, 0, tables.table(3, writable=False))
    for cpu in (0, 1):
        tables.sanitizer.flush_all(cpu)
        tables.sanitizer.to_user(cpu)
    with tables.edit():
        tables.put(2, 0, tables.table(3))
    assert tables.sanitizer.behind == []


@every_isa
def test_a_large_leaf_is_all_its_frames_and_any_of_its_addresses_drops_it(isa: str) -> None:
    for flushed in (False, True):
        tables = _Tables(isa)
        sanitizer = tables.sanitizer
        with tables.edit():
            tables.put(2, 1, tables.leaf(512, level=2))
        sanitizer.to_user(0)
        with tables.edit():
            tables.put(2, 1, 0)
        for cpu in (0, 1):
            if flushed:
                sanitizer.flush_page(cpu, _LARGE + 77 * _PAGE)
        if flushed:
            sanitizer.freed(512, 512)
            continue
        with pytest.raises(Finding) as caught:
            sanitizer.freed(1023)
        assert (caught.value.rule, caught.value.va) == (Rule.REUSE, _LARGE)


def test_a_table_that_becomes_a_leaf_at_once_has_changed_its_size() -> None:
    tables = _Tables("arm64")
    with tables.edit():
        tables.put(2, 0, tables.leaf(512, level=2))
    with pytest.raises(Finding) as caught:
        tables.sanitizer.look()
    assert caught.value.rule is Rule.BREAK
    tables = _Tables("arm64")
    with tables.edit():
        tables.put(2, 0, 0)
    for cpu in (0, 1):
        tables.sanitizer.flush_all(cpu)
    tables.put(2, 0, tables.leaf(512, level=2))
    tables.sanitizer.look()


@every_isa
def test_flushes_that_drop_nothing_are_counted(isa: str) -> None:
    tables = _Tables(isa)
    sanitizer = tables.sanitizer
    with tables.edit():
        tables.put(3, 2, 0)
        tables.put(3, 3, tables.leaf(19, writable=False))
    sanitizer.flush_page(0, 2 * _PAGE)
    sanitizer.flush_page(0, 2 * _PAGE)
    sanitizer.flush_page(0, 5 * _PAGE)
    sanitizer.flush_all(0)
    sanitizer.flush_all(0)
    counts = sanitizer.statistics()
    assert (counts["page_flushes"], counts["needless_page_flushes"]) == (3, 2)
    assert (counts["full_flushes"], counts["needless_full_flushes"]) == (2, 1)
    assert counts["stale_translations"] == 2


def test_flags_that_a_cpu_has_set_are_neither_edits_nor_unseen() -> None:
    tables = _Tables("x86_64")
    for table in range(3):
        tables.ram.words[table * 512] |= 0x20
    with tables.edit():
        pass
    tables.sanitizer.look()
    tables.sanitizer.check()
    assert tables.sanitizer.behind == []


@every_isa
def test_an_entry_that_comes_back_before_anybody_looks_has_lost_nothing(isa: str) -> None:
    tables = _Tables(isa)
    with tables.edit():
        tables.put(3, 2, 0)
        tables.put(3, 2, tables.leaf(18))
    tables.sanitizer.look()
    assert tables.sanitizer.behind == []
