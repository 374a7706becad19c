"""An address space as plain data, and back. Its entries are in RAM, its objects known by their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from aether_emu.mm.allocation import Watcher
from aether_emu.mm.huge_pools import Pools, Promises
from aether_emu.mm.objects.anonymous import AnonymousMemory
from aether_emu.mm.objects.protocol import Backing
from aether_emu.mm.space import AddressSpace


def capture(space: AddressSpace) -> dict[str, Any]:
    """The address space as plain data. Its entries are in RAM; its objects are known by their numbers."""
    return {
        "number": space.number,
        "object": space.object,
        "context": space.context.capture(),
        "family": space.family.number,
        "table": space.table.capture(),
        "areas": [area.capture() for area in space.areas],
        "mmap_base": space.mmap_base,
        "heap": (space.heap_start, space.heap_end),
        "most_reserved": space.account.most_reserved,
        "new_flags": space.new_flags,
        "keys": space.keys,
        "no_huge": space.no_huge,
        "promises": None if space.promises is None else space.promises.capture(),
        "merge_any": space.merge_any,
        "exec_gain": space.exec_gain,
        "tracks_writes": space.tracks_writes,
        "program_data": space.program_data,
        "limits": space.limits.capture(),
        "peak_from": space.peak_from,
        "watched": space.watched,
    }


def restore(
    space: AddressSpace,
    state: dict[str, Any],
    backings: Mapping[int, Backing],
    watchers: Mapping[int, Watcher] = MappingProxyType({}),
) -> None:
    """Become the captured address space.

    `backings` are the restored objects, by their numbers; `watchers` who watches areas, by their starts.
    """
    space.number, space.object = state["number"], state["object"]
    known = space.physical.objects.find(state["family"])
    if (
        isinstance(known, AnonymousMemory) and known is not space.family
    ):  # a fork of this space was restored before
        space.family.let_go()
        space.family = known
        space.family.hold()
    else:
        space.family.renumber(state["family"])
    space.table.restore(state["table"])
    space.context.restore(state["context"])
    if state["tracks_writes"]:
        space.track_writes()
    for described in state["areas"]:
        fields = dict(described)
        start, end, protection = (fields.pop(key) for key in ("start", "end", "protection"))
        was_writable_executable = fields.pop("was_writable_executable")
        backing, number = fields.pop("backing"), fields.pop("family")
        family = None if number is None else _restored_family(space, number)
        shown = None if backing is None else backings[backing]
        area = space.new_area(start, end, protection, backing=shown, family=family, **fields)
        area.was_writable_executable = was_writable_executable
        area.set_watcher(watchers.get(start))
        space.place(area)
    space.no_huge, space.merge_any = state["no_huge"], state["merge_any"]
    space.exec_gain = state["exec_gain"]
    if state["promises"] is not None:
        assert isinstance(space.physical.pools, Pools), "which have promised"
        space.promises = Promises()
        space.promises.restore(state["promises"], space.physical.pools)
    space.mmap_base, space.account.most_reserved = state["mmap_base"], state["most_reserved"]
    space.new_flags, space.program_data = state["new_flags"], state["program_data"]
    space.heap_start, space.heap_end = state["heap"]
    space.keys = state["keys"]
    space.limits.restore(state["limits"])
    space.peak_from, space.watched = state["peak_from"], state["watched"]
    space.last_area = space.nowhere


def _restored_family(space: AddressSpace, number: int) -> AnonymousMemory:
    known = space.physical.objects.find(number)
    if isinstance(known, AnonymousMemory):
        return known
    family = AnonymousMemory(space.physical.objects)
    family.renumber(number)
    return family
