"""/proc/sys/vm/overcommit_*: how many promises of memory programs get (proc_sys_vm(5)). Root writes them."""

from __future__ import annotations

import errno
import re
import stat
from collections.abc import Mapping
from functools import partial

from aether_emu.errors import Refused, shown
from aether_emu.linux.files.synthetic import Text
from aether_emu.mm.overcommit import NEVER, Overcommit

_NAMES = {
    "overcommit_memory": "mode",
    "overcommit_ratio": "ratio",
    "overcommit_kbytes": "kbytes",
    "admin_reserve_kbytes": "admin_reserve",
    "user_reserve_kbytes": "user_reserve",
}
_MOST = {"overcommit_memory": NEVER, "overcommit_ratio": (1 << 31) - 1}
_OTHER = {"overcommit_ratio": "kbytes", "overcommit_kbytes": "ratio"}
"""What is 0 from then on: one of the two counts."""
_WRITABLE = stat.S_IFREG | 0o644


def overcommit_texts(overcommit: Overcommit) -> Mapping[str, Text]:
    """The files, by their paths below /proc."""
    return {
        f"sys/vm/{name}": Text(
            partial(_value, overcommit, attribute), _WRITABLE, partial(_set, overcommit, name)
        )
        for name, attribute in _NAMES.items()
    }


def _value(overcommit: Overcommit, attribute: str) -> bytes:
    return b"%d\n" % getattr(overcommit, attribute)


def _set(overcommit: Overcommit, name: str, data: bytes) -> int:
    text = data.split(b"\0")[0].strip()
    if not re.fullmatch(rb"[0-9]{1,19}", text) or int(text) > _MOST.get(name, (1 << 63) - 1):
        raise Refused(errno.EINVAL, f"{name} is not set to {shown(text)}")
    setattr(overcommit, _NAMES[name], int(text))
    if name in _OTHER:
        setattr(overcommit, _OTHER[name], 0)
    return len(data)
