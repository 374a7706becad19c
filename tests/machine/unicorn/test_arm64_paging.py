"""The walker of the ARM64 CPU in every regime: granules, address sizes, levels, every kind of permission.

The tables are hand-made from Arm ARM D8.3 (`BareArm64`); what the CPU does with them is the subject.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aether_emu.arch.arm64 import registers as regs
from aether_emu.arch.arm64 import stubs
from aether_emu.arch.paging import Access
from aether_emu.machine.cpu import TrapKind, UserFault
from tests.machine.unicorn.bare_arm64 import (
    ACCESSED,
    ANY_LEAF,
    CODE,
    CONTIGUOUS,
    DATA,
    KERNEL_DATA_LEAF,
    PXN,
    PXN_TABLE,
    READ_EXECUTE_LEAF,
    READ_ONLY,
    READ_ONLY_LEAF,
    READ_ONLY_TABLE,
    READ_WRITE_LEAF,
    TABLE,
    TEXT,
    USER,
    USER_TABLE,
    UXN_TABLE,
    VALID,
    BareArm64,
    assemble,
)

REGIMES = [(4096, 39), (4096, 48), (16384, 36), (16384, 47), (16384, 48), (65536, 42), (65536, 48)]
NAMES = [f"{granule >> 10}K-{bits}" for granule, bits in REGIMES]
BLOCKS = {4096: {2: 1 << 21, 3: 1 << 30}, 16384: {2: 1 << 25}, 65536: {2: 1 << 29}}
CONTIGUOUS_ENTRIES = {4096: 16, 16384: 128, 65536: 32}  # entries of one contiguous set at level 1

ABSENT = 0x1234_0000  # 64 KiB aligned, in the leaf tables of nothing else
USER_READ, USER_WRITE = int(Access.USER | Access.READ), int(Access.USER | Access.WRITE)
USER_FETCH, PRESENT = int(Access.USER | Access.EXECUTE), int(Access.PRESENT)
TRANSLATION, ACCESS_FLAG, PERMISSION = 0x04, 0x08, 0x0C  # of FSC; the low two bits are Arm's level


@pytest.fixture(params=REGIMES, ids=NAMES)
def bare(request: pytest.FixtureRequest) -> Iterator[BareArm64]:
    granule, virtual_bits = request.param
    made = BareArm64(granule=granule, virtual_bits=virtual_bits)
    yield made
    made.cpu.close()


@pytest.fixture(params=[regime for regime in REGIMES if regime[1] == 48], ids=["4K", "16K", "64K"])
def widest(request: pytest.FixtureRequest) -> Iterator[BareArm64]:
    """One regime of each granule, where address bits do not matter."""
    made = BareArm64(granule=request.param[0], virtual_bits=request.param[1])
    yield made
    made.cpu.close()


def status(bare: BareArm64) -> int:
    """The fault status code of the last fault."""
    return bare.syndromes[-1] & 0x3F


def beside_code(bare: BareArm64, level: int) -> int:
    """An address that shares the tables of CODE down to `level`, and there has an entry of its own."""
    return CODE ^ 1 << bare.shifts[level - 1] + bare.masks[level - 1].bit_length() - 1


def leaf_levels(bare: BareArm64) -> list[int]:
    return [1, *BLOCKS[bare.granule]]


def load(bare: BareArm64, va: int) -> int | None:
    """x0 of a load, or None where it faulted."""
    before = len(bare.faults)
    bare["x0"], bare["x1"] = 0, va
    bare.run("ldr x0, [x1]\nsvc #0")
    return None if len(bare.faults) > before else bare["x0"]


def store(bare: BareArm64, va: int) -> bool:
    before = len(bare.faults)
    bare["x1"] = va
    bare.run("str x1, [x1]\nsvc #0")
    return len(bare.faults) == before


def fetch(bare: BareArm64, va: int) -> bool:
    """Whether the `svc` that stands at `va` is executed."""
    before = len(bare.faults)
    bare.cpu.flush_code()
    bare.go(va)
    return len(bare.faults) == before


class TestWalks:
    def test_a_missing_table_or_page_faults_at_its_own_level(self, bare: BareArm64) -> None:
        low_half = bare.frame()  # alone, for with 16K and 48 bits each half has one entry of the common root
        bare.words[low_half >> 3] = bare.words[bare.root >> 3]
        bare.cpu.set_root(low_half)
        for level in range(len(bare.shifts), 0, -1):
            va = beside_code(bare, level)
            for access, source in ((USER_READ, "ldr x0, [x1]"), (USER_WRITE, "str x0, [x1]")):
                bare["x1"] = va + 8
                bare.run(source)
                assert bare.faults[-1] == (va + 8, access, CODE)
                assert status(bare) == TRANSLATION | 4 - level
            bare.go(va)
            assert bare.faults[-1] == (va, USER_FETCH, va)
            assert status(bare) == TRANSLATION | 4 - level

    def test_a_leaf_that_was_never_accessed_faults_at_its_level(self, bare: BareArm64) -> None:
        for level in leaf_levels(bare):
            va = 3 << bare.shifts[level - 1]
            bare.map(va, READ_WRITE_LEAF & ~ACCESSED, pa=0, level=level)
            assert load(bare, va) is None
            assert bare.faults[-1] == (va, USER_READ | PRESENT, CODE)
            assert status(bare) == ACCESS_FLAG | 4 - level
            bare.words[bare.slot(va, level)] |= ACCESSED  # what was refused is not in the TLB
            assert load(bare, va) is not None

    def test_a_forbidden_access_faults_at_the_level_of_its_leaf(self, bare: BareArm64) -> None:
        for level in leaf_levels(bare):
            va = 3 << bare.shifts[level - 1]
            bare.map(va, READ_ONLY_LEAF, pa=0, level=level)
            assert load(bare, va) is not None
            assert not store(bare, va)
            assert bare.faults[-1] == (va, USER_WRITE | PRESENT, CODE)
            assert status(bare) == PERMISSION | 4 - level
            assert not fetch(bare, va)
            assert bare.faults[-1] == (va, USER_FETCH | PRESENT, va)
            assert status(bare) == PERMISSION | 4 - level

    def test_blocks_of_every_size_reach_from_their_first_byte_to_their_last(self, bare: BareArm64) -> None:
        marker = bare.frame()
        bare.words[marker >> 3] = 0x77
        for level, size in BLOCKS[bare.granule].items():
            assert 1 << bare.shifts[level - 1] == size
            va = 5 << bare.shifts[level - 1]
            bare.map(va, READ_WRITE_LEAF, pa=0, level=level)
            assert load(bare, va + marker) == 0x77
            assert load(bare, va - 8) is None
            assert bare.faults[-1][0] == va - 8
            assert load(bare, va + size) is None
            assert bare.faults[-1][0] == va + size

    @pytest.mark.parametrize("sign", [0, 1])
    def test_each_half_ends_where_its_address_bits_end(self, bare: BareArm64, sign: int) -> None:
        edge = 1 << bare.virtual_bits
        inside, outside = (
            (edge - bare.granule, edge) if not sign else ((1 << 64) - edge, (1 << 64) - edge - 8)
        )
        bare.map(inside & edge - 1, READ_WRITE_LEAF)
        assert load(bare, inside) is not None
        assert load(bare, outside) is None
        assert bare.faults == [(outside, USER_READ, CODE)]
        assert status(bare) == TRANSLATION

    def test_the_halves_are_walked_from_their_own_roots(self, bare: BareArm64) -> None:
        bare.cpu.set_root(bare.frame())
        assert bare.cpu.supervisor(stubs.LOAD, x1=TEXT).fault is None
        assert not fetch(bare, CODE)
        assert status(bare) == TRANSLATION | 4 - len(bare.shifts)

    def test_a_contiguous_set_works_like_single_entries(self, widest: BareArm64) -> None:
        count, va = CONTIGUOUS_ENTRIES[widest.granule], 1 << 29
        pages = [widest.frame() for _ in range(4)]
        for i in range(count):
            widest.words[pages[i % 4] >> 3] = 0x70 + i % 4
            widest.map(va + i * widest.granule, READ_WRITE_LEAF | CONTIGUOUS, pa=pages[i % 4])
        read = [load(widest, va + i * widest.granule) for i in range(count)]
        assert read == [0x70 + i % 4 for i in range(count)]
        widest.words[widest.slot(va + widest.granule)] = 0
        widest.cpu.flush_page(va + widest.granule)
        assert load(widest, va + widest.granule) is None
        assert load(widest, va) == 0x70


class TestPermissions:
    @pytest.mark.parametrize(
        ("leaf", "reads", "writes", "fetches"),
        [
            (READ_WRITE_LEAF, True, True, False),
            (READ_ONLY_LEAF, True, False, False),
            (READ_EXECUTE_LEAF, True, False, True),
            (ANY_LEAF, True, True, True),  # SCTLR.WXN is 0
            (READ_EXECUTE_LEAF & ~USER, False, False, True),  # execute-only
            (KERNEL_DATA_LEAF, False, False, False),
            (KERNEL_DATA_LEAF | READ_ONLY, False, False, False),
        ],
    )
    def test_of_a_user(self, widest: BareArm64, leaf: int, reads: bool, writes: bool, fetches: bool) -> None:
        pa = widest.map(ABSENT, leaf)
        assert (load(widest, ABSENT) is not None, store(widest, ABSENT)) == (reads, writes)
        widest.fill(pa, assemble("svc #0"))
        assert fetch(widest, ABSENT) == fetches
        denied = [access for va, access, _pc in widest.faults]
        assert all(access & PRESENT for access in denied)
        assert len(denied) == 3 - reads - writes - fetches

    def test_of_the_kernel_with_pan_and_without(self, widest: BareArm64) -> None:
        pa = widest.map(ABSENT, READ_WRITE_LEAF)
        widest.words[pa >> 3] = 0x77
        for stub, access in ((stubs.LOAD, Access.READ), (stubs.STORE, Access.WRITE)):
            assert widest.cpu.supervisor(stub, x1=ABSENT).fault == (ABSENT, int(access | Access.PRESENT))
            assert widest.cpu.supervisor(stub, x1=ABSENT, x0=0x77, pan=False).fault is None
        assert widest.cpu.supervisor(stubs.LOAD_UNPRIVILEGED, x1=ABSENT).x0 == 0x77

    @pytest.mark.parametrize("leaf", [ANY_LEAF & ~PXN, ANY_LEAF & ~PXN | READ_ONLY, READ_EXECUTE_LEAF])
    def test_the_kernel_executes_a_user_page_only_if_the_user_cannot_write_it(
        self, widest: BareArm64, leaf: int
    ) -> None:
        widest.fill(widest.map(ABSENT, leaf), stubs.LOAD.code)
        fault = widest.cpu.supervisor(stubs.JUMP, x1=ABSENT + len(stubs.LOAD.code) - 4).fault
        assert (fault is None) == (bool(leaf & READ_ONLY) and not leaf & PXN)

    def test_write_implies_no_execution_where_wxn_is_set(self, widest: BareArm64) -> None:
        pa = widest.map(ABSENT, ANY_LEAF)
        widest.fill(pa, assemble("svc #0"))
        wxn = regs.SCTLR_EL1.value(WXN=1)
        assert not regs.SCTLR_VALUE & wxn
        assert fetch(widest, ABSENT)
        widest.cpu._uc.cpr_write(*regs.SCTLR_EL1.encoding, regs.SCTLR_VALUE | wxn)
        widest.cpu.flush_all()
        assert not fetch(widest, ABSENT)
        widest.words[widest.slot(ABSENT)] |= READ_ONLY
        assert fetch(widest, ABSENT)

    @pytest.mark.parametrize(
        ("bit", "reads", "writes", "fetches"),
        [
            (0, True, True, True),
            (USER_TABLE, False, False, True),
            (READ_ONLY_TABLE, True, False, True),
            (UXN_TABLE, True, True, False),
            (PXN_TABLE, True, True, True),
        ],
    )
    def test_a_table_restricts_all_below_it_at_every_level(
        self, bare: BareArm64, bit: int, reads: bool, writes: bool, fetches: bool
    ) -> None:
        data, code = bare.frame(), bare.frame()
        bare.words[data >> 3] = 0x77
        bare.fill(code, assemble("svc #0"))
        for level in range(2, len(bare.shifts) + 1):
            va = beside_code(bare, level)
            bare.map(va, ANY_LEAF, pa=data)
            bare.map(va + bare.granule, ANY_LEAF, pa=code)
            bare.words[bare.slot(va, level)] |= bit
            assert load(bare, va) == (0x77 if reads else None)
            assert store(bare, va + 8) == writes
            assert fetch(bare, va + bare.granule) == fetches

    def test_pxn_of_a_table_holds_for_the_kernel(self, widest: BareArm64) -> None:
        halt = TEXT + stubs.LOAD.offset + 4
        assert widest.cpu.supervisor(stubs.JUMP, x1=halt).fault is None
        other = TEXT + (1 << widest.shifts[1])
        widest.fill(widest.map(other, READ_EXECUTE_LEAF & ~(USER | PXN)), stubs.LOAD.code)
        assert widest.cpu.supervisor(stubs.JUMP, x1=other + 4).fault is None
        widest.words[widest.slot(other, 2)] |= PXN_TABLE
        widest.cpu.flush_all()
        fault = widest.cpu.supervisor(stubs.JUMP, x1=other + 4).fault
        assert fault == (other + 4, int(Access.EXECUTE | Access.PRESENT))


class TestTlb:
    def test_one_page_is_dropped_and_its_neighbours_stay(self, bare: BareArm64) -> None:
        pages = [ABSENT + i * bare.granule for i in range(3)]
        old, new = bare.frame(), bare.frame()
        bare.words[old >> 3], bare.words[new >> 3] = 1, 2
        for va in pages:
            bare.map(va, READ_WRITE_LEAF, pa=old)
            assert load(bare, va) == 1
        for va in pages:
            bare.map(va, READ_WRITE_LEAF, pa=new)
        bare.cpu.flush_page(pages[1] + bare.granule // 2 + 8)  # any byte of the page names it
        assert [load(bare, va) for va in pages] == [1, 2, 1]
        bare.cpu.flush_all()
        assert [load(bare, va) for va in pages] == [2, 2, 2]

    def test_a_page_is_one_entry_whatever_the_granule(self, bare: BareArm64) -> None:
        pa = bare.map(ABSENT, READ_WRITE_LEAF)
        bare.words[pa >> 3] = 1
        other = bare.frame()
        assert load(bare, ABSENT) == 1
        bare.map(ABSENT, READ_WRITE_LEAF, pa=other)
        assert load(bare, ABSENT + bare.granule - 8) == 0
        bare.words[pa + bare.granule - 8 >> 3] = 3  # stale, and consistently so: the whole page is
        assert load(bare, ABSENT + bare.granule - 8) == 3

    def test_a_block_makes_one_drop_inside_it_a_full_one(self, widest: BareArm64) -> None:
        """The engine remembers one region of large pages: harmless, for dropping more is always allowed."""
        va = 3 << widest.shifts[1]
        old, new = widest.frame(), widest.frame()
        widest.words[old >> 3], widest.words[new >> 3] = 1, 2
        widest.map(ABSENT, READ_WRITE_LEAF, pa=old)
        widest.map(va, READ_WRITE_LEAF, pa=0, level=2)
        assert load(widest, va + old) == load(widest, ABSENT) == 1
        widest.map(ABSENT, READ_WRITE_LEAF, pa=new)
        assert load(widest, ABSENT) == 1
        widest.words[widest.slot(va, 2)] = 0
        widest.cpu.flush_page(va)
        assert load(widest, va + old) is None
        assert load(widest, ABSENT) == 2


class TestHostCopies:
    def test_cross_page_borders_and_obey_the_users_rights(self, bare: BareArm64) -> None:
        first, second = (bare.map(ABSENT + i * bare.granule, READ_WRITE_LEAF) for i in range(2))
        border = ABSENT + bare.granule
        bare.cpu.copy_to_user(border - 3, b"abcdef")
        assert bare.memory[first + bare.granule - 3 : first + bare.granule] == b"abc"
        assert bare.memory[second : second + 3] == b"def"
        assert bare.cpu.copy_from_user(border - 3, 6) == b"abcdef"
        bare.map(border, READ_ONLY_LEAF, pa=second)
        bare.cpu.flush_page(border)
        with pytest.raises(UserFault):
            bare.cpu.copy_to_user(border - 3, b"ABCDEF")
        assert bare.cpu.copy_from_user(border, 3) == b"def"
        with pytest.raises(UserFault):
            bare.cpu.copy_from_user(TEXT, 8)

    def test_fault_pages_in_one_by_one(self, bare: BareArm64) -> None:
        seen: list[int] = []

        def resolve(va: int, _access: int) -> bool:
            seen.append(va)
            bare.map(va & -bare.granule, READ_WRITE_LEAF)
            return True

        bare.cpu.resolve = resolve
        bare.cpu.copy_to_user(ABSENT + bare.granule - 1, b"ab")
        assert seen == [ABSENT + bare.granule - 1, ABSENT + bare.granule]


class TestRegime:
    def test_memory_is_mapped_in_whole_pages(self, widest: BareArm64) -> None:
        address = 1 << 40
        with pytest.raises(Exception, match="UC_ERR_ARG"):
            widest.cpu._uc.mem_map_ptr(address, widest.granule // 2, 7, 0x1000)

    def test_a_pair_that_no_kernel_has_is_refused(self) -> None:
        for granule, virtual_bits in ((4096, 47), (16384, 39), (65536, 39), (8192, 48)):
            with pytest.raises(ValueError, match="address"):
                BareArm64(granule=granule, virtual_bits=virtual_bits)

    def test_a_leaf_beyond_the_physical_addresses_is_a_bus_exit(self, widest: BareArm64) -> None:
        """With translation on the engine knows no address-size fault: a leaf beyond IPS meets a hole."""
        widest.map(ABSENT, READ_WRITE_LEAF, pa=1 << 47)
        widest["x1"] = ABSENT
        assert widest.run("ldr x0, [x1]").reason.name == "BUS"
        assert (widest.faults, widest.traps, widest.cpu.pc) == ([], [], CODE)

    def test_a_table_in_a_hole_reads_as_empty(self, widest: BareArm64) -> None:
        """The architecture says external abort; the engine reads zeros."""
        widest.words[widest.slot(ABSENT, 2)] = 1 << 43 | TABLE | VALID
        assert load(widest, ABSENT) is None
        assert status(widest) == TRANSLATION | 3


class TestTags:
    """TCR.TBI0 is 1: the top byte of a low address is no part of it, and no callback sees it."""

    TAGGED = 0x5A << 56

    def test_translations_and_faults_ignore_the_tag(self, widest: BareArm64) -> None:
        pa = widest.map(ABSENT, READ_WRITE_LEAF)
        widest.words[pa >> 3] = 0x77
        assert load(widest, self.TAGGED | ABSENT) == 0x77
        for access, source in ((USER_READ, "ldr x0, [x1]"), (USER_WRITE, "stp x0, x2, [x1]")):
            widest["x1"] = self.TAGGED | ABSENT + widest.granule
            widest.run(source)
            assert widest.faults[-1] == (ABSENT + widest.granule, access, CODE)

    def test_a_tag_does_not_hide_an_address_out_of_range(self, bare: BareArm64) -> None:
        outside = 1 << bare.virtual_bits
        assert load(bare, self.TAGGED | outside) is None
        assert bare.faults == [(outside, USER_READ, CODE)]

    def test_a_branch_drops_the_tag_from_the_pc(self, widest: BareArm64) -> None:
        widest.map(ABSENT, READ_EXECUTE_LEAF, pa=widest.code)
        widest.fill(widest.code + 0x100, assemble("svc #0"))
        widest["x1"] = self.TAGGED | ABSENT + 0x100
        widest.run("br x1")
        assert widest.calls[-1][1] == ABSENT + 0x104
        widest["x1"] = self.TAGGED | ABSENT + widest.granule
        widest.run("br x1")
        assert widest.faults == [(ABSENT + widest.granule, USER_FETCH, ABSENT + widest.granule)]

    def test_a_tag_of_the_high_half_is_an_address_out_of_range(self, widest: BareArm64) -> None:
        assert load(widest, TEXT & ~(0xFF << 56) | self.TAGGED) is None
        assert status(widest) == TRANSLATION

    def test_the_kernel_takes_no_tagged_address(self, widest: BareArm64) -> None:
        with pytest.raises(UserFault):
            widest.cpu.copy_to_user(self.TAGGED | DATA, b"abc")
        with pytest.raises(UserFault):
            widest.cpu.copy_from_user(self.TAGGED | DATA, 3)

    def test_the_address_of_a_misaligned_exclusive_has_its_tag(self, widest: BareArm64) -> None:
        widest["x1"] = self.TAGGED | DATA + 1
        widest.run("ldxr x0, [x1]")
        ((trap, _pc),) = widest.traps
        assert (trap.kind, trap.address) == (TrapKind.ALIGNMENT, self.TAGGED | DATA + 1)
