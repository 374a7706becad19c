"""Our cores in another's hands: volatility3's Intel layer reads the same mappings and entries.

It knows nothing of permissions: what it has is the leaf's entry, whose bits are compared. That the
tables above forbid nothing, so that the leaf's bits are the permissions, is asked for besides.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from volatility3.framework import contexts
from volatility3.framework.layers import elf, intel, physical

from aether_emu.verify import open_image, open_tables, survey, walk
from aether_emu.verify.tables.formats import Right
from tests.guests.running import TARGETS
from tests.verify.guest_cores import stopped_core

USER_END = 1 << 47


def intel_layer(path: Path, root: int) -> intel.Intel32e:
    """Volatility's view of the address space whose top table is at `root`."""
    context = contexts.Context()
    context.config["file.location"] = path.resolve().as_uri()
    context.add_layer(physical.FileLayer(context, "file", "file"))
    context.config["core.base_layer"] = "file"
    context.add_layer(elf.Elf64Layer(context, "core", "core"))
    context.config["intel.memory_layer"] = "core"
    context.config["intel.page_map_offset"] = root
    layer = intel.Intel32e(context, "intel", "intel")
    context.add_layer(layer)
    return layer


@pytest.mark.parametrize(("name", "blocks"), [("tour", 3000), ("maps", 20000), ("workset", 20000)])
def test_volatility_finds_the_same_pages_with_the_same_entries(
    tmp_path: Path, name: str, blocks: int
) -> None:
    path = stopped_core(tmp_path, TARGETS[0], name, blocks)
    image = open_image(path)
    root = image.registers.roots[0]
    assert root is not None
    layer = intel_layer(path, root)
    theirs = {}
    for start, length, frame, _length, _layer in layer.mapping(0, USER_END, ignore_errors=True):
        for offset in range(0, length, 4096):
            theirs[start + offset] = frame + offset
    found = survey(open_tables(image))
    leaves = found.leaves
    user = leaves.address < np.uint64(USER_END)
    ours = dict(zip(leaves.address[user].tolist(), leaves.physical[user].tolist(), strict=True))
    assert len(ours) > 5
    assert set(leaves.level[user].tolist()) == {1}
    assert ours == theirs
    kinds = set()
    for address, entry, rights in zip(
        leaves.address[user].tolist(), leaves.entry[user].tolist(), leaves.rights[user].tolist(), strict=True
    ):
        told, _position = layer._translate_entry(address)
        assert told == entry
        assert bool(told & 2) == bool(rights & Right.USER_WRITE)
        assert bool(told & 4) == bool(rights & Right.USER_READ)
        assert bool(told >> 63) != bool(rights & Right.USER_EXECUTE)
        assert layer.is_dirty(address) == bool(rights & Right.DIRTY)
        above = [step.entry or 0 for step in walk(image, address).steps[:-1]]
        assert all(word & 6 == 6 and not word >> 63 for word in above)
        kinds.add(told >> 63 << 2 | told & 3)
    assert kinds >= {1, 7}, "text and data"


def test_volatility_reads_the_contents_that_we_read(tmp_path: Path) -> None:
    path = stopped_core(tmp_path, TARGETS[0], "tour")
    image = open_image(path)
    layer = intel_layer(path, image.registers.roots[0] or 0)
    tables = open_tables(image)
    leaves = survey(tables).leaves
    for address, frame in zip(leaves.address.tolist(), leaves.physical.tolist(), strict=True):
        if address < USER_END:
            words, backed = image.read(np.arange(frame, frame + 4096, 8, dtype=np.uint64))
            assert backed.all()
            assert layer.read(address, 4096) == words.tobytes()


def test_volatility_sees_the_direct_map_and_the_kernels_pages(tmp_path: Path) -> None:
    path = stopped_core(tmp_path, TARGETS[0], "tour")
    image = open_image(path)
    layer = intel_layer(path, image.registers.roots[0] or 0)
    leaves = survey(open_tables(image)).leaves
    upper = leaves.address >= np.uint64(1 << 63)
    assert upper.sum() > 30
    for address, frame in zip(leaves.address[upper].tolist(), leaves.physical[upper].tolist(), strict=True):
        assert layer.translate(layer.decanonicalize(address))[0] == frame
