"""Exceptions of the ARM64 CPU other than page faults, each by the event that causes it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aether_emu.arch.arm64 import syndrome
from aether_emu.arch.paging import Access
from aether_emu.machine import native
from aether_emu.machine.cpu import ExitReason, Trap, TrapKind
from tests.machine.unicorn.bare_arm64 import CODE, DATA, READ_ONLY_LEAF, TEXT, BareArm64, assemble

ABSENT = 0x1234_5000
# keystone knows neither of the LSE instructions
ATOMICS = {
    "ldxr x0, [x1]": 8,
    "ldaxr w0, [x1]": 4,
    "ldxrh w0, [x1]": 2,
    "ldxp x2, x3, [x1]": 16,
    "ldadd x0, x2, [x1]": 8,
    "swp x0, x2, [x1]": 8,
    "cas x0, x2, [x1]": 8,
    "casp x2, x3, x4, x5, [x1]": 16,
}
WORDS = {
    "ldadd x0, x2, [x1]": 0xF820_0022,
    "swp x0, x2, [x1]": 0xF820_8022,
    "cas x0, x2, [x1]": 0xC8A0_7C22,
    "casp x2, x3, x4, x5, [x1]": 0x4822_7C24,
}


@pytest.fixture(params=[True, False], ids=["live state", "state by API"])
def bare(request: pytest.FixtureRequest) -> Iterator[BareArm64]:
    made = BareArm64(request.param)
    yield made
    made.cpu.close()


class TestMisalignedPc:
    """It comes before anything that the fetch would meet (Arm ARM D1.3.5)."""

    @pytest.mark.parametrize("offset", [1, 2, 3])
    @pytest.mark.parametrize(
        "target",
        [CODE + 0x100, CODE + 0x1FFC, ABSENT, DATA, TEXT],
        ids=["code", "border", "absent", "data", "kernel"],
    )
    def test_is_an_alignment_trap_with_the_pc_as_address(
        self, bare: BareArm64, target: int, offset: int
    ) -> None:
        nops = assemble("nop\nnop\nsvc #0")
        bare.fill(bare.code + 0x100, bytes(offset) + nops)  # a valid instruction at the misaligned place
        bare["x1"] = target + offset
        bare.run("br x1")
        ((trap, pc),) = bare.traps
        assert (trap.kind, trap.address, pc) == (TrapKind.ALIGNMENT, target + offset, target + offset)
        assert trap.vector == trap.error >> 26 == syndrome.EC_PC_ALIGNMENT
        assert (bare.faults, bare.calls) == ([], [])

    def test_is_met_each_time_and_a_handler_may_move_the_pc(self, bare: BareArm64) -> None:
        bare.fill(bare.code + 0x101, assemble("nop\nsvc #0"))
        bare.fill(bare.code + 0x200, assemble("subs x2, x2, #1\nb.ne #0x100\nsvc #0"))
        bare.fill(bare.code + 0x300, assemble("br x1"))
        met: list[int] = []

        def skip(trap: Trap) -> None:
            met.append(trap.address)
            bare.cpu.pc = CODE + 0x200

        bare.cpu.on_trap = skip
        bare["x1"], bare["x2"] = CODE + 0x101, 3
        bare.go(CODE + 0x300)
        assert met == [CODE + 0x101] * 3
        assert bare.calls == [(0, CODE + 0x20C)]

    def test_is_found_by_the_python_routine_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "available", lambda: False)
        bare = BareArm64()
        bare.fill(bare.code + 0x102, assemble("nop\nsvc #0"))
        bare["x1"] = CODE + 0x102
        bare.run("br x1")
        assert [pc for _trap, pc in bare.traps] == [CODE + 0x102]

    def test_costs_no_block_of_the_budget(self) -> None:
        bare = BareArm64()
        bare.fill(bare.code + 0x101, assemble("nop\nsvc #0"))
        bare["x1"] = CODE + 0x101
        assert bare.run("br x1", budget=5).reason is ExitReason.STOPPED
        assert (bare.cpu.blocks, len(bare.traps)) == (1, 1)
        assert bare.run("br x1", budget=1).reason is ExitReason.STOPPED
        assert (bare.cpu.blocks, len(bare.traps)) == (2, 2)

    def test_what_the_handler_raises_comes_out_of_run(self, bare: BareArm64) -> None:
        def fails(_trap: Trap) -> None:
            raise LookupError("from the handler")

        bare.cpu.on_trap = fails
        bare.fill(bare.code + 0x101, assemble("nop\nsvc #0"))
        bare["x1"] = CODE + 0x101
        with pytest.raises(LookupError, match="from the handler"):
            bare.run("br x1")


class TestMisalignedData:
    @pytest.mark.parametrize("source", ATOMICS)
    @pytest.mark.parametrize("page", [DATA, ABSENT], ids=["present", "absent"])
    def test_an_exclusive_or_atomic_access_tells_its_address_before_it_walks(
        self, bare: BareArm64, source: str, page: int
    ) -> None:
        code = WORDS[source].to_bytes(4, "little") if source in WORDS else assemble(source)
        bare.fill(bare.code, code + assemble("svc #0"))
        size = ATOMICS[source]
        for address in (page + 1, page + size // 2, page + 4096 - size // 2):
            bare.traps.clear()
            bare.cpu.flush_code()
            bare["x0"], bare["x1"], bare["x2"] = 0, address, 0
            bare.go()
            ((trap, pc),) = bare.traps
            assert (trap.kind, trap.address, pc) == (TrapKind.ALIGNMENT, address, CODE)
            assert trap.vector == syndrome.EC_DATA_LOWER
            assert trap.error & 0x3F == syndrome.FSC_ALIGNMENT
        bare["x1"] = DATA + 64
        bare.go()
        assert bare.calls

    @pytest.mark.parametrize("source", ["ldar x0, [x1]", "stlr x0, [x1]", "ldr x0, [x1]", "stp x2, x3, [x1]"])
    def test_the_engine_lets_all_others_pass(self, bare: BareArm64, source: str) -> None:
        """Acquire and release would trap on a CPU without LSE2 (Arm ARM B2.9.2)."""
        bare["x1"] = DATA + 1
        bare.run(source + "\nsvc #0")
        assert (len(bare.calls), bare.traps) == (1, [])

    def test_the_engine_checks_no_stack_pointer(self, bare: BareArm64) -> None:
        """SCTLR.SA0 is 1, and a CPU would trap here (Arm ARM D1.3.4)."""
        bare["x1"] = DATA + 4
        bare.run("mov sp, x1\nldr x0, [sp]\nsvc #0")
        assert (len(bare.calls), bare.traps) == (1, [])

    def test_a_store_exclusive_that_lost_its_monitor_fails_without_a_look_at_its_address(
        self, bare: BareArm64
    ) -> None:
        bare["x1"], bare["x3"] = DATA + 1, 5
        bare.run("clrex\nstxr w3, x0, [x1]\nsvc #0")
        assert (bare["x3"], bare.traps) == (1, [])


class TestAborts:
    """The neutral access of each class of abort, from a real one (Arm ARM D19.2, ESR_EL1)."""

    @pytest.mark.parametrize(
        ("source", "access"),
        [
            ("ldr x0, [x1]", Access.READ),
            ("ldrb w0, [x1]", Access.READ),
            ("ld1 {v0.16b, v1.16b}, [x1]", Access.READ),
            ("ldxr x0, [x1]", Access.READ),
            ("str x0, [x1]", Access.WRITE),
            ("stp q0, q1, [x1]", Access.WRITE),
            ("dc zva, x1", Access.WRITE),
            ("br x1", Access.EXECUTE),
            (".long 0xf8200022", Access.READ),  # ldadd x0, x2, [x1]: its read comes first
        ],
    )
    def test_of_an_absent_page(self, bare: BareArm64, source: str, access: Access) -> None:
        bare["x1"] = ABSENT
        bare.run(source)
        pc = ABSENT if access is Access.EXECUTE else CODE
        assert bare.faults == [(ABSENT, int(access | Access.USER), pc)]
        kind = syndrome.EC_FETCH_LOWER if access is Access.EXECUTE else syndrome.EC_DATA_LOWER
        assert bare.syndromes[0] >> 26 == kind
        assert syndrome.is_translation_abort(bare.syndromes[0])

    @pytest.mark.parametrize("source", ["str x0, [x1]", "dc zva, x1", "stlr x0, [x1]", ".long 0xf8200022"])
    def test_of_a_page_that_forbids_it(self, bare: BareArm64, source: str) -> None:
        bare.map(ABSENT, READ_ONLY_LEAF)
        bare["x1"] = ABSENT
        bare.run(source)
        assert bare.faults == [(ABSENT, int(Access.WRITE | Access.USER | Access.PRESENT), CODE)]

    @pytest.mark.parametrize(
        "source",
        ["dc cvau, x1", "dc cvac, x1", "dc civac, x1", "ic ivau, x1", ".long 0xd50b7c21", ".long 0xd50b7d21"],
    )
    def test_cache_maintenance_reads_the_page_it_names(self, bare: BareArm64, source: str) -> None:
        """The engine's own would do nothing (SCTLR.UCI is 0); the last two are dc cvap and dc cvadp."""
        bare["x1"] = 0x5A << 56 | ABSENT + 8
        bare.run(source + "\nsvc #0")
        assert bare.faults == [(ABSENT + 8, int(Access.READ | Access.USER), CODE)]
        # A data abort by cache maintenance, which counts as a write, at level 2 (Arm ARM D19.2.37).
        assert bare.syndromes == [0x9200_0146]
        assert bare.addresses == [0x5A << 56 | ABSENT + 8]
        bare.map(ABSENT, READ_ONLY_LEAF)
        bare.cpu.run()
        assert (len(bare.faults), bare.calls) == (1, [(0, CODE + 8)])

    @pytest.mark.parametrize("word", [0xD50B_7381, 0xD50B_73A1, 0xD50B_73E1])
    def test_prediction_restrictions_touch_no_address(self, bare: BareArm64, word: int) -> None:
        """CFP, DVP and CPP RCTX stand among cache maintenance, and are undefined here."""
        bare["x1"] = ABSENT
        bare.run(f".long {word:#x}")
        assert bare.faults == []
        assert [(trap.kind, pc) for trap, pc in bare.traps] == [(TrapKind.ILLEGAL, CODE)]

    def test_cache_maintenance_of_the_kernels_pages_is_refused(self, bare: BareArm64) -> None:
        bare["x1"] = TEXT
        bare.run("dc civac, x1")
        assert bare.faults == [(TEXT, int(Access.READ | Access.USER | Access.PRESENT), CODE)]
        assert bare.syndromes == [0x9200_014F]

    def test_after_maintenance_an_abort_shows_its_own_syndrome_again(self, bare: BareArm64) -> None:
        bare["x1"] = ABSENT
        bare.run("dc civac, x1")
        bare.run("str x0, [x1, #16]")
        assert bare.syndromes == [0x9200_0146, 0x9200_0046]
        assert bare.addresses == [ABSENT, ABSENT + 16]

    def test_an_access_over_a_border_names_the_first_byte_of_the_page_it_lacks(self, bare: BareArm64) -> None:
        bare["x1"] = DATA + 0xFFC
        bare.run("ldr x0, [x1]")
        bare["x1"] = DATA - 4
        bare.run("ldr x0, [x1]")
        assert [va for va, _access, _pc in bare.faults] == [DATA + 0x1000, DATA - 4]


class TestUndefined:
    @pytest.mark.parametrize(
        "source",
        [
            *(
                ".long 0",
                "hvc #1",
                "smc #1",
                "hlt #1",
                "dcps1",
                "tlbi vmalle1",
                "at s1e0r, x1",
                "dc ivac, x1",
            ),
            *(
                "ic iallu",
                "mrs x0, ttbr0_el1",
                "mrs x0, pmccntr_el0",
                "mrs x0, cntp_tval_el0",
                "msr spsel, #1",
            ),
        ],
    )
    def test_is_illegal_at_its_instruction(self, bare: BareArm64, source: str) -> None:
        bare.run("nop\n" + source)
        ((trap, pc),) = bare.traps
        assert (trap.kind, trap.address, pc) == (TrapKind.ILLEGAL, 0, CODE + 4)
