"""On which nodes memory is to be: what a program asked for, of the one node that there is (numa(7)).

A policy is a plain number, so that it goes where other flags of a task or an area go: 0 is none. It is the
mode, its flags, and the nodes as the program said them where Linux keeps those. Nothing follows from one, for
all memory is on node 0; but it is told as on Linux, and areas that differ in it stay apart. Rules and their
order are those of Linux 6.18 (mm/mempolicy.c).
"""

from __future__ import annotations

import errno

from aether_emu.errors import Refused
from aether_emu.mm.allocation import POLICY_SHIFT

NODES = 1
"""How many there are."""
MOST_NODES = 64
"""How many a program may name: Linux's MAX_NUMNODES, which is a matter of its configuration."""

DEFAULT, PREFERRED, BIND, INTERLEAVE, LOCAL, PREFERRED_MANY, WEIGHTED_INTERLEAVE = range(7)
STATIC, RELATIVE, BALANCING = 1 << 15, 1 << 14, 1 << 13
_FLAGS = STATIC | RELATIVE | BALANCING
_ALL = (1 << NODES) - 1
_USER_SHIFT = 16
_NAMES = ("default", "prefer", "bind", "interleave", "local", "prefer (many)", "weighted interleave")


def checked_mode(value: int) -> int:
    """A mode with its flags, as programs give it. Raises Refused(EINVAL)."""
    mode, flags = value & ~_FLAGS, value & _FLAGS
    if mode > WEIGHTED_INTERLEAVE or (flags & STATIC and flags & RELATIVE):
        raise Refused(errno.EINVAL, f"no policy {value:#x}")
    if flags & BALANCING and mode not in (BIND, PREFERRED_MANY):
        raise Refused(errno.EINVAL, "balancing is for nodes that memory is bound to")
    return value


def policy(value: int, nodes: int) -> int:
    """The policy of a checked mode for a set of nodes, a bit each. Raises Refused(EINVAL)."""
    mode, flags = value & ~_FLAGS, value & _FLAGS
    fixed = flags & (STATIC | RELATIVE)
    if mode == DEFAULT:
        if nodes:
            raise Refused(errno.EINVAL, "the default has no nodes")
        return 0
    if mode == PREFERRED and not nodes:
        if fixed:
            raise Refused(errno.EINVAL, "no node is preferred")
        return LOCAL | flags
    if mode == LOCAL:
        if nodes or fixed:
            raise Refused(errno.EINVAL, "what is local has no nodes")
        return LOCAL | flags
    if not (nodes if flags & RELATIVE else nodes & _ALL):
        raise Refused(errno.EINVAL, f"none of the nodes {nodes:#x} is there")
    return value | (nodes << _USER_SHIFT if fixed else 0)


def mode_of(policy: int) -> int:
    """The mode with its flags, as programs are told it."""
    return policy & (1 << _USER_SHIFT) - 1


def nodes_of(policy: int) -> int:
    """The set of nodes that programs are told."""
    mode = mode_of(policy)
    if mode & (STATIC | RELATIVE):
        return policy >> _USER_SHIFT
    return 0 if mode & ~_FLAGS in (DEFAULT, LOCAL) else _ALL


def of_area(flags: int) -> int:
    """The policy in the flags of an area."""
    return flags >> POLICY_SHIFT


def with_policy(flags: int, policy: int) -> int:
    """The flags of an area with another policy."""
    return flags & (1 << POLICY_SHIFT) - 1 | policy << POLICY_SHIFT


def text(policy: int) -> str:
    """As /proc/PID/numa_maps has it (Linux: mpol_to_str)."""
    mode, flags = mode_of(policy) & ~_FLAGS, mode_of(policy) & _FLAGS
    words = _NAMES[mode]
    if flags:
        words += "=" + ("static" if flags & STATIC else "relative" if flags & RELATIVE else "")
        if flags & BALANCING:
            words += ("|" if flags & (STATIC | RELATIVE) else "") + "balancing"
    return words if mode in (DEFAULT, LOCAL) else f"{words}:0"
