"""RAM: the guest-physical range that the frame allocator owns, one private reservation of host memory.

Every CPU maps the same host memory once, at `host_address`; Python reads and writes it through three
views that never copy. Untouched and released pages cost nothing and read as zero.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from aether_emu.errors import AddressError, ConfigError
from aether_emu.machine.memory import host

GUEST_PAGE_SIZES = (4 << 10, 16 << 10, 64 << 10)
_DISCARD_FROM = 2 << 20
"""From this size on, zeroing gives the pages back to the host instead of writing them."""

_SCAN_BYTES = 2 << 20


def check_range(name: str, base: int, size: int, page_size: int, alignment: int) -> None:
    """Raise ConfigError, naming the parameter, unless the three make a guest-physical range."""
    if page_size not in GUEST_PAGE_SIZES or page_size % host.PAGE_SIZE:
        allowed = f"4096, 16384 or 65536, and a multiple of the host's page of {host.PAGE_SIZE}"
        raise ConfigError(f"{name}.page_size", page_size, allowed)
    if base < 0 or base % alignment:
        raise ConfigError(f"{name}.base", base, f"a multiple of {alignment}, not negative")
    if size <= 0 or size % alignment:
        raise ConfigError(f"{name}.size", size, f"a multiple of {alignment}, more than 0")


class Ram:
    """Guest-physical [base, base + size), zero at first.

    Views, each indexed from `base`: `bytes` (memoryview 'B', [pa - base]), `words` (memoryview 'Q',
    [(pa - base) >> 3]) and `array` (the same words for numpy). Guest bytes are little-endian, as the
    hosts are. The host memory lives until `close()` and until no slice of a view is left, so a slice
    never dangles; a CPU that maps `host_address` must be gone before `close()`.
    """

    def __init__(self, base: int, size: int, page_size: int) -> None:
        """`base` and `size` in bytes, multiples of `page_size` (ConfigError). HostMemoryError if refused."""
        check_range("ram", base, size, page_size, page_size)
        self.base, self.size, self.page_size = base, size, page_size
        self.host_address = host.reserve(size)
        # Every view and every slice of one keeps this object alive, and its end unmaps the memory.
        self._memory: ctypes.Array[ctypes.c_ubyte] | None = (ctypes.c_ubyte * size).from_address(
            self.host_address
        )
        weakref.finalize(self._memory, host.unmap, self.host_address, size).atexit = False
        self.bytes = memoryview(self._memory).cast("B")
        self.words = self.bytes.cast("Q")
        self._array: npt.NDArray[np.uint64] | None = None
        self._zero_page = bytes(page_size)

    @property
    def array(self) -> npt.NDArray[np.uint64]:
        """The words as a numpy array: no copy."""
        if self._array is None:
            assert self._memory is not None, "this RAM is closed"
            self._array = np.frombuffer(memoryview(self._memory).cast("B"), np.uint64)
        return self._array

    def _offset(self, pa: int, length: int) -> int:
        offset = pa - self.base
        if offset < 0 or length < 0 or offset + length > self.size:
            why = f"{length:#x} bytes there are not inside RAM [{self.base:#x}, {self.base + self.size:#x})"
            raise AddressError("address of RAM", pa, why)
        return offset

    def zero(self, pa: int, length: int) -> None:
        """Make [pa, pa + length) read as zero. AddressError outside RAM."""
        offset = self._offset(pa, length)
        if length == self.page_size:
            self.bytes[offset : offset + length] = self._zero_page
        elif length >= _DISCARD_FROM and not (pa | length) % self.page_size:
            self.release(pa, length)
        else:
            assert self._memory is not None, "this RAM is closed"
            ctypes.memset(self.host_address + offset, 0, length)

    def release(self, pa: int, length: int) -> None:
        """Give whole pages back to the host: they read as zero. AddressError if misaligned or outside RAM."""
        offset = self._offset(pa, length)
        if (pa | length) % self.page_size:
            raise AddressError("page of RAM", pa, f"{length:#x} bytes there are not whole pages")
        assert self._memory is not None, "this RAM is closed"
        host.discard(self.host_address + offset, length)

    def resident_bytes(self) -> int:
        """Host memory that RAM occupies now, in bytes; pages only read so far count too."""
        assert self._memory is not None, "this RAM is closed"
        return host.resident_pages(self.host_address, self.size) * host.PAGE_SIZE

    def save(self) -> dict[int, bytes]:
        """The contents as {page number (pa // page_size): bytes}, ascending, without the all-zero pages."""
        saved: dict[int, bytes] = {}
        ratio = self.page_size // host.PAGE_SIZE
        assert self._memory is not None, "this RAM is closed"
        held = host.held_pages(self.host_address, self.size).reshape(-1, ratio).any(axis=1)
        pages = self.array.reshape(-1, self.page_size // 8)
        first = self.base // self.page_size
        step = _SCAN_BYTES // self.page_size
        candidates = np.flatnonzero(held)
        for start in range(0, len(candidates), step):
            chosen = candidates[start : start + step]
            nonzero = chosen[pages[chosen].any(axis=1)]
            saved.update((first + page, pages[page].tobytes()) for page in nonzero.tolist())
        return saved

    def load(self, pages: Mapping[int, bytes]) -> None:
        """Replace the whole contents by what `save` returned.

        AddressError, before anything is changed, on a page that is outside RAM or has another size.
        """
        for number, content in pages.items():
            self._offset(number * self.page_size, self.page_size)
            if len(content) != self.page_size:
                raise AddressError("page number", number, f"its content has {len(content)} bytes")
        self.release(self.base, self.size)
        for number, content in pages.items():
            offset = number * self.page_size - self.base
            self.bytes[offset : offset + self.page_size] = content

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._memory is None

    def close(self) -> None:
        """Give all host memory back. The views refuse from now on; older slices read zero. Idempotent."""
        if self._memory is None:
            return
        self.release(self.base, self.size)
        self._memory, self._array = None, None
        self.words.release()
        self.bytes.release()
