"""Extended attributes (xattr(7)), which only nodes of a tmpfs have, as Linux 6.6 has them (`fs/xattr.c`).

The `user.` ones are for regular files and directories, by their permissions; `trusted.` and `security.` are
root's to set. There are no ACLs: `system.` is not supported.
"""

from __future__ import annotations

import errno
import os
import stat as modes

from aether_emu.errors import Refused
from aether_emu.linux.credentials import SYS_ADMIN
from aether_emu.linux.files.tmp_nodes import TmpNode, attribute_size

XATTR_CREATE, XATTR_REPLACE = 1, 2
_SPACES = (b"user.", b"trusted.", b"security.")


def get(node: TmpNode | None, name: bytes) -> bytes:
    """The value. ENODATA, EACCES, EOPNOTSUPP."""
    node = _judged(node, name, os.R_OK)
    value = node.attributes.get(name)
    if value is None:
        raise Refused(errno.ENODATA, f"no attribute {name!r}")
    return value


def put(node: TmpNode | None, name: bytes, value: bytes, flags: int) -> None:
    """Set it. EEXIST under XATTR_CREATE, ENODATA under XATTR_REPLACE, EPERM, EACCES, ENOSPC."""
    node = _judged(node, name, os.W_OK)
    before = node.attributes.get(name)
    if before is not None and flags & XATTR_CREATE:
        raise Refused(errno.EEXIST, f"there is an attribute {name!r}")
    if before is None and flags & XATTR_REPLACE:
        raise Refused(errno.ENODATA, f"no attribute {name!r}")
    account = node.fs.account
    growth = attribute_size((name, value)) - (attribute_size((name, before)) if before is not None else 0)
    if growth > 0 and account.memory_used + growth > account.memory_limit:
        raise Refused(errno.ENOSPC, f"files in memory may hold {account.memory_limit} bytes in all")
    account.memory_used += growth
    node.attributes[name] = value
    node.fs.inodes.changed(node.inode)


def remove(node: TmpNode | None, name: bytes) -> None:
    """Remove it. ENODATA, EPERM, EACCES."""
    node = _judged(node, name, os.W_OK)
    value = node.attributes.pop(name, None)
    if value is None:
        raise Refused(errno.ENODATA, f"no attribute {name!r}")
    node.fs.account.memory_used -= attribute_size((name, value))
    node.fs.inodes.changed(node.inode)


def names(node: TmpNode | None) -> bytes:
    """All names that who asks may know, each with a NUL behind it."""
    if node is None:
        return b""
    all_of_them = node.fs.actor.credentials.has(SYS_ADMIN)
    shown = (name for name in node.attributes if all_of_them or not name.startswith(b"trusted."))
    return b"".join(name + b"\0" for name in shown)


def _judged(node: TmpNode | None, name: bytes, wanted: int) -> TmpNode:
    """The node, if this user may do that (Linux `xattr_permission`, `cap_inode_setxattr`)."""
    if node is None:
        raise Refused(errno.EOPNOTSUPP, "only files in a tmpfs have extended attributes")
    who, writing = node.fs.actor.credentials, wanted == os.W_OK
    root = who.has(SYS_ADMIN)
    denied = Refused(errno.EPERM if writing else errno.ENODATA, f"{name!r} is not for this file or user")
    if name.startswith(b"trusted.") and not root:
        raise denied
    if name.startswith(b"user.") and not (modes.S_ISREG(node.mode) or modes.S_ISDIR(node.mode)):
        raise denied
    if name.startswith(b"user."):
        if writing and modes.S_ISDIR(node.mode) and node.mode & modes.S_ISVTX and not who.owns(node.uid):
            raise denied
        node.require(wanted)
    if writing and name.startswith(b"security.") and not root:
        raise denied
    if not name.startswith(_SPACES):
        raise Refused(errno.EOPNOTSUPP, f"attributes such as {name!r} are not supported")
    if name in _SPACES:
        raise Refused(errno.EINVAL, f"{name!r} has no name")
    return node
