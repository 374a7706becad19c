"""Where a program's parts go, against Linux's own formulas and what `setarch -R` shows."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_emu.linux.abi import Abi
from aether_emu.linux.abi.arm64 import ArmAbi
from aether_emu.linux.abi.x86_64 import X86Abi
from aether_emu.policy.aslr import AddressLayout, choose_layout
from aether_emu.random import Stream

_GAP_MIN = 128 << 20


class _Kernel(NamedTuple):
    """What a Linux port is built with: the page, and the bits of chance in pages.

    STACK_RND_MASK of the 64-bit ports, the defaults of CONFIG_ARCH_MMAP_RND_BITS (arch/*/Kconfig) and
    ELF_ET_DYN_BASE.
    """

    abi: Abi
    page: int
    stack_mask: int
    mmap_bits: int
    image_base: int

    @property
    def guard(self) -> int:
        """stack_guard_gap."""
        return 256 * self.page


_ARM_BASE = 2 * (1 << 48) // 3
_KERNELS = {
    "x86_64": _Kernel(X86Abi(), 4096, 0x3FFFFF, 28, (1 << 47) // 3 * 2),
    "arm64-4K": _Kernel(ArmAbi(4096), 4096, 0x3FFFF, 18, _ARM_BASE),
    "arm64-16K": _Kernel(ArmAbi(16384), 16384, 0x3FFFF >> 2, 16, _ARM_BASE),
    "arm64-64K": _Kernel(ArmAbi(65536), 65536, 0x3FFFF >> 4, 14, _ARM_BASE),
    "arm64-4K-39bit": _Kernel(ArmAbi(4096, 39), 4096, 0x3FFFF, 18, 2 * (1 << 39) // 3),
    "arm64-64K-42bit": _Kernel(ArmAbi(65536, 42), 65536, 0x3FFFF >> 4, 14, 2 * (1 << 42) // 3),
}

_kernels = st.sampled_from(sorted(_KERNELS)).map(_KERNELS.__getitem__)
_seeds = st.integers(0, 2**64 - 1)
_stacks = st.sampled_from([8 << 20, 128 << 10, 1 << 30, 1 << 40]) | st.integers(2, 1 << 24).map(
    lambda pages: pages * 65536
)


def _layout(kernel: _Kernel, seed: int | None, stack_limit: int = 8 << 20) -> AddressLayout:
    return choose_layout(
        kernel.abi.entropy,
        user_end=kernel.abi.user_end,
        stack_limit=stack_limit,
        guard=kernel.guard,
        page_size=kernel.page,
        stream=None if seed is None else Stream(seed, "aslr"),
    )


def _linux_mmap_base(kernel: _Kernel, stack_limit: int, *, randomised: bool, offset: int) -> int:
    """`mmap_base` of arch/x86/mm/mmap.c and mm/util.c."""
    end = kernel.abi.user_end
    pad = kernel.guard + (kernel.stack_mask * kernel.page if randomised else 0)
    gap = min(max(stack_limit + pad, _GAP_MIN), end // 6 * 5)
    return -(-(end - gap - offset) // kernel.page) * kernel.page


def test_without_chance_the_addresses_are_those_of_setarch() -> None:
    """As /proc/self/maps shows them under `setarch -R` on Linux 6 with an 8 MiB stack limit."""
    assert _layout(_KERNELS["x86_64"], None) == AddressLayout(
        0x5555_5555_4000, 0x7FFF_FFFF_F000, 0, 0x7FFF_F7FF_F000, 0
    )
    for name, image in (
        ("arm64-4K", 0xAAAA_AAAA_A000),
        ("arm64-16K", 0xAAAA_AAAA_8000),
        ("arm64-64K", 0xAAAA_AAAA_0000),
    ):
        assert _layout(_KERNELS[name], None) == AddressLayout(image, 1 << 48, 0, (1 << 48) - _GAP_MIN, 0)


@given(_kernels, _stacks)
def test_without_chance_only_the_stack_limit_moves_the_maps(kernel: _Kernel, stack_limit: int) -> None:
    base = _linux_mmap_base(kernel, stack_limit, randomised=False, offset=0)
    assert _layout(kernel, None, stack_limit).mmap_base == base


@given(_kernels, _seeds, _stacks)
def test_every_place_is_in_the_range_that_linux_draws_from(
    kernel: _Kernel, seed: int, stack_limit: int
) -> None:
    layout, end, page = _layout(kernel, seed, stack_limit), kernel.abi.user_end, kernel.page
    assert layout.stack_top % page == layout.mmap_base % page == layout.image_base % page == 0
    assert 0 <= (end - layout.stack_top) // page <= kernel.stack_mask
    assert 0 <= layout.stack_offset < (8192 if kernel.abi.isa == "x86_64" else page)
    assert layout.stack_offset % 16 == 0
    highest = _linux_mmap_base(kernel, stack_limit, randomised=True, offset=0)
    assert 0 <= (highest - layout.mmap_base) // page < 1 << kernel.mmap_bits
    lowest = kernel.image_base & -page
    assert 0 <= (layout.image_base - lowest) // page < 1 << kernel.mmap_bits
    assert 0 <= layout.heap_offset < 1 << 30
    assert layout.heap_offset % page == 0


@given(_kernels, _seeds, _stacks)
def test_the_stack_can_grow_to_its_limit(kernel: _Kernel, seed: int, stack_limit: int) -> None:
    """Its guard stays free above everything that mmap places, up to Linux's own cap on the gap."""
    layout, end = _layout(kernel, seed, stack_limit), kernel.abi.user_end
    if stack_limit + kernel.guard + kernel.stack_mask * kernel.page <= end // 6 * 5:
        assert layout.mmap_base <= layout.stack_top - stack_limit - kernel.guard


@given(_kernels, _seeds)
def test_one_seed_is_one_layout(kernel: _Kernel, seed: int) -> None:
    assert _layout(kernel, seed) == _layout(kernel, seed)
    assert _layout(kernel, seed) != _layout(kernel, (seed + 1) % 2**64)


@pytest.mark.parametrize("name", _KERNELS)
@pytest.mark.parametrize("field", ["image_base", "stack_top", "mmap_base", "heap_offset"])
def test_every_bit_of_the_entropy_is_used(name: str, field: str) -> None:
    """Over many seeds each bit of a page number that may vary is seen both set and clear."""
    kernel = _KERNELS[name]
    bits = {
        "image_base": kernel.mmap_bits,
        "stack_top": kernel.stack_mask.bit_length(),
        "mmap_base": kernel.mmap_bits,
        "heap_offset": 31 - kernel.page.bit_length(),
    }[field]
    fixed = getattr(_layout(kernel, None), field)
    if field == "mmap_base":
        fixed = _linux_mmap_base(kernel, 8 << 20, randomised=True, offset=0)
    drawn = [abs(getattr(_layout(kernel, seed), field) - fixed) // kernel.page for seed in range(64)]
    ever, always = 0, -1
    for value in drawn:
        ever |= value
        always &= value
    assert ever == (1 << bits) - 1
    assert always == 0
