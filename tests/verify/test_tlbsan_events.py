"""What TLBSan makes of single events: tables written by hand, and two CPUs that walk them."""

from __future__ import annotations

import numpy as np
import pytest

from aether_emu.verify.tlbsan import Finding
from aether_emu.verify.tlbsan.finding import Rule
from aether_emu.verify.tlbsan.roots import Root
from aether_emu.verify.tlbsan.shadow import Shadow
from tests.verify.small_tables import BASE, LARGE, PAGE, Tables

every_isa = pytest.mark.parametrize("isa", ["x86_64", "arm64"])


@every_isa
def test_each_cpu_holds_an_old_entry_until_it_has_dropped_it(isa: str) -> None:
    tables = Tables(isa)
    sanitizer = tables.sanitizer
    with tables.edit():
        tables.put(3, 2, 0)
    sanitizer.flush_page(0, 2 * PAGE)
    sanitizer.to_user(0)
    with pytest.raises(Finding) as caught:
        sanitizer.to_user(1)
    assert (caught.value.rule, caught.value.va, caught.value.frame) == (Rule.RIGHT, 2 * PAGE, 18)


@every_isa
def test_others_may_go_on_until_the_operation_has_returned(isa: str) -> None:
    tables = Tables(isa)
    sanitizer = tables.sanitizer
    with tables.edit():
        tables.put(3, 2, 0)
    sanitizer.flush_page(0, 2 * PAGE)
    sanitizer.works(1)
    sanitizer.to_user(1)  # CPU 0 waits
    sanitizer.flush_page(1, 2 * PAGE)
    sanitizer.freed(18)
    sanitizer.works(0)
    sanitizer.to_user(0)
    assert sanitizer.behind == []


@every_isa
def test_others_may_not_go_on_when_it_has_returned_meanwhile(isa: str) -> None:
    tables = Tables(isa)
    sanitizer = tables.sanitizer
    with tables.edit():
        tables.put(3, 2, 0)
    sanitizer.flush_page(0, 2 * PAGE)
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
    tables = Tables(isa)
    sanitizer = tables.sanitizer
    with tables.edit():
        tables.put(3, 2, 0)
        tables.put(3, 3, 0)
    for cpu in (0, 1):
        sanitizer.flush_page(cpu, 2 * PAGE)
    sanitizer.freed(18)
    with pytest.raises(Finding) as caught:
        sanitizer.freed_many(np.array([18, 19]))
    assert (caught.value.rule, caught.value.va, caught.value.frame) == (Rule.REUSE, 3 * PAGE, 19)


def test_an_invalidation_of_one_entry_of_a_contiguous_run_leaves_the_others() -> None:
    """ARM64: the hint permits to hold a run as one, and demands it of nobody (I_VNXYF)."""
    tables = Tables("arm64")
    sanitizer = tables.sanitizer
    with tables.edit():
        for number in range(16, 32):
            tables.put(3, number, tables.leaf(16 + number) | 1 << 52)
    sanitizer.to_user(0)
    with tables.edit():
        for number in range(16, 32):
            tables.put(3, number, 0)
    sanitizer.flush_page(0, 16 * PAGE)
    sanitizer.flush_page(1, 16 * PAGE)
    sanitizer.freed(32)
    with pytest.raises(Finding) as caught:
        sanitizer.freed(33)
    assert (caught.value.rule, caught.value.va) == (Rule.REUSE, 17 * PAGE)


@every_isa
def test_another_root_drops_everything_where_there_are_no_tags(isa: str) -> None:
    tables = Tables(isa)
    sanitizer = tables.sanitizer
    with tables.edit():
        tables.put(3, 2, 0)
    for cpu in (0, 1):
        sanitizer.set_root(cpu, BASE + 12 * PAGE, lambda: None)
    assert sanitizer.behind == []
    assert tables.root.cpus == 0
    sanitizer.freed(18)


@pytest.mark.parametrize("then", ["gone", "read-only"])
def test_what_was_held_with_its_access_flag_is_lost_when_the_page_goes_without_one(then: str) -> None:
    """ARM64: an entry without the flag is not kept, but who has not flushed since may hold the old one."""
    for flushed in (False, True):
        tables = Tables("arm64")
        sanitizer = tables.sanitizer
        with tables.edit():
            tables.put(3, 2, tables.leaf(18) & ~(1 << 10))
        sanitizer.flush_page(0, 2 * PAGE)
        if flushed:
            sanitizer.flush_page(1, 2 * PAGE)
        sanitizer.to_user(0)
        sanitizer.works(1)
        sanitizer.to_user(1)  # that the flag went is no more than a hint
        with tables.edit():
            tables.put(3, 2, tables.leaf(18, writable=False) & ~(1 << 10) if then == "read-only" else 0)
        sanitizer.to_user(0)
        sanitizer.works(1)
        if flushed:
            sanitizer.to_user(1)
            assert sanitizer.behind == []
        else:
            with pytest.raises(Finding) as caught:
                sanitizer.to_user(1)
            assert (caught.value.rule, caught.value.cpu, caught.value.va) == (Rule.RIGHT, 1, 2 * PAGE)


@every_isa
def test_walkers_know_a_table_until_they_are_told_to_forget_it(isa: str) -> None:
    for elsewhere in (False, True):
        tables = Tables(isa)
        sanitizer = tables.sanitizer
        with tables.edit():
            for number in range(8):
                tables.put(3, number, 0)
            tables.put(2, 0, 0)
        for cpu in (0, 1):
            for number in range(8):
                sanitizer.flush_page(cpu, number * PAGE)
            sanitizer.flush_page(cpu, 64 * LARGE)
        sanitizer.freed(3)  # INVLPG forgets all tables, TLBI VAE1 those of its address
        tables = Tables(isa)
        sanitizer = tables.sanitizer
        with tables.edit():
            tables.put(2, 0, 0)
            for number in range(8):
                tables.put(3, number, 0)
        for cpu in (0, 1):
            if elsewhere:
                sanitizer.flush_page(cpu, 64 * LARGE)
        if isa == "x86_64" and elsewhere:
            sanitizer.freed(3)
            continue
        with pytest.raises(Finding) as caught:
            sanitizer.freed(3)
        assert (caught.value.rule, caught.value.frame) == (Rule.TABLE, 3)


@every_isa
def test_what_a_table_permitted_is_dropped_by_a_full_flush_alone(isa: str) -> None:
    tables = Tables(isa)
    sanitizer = tables.sanitizer
    with tables.edit():
        tables.put(2, 0, tables.table(3, writable=False))
    for number in range(8):
        sanitizer.flush_page(0, number * PAGE)
    sanitizer.freed(3)  # it is still the same table
    with pytest.raises(Finding) as caught:
        sanitizer.to_user(0)
    assert (caught.value.rule, caught.value.va) == (Rule.RIGHT, 0)
    tables = Tables(isa)
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
        tables = Tables(isa)
        sanitizer = tables.sanitizer
        with tables.edit():
            tables.put(2, 1, tables.leaf(512, level=2))
        sanitizer.to_user(0)
        with tables.edit():
            tables.put(2, 1, 0)
        for cpu in (0, 1):
            if flushed:
                sanitizer.flush_page(cpu, LARGE + 77 * PAGE)
        if flushed:
            sanitizer.freed(512, 512)
            continue
        with pytest.raises(Finding) as caught:
            sanitizer.freed(1023)
        assert (caught.value.rule, caught.value.va) == (Rule.REUSE, LARGE)


def test_a_table_that_becomes_a_leaf_at_once_has_changed_its_size() -> None:
    tables = Tables("arm64")
    with tables.edit():
        tables.put(2, 0, tables.leaf(512, level=2))
    with pytest.raises(Finding) as caught:
        tables.sanitizer.look()
    assert caught.value.rule is Rule.BREAK
    tables = Tables("arm64")
    with tables.edit():
        tables.put(2, 0, 0)
    for cpu in (0, 1):
        tables.sanitizer.flush_all(cpu)
    tables.put(2, 0, tables.leaf(512, level=2))
    tables.sanitizer.look()


@every_isa
def test_flushes_that_drop_nothing_are_counted(isa: str) -> None:
    tables = Tables(isa)
    sanitizer = tables.sanitizer
    with tables.edit():
        tables.put(3, 2, 0)
        tables.put(3, 3, tables.leaf(19, writable=False))
    sanitizer.flush_page(0, 2 * PAGE)
    sanitizer.flush_page(0, 2 * PAGE)
    sanitizer.flush_page(0, 5 * PAGE)
    sanitizer.flush_all(0)
    sanitizer.flush_all(0)
    counts = sanitizer.statistics()
    assert (counts["page_flushes"], counts["needless_page_flushes"]) == (3, 2)
    assert (counts["full_flushes"], counts["needless_full_flushes"]) == (2, 1)
    assert counts["stale_translations"] == 2


def test_flags_that_a_cpu_has_set_are_neither_edits_nor_unseen() -> None:
    tables = Tables("x86_64")
    for table in range(3):
        tables.ram.words[table * 512] |= 0x20
    with tables.edit():
        pass
    tables.sanitizer.look()
    tables.sanitizer.check()
    assert tables.sanitizer.behind == []


@every_isa
def test_an_entry_that_comes_back_before_anybody_looks_has_lost_nothing(isa: str) -> None:
    tables = Tables(isa)
    with tables.edit():
        tables.put(3, 2, 0)
        tables.put(3, 2, tables.leaf(18))
    tables.sanitizer.look()
    assert tables.sanitizer.behind == []


@every_isa
def test_what_goes_together_is_looked_for_once_and_judged_each(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, looks, look = Tables(isa), list[Root](), Shadow.look

    def counted(self: Shadow, root: Root) -> None:
        looks.append(root)
        look(self, root)

    monkeypatch.setattr(Shadow, "look", counted)
    sanitizer = tables.sanitizer
    with tables.edit():
        tables.put(3, 2, 0)

    def free() -> None:
        sanitizer.freed(30)
        sanitizer.freed_many(np.array([31, 32]))
        sanitizer.freed(18)

    with pytest.raises(Finding) as caught:
        sanitizer.freed_together(free)
    assert (caught.value.rule, caught.value.frame) == (Rule.REUSE, 18)
    assert len(looks) == 1
