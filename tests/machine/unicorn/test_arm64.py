"""The ARM64 CPU: permissions at both levels, exceptions, and what it emulates because the engine does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from aether_emu.arch.arm64 import stubs, syndrome
from aether_emu.arch.paging import Access
from aether_emu.machine.cpu import ExitReason, TrapKind, UserFault
from tests.machine.unicorn.bare_arm64 import (
    ACCESSED,
    ANY_LEAF,
    CODE,
    CODE2,
    DATA,
    KERNEL_DATA_LEAF,
    PXN,
    READ_EXECUTE_LEAF,
    READ_ONLY,
    READ_ONLY_LEAF,
    READ_WRITE_LEAF,
    TEXT,
    UXN,
    BareArm64,
    assemble,
)

ABSENT = 0x1234_5000
USER_READ, USER_WRITE = int(Access.USER | Access.READ), int(Access.USER | Access.WRITE)
USER_FETCH, PRESENT = int(Access.USER | Access.EXECUTE), int(Access.PRESENT)


@pytest.fixture(params=[True, False], ids=["live state", "state by API"])
def bare(request: pytest.FixtureRequest) -> Iterator[BareArm64]:
    made = BareArm64(request.param)
    assert made.cpu.live_state == request.param
    yield made
    made.cpu.close()


class TestFaults:
    @pytest.mark.parametrize("address", [ABSENT, 0x20_0000_0000, 0x7F80_0000_0000, DATA + 0x20_0000])
    def test_an_absent_page_faults_at_whatever_level_its_walk_ends(
        self, bare: BareArm64, address: int
    ) -> None:
        bare["x1"] = address + 0x18
        bare.run("nop\nldr x0, [x1]")
        bare.run("nop\nstr x0, [x1]")
        bare.run("br x1")
        assert bare.faults == [
            (address + 0x18, USER_READ, CODE + 4),
            (address + 0x18, USER_WRITE, CODE + 4),
            (address + 0x18, USER_FETCH, address + 0x18),
        ]

    def test_each_permission_is_kept(self, bare: BareArm64) -> None:
        bare.map(ABSENT, READ_ONLY_LEAF)
        bare["x1"] = ABSENT
        bare.run("ldr x0, [x1]\nstr x0, [x1]")
        bare.run("br x1")
        bare["x1"] = TEXT
        bare.run("ldr x0, [x1]")
        bare.run("br x1")
        assert bare.faults == [
            (ABSENT, USER_WRITE | PRESENT, CODE + 4),
            (ABSENT, USER_FETCH | PRESENT, ABSENT),
            (TEXT, USER_READ | PRESENT, CODE),
            (TEXT, USER_FETCH | PRESENT, TEXT),
        ]

    def test_a_page_that_was_never_accessed_is_present(self, bare: BareArm64) -> None:
        bare.map(ABSENT, READ_WRITE_LEAF & ~ACCESSED)
        bare["x1"] = ABSENT
        bare.run("ldr x0, [x1]")
        assert bare.faults == [(ABSENT, USER_READ | PRESENT, CODE)]

    def test_many_faults_are_repaired_in_one_run(self, bare: BareArm64) -> None:
        seen: list[int] = []

        def repair(va: int, _access: int) -> None:
            seen.append(va)
            bare.map(va, READ_WRITE_LEAF)

        bare.cpu.on_fault = repair
        bare["x1"] = ABSENT
        bare.run(
            "mov x2, #16\nagain: str x2, [x1]\nadd x1, x1, #1, lsl #12\nsubs x2, x2, #1\nb.ne again\nsvc #0"
        )
        assert seen == [ABSENT + 4096 * i for i in range(16)]
        assert bare.calls

    def test_a_tag_in_a_pointer_is_no_part_of_its_address(self, bare: BareArm64) -> None:
        bare["x1"] = 0x5A << 56 | ABSENT
        bare.run("ldr x0, [x1]")
        bare["x1"] = 0x5A << 56 | DATA
        bare.run("ldr x0, [x1]\nsvc #0")
        assert [va for va, _access, _pc in bare.faults] == [ABSENT]
        assert bare.calls

    def test_an_address_without_memory_is_a_bus_exit(self, bare: BareArm64) -> None:
        bare.map(ABSENT, READ_WRITE_LEAF, pa=0x7000_0000)
        bare["x1"] = ABSENT
        assert bare.run("nop\nldr x0, [x1]").reason is ExitReason.BUS
        assert bare.cpu.pc == CODE + 4


class TestSupervisor:
    def test_a_user_page_needs_pan_clear(self, bare: BareArm64) -> None:
        bare.words[bare.data >> 3] = 0x77
        assert bare.cpu.supervisor(stubs.LOAD, x1=DATA).fault == (DATA, int(Access.READ | Access.PRESENT))
        assert bare.cpu.supervisor(stubs.STORE, x1=DATA).fault == (DATA, int(Access.WRITE | Access.PRESENT))
        free = bare.cpu.supervisor(stubs.LOAD, x1=DATA, pan=False)
        assert (free.fault, free.x0) == (None, 0x77)
        assert bare.cpu.supervisor(stubs.LOAD_UNPRIVILEGED, x1=DATA).x0 == 0x77

    def test_a_read_only_page_is_read_only_for_the_kernel_too(self, bare: BareArm64) -> None:
        bare.map(TEXT + 0x1000, KERNEL_DATA_LEAF | READ_ONLY)
        assert bare.cpu.supervisor(stubs.LOAD, x1=TEXT + 0x1000).fault is None
        fault = bare.cpu.supervisor(stubs.STORE, x1=TEXT + 0x1000).fault
        assert fault == (TEXT + 0x1000, int(Access.WRITE | Access.PRESENT))

    def test_the_kernel_executes_no_user_page_and_no_data(self, bare: BareArm64) -> None:
        bare.map(TEXT + 0x1000, KERNEL_DATA_LEAF)
        for target in (CODE, TEXT + 0x1000):
            fault = bare.cpu.supervisor(stubs.JUMP, x1=target).fault
            assert fault == (target, int(Access.EXECUTE | Access.PRESENT))

    def test_the_user_goes_on_with_its_own_registers_and_rights(self, bare: BareArm64) -> None:
        bare["x1"], bare["x5"], bare["nzcv"] = 3, 5, 0x6000_0000
        before = bare.cpu.registers()
        bare.cpu.supervisor(stubs.LOAD, x1=DATA, pan=False)
        assert bare.cpu.registers() == before
        bare["x1"] = TEXT
        bare.run("ldr x0, [x1]")
        assert bare.faults == [(TEXT, USER_READ | PRESENT, CODE)]

    @pytest.mark.parametrize("bit", [UXN, PXN])
    def test_execution_is_refused_to_each_level_by_its_own_bit(self, bare: BareArm64, bit: int) -> None:
        bare.map(ABSENT, READ_EXECUTE_LEAF & ~(UXN | PXN) | bit)
        bare.fill(bare.words[bare.slot(ABSENT)] & 0xFFFF_F000, assemble("svc #0"))
        bare.go(ABSENT)
        assert bool(bare.faults) == (bit == UXN)
        assert bool(bare.calls) == (bit == PXN)


class TestExceptions:
    @pytest.mark.parametrize(
        ("source", "kind", "exception_class"),
        [
            ("brk #7", TrapKind.BREAKPOINT, syndrome.EC_BREAKPOINT),
            (".word 0", TrapKind.ILLEGAL, syndrome.EC_UNKNOWN),
            ("hvc #0", TrapKind.ILLEGAL, syndrome.EC_UNKNOWN),
            ("mrs x0, sctlr_el1", TrapKind.ILLEGAL, syndrome.EC_UNKNOWN),
            ("msr daifset, #2", TrapKind.ILLEGAL, None),
            ("eret", TrapKind.ILLEGAL, syndrome.EC_UNKNOWN),
        ],
    )
    def test_each_has_its_kind_and_stands_at_its_instruction(
        self, bare: BareArm64, source: str, kind: TrapKind, exception_class: int | None
    ) -> None:
        bare.run("nop\n" + source)
        ((trap, pc),) = bare.traps
        assert (trap.kind, pc) == (kind, CODE + 4)
        assert exception_class is None or trap.error >> 26 == trap.vector == exception_class

    def test_a_misaligned_exclusive_access_tells_its_address(self, bare: BareArm64) -> None:
        bare["x1"] = DATA + 1
        bare.run("ldxr x0, [x1]")
        ((trap, pc),) = bare.traps
        assert (trap.kind, trap.address, pc) == (TrapKind.ALIGNMENT, DATA + 1, CODE)

    def test_a_system_call_finds_its_arguments_and_the_next_instruction(self, bare: BareArm64) -> None:
        seen: list[int] = []

        def call(*arguments: int) -> int:
            seen.extend((bare.cpu.pc, *arguments))
            bare.cpu.stop()
            return 77

        bare.cpu.on_system_call = call
        for i in range(6):
            bare[f"x{i}"] = i + 1
        bare.run("mov x8, #93\nsvc #0\nadd x0, x0, #1\nsvc #0")
        assert seen == [CODE + 8, 93, 1, 2, 3, 4, 5, 6]
        assert bare["x0"] == 77
        bare.cpu.run()
        assert seen[8:11] == [CODE + 16, 93, 78]

    def test_waiting_for_an_event_or_an_interrupt_does_not_end_the_run(self, bare: BareArm64) -> None:
        bare.run("wfi\nwfe\nyield\nmov x3, #4\nsvc #0")
        assert (bare["x3"], len(bare.calls), bare.traps) == (4, 1, [])


class TestEmulated:
    def test_counters_are_the_clocks(self, bare: BareArm64) -> None:
        bare.run("mrs x0, cntvct_el0\nmrs x1, cntfrq_el0\nmrs xzr, cntvct_el0\nsvc #0")
        assert (bare["x0"], bare["x1"]) == (0x1234_5678, 62_500_000)
        assert bare.calls

    def test_code_is_renewed_by_instruction_cache_maintenance(self, bare: BareArm64) -> None:
        bare.map(CODE, ANY_LEAF, pa=bare.code)
        bare.map(ABSENT, READ_WRITE_LEAF, pa=bare.code)
        bare.cpu.flush_all()
        bare["x1"], bare["x2"] = ABSENT + 0x800, CODE + 0x800
        results = []
        for value in (1, 2, 3):
            bare["x3"] = int.from_bytes(assemble(f"mov w0, #{value}"), "little")
            bare.fill(bare.code + 0x804, assemble("ret"))
            bare.fill(
                bare.code, assemble("str w3, [x1]\ndc cvau, x2\ndsb ish\nic ivau, x2\nisb\nblr x2\nsvc #0")
            )
            if value == 1:
                bare.cpu.flush_code()
            bare.go()
            results.append(bare["x0"])
        assert results == [1, 2, 3]

    @pytest.mark.parametrize("executable", [True, False])
    def test_cache_maintenance_is_for_its_line_by_every_address(
        self, bare: BareArm64, executable: bool
    ) -> None:
        bare.map(CODE, ANY_LEAF, pa=bare.code)
        bare.map(ABSENT, ANY_LEAF if executable else READ_WRITE_LEAF, pa=bare.code)
        bare.cpu.flush_all()
        bare.fill(bare.code + 0x800, assemble("mov w0, #1\nret"))
        bare["x1"], bare["x2"] = ABSENT + 0x83C, CODE + 0x800
        bare.fill(bare.code, assemble("blr x2\nmov w4, w0\nsvc #0\nic ivau, x1\nisb\nblr x2\nsvc #0"))
        bare.go()
        bare.fill(bare.code + 0x800, assemble("mov w0, #2\nret"))  # unseen by the engine
        bare.go(bare.cpu.pc)
        assert (bare["x4"], bare["x0"]) == (1, 2)

    def test_maintenance_of_a_page_that_never_had_code_drops_no_translation(
        self, bare: BareArm64, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A program may do that to megabytes of data, which then has all its code translated again."""
        asked, dropped = list[int](), list[int]()

        def holds_code(physical: int) -> bool:
            asked.append(physical)
            return len(asked) > 2

        bare.map(ABSENT, READ_WRITE_LEAF, pa=bare.data)
        bare.cpu.holds_code = holds_code
        monkeypatch.setattr(bare.cpu, "flush_code", lambda: dropped.append(len(asked)))
        bare["x1"], bare["x2"] = ABSENT + 0x83C, CODE
        bare.run("ic ivau, x1\nic ivau, x1\nic ivau, x2\nic ivau, x1\nsvc #0")
        assert asked == [bare.data + 0x83C] * 3, "where code may be fetched the line alone is dropped"
        assert [count for count in dropped if count] == [3]

    def test_other_system_registers_stay_refused(self, bare: BareArm64) -> None:
        bare.run("mrs x0, cntp_ctl_el0")
        assert [trap.kind for trap, _pc in bare.traps] == [TrapKind.ILLEGAL]


class TestTranslations:
    def test_an_entry_that_changed_is_seen_after_its_flush(self, bare: BareArm64) -> None:
        bare["x1"] = DATA
        bare.run("ldr x0, [x1]\nstr x0, [x1, #8]\nsvc #0")
        fresh = bare.map(DATA, READ_WRITE_LEAF)
        bare.fill(fresh, b"\x55" * 8)
        bare.cpu.flush_page(DATA)
        bare.go()
        assert bare["x0"] == bare.words[fresh + 8 >> 3] == 0x5555_5555_5555_5555
        bare.words[bare.slot(DATA)] |= READ_ONLY
        bare.cpu.flush_page(DATA)
        bare.go()
        assert bare.faults == [(DATA + 8, USER_WRITE | PRESENT, CODE + 4)]

    def test_another_root_is_seen_at_once_though_the_address_space_number_stays(
        self, bare: BareArm64
    ) -> None:
        bare["x1"] = DATA
        bare.run("ldr x0, [x1]\nsvc #0")
        empty = bare.frame()
        bare.cpu.set_root(empty)
        bare.go()
        assert bare.faults == [(CODE, USER_FETCH, CODE)]
        bare.cpu.set_root(bare.root)
        bare.go()
        assert len(bare.calls) == 2

    def test_user_memory_is_copied_by_the_users_rights(self, bare: BareArm64) -> None:
        bare.cpu.copy_to_user(DATA + 3, b"abc")
        assert bare.memory[bare.data + 3 : bare.data + 6] == b"abc"
        for address in (ABSENT, TEXT, (1 << 64) - 4):
            with pytest.raises(UserFault):
                bare.cpu.copy_from_user(address, 8)
        with pytest.raises(UserFault):
            bare.cpu.copy_to_user(CODE, b"x")
        bare.run("svc #0")
        assert (len(bare.calls), bare.faults) == (1, [])


def test_what_was_saved_goes_on_where_it_stood_and_reserves_nothing(bare: BareArm64) -> None:
    source = "ldxr x2, [x1]\nadd x2, x2, #1\nb next\nnext: stxr w3, x2, [x1]\nsvc #0"
    for switched in (False, True):
        bare["x1"], bare["x9"], bare["v4"] = DATA, 11, 1 << 127
        bare.run(source, budget=1)
        if switched:
            before = bare.cpu.registers()
            saved = bare.cpu.save()
            bare["x9"] = bare["v4"] = bare["pc"] = 0
            bare.cpu.restore(saved)
            assert bare.cpu.registers() == before
        bare.cpu.run()
        assert bare["x3"] == switched, "another may have stored meanwhile: the exclusive store fails"


class TestRunning:
    LOOP = "mov x2, #1000\nagain: add x3, x3, #3\nsubs x2, x2, #1\nb.ne again\nsvc #0"

    def test_a_budget_is_exact_and_counting_changes_nothing(self) -> None:
        plain, counted = BareArm64(), BareArm64()
        plain.run(self.LOOP)
        ended, parts = counted.run(self.LOOP, budget=7), 1
        while ended.reason is ExitReason.BUDGET:
            assert counted.cpu.blocks == 7 * parts
            ended, parts = counted.cpu.run(7), parts + 1
        assert ended.reason is ExitReason.STOPPED
        assert counted.cpu.blocks == 1001
        assert plain.cpu.registers() == counted.cpu.registers()

    def test_a_spinning_guest_is_interrupted_from_another_thread(self, bare: BareArm64) -> None:
        over = threading.Event()

        def ask() -> None:
            while not over.wait(0.001):
                bare.cpu.interrupt()

        thread = threading.Thread(target=ask)
        thread.start()
        ended = bare.run("again: b again")
        over.set()
        thread.join()
        assert ended.reason is ExitReason.INTERRUPTED

    def test_what_a_callback_raises_comes_out_of_run_and_the_cpu_goes_on(self, bare: BareArm64) -> None:
        def fails(*_: object) -> None:
            raise LookupError("from the callback")

        kept = bare.cpu.on_fault
        bare.cpu.on_fault = fails
        bare["x1"] = ABSENT
        with pytest.raises(LookupError, match="from the callback"):
            bare.run("ldr x0, [x1]")
        bare.cpu.on_fault = kept
        bare.run("svc #0")
        assert bare.calls

    def test_code_over_a_page_border_needs_both_pages(self, bare: BareArm64) -> None:
        bare.words[bare.slot(CODE2)] = 0
        bare.run("nop\nmov x4, #4", at=CODE + 0xFF8)
        assert bare.faults == [(CODE2, USER_FETCH, CODE2)]
        assert bare["x4"] == 4


class TestRegisters:
    def test_many_that_are_loaded_at_once_leave_the_others_alone(self, bare: BareArm64) -> None:
        bare["x30"], bare["v31"], bare["nzcv"] = 30, 1 << 127 | 31, 0x6000_0000
        wanted = {f"x{i}": (1 << 63) + i for i in range(16)} | {f"v{i}": 1 << 120 | i for i in range(4)}
        bare.cpu.load_registers(wanted)
        held = bare.cpu.registers()
        assert held == {name: bare.cpu.read(name) for name in held}
        assert {name: held[name] for name in wanted} == wanted
        assert (held["x30"], held["v31"], held["nzcv"]) == (30, 1 << 127 | 31, 0x6000_0000)
        pc = held["pc"]
        bare.cpu.load_registers(wanted | {"pc": pc + 4})
        assert bare.cpu.pc == pc + 4
