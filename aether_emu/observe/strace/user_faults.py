"""What ioctl(2) passes about a userfaultfd (Linux include/uapi/linux/userfaultfd.h), and what it answers."""

from __future__ import annotations

from aether_emu.observe.strace.kinds import Made, Show, unpack
from aether_emu.observe.strace.words import Names

_FEATURES = Names(
    """UFFD_FEATURE_PAGEFAULT_FLAG_WP=1 UFFD_FEATURE_EVENT_FORK=2 UFFD_FEATURE_EVENT_REMAP=4
    UFFD_FEATURE_EVENT_REMOVE=8 UFFD_FEATURE_MISSING_HUGETLBFS=0x10 UFFD_FEATURE_MISSING_SHMEM=0x20
    UFFD_FEATURE_EVENT_UNMAP=0x40 UFFD_FEATURE_SIGBUS=0x80 UFFD_FEATURE_THREAD_ID=0x100
    UFFD_FEATURE_MINOR_HUGETLBFS=0x200 UFFD_FEATURE_MINOR_SHMEM=0x400 UFFD_FEATURE_EXACT_ADDRESS=0x800
    UFFD_FEATURE_WP_HUGETLBFS_SHMEM=0x1000 UFFD_FEATURE_WP_UNPOPULATED=0x2000 UFFD_FEATURE_POISON=0x4000
    UFFD_FEATURE_WP_ASYNC=0x8000 UFFD_FEATURE_MOVE=0x10000""",
    "UFFD_FEATURE",
)
_MODES = Names(
    "UFFDIO_REGISTER_MODE_MISSING=1 UFFDIO_REGISTER_MODE_WP=2 UFFDIO_REGISTER_MODE_MINOR=4",
    "UFFDIO_REGISTER_MODE",
)
_COPY = Names("UFFDIO_COPY_MODE_DONTWAKE=1 UFFDIO_COPY_MODE_WP=2", "UFFDIO_COPY_MODE")
_ZERO = Names("UFFDIO_ZEROPAGE_MODE_DONTWAKE=1", "UFFDIO_ZEROPAGE_MODE")
_MOVE = Names("UFFDIO_MOVE_MODE_DONTWAKE=1 UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES=2", "UFFDIO_MOVE_MODE")
_WRITE_PROTECT = Names(
    "UFFDIO_WRITEPROTECT_MODE_WP=1 UFFDIO_WRITEPROTECT_MODE_DONTWAKE=2", "UFFDIO_WRITEPROTECT_MODE"
)
_CONTINUE = Names("UFFDIO_CONTINUE_MODE_DONTWAKE=1 UFFDIO_CONTINUE_MODE_WP=2", "UFFDIO_CONTINUE_MODE")
_POISON = Names("UFFDIO_POISON_MODE_DONTWAKE=1", "UFFDIO_POISON_MODE")


def _bits(table: Names, value: int) -> str:
    return table.bits(value) if value else "0"


def _range(start: int, length: int) -> str:
    return f"{{start={start:#x}, len={length:#x}}}"


def _api(call: Made, value: int) -> str:
    api, features, ioctls = unpack(call, value, "3Q")
    return f"{{api={api:#x}, features={_bits(_FEATURES, features)}, ioctls={ioctls:#x}}}"


def _register(call: Made, value: int) -> str:
    start, length, mode, ioctls = unpack(call, value, "4Q")
    return f"{{range={_range(start, length)}, mode={_bits(_MODES, mode)}, ioctls={ioctls:#x}}}"


def _plain_range(call: Made, value: int) -> str:
    start, length = unpack(call, value, "2Q")
    return _range(start, length)


def _of_two_places(modes: Names, done: str) -> Show:
    def shown(call: Made, value: int) -> str:
        to, source, length, mode, moved = unpack(call, value, "4Qq")
        places = f"dst={to:#x}, src={source:#x}, len={length:#x}"
        return f"{{{places}, mode={_bits(modes, mode)}, {done}={moved}}}"

    return shown


def _of_a_range(modes: Names, done: str) -> Show:
    def shown(call: Made, value: int) -> str:
        start, length, mode, moved = unpack(call, value, "3Qq")
        return f"{{range={_range(start, length)}, mode={_bits(modes, mode)}, {done}={moved}}}"

    return shown


def _write_protect(call: Made, value: int) -> str:
    start, length, mode = unpack(call, value, "3Q")
    return f"{{range={_range(start, length)}, mode={_bits(_WRITE_PROTECT, mode)}}}"


CONTROLS: dict[int, Show] = {
    0xC018AA3F: _api,
    0xC020AA00: _register,
    0x8010AA01: _plain_range,
    0x8010AA02: _plain_range,
    0xC028AA03: _of_two_places(_COPY, "copy"),
    0xC020AA04: _of_a_range(_ZERO, "zeropage"),
    0xC028AA05: _of_two_places(_MOVE, "move"),
    0xC018AA06: _write_protect,
    0xC020AA07: _of_a_range(_CONTINUE, "mapped"),
    0xC020AA08: _of_a_range(_POISON, "updated"),
}
"""What stands behind each request, when it was answered."""
