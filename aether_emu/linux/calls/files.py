"""All system calls on files.

    transfer      bytes between files and memory, or files and files
    descriptors   making, duplicating, controlling, syncing and closing descriptors
    paths         making, finding, renaming and removing names
    attributes    what a file is: mode, owner, times, extended attributes
    polling       waiting for one of several, and `epolling`

These classes decode arguments and encode results; what the calls mean is in `linux.files`.
"""

from __future__ import annotations

from aether_emu.linux.calls.attributes import AttributeCalls
from aether_emu.linux.calls.descriptors import DescriptorCalls
from aether_emu.linux.calls.epolling import EpollCalls
from aether_emu.linux.calls.paths import PathCalls


class FileCalls(EpollCalls, DescriptorCalls, PathCalls, AttributeCalls):
    """Every file-related call of one process."""
