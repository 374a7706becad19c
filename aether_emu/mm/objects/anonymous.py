"""Private anonymous memory: a family of areas whose pages belong to one process alone, until it forks.

The object keeps no list of pages. A page of it is wherever an entry of one of its areas shows a frame that
names the object as its owner: after a fork two areas may show the same frame, or each a copy of its own,
under one index. The index of a page is the number of the page at which its area was made. An area that mremap
moved remembers by how much (`Area.moved`), so that its pages keep theirs. Private copies of a file's pages
belong to a family too.
"""

from __future__ import annotations

from aether_emu.mm.objects.protocol import MemoryObject


class AnonymousMemory(MemoryObject):
    """One family."""

    def release(self) -> None:
        """The pages went with the entries that showed them."""
