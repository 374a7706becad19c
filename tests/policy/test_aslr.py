"""Where a program's parts go, against Linux's own formulas and what `setarch -R` shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_emu.linux.abi.arm64 import ArmAbi
from aether_emu.linux.abi.x86_64 import X86Abi
from aether_emu.policy.aslr import AddressLayout, Entropy, choose_layout
from aether_emu.random import Stream

_PAGE = 4096
_GUARD = 256 * _PAGE  # stack_guard_gap
_GAP_MIN = 128 << 20
_ABIS = {"x86_64": X86Abi(), "arm64": ArmAbi()}
# STACK_RND_MASK of the 64-bit ports and the defaults of CONFIG_ARCH_MMAP_RND_BITS (arch/*/Kconfig)
_STACK_MASK = {"x86_64": 0x3FFFFF, "arm64": 0x3FFFF}
_MMAP_BITS = {"x86_64": 28, "arm64": 18}
_DYN_BASE = {"x86_64": (1 << 47) // 3 * 2, "arm64": 2 * (1 << 48) // 3}  # ELF_ET_DYN_BASE

_isas = st.sampled_from(sorted(_ABIS))
_seeds = st.integers(0, 2**64 - 1)
_stacks = st.sampled_from([8 << 20, 128 << 10, 1 << 30, 1 << 40]) | st.integers(32, 1 << 28).map(
    lambda pages: pages * _PAGE
)


def _layout(isa: str, seed: int | None, stack_limit: int = 8 << 20) -> AddressLayout:
    abi = _ABIS[isa]
    return choose_layout(
        abi.entropy,
        user_end=abi.user_end,
        stack_limit=stack_limit,
        guard=_GUARD,
        page_size=_PAGE,
        stream=None if seed is None else Stream(seed, "aslr"),
    )


def _linux_mmap_base(isa: str, stack_limit: int, *, randomised: bool, offset: int) -> int:
    """`mmap_base` of arch/x86/mm/mmap.c and mm/util.c."""
    end = _ABIS[isa].user_end
    pad = _GUARD + (_STACK_MASK[isa] * _PAGE if randomised else 0)
    gap = min(max(stack_limit + pad, _GAP_MIN), end // 6 * 5)
    return -(-(end - gap - offset) // _PAGE) * _PAGE


def test_without_chance_the_addresses_are_those_of_setarch() -> None:
    """As /proc/self/maps shows them under `setarch -R` on Linux 6 with an 8 MiB stack limit."""
    assert _layout("x86_64", None) == AddressLayout(
        0x5555_5555_4000, 0x7FFF_FFFF_F000, 0, 0x7FFF_F7FF_F000, 0
    )
    assert _layout("arm64", None) == AddressLayout(0xAAAA_AAAA_A000, 1 << 48, 0, (1 << 48) - _GAP_MIN, 0)


@given(_isas, _stacks)
def test_without_chance_only_the_stack_limit_moves_the_maps(isa: str, stack_limit: int) -> None:
    base = _linux_mmap_base(isa, stack_limit, randomised=False, offset=0)
    assert _layout(isa, None, stack_limit).mmap_base == base


@given(_isas, _seeds, _stacks)
def test_every_place_is_in_the_range_that_linux_draws_from(isa: str, seed: int, stack_limit: int) -> None:
    layout, end = _layout(isa, seed, stack_limit), _ABIS[isa].user_end
    assert layout.stack_top % _PAGE == layout.mmap_base % _PAGE == layout.image_base % _PAGE == 0
    assert 0 <= (end - layout.stack_top) // _PAGE <= _STACK_MASK[isa]
    assert 0 <= layout.stack_offset < 8192
    assert layout.stack_offset % 16 == 0
    highest = _linux_mmap_base(isa, stack_limit, randomised=True, offset=0)
    assert 0 <= (highest - layout.mmap_base) // _PAGE < 1 << _MMAP_BITS[isa]
    lowest = _DYN_BASE[isa] & -_PAGE
    assert 0 <= (layout.image_base - lowest) // _PAGE < 1 << _MMAP_BITS[isa]
    assert 0 <= layout.heap_offset < 1 << 30
    assert layout.heap_offset % _PAGE == 0


@given(_isas, _seeds, _stacks)
def test_the_stack_can_grow_to_its_limit(isa: str, seed: int, stack_limit: int) -> None:
    """Its guard stays free above everything that mmap places, up to Linux's own cap on the gap."""
    layout, end = _layout(isa, seed, stack_limit), _ABIS[isa].user_end
    if stack_limit + _GUARD + _STACK_MASK[isa] * _PAGE <= end // 6 * 5:
        assert layout.mmap_base <= layout.stack_top - stack_limit - _GUARD


@given(_isas, _seeds)
def test_one_seed_is_one_layout(isa: str, seed: int) -> None:
    assert _layout(isa, seed) == _layout(isa, seed)
    assert _layout(isa, seed) != _layout(isa, (seed + 1) % 2**64)


@pytest.mark.parametrize("isa", sorted(_ABIS))
@pytest.mark.parametrize("field", ["image_base", "stack_top", "mmap_base", "heap_offset"])
def test_every_bit_of_the_entropy_is_used(isa: str, field: str) -> None:
    """Over many seeds each bit of a page number that may vary is seen both set and clear."""
    entropy: Entropy = _ABIS[isa].entropy
    bits = {
        "image_base": entropy.mmap_bits,
        "stack_top": entropy.stack_bits,
        "mmap_base": entropy.mmap_bits,
        "heap_offset": 18,
    }[field]
    fixed = getattr(_layout(isa, None), field)
    if field == "mmap_base":
        fixed = _linux_mmap_base(isa, 8 << 20, randomised=True, offset=0)
    drawn = [abs(getattr(_layout(isa, seed), field) - fixed) // _PAGE for seed in range(64)]
    ever, always = 0, -1
    for value in drawn:
        ever |= value
        always &= value
    assert ever == (1 << bits) - 1
    assert always == 0
