"""What has to hold of your kernel's page tables, whatever else is changed in it."""

import pytest

from aether_emu.verify import Severity, lint, open_tables, survey, walk

IMAGE, OPTIONS = "tables.img", {"root": 0x1000, "format": "x86_64-4level"}


def test_the_kernel_is_where_it_was_linked():
    found = walk(IMAGE, 0xFFFF_FFFF_8000_1234, **OPTIONS)
    assert (found.physical, found.page) == (0x20_1234, 2 << 20)


@pytest.mark.parametrize("rule", ["writable-executable", "user-kernel-memory", "reserved-bits"])
def test_there_is_none_of(rule):
    found = [one for one in lint(IMAGE, **OPTIONS) if one.severity is Severity.ERROR]
    assert rule not in {one.rule for one in found}


def test_it_has_as_many_pages_as_it_should():
    assert survey(open_tables(IMAGE, **OPTIONS)).leaves.count == 2
