"""Address-space layout randomisation: where image, stack, mmap and heap of a new program go.

The entropy is Linux's own, given by the personality as `Entropy`; the chance comes from one named
substream. Without randomisation every offset is zero, and the addresses are those that Linux uses
under `setarch -R`.
"""

from __future__ import annotations

from aether_emu.random import Stream
from aether_emu.records import dataclass

_MIN_GAP = 128 << 20  # Linux keeps at least this below the stack for it to grow


@dataclass(frozen=True, slots=True)
class Entropy:
    """Bits of randomness, in pages unless said otherwise (Linux arch/*/include/asm/elf.h, mm/util.c)."""

    mmap_bits: int
    stack_bits: int
    stack_offset_bytes: int  # below the random stack top, 16-byte steps
    heap_bytes: int
    image_base: int  # where a position-independent program goes before randomisation


@dataclass(frozen=True, slots=True)
class AddressLayout:
    """The chosen places. Addresses are page aligned; `stack_offset` is a multiple of 16."""

    image_base: int
    stack_top: int
    stack_offset: int
    mmap_base: int
    heap_offset: int


def choose_layout(
    entropy: Entropy, *, user_end: int, stack_limit: int, guard: int, page_size: int, stream: Stream | None
) -> AddressLayout:
    """The layout of one program start; `stream` None is no randomisation. Sizes in bytes."""
    page = -page_size

    def pages(bits: int) -> int:
        return stream.below(1 << bits) * page_size if stream is not None else 0

    stack_top = user_end - pages(entropy.stack_bits)
    stack_offset = stream.below(entropy.stack_offset_bytes) & -16 if stream is not None else 0
    random_gap = ((1 << entropy.stack_bits) - 1) * page_size if stream is not None else 0
    gap = min(max(stack_limit + guard + random_gap, _MIN_GAP), user_end // 6 * 5)
    mmap_base = user_end - gap - pages(entropy.mmap_bits) + page_size - 1 & page
    image_base = entropy.image_base + pages(entropy.mmap_bits) & page
    heap_offset = stream.below(entropy.heap_bytes // page_size) * page_size if stream is not None else 0
    return AddressLayout(image_base, stack_top & page, stack_offset, mmap_base, heap_offset)
