"""Merged pages: frames that several private pages with equal bytes show, until somebody writes.

    frame ──(owner, index)──▶ this object: node `index` ──▶ (family, page), (family, page), ... ──▶ areas

A frame that is merged has left its family: its owner is this object, of which a machine has one, and its
index is the number of a node. The node lists the pages that came to show the frame, each by its family and
its index there. So the way back from the frame goes on by the families' windows, and fork, mremap or a cut
need no word here: what they do to a page they do to its area. A page that has left (written to, or unmapped)
stays on the list until it is tidied; its entry is looked at last, as always.

A node whose frame was given back is dead: the frame table no longer names it. Numbers are never used twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aether_emu.mm.frames.table import FrameTable, Kind
from aether_emu.mm.objects.protocol import MemoryObject
from aether_emu.mm.objects.registry import Registry
from aether_emu.records import dataclass

Page = tuple[int, int]
"""The number of a family, and the index of a page in it."""
_ANON = int(Kind.ANON)


@dataclass(slots=True)
class Node:
    """One merged frame: the checksum of its bytes, which never change, and the pages that came to show it."""

    frame: int
    checksum: int
    pages: dict[Page, None]  # a set in order


class MergedMemory(MemoryObject):
    """All merged frames of a machine, by the numbers of their nodes."""

    def __init__(self, registry: Registry[MemoryObject], frames: FrameTable) -> None:
        super().__init__(registry)
        self._frames = frames
        self.nodes: dict[int, Node] = {}
        self._by_checksum: dict[int, list[int]] = {}
        self._last = 0
        self.hold()

    def alive(self, number: int) -> Node | None:
        """The node of this number, if its frame is still what it was."""
        frames, node = self._frames, self.nodes.get(number)
        if node is None:
            return None
        at = node.frame
        named = frames.kind[at] == _ANON and frames.owner[at] == self.number and frames.index[at] == number
        return node if named and frames.refs[at] else None

    def adopt(self, frame: int, checksum: int) -> Node:
        """Take a frame out of its family. Every entry that shows it must refuse writes by now."""
        frames = self._frames
        page = frames.owner[frame], frames.index[frame]
        self._last += 1
        node = self.nodes[self._last] = Node(frame, checksum, {page: None})
        self._by_checksum.setdefault(checksum, []).append(self._last)
        frames.owner[frame], frames.index[frame] = self.number, self._last
        return node

    def alike(self, checksum: int) -> list[Node]:
        """The living nodes whose bytes have this checksum, the oldest first."""
        known = [self.alive(number) for number in self._by_checksum.get(checksum, ())]
        return [node for node in known if node is not None]

    def shows(self, frame: int, page: Page) -> bool:
        """Whether `page` came to show a merged frame."""
        frames = self._frames
        node = self.alive(frames.index[frame]) if frames.owner[frame] == self.number else None
        return node is not None and node.frame == frame and page in node.pages

    def frames_of(self, page: Page) -> list[int]:
        """The merged frames that a page may show."""
        return [node.frame for node in self.living() if page in node.pages]

    def frames_of_family(self, family: int) -> list[int]:
        """The merged frames that pages of a family may show."""
        return [node.frame for node in self.living() if any(owner == family for owner, _index in node.pages)]

    def living(self) -> list[Node]:
        """The nodes that are alive, the oldest first; the others are forgotten."""
        dead = [number for number in self.nodes if self.alive(number) is None]
        for number in dead:
            checksum = self.nodes.pop(number).checksum
            self._by_checksum[checksum].remove(number)
            if not self._by_checksum[checksum]:
                del self._by_checksum[checksum]
        return list(self.nodes.values())

    def moved(self, frames: Iterable[int]) -> None:
        """These frames have taken the place of others, whose owner and index they have."""
        table = self._frames
        for frame in frames:
            if table.owner[frame] == self.number and table.kind[frame] == _ANON:
                self.nodes[table.index[frame]].frame = frame

    def release(self) -> None:
        """The frames went with the entries that showed them."""

    def capture(self) -> dict[str, Any]:
        """The object as plain data."""
        nodes = [(number, node.frame, node.checksum, list(node.pages)) for number, node in self.nodes.items()]
        return {"number": self.number, "last": self._last, "nodes": nodes}

    def restore(self, state: dict[str, Any]) -> None:
        """Be the captured one, whose frames the frame table knows already."""
        self.renumber(state["number"])
        self._last = state["last"]
        self.nodes = {
            number: Node(frame, checksum, dict.fromkeys(pages))
            for number, frame, checksum, pages in state["nodes"]
        }
        self._by_checksum = {}
        for number, node in self.nodes.items():
            self._by_checksum.setdefault(node.checksum, []).append(number)
