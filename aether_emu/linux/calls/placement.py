"""On which node memory is: mbind(2), set_mempolicy(2) and its kin, migrate_pages(2), move_pages(2).

There is one node, so nothing ever moves; what is asked for is checked, kept and told. Rules and their order
are those of Linux 6.18 (mm/mempolicy.c, mm/migrate.c). A policy for shared memory is this mapping's alone.
"""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux import memory_policy as policies
from aether_emu.linux.calls.arguments import untagged
from aether_emu.linux.calls.user import s32, u32
from aether_emu.linux.credentials import SYS_NICE
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import UserFault
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.count import has_frame

_NODE, _ADDRESS, _ALLOWED = 1, 2, 4  # of get_mempolicy
_STRICT, _MOVE, _MOVE_ALL = 1, 2, 4  # of mbind and move_pages
_MASK = (1 << 64) - 1
_AT_ONCE = 512  # pages that move_pages looks at before it asks whether the run is to end


def sys_set_mempolicy(task: Task, mode: int, nodes: int, most: int, *_: int) -> int:
    mode = policies.checked_mode(u32(mode))
    task.memory_policy = policies.policy(mode, _nodes(task, nodes, most))
    return 0


def sys_get_mempolicy(task: Task, mode: int, nodes: int, most: int, address: int, flags: int, *_: int) -> int:
    if nodes and most < policies.NODES:
        raise Refused(errno.EINVAL, f"there are {policies.NODES} nodes")
    told, mask = _policy(task, untagged(task, address), flags)
    if mode:
        task.cpu.copy_to_user(mode, struct.pack("<i", told))
    if nodes:
        _tell_nodes(task, nodes, most, mask)
    return 0


def _policy(task: Task, address: int, flags: int) -> tuple[int, int]:
    """What is told of a policy: the mode, or a node, and the set of nodes."""
    if flags & ~(_NODE | _ADDRESS | _ALLOWED):
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    if flags & _ALLOWED:
        if flags & (_NODE | _ADDRESS):
            raise Refused(errno.EINVAL, "the nodes that are allowed are no area's")
        return 0, (1 << policies.NODES) - 1
    policy = task.memory_policy
    if flags & _ADDRESS:
        area = task.process.mm.areas.find(address)
        if area is None:
            raise UserFault("nothing is mapped there")
        policy = policies.of_area(area.flags)
    elif address:
        raise Refused(errno.EINVAL, "an address without its flag")
    nodes = policies.nodes_of(policy)
    if not flags & _NODE:
        return policies.mode_of(policy), nodes
    if flags & _ADDRESS:
        task.cpu.copy_from_user(address, 1)  # the page is brought
    elif policies.mode_of(policy) & 0xFF not in (policies.INTERLEAVE, policies.WEIGHTED_INTERLEAVE):
        raise Refused(errno.EINVAL, "there is no next node")
    return 0, nodes


def sys_mbind(task: Task, address: int, length: int, mode: int, nodes: int, most: int, flags: int) -> int:
    mm, mode = task.process.mm, policies.checked_mode(u32(mode))
    wanted, start = _nodes(task, nodes, most), untagged(task, address)
    flags = u32(flags)
    if flags & ~(_STRICT | _MOVE | _MOVE_ALL):
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    if flags & _MOVE_ALL and not task.credentials.has(SYS_NICE):
        raise Refused(errno.EPERM, "not for who has no CAP_SYS_NICE")
    end = _end(mm, start, length)
    if end == start:
        return 0
    policy = policies.policy(mode, wanted)
    if not mm.areas.overlapping(start, end) or (policy and not mm.areas.covered(start, end)):
        raise UserFault("part of the range is not mapped")
    _set(task, start, end, policy)
    return 0


def sys_set_mempolicy_home_node(task: Task, address: int, length: int, node: int, flags: int, *_: int) -> int:
    mm, start = task.process.mm, untagged(task, address)
    if start & mm.page_size - 1 or flags or node >= policies.NODES:
        raise Refused(errno.EINVAL, f"no node {node}, or flags {flags:#x}, or no page begins there")
    end, found = _end(mm, start, length), False
    if end == start:
        return 0
    for area in mm.areas.overlapping(start, end):
        mode = policies.mode_of(policies.of_area(area.flags)) & 0xFF
        if mode and mode not in (policies.BIND, policies.PREFERRED_MANY):
            raise Refused(errno.EOPNOTSUPP, "a policy without a home")
        found |= bool(mode)
    if not found:
        raise Refused(errno.ENOENT, "no policy is there")
    return 0


def sys_migrate_pages(task: Task, pid: int, most: int, old: int, new: int, *_: int) -> int:
    """Pages that could not be moved: none."""
    _nodes(task, old, most)
    wanted = _nodes(task, new, most)
    _reached(task, pid)
    there = (1 << policies.NODES) - 1
    if wanted & ~there and not task.credentials.has(SYS_NICE):
        raise Refused(errno.EPERM, "not for who has no CAP_SYS_NICE")
    if not wanted & there:
        raise Refused(errno.EINVAL, "none of the nodes is there")
    return 0


def sys_move_pages(task: Task, pid: int, count: int, pages: int, nodes: int, status: int, flags: int) -> int:
    flags = u32(flags)
    if flags & ~(_MOVE | _MOVE_ALL):
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    if flags & _MOVE_ALL and not task.credentials.has(SYS_NICE):
        raise Refused(errno.EPERM, "not for who has no CAP_SYS_NICE")
    space = _reached(task, pid).mm
    (first,) = task.progress or (0,)
    for done in range(first, count, _AT_ONCE):
        task.checkpoint(done)
        some = min(_AT_ONCE, count - done)
        for number in range(done, done + some):
            (address,) = struct.unpack("<Q", task.cpu.copy_from_user(pages + 8 * number, 8))
            if nodes:
                (node,) = struct.unpack("<i", task.cpu.copy_from_user(nodes + 4 * number, 4))
                if not 0 <= node < policies.NODES:
                    raise Refused(errno.ENODEV, f"no node {node}")
            where = _node_of(space, address)
            task.cpu.copy_to_user(status + 4 * number, struct.pack("<i", where))
    return 0


def _node_of(space: AddressSpace, address: int) -> int:
    """The node of the page at an address: 0, or less than 0 an errno."""
    if space.areas.find(address) is None:
        return -errno.EFAULT
    fmt, frames = space.table.format, space.physical.frames
    found = space.table.find(address & -space.page_size)
    if found is None or not has_frame(fmt, found.entry, found.level):
        return -errno.ENOENT
    frame = frames.number(fmt.leaf_address(found.entry, found.level))
    return -errno.EFAULT if 0 <= frame < frames.count and frames.kind[frame] == Kind.ZERO else 0


def _set(task: Task, start: int, end: int, policy: int) -> None:
    """Let the areas of a range have a policy."""
    mm = task.process.mm
    (low,) = task.progress or (start,)
    while low < end and (area := mm.areas.following(low)) is not None and area.start < end:
        task.checkpoint(low)
        high = min(area.end, end)
        mm.mark(area, max(area.start, low), high, policies.with_policy(area.flags, policy))
        low = high


def _end(mm: AddressSpace, start: int, length: int) -> int:
    """Where a range ends. Raises Refused(EINVAL)."""
    end = start + mm.page_up(length)
    if start & mm.page_size - 1 or end >> 64 or mm.page_up(length) < length:
        raise Refused(errno.EINVAL, "no range of pages")
    return end


def _nodes(task: Task, address: int, most: int) -> int:
    """A set of nodes that a program gives, one more than it has bits. Raises Refused(EINVAL)."""
    if most == 1 or not address:
        return 0
    most = most - 1 & _MASK
    if most > 8 * task.process.mm.page_size:
        raise Refused(errno.EINVAL, f"a set of {most} nodes")
    words = -(-most // 64)
    mask = int.from_bytes(task.cpu.copy_from_user(address, 8 * words), "little") & (1 << most) - 1
    if mask >> policies.MOST_NODES:
        raise Refused(errno.EINVAL, f"there are at most {policies.MOST_NODES} nodes")
    return mask


def _tell_nodes(task: Task, address: int, most: int, mask: int) -> None:
    size = -(-(most - 1) // 64) * 8
    if size > 8 and size > task.process.mm.page_size:
        raise Refused(errno.EINVAL, f"a set of {most} nodes")
    if size > 0:
        task.cpu.copy_to_user(address, mask.to_bytes(8, "little") + bytes(size - 8))


def _reached(task: Task, pid: int) -> Process:
    """The process whose pages somebody asks for; 0 is the caller's own. ESRCH, EPERM."""
    if not s32(pid):
        return task.process
    found = task.process.registry.tasks.get(s32(pid))
    if not isinstance(found, Task) or found.is_over:
        raise Refused(errno.ESRCH, f"no task {s32(pid)}")
    if found.process is not task.process and not task.may_inspect(found.process, real=True):
        raise Refused(errno.EPERM, "another user's process")
    return found.process
