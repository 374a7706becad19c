"""What calls of System V memory, semaphores and queues have in common: struct ipc64_perm."""

from __future__ import annotations

import struct

from aether_emu.linux.ipc.identifiers import Shared

PERMISSIONS = "iIIIII"
"""What IPC_SET reads of it: key, uid, gid, creator's uid and gid, mode."""


def permissions(one: Shared) -> bytes:
    """As IPC_STAT tells it: 48 bytes."""
    owners = (one.uid, one.gid, one.creator_uid, one.creator_gid, one.mode)
    return struct.pack("<i5IHHxxxxQQ", one.key, *owners, one.sequence & 0xFFFF, 0, 0, 0)
