"""Code on the x86_64 CPU: translations that went stale, and instructions that are not run natively."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aether_emu.machine import native
from aether_emu.machine.cpu import ExitReason, Trap, TrapKind
from aether_emu.machine.unicorn import engine
from tests.machine.child import outcome_of
from tests.machine.unicorn.bare_x86 import (
    ANY,
    CODE,
    CODE2,
    DATA,
    READ_EXECUTE,
    READ_WRITE,
    STACK,
    TOP,
    BareX86,
)
from tests.machine.unicorn.flat_guest import assemble

ABSENT = 0x1234_5000
ILLEGAL = Trap(TrapKind.ILLEGAL, 6)


@pytest.fixture(params=[True, False], ids=["live state", "state by API"])
def bare(request: pytest.FixtureRequest) -> Iterator[BareX86]:
    made = BareX86(request.param)
    assert made.cpu.live_state == request.param
    yield made
    made.cpu.close()


class TestStaleCode:
    ONE, TWO = assemble("mov ebx, 1\nsyscall"), assemble("mov ebx, 2\nsyscall")

    def test_new_code_in_the_place_of_old_runs_after_a_flush(self, bare: BareX86) -> None:
        bare.run(self.ONE)
        bare.fill(bare.code, self.TWO)
        bare.cpu.flush_code()
        bare.go()
        assert bare["rbx"] == 2

    def test_user_memory_that_the_kernel_wrote_is_reported(self, bare: BareX86) -> None:
        seen: list[tuple[int, int]] = []
        bare.cpu.on_rewrite = lambda va, length: seen.append((va, length))
        bare.cpu.copy_to_user(DATA + 5, b"abc")
        assert seen == [(DATA + 5, 3)]

    def test_a_guest_store_into_its_own_code_takes_effect(self, bare: BareX86) -> None:
        bare.map(CODE, ANY, pa=bare.code)
        bare.cpu.flush_all()
        bare["rdi"] = CODE
        bare.run("mov byte ptr [rdi + 7], 7\njmp over\nover: .byte 0xbb, 1, 0, 0, 0\nsyscall")
        assert bare["rbx"] == 7

    def test_a_store_through_an_old_translation_of_another_address_takes_effect(self, bare: BareX86) -> None:
        bare.map(ABSENT, READ_WRITE, pa=bare.code)
        bare["rdi"] = ABSENT + 0x801
        results = []
        bare.fill(bare.code + 0x800, assemble("mov ebx, 0\nret"))
        caller = bare.map(0x50_0000, READ_EXECUTE)
        bare.fill(caller, assemble(f"mov [rdi], al\nmov rcx, {CODE + 0x800}\ncall rcx\nsyscall"))
        for value in (1, 2, 3, 4):
            bare["rax"] = value
            bare.go(0x50_0000)
            results.append(bare["rbx"])
        assert results == [1, 2, 3, 4]

    @pytest.mark.parametrize("watched", [False, True])
    def test_only_where_stores_are_watched_the_second_one_through_another_address_takes_effect(
        self, bare: BareX86, watched: bool
    ) -> None:
        alias = bare.map(ABSENT, READ_WRITE, pa=bare.code)
        functions = "".join(f"mov rcx, {CODE + offset}\ncall rcx\nadd r8, rbx\n" for offset in (0x800, 0x900))
        stores = f"mov rdi, {ABSENT}\nmov byte ptr [rdi + 0x801], 2\nmov byte ptr [rdi + 0x901], 30\n"
        for offset, value in ((0x800, 1), (0x900, 10)):
            bare.fill(bare.code + offset, assemble(f"mov ebx, {value}\nret"))
        if watched:
            bare.cpu.watch_stores(alias, 4096)
        caller = bare.map(0x50_0000, READ_EXECUTE)
        bare.fill(caller, assemble(f"xor r8d, r8d\n{functions}{stores}{functions}syscall"))
        bare.go(0x50_0000)
        assert bare["r8"] == 11 + (32 if watched else 12)


class TestSpecialInstructions:
    VPADDD = b"\xc5\xf1\xfe\xc2"
    ORDINARY = assemble("mov r8d, 1\nadd r8d, 2\nimul r8d, r8d, 5")

    @pytest.mark.parametrize("vex", [VPADDD, b"\xc4\xe1\x71\xfe\xc2", b"\xc5\xf5\xfe\xc2", b"\xc5\xf8\x77"])
    def test_vector_code_is_illegal_after_what_stands_before_it_ran(self, bare: BareX86, vex: bytes) -> None:
        bare["xmm1"] = bare["xmm2"] = 5
        bare["xmm0"] = 1
        bare.run(self.ORDINARY + vex + assemble("add r8d, 1\nsyscall"))
        assert bare.traps == [(ILLEGAL, CODE + len(self.ORDINARY))]
        assert (bare["r8"], bare["xmm0"]) == (15, 1)

    def test_unseen_blocks_run_as_the_engine_has_them(self, bare: BareX86) -> None:
        engine.hook_del(bare.cpu._handle, bare.cpu._look)
        bare.run(self.VPADDD + assemble("mov ebx, 3\nsyscall"))
        assert (bare.traps, bare["rbx"]) == ([], 3)

    @pytest.mark.parametrize("machine_code", [True, False])
    def test_a_look_at_blocks_that_is_timed_sees_the_same(
        self, bare: BareX86, machine_code: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(native, "available", lambda: machine_code)
        spent = bare.cpu.time_looking()
        code = self.VPADDD + assemble("mov ebx, 3\nsyscall")
        bare.run(code)
        assert (bare.traps, bare["rbx"]) == ([(ILLEGAL, CODE)], 0)
        before, seconds = spent.blocks, spent.seconds
        assert before > 0
        assert seconds > 0
        bare.run(assemble("fxsave [rdi]\njmp next\nnext: syscall", CODE))
        assert spent.blocks >= before + 2
        assert spent.seconds > seconds

    def test_it_is_illegal_again_and_again(self, bare: BareX86) -> None:
        bare.run(self.VPADDD)
        for _ in range(3):
            bare.go()
        assert [pc for _trap, pc in bare.traps] == [CODE] * 4

    def test_legal_code_in_its_place_runs(self, bare: BareX86) -> None:
        bare.run(b"\x90" + self.VPADDD)
        bare.run("nop\nmov ebx, 9\nmov ecx, 8\nsyscall")
        assert (bare["rbx"], bare["rcx"]) == (9, 8)
        assert bare.calls
        bare.run(b"\x90" + self.VPADDD)
        assert [pc for _trap, pc in bare.traps] == [CODE + 1] * 2

    def test_a_loop_through_it_meets_it_each_time(self, bare: BareX86) -> None:
        met = []

        def skip(trap: Trap) -> None:
            met.append(trap)
            bare.cpu.pc = bare.cpu.pc + 4

        bare.cpu.on_trap = skip
        bare.run(b"\xb9\x05\0\0\0" + self.VPADDD + b"\xff\xc9" + b"\x75\xf8" + b"\x0f\x05")
        assert met == [ILLEGAL] * 5

    def test_a_save_of_registers_is_let_pass_unless_something_must_be_told(self, bare: BareX86) -> None:
        """What it writes decides, not whether the engine stopped to ask: blocks are counted alike."""
        loop = assemble("mov ecx, 5\nagain: fxsave [rdi]\ndec ecx\njnz again\nsyscall")
        bare["rdi"] = DATA
        counted = []
        for _ in range(2):
            bare.cpu.count_blocks()
            before = bare.cpu.blocks
            assert bare.run(loop).reason is ExitReason.STOPPED
            counted.append(bare.cpu.blocks - before)
            bare.cpu.halts.break_at(CODE + 0x800)  # somebody debugs, elsewhere: the engine stops each time
        assert counted[0] == counted[1]
        assert bytes(bare.memory[bare.data + 24 : bare.data + 26]) == (0x1F80).to_bytes(2, "little"), "MXCSR"
        assert not bare.faults
        bare["rdi"] = ABSENT
        bare.run(loop)
        assert [va for va, _, _ in bare.faults] == [ABSENT + 511], "the last byte is asked for first"

    def test_its_general_register_relatives_work(self, bare: BareX86) -> None:
        bare["rcx"], bare["rdx"] = 0xF0F0, 0xFFFF
        bare.run(b"\xc4\xe2\xf0\xf2\xc2\x0f\x05")  # andn rax, rcx, rdx
        assert bare["rax"] == 0x0F0F
        assert not bare.traps

    @pytest.mark.parametrize(
        ("code", "register", "value"),
        [
            (b"\x0f\xc7\xf3", "rbx", 0x7654_3210),  # rdrand ebx
            (b"\x48\x0f\xc7\xf3", "rbx", 0xFEDC_BA98_7654_3210),
            (b"\x66\x0f\xc7\xf3", "rbx", 0xAAAA_AAAA_AAAA_3210),
            (b"\x49\x0f\xc7\xf1", "r9", 0xFEDC_BA98_7654_3210),
            (b"\x0f\xc7\xfb", "rbx", 0x7654_3210),  # rdseed ebx
        ],
    )
    def test_random_numbers_come_from_the_seed_in_every_width(
        self, bare: BareX86, code: bytes, register: str, value: int
    ) -> None:
        bare[register] = 0xAAAA_AAAA_AAAA_AAAA
        bare.run(code + b"\x0f\x92\xc1\x0f\x05")  # setc cl
        assert (bare[register], bare["rcx"] & 0xFF) == (value, 1)

    def test_an_error_of_the_random_source_comes_out_of_run(self) -> None:
        def broken() -> int:
            raise ValueError("no entropy")

        bare = BareX86(random=broken)
        with pytest.raises(ValueError, match="no entropy"):
            bare.run(b"\x0f\xc7\xf3")

    @pytest.mark.parametrize(("code", "rcx"), [(b"\x0f\x31", 7), (b"\x0f\x01\xf9", 0)])
    def test_the_time_stamp_is_the_clocks(self, bare: BareX86, code: bytes, rcx: int) -> None:
        bare["rcx"] = 7
        bare["rax"] = bare["rdx"] = (1 << 64) - 1
        bare.run(code + assemble("mov rbx, rcx\nmov rsi, rax\nsyscall"))
        assert (bare["rsi"], bare["rdx"], bare["rbx"]) == (0x5566_7788, 0x1122_3344, rcx)

    def test_floating_point_starts_as_after_a_reset(self, bare: BareX86) -> None:
        assert (bare["fpcw"], bare["mxcsr"], bare["fptag"]) == (0x37F, 0x1F80, 0xFFFF)
        third = "fld1\nfld1\nfadd st(1), st\nfadd st(1), st\nfdivrp st(1), st\nfstp tbyte ptr [rdi]\nsyscall"
        bare["rdi"] = DATA
        bare.run(third)
        assert int.from_bytes(bare.memory[bare.data : bare.data + 10], "little") == 0x3FFD_AAAA_AAAA_AAAA_AAAB


@pytest.mark.parametrize("prefix", [b"", b"\x0f"], ids=["one byte", "two bytes"])
def test_no_opcode_ends_the_run_by_itself(prefix: bytes) -> None:
    bare = BareX86()
    for opcode in range(256):
        for operand in (b"\x07", b"\xc3"):
            for register in ("rax", "rbx", "rsi", "rdi"):
                bare[register] = DATA + 0x100
            bare["rcx"], bare["rflags"], bare.cpu.sp = 2, 0x202, TOP - 0x100
            ended = bare.run(prefix + bytes([opcode]) + operand + b"\x0f\x05", budget=50)
            assert ended.reason in (ExitReason.STOPPED, ExitReason.BUDGET), (prefix, opcode, operand)


def test_two_cpus_on_one_memory_see_each_others_stores_and_new_code_after_a_flush() -> None:
    first = BareX86()
    second = BareX86(memory=first.memory)
    second.map(CODE, READ_EXECUTE, pa=first.code)
    second.map(DATA, READ_WRITE, pa=first.data)
    second.cpu.flush_all()
    second.cpu.flush_code()
    first["rdi"] = second["rdi"] = DATA
    first.run("mov qword ptr [rdi], 5\nsyscall")
    first.run("mov rbx, [rdi]\nsyscall")
    second.go()
    assert second["rbx"] == 5
    first.fill(first.code, assemble("mov ebx, 6\nsyscall"))
    second.cpu.flush_code()
    second.go()
    assert second["rbx"] == 6


def test_a_system_call_that_drops_translations_and_then_a_page_goes_on_where_it_was() -> None:
    """The block with the call still runs: what a nested run translates must not stand in its place."""

    def scenario() -> None:
        bare = BareX86()

        def call(*_: int) -> int:
            bare.cpu.flush_code()
            for page in (DATA, STACK, CODE2):
                bare.cpu.flush_page(page)
            return 0

        bare.cpu.on_system_call = call
        ended = bare.run("mov r12, 50\nagain: syscall\nadd rbx, 1\ndec r12\njnz again\nint3")
        assert (ended.reason, bare["rbx"], len(bare.traps)) == (ExitReason.STOPPED, 50, 1)

    assert outcome_of(scenario) == (0, "")
