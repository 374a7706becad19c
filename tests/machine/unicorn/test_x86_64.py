"""The x86_64 CPU: each thing that the engine does wrongly has a test that fails without its handling."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest

from aether_emu.arch.paging import Access
from aether_emu.arch.x86_64 import registers as regs
from aether_emu.arch.x86_64 import stubs
from aether_emu.arch.x86_64.stage1 import P, W
from aether_emu.errors import EngineError
from aether_emu.machine.cpu import ExitReason, Trap, TrapKind, UserFault
from tests.machine.unicorn.bare_x86 import (
    CODE,
    CODE2,
    DATA,
    READ_EXECUTE,
    READ_ONLY,
    READ_WRITE,
    STACK,
    TOP,
    BareX86,
)
from tests.machine.unicorn.flat_guest import assemble

ABSENT = 0x1234_5000
HOLE = 0x0001_0000_0000_0000  # not canonical
USER_READ, USER_WRITE = int(Access.USER | Access.READ), int(Access.USER | Access.WRITE)
PROTECTION = Trap(TrapKind.PROTECTION, 13)
ILLEGAL = Trap(TrapKind.ILLEGAL, 6)


@pytest.fixture(params=[True, False], ids=["live state", "state by API"])
def bare(request: pytest.FixtureRequest) -> Iterator[BareX86]:
    made = BareX86(request.param)
    assert made.cpu.live_state == request.param
    yield made
    made.cpu.close()


class TestExceptions:
    def test_many_page_faults_in_a_row_all_arrive_as_page_faults(self, bare: BareX86) -> None:
        bare.run("mov rax, [rdi]", at=CODE)
        bare.faults.clear()
        for number in range(20):
            bare["rdi"] = ABSENT + 8 * number
            assert bare.go().reason is ExitReason.STOPPED
        assert bare.faults == [(ABSENT + 8 * i, USER_READ, CODE) for i in range(20)]

    def test_faults_that_are_repaired_in_one_run_all_arrive(self, bare: BareX86) -> None:
        seen: list[int] = []

        def repair(va: int, access: int) -> None:
            seen.append(va)
            bare.map(va, READ_WRITE)

        bare.cpu.on_fault = repair
        bare["rdi"] = ABSENT
        bare.run("mov ecx, 16\nagain: mov [rdi], rcx\nadd rdi, 4096\ndec ecx\njnz again\nsyscall")
        assert seen == [ABSENT + 4096 * i for i in range(16)]
        assert bare.calls

    @pytest.mark.parametrize("vector", [0, 6, 8, 12, 13, 14, 32, 0x80, 0xFF])
    def test_a_forged_interrupt_is_a_protection_fault_at_the_instruction(
        self, bare: BareX86, vector: int
    ) -> None:
        bare.run(b"\x90\xcd" + bytes([vector]))
        assert bare.traps == [(Trap(TrapKind.PROTECTION, 13, vector * 8 + 2), CODE + 1)]
        assert not bare.faults

    def test_a_page_fault_after_a_forged_one_is_genuine(self, bare: BareX86) -> None:
        bare.run(b"\xcd\x0e")
        bare["rdi"] = ABSENT
        bare.run("mov rax, [rdi]")
        assert bare.faults == [(ABSENT, USER_READ, CODE)]

    @pytest.mark.parametrize(
        ("source", "kind", "vector", "offset"),
        [
            ("xor ecx, ecx\ndiv ecx", TrapKind.DIVIDE, 0, 2),
            ("nop\nint3", TrapKind.BREAKPOINT, 3, 2),
            (b"\x90\xcd\x03", TrapKind.BREAKPOINT, 3, 3),
            (b"\x90\xcd\x04", TrapKind.OVERFLOW, 4, 3),
            ("nop\nud2", TrapKind.ILLEGAL, 6, 1),
            ("nop\nhlt", TrapKind.PROTECTION, 13, 1),
            ("nop\ncli", TrapKind.PROTECTION, 13, 1),
            ("nop\nmov cr3, rax", TrapKind.PROTECTION, 13, 1),
            ("nop\nrdpmc", TrapKind.PROTECTION, 13, 1),
            ("nop\nsysenter", TrapKind.ILLEGAL, 6, 1),
        ],
    )
    def test_each_exception_has_its_kind_and_place(
        self, bare: BareX86, source: str | bytes, kind: TrapKind, vector: int, offset: int
    ) -> None:
        assert bare.run(source).reason is ExitReason.STOPPED
        assert [(trap.kind, trap.vector, pc - CODE) for trap, pc in bare.traps] == [(kind, vector, offset)]

    def test_an_access_outside_the_address_space_is_no_page_fault(self, bare: BareX86) -> None:
        bare["rdi"] = HOLE
        for source in ("mov rax, [rdi]", "mov [rdi], rax"):
            bare.run(source)
        bare.run("jmp rdi")
        bare["rdi"] = HOLE
        bare.run("mov rsp, rdi\npush rax")
        assert [trap for trap, _pc in bare.traps] == [*[PROTECTION] * 3, Trap(TrapKind.STACK, 12)]
        assert not bare.faults

    @pytest.mark.parametrize("code", [b"\xec", b"\xe5\x60", b"\xee", b"\xe7\x80", b"\xef"])
    def test_port_input_and_output_fault_and_change_nothing(self, bare: BareX86, code: bytes) -> None:
        bare["rax"], bare["rdx"] = 0x1111_2222_3333_4444, 0x5555_6666_7777_8888
        bare.run(b"\x90" + code + b"\x0f\x05")
        assert bare.traps == [(PROTECTION, CODE + 1)]
        assert (bare["rip"], bare["rax"], bare["rdx"]) == (
            CODE + 1, 0x1111_2222_3333_4444, 0x5555_6666_7777_8888,
        )  # fmt: skip
        assert not bare.calls

    @pytest.mark.parametrize("code", [b"\x6c", b"\x6d", b"\x6e", b"\xf3\x6c", b"\xf3\x66\x6f"])
    def test_string_input_and_output_fault_before_they_touch_memory(self, bare: BareX86, code: bytes) -> None:
        bare["rdi"] = bare["rsi"] = ABSENT
        bare["rcx"] = 3
        bare.run(b"\x90" + code)
        assert (bare.traps, bare.faults) == ([(PROTECTION, CODE + 1)], [])

    def test_a_user_may_single_step_itself(self, bare: BareX86) -> None:
        bare.run("pushfq\nor dword ptr [rsp], 0x100\npopfq\nnop\nnop\nsyscall")
        assert [trap.kind for trap, _pc in bare.traps] == [TrapKind.DEBUG]
        bare["rflags"] = bare["rflags"] & ~regs.RFLAGS_TF
        assert bare.cpu.run().reason is ExitReason.STOPPED
        assert bare.calls

    def test_an_address_without_memory_is_a_bus_exit_and_can_be_repaired(self, bare: BareX86) -> None:
        bare.map(ABSENT, READ_WRITE, pa=0x7000_0000)
        bare["rdi"] = ABSENT
        assert bare.run("nop\nmov rax, [rdi]\nsyscall").reason is ExitReason.BUS
        assert bare.cpu.pc == CODE + 1
        assert bare.go(ABSENT).reason is ExitReason.STOPPED  # not executable: a plain fault
        bare.map(ABSENT, READ_WRITE, pa=bare.data)
        bare.cpu.flush_page(ABSENT)
        assert bare.go(CODE + 1).reason is ExitReason.STOPPED
        assert bare.calls

    def test_code_without_memory_is_a_bus_exit(self, bare: BareX86) -> None:
        bare.map(ABSENT, READ_EXECUTE, pa=0x7000_0000)
        assert bare.go(ABSENT).reason is ExitReason.BUS


class TestFarReturn:
    FRAME = (
        "push {ss}\npush rsp\npushfq\npush {cs}\nlea rax, [rip + after]\npush rax\niretq\nud2\nafter: syscall"
    )

    def test_a_user_may_return_to_itself(self, bare: BareX86) -> None:
        bare.run(self._frame(regs.USER_CODE, regs.USER_DATA))
        assert bare.calls
        assert bare.cpu.sp == TOP - 8

    @pytest.mark.parametrize(("code", "stack", "selector"), [(0x10, 0x2B, 0x10), (0x33, 0x18, 0x18)])
    def test_but_not_to_the_kernel(self, bare: BareX86, code: int, stack: int, selector: int) -> None:
        bare.run(self._frame(code, stack))
        assert [trap for trap, _pc in bare.traps] == [Trap(TrapKind.PROTECTION, 13, selector)]

    def test_a_frame_that_cannot_be_read_is_the_users_page_fault(self, bare: BareX86) -> None:
        bare.cpu.sp = ABSENT
        bare.run("iretq")
        assert bare.faults == [(ABSENT + 16, USER_READ, CODE)]  # the flags come first

    @staticmethod
    def _frame(code: int, stack: int) -> bytes:
        start = assemble(f"push {stack}\npush rsp\npushfq\npush {code}")
        return start + b"\x48\x8d\x05\x05\0\0\0" + b"\x50\x48\xcf\x0f\x0b" + b"\x0f\x05"


class TestSystemCalls:
    def test_a_handler_finds_the_next_instruction_in_pc_and_afterwards_in_rcx(self, bare: BareX86) -> None:
        seen: list[int] = []

        def call(number: int, *arguments: int) -> int:
            seen.extend((bare.cpu.pc, number, *arguments))
            if number == 60:
                bare.cpu.stop()
            return number + 1

        bare.cpu.on_system_call = call
        for register, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), range(1, 7), strict=True):
            bare[register] = value
        bare.run("mov eax, 58\nsyscall\ninc eax\nsyscall")
        assert seen == [CODE + 7, 58, 1, 2, 3, 4, 5, 6, CODE + 11, 60, 1, 2, 3, 4, 5, 6]
        assert (bare["rax"], bare["rcx"], bare["rip"]) == (61, CODE + 11, CODE + 11)

    def test_a_pc_that_the_handler_writes_is_where_the_guest_goes_on(self, bare: BareX86) -> None:
        def call(number: int, *_arguments: int) -> int | None:
            if number == 1:
                bare.cpu.pc = CODE + 0x100
                return None
            bare.cpu.stop()
            return None

        bare.cpu.on_system_call = call
        bare.fill(bare.code + 0x100, assemble("mov eax, 2\nmov ebx, 77\nsyscall"))
        bare.run("mov eax, 1\nsyscall\nud2")
        assert bare["rbx"] == 77
        assert not bare.traps

    def test_a_call_can_be_issued_again(self, bare: BareX86) -> None:
        calls: list[int] = []

        def call(number: int, *_arguments: int) -> int | None:
            calls.append(number)
            if len(calls) == 1:
                bare.cpu.pc = bare.cpu.pc - 2
            bare.cpu.stop()
            return None

        bare.cpu.on_system_call = call
        bare.run("mov eax, 5\nsyscall")
        assert bare.cpu.pc == CODE + 5
        bare.cpu.run()
        assert (calls, bare.cpu.pc) == ([5, 5], CODE + 7)

    def test_work_before_the_return_sees_the_result_in_place(self, bare: BareX86) -> None:
        seen: list[tuple[int, int]] = []

        def call(*_arguments: int) -> int:
            bare.cpu.stop()
            return 99

        bare.cpu.on_system_call = call

        def work() -> None:
            seen.append((bare["rax"], bare.cpu.pc))

        bare.cpu.return_work = work
        bare.run("syscall")
        assert seen == [(99, CODE + 2)]


class TestTranslations:
    def test_a_page_that_lost_writing_is_read_only_after_its_flush(self, bare: BareX86) -> None:
        bare["rdi"] = DATA
        bare.run("mov [rdi], rax\nsyscall")
        bare.words[bare.slot(DATA)] &= ~W
        bare.cpu.flush_page(DATA)
        bare.go()
        assert bare.faults == [(DATA, USER_WRITE | int(Access.PRESENT), CODE)]

    def test_a_page_that_is_gone_faults_after_its_flush(self, bare: BareX86) -> None:
        bare["rdi"] = DATA
        bare.run("mov rax, [rdi]\nsyscall")
        bare.words[bare.slot(DATA)] = 0
        bare.cpu.flush_page(DATA)
        bare.go()
        assert bare.faults == [(DATA, USER_READ, CODE)]

    @pytest.mark.parametrize("flush", ["page", "all", "root"])
    def test_a_page_in_another_frame_is_seen_by_loads_and_stores(self, bare: BareX86, flush: str) -> None:
        bare["rdi"] = DATA
        bare.run("mov rax, [rdi]\nmov [rdi + 8], rax\nsyscall")
        fresh = bare.map(DATA, READ_WRITE)
        bare.fill(fresh, b"\x55" * 8)
        if flush == "page":
            bare.cpu.flush_page(DATA)
        elif flush == "all":
            bare.cpu.flush_all()
        else:
            bare.cpu.set_root(bare.root)
        bare.go()
        assert bare["rax"] == bare.words[fresh + 8 >> 3] == 0x5555_5555_5555_5555

    def test_flushing_a_page_inside_a_fault_leaves_the_guest_where_it_was(self, bare: BareX86) -> None:
        def copy_on_write(va: int, access: int) -> None:
            assert access == USER_WRITE | int(Access.PRESENT)
            bare.map(va, READ_WRITE)
            bare.cpu.flush_page(va)

        bare.cpu.on_fault = copy_on_write
        bare.words[bare.slot(DATA)] &= ~W
        bare["rdi"], bare["rax"] = DATA, 42
        bare.run("mov rbx, [rdi]\nmov [rdi], rax\nmov rbx, [rdi]\nsyscall")
        assert (bare["rbx"], bare["rdi"]) == (42, DATA)
        assert bare.words[bare.data >> 3] == 0


class TestUserMemory:
    def test_copies_cross_pages_and_fault_them_in(self, bare: BareX86) -> None:
        def resolve(va: int, _access: int) -> bool:
            bare.map(va & -4096, READ_WRITE)
            return True

        bare.cpu.resolve = resolve
        data = bytes(range(256)) * 800
        bare.cpu.copy_to_user(ABSENT + 77, data)
        assert bare.cpu.copy_from_user(ABSENT + 77, len(data)) == data

    def test_a_users_rights_count_and_not_the_kernels(self, bare: BareX86) -> None:
        bare.map(ABSENT, P | W)
        with pytest.raises(UserFault):
            bare.cpu.copy_from_user(ABSENT, 8)
        bare.map(ABSENT, READ_ONLY)
        bare.cpu.flush_all()
        assert bare.cpu.copy_from_user(ABSENT, 8) == bytes(8)
        with pytest.raises(UserFault):
            bare.cpu.copy_to_user(ABSENT, b"x")

    @pytest.mark.parametrize("address", [HOLE, (1 << 64) - 4, ABSENT, 0])
    def test_what_no_user_can_reach_is_a_user_fault(self, bare: BareX86, address: int) -> None:
        with pytest.raises(UserFault):
            bare.cpu.copy_from_user(address, 8)
        with pytest.raises(UserFault):
            bare.cpu.copy_to_user(address, bytes(8))
        bare.run("syscall")
        assert bare.calls

    def test_supervisor_code_is_kept_from_user_pages_unless_it_asks(self, bare: BareX86) -> None:
        bare.words[bare.data >> 3] = 0x77
        bare["rbx"], bare["rflags"] = 5, bare["rflags"] | regs.RFLAGS_AC
        refused = bare.cpu.supervisor(stubs.LOAD, rdi=DATA)
        assert refused.fault == (DATA, int(Access.READ | Access.PRESENT))
        assert bare.cpu.supervisor(stubs.LOAD_ALLOWED, rdi=DATA).rax == 0x77
        assert bare["rbx"] == 5
        bare["rdi"] = 0xFFFF_FFFF_8000_0000
        bare.run("mov rax, [rdi]")
        assert bare.faults == [(0xFFFF_FFFF_8000_0000, USER_READ | int(Access.PRESENT), CODE)]


class TestRunning:
    LOOP = "mov ecx, 1000\nagain: add rbx, 3\ndec ecx\njnz again\nsyscall"

    def test_a_budget_is_exact_and_repeatable(self, bare: BareX86) -> None:
        def stops() -> list[tuple[int, int]]:
            bare["rbx"] = 0
            found = [(bare["rip"], bare["rcx"])] if bare.run(self.LOOP, budget=10).reason is None else []
            while bare.cpu.run(7).reason is ExitReason.BUDGET:
                found.append((bare["rip"], bare["rcx"]))
            return found

        first, again = stops(), stops()
        assert first == again
        assert len(first) > 100
        assert {before[1] - after[1] for before, after in pairwise(first)} == {7}

    def test_counting_blocks_changes_nothing_that_the_guest_sees(self) -> None:
        plain, counted = BareX86(), BareX86()
        counted.cpu.count_blocks()
        assert plain.run(self.LOOP) == counted.run(self.LOOP)
        assert plain.cpu.registers() == counted.cpu.registers()
        assert (plain.cpu.blocks, counted.cpu.blocks) == (0, 1001)

    def test_an_interrupt_that_comes_early_ends_the_next_run_once(self, bare: BareX86) -> None:
        bare.cpu.interrupt()
        assert bare.run("syscall").reason is ExitReason.INTERRUPTED
        assert bare.cpu.run().reason is ExitReason.STOPPED

    def test_a_budget_that_ends_in_front_of_a_special_instruction_is_kept(self, bare: BareX86) -> None:
        loop = b"\xeb\x00" + b"\x0f\xc7\xf3" + b"\xff\xc1" + b"\xeb\xf9"  # rdrand ebx; inc ecx
        places = [(bare.run(loop, budget=1).reason, bare["rip"] - CODE, bare["rcx"])]
        places += [(bare.cpu.run(1).reason, bare["rip"] - CODE, bare["rcx"]) for _ in range(4)]
        assert places == [(ExitReason.BUDGET, (2, 5)[i & 1], i // 2) for i in range(5)]

    def test_a_spinning_guest_is_interrupted_from_another_thread(self, bare: BareX86) -> None:
        over = threading.Event()

        def ask() -> None:
            while not over.wait(0.001):
                bare.cpu.interrupt()

        thread = threading.Thread(target=ask)
        thread.start()
        ended = bare.run("again: jmp again")
        over.set()
        thread.join()
        assert ended.reason is ExitReason.INTERRUPTED

    def test_an_interrupt_during_a_nested_run_is_not_lost(self, bare: BareX86) -> None:
        def repair(va: int, _access: int) -> None:
            bare.map(va, READ_WRITE)
            bare.cpu.interrupt()
            bare.cpu.flush_page(va)  # a nested run, which the stop could have ended instead

        bare.cpu.on_fault = repair
        bare["rdi"] = ABSENT
        assert bare.run("mov [rdi], rax\nsyscall").reason is ExitReason.INTERRUPTED
        assert not bare.calls

    def test_a_pause_after_a_nested_run_is_no_sleep(self, bare: BareX86) -> None:
        """`pause` leaves the engine's inner loop, which a CPU that a stub has halted does not enter again."""

        def repair(va: int, _access: int) -> None:
            bare.map(va, READ_WRITE)
            bare.cpu.flush_page(va)

        bare.cpu.on_fault = repair
        bare["rdi"] = ABSENT
        rescue = threading.Timer(30, bare.cpu.interrupt)
        rescue.start()
        ended = bare.run("mov [rdi], rax\npause\npause\nmov ebx, 7\npause\nsyscall")
        rescue.cancel()
        assert ended.reason is ExitReason.STOPPED
        assert (bare["rbx"], len(bare.calls)) == (7, 1)

    @pytest.mark.parametrize("source", ["mov rax, [rdi]", "ud2", "hlt", "in al, dx", "int3", "syscall"])
    def test_what_a_callback_raises_comes_out_of_run_and_the_cpu_goes_on(
        self, bare: BareX86, source: str
    ) -> None:
        kept = bare.cpu.on_fault, bare.cpu.on_trap, bare.cpu.on_system_call

        def fails(*_: object) -> None:
            raise LookupError("from the callback")

        bare.cpu.on_fault = bare.cpu.on_trap = fails
        bare.cpu.on_system_call = fails
        bare["rdi"] = ABSENT
        with pytest.raises(LookupError, match="from the callback"):
            bare.run(source)
        bare.cpu.on_fault, bare.cpu.on_trap, bare.cpu.on_system_call = kept
        bare.run("mov ebx, 3\nsyscall")
        assert (bare["rbx"], len(bare.calls)) == (3, 1)

    def test_code_at_the_end_of_a_page_before_an_absent_one_runs(self, bare: BareX86) -> None:
        bare.words[bare.slot(CODE2)] = 0
        bare.run(b"\x0f\x05", at=CODE + 0xFFE)
        assert bare.calls == [(0, CODE2)]
        assert bare.go(CODE2).reason is ExitReason.STOPPED
        assert bare.faults == [(CODE2, int(Access.USER | Access.EXECUTE), CODE2)]

    def test_an_instruction_over_two_pages_needs_both(self, bare: BareX86) -> None:
        bare.words[bare.slot(CODE2)] = 0
        bare.run("mov ebx, 5", at=CODE + 0xFFD)
        assert bare.faults == [(CODE2, int(Access.USER | Access.EXECUTE), CODE + 0xFFD)]


@pytest.mark.parametrize("source", ["mov rax, [rdi]", "ud2"])
def test_an_event_without_a_kernel_is_an_error_and_not_a_silent_end(source: str) -> None:
    bare = BareX86()
    bare.cpu.on_fault, bare.cpu.on_trap = bare.cpu._unplugged, bare.cpu._unplugged_trap
    bare["rdi"] = ABSENT
    with pytest.raises(EngineError, match="before a kernel"):
        bare.run(source, budget=8)


def test_the_features_told_to_a_kernel_are_those_that_the_guest_is_told(bare: BareX86) -> None:
    bare.run("mov eax, 1\ncpuid\nsyscall")
    assert bare.cpu.read("cpuid_1_edx") == bare["rdx"] != 0


def test_registers_survive_being_read_and_loaded(bare: BareX86) -> None:
    bare.run("syscall")
    values = {name: index + 0x30 for index, name in enumerate(bare.cpu.registers())}
    values |= {"rflags": 0x202, "fpcw": 0x37F, "fpsw": 0, "fptag": 0, "mxcsr": 0x1F80, "rsp": STACK + 0x800}
    values |= {f"xmm{i}": i << 100 | i for i in range(16)} | {
        f"fp{i}": 0x3FFF << 64 | 1 << 63 for i in range(8)
    }
    bare.cpu.load_registers(values)
    assert bare.cpu.registers() == values
    with pytest.raises(KeyError):
        bare.cpu.read("r16")


def test_what_was_saved_goes_on_where_it_stood_whatever_ran_meanwhile(bare: BareX86) -> None:
    bare["rcx"], bare["xmm3"], bare["fp2"] = 7, 1 << 127 | 5, 0x3FFF << 64 | 3 << 62
    bare.run("again: inc rax\ndec rcx\njnz again\nsyscall", budget=3)
    before = bare.cpu.registers()
    saved = bare.cpu.save()
    bare.run("xor ecx, ecx\nmov rax, -1\npxor xmm3, xmm3\nfninit\nsyscall")
    assert bare.cpu.registers() != before
    root = bare.cpu.read("cr3")
    bare.cpu.restore(saved)
    assert bare.cpu.registers() == before
    assert bare.cpu.read("cr3") == root


@pytest.mark.parametrize("condition", ["z", "c", "s", "o", "p"])
def test_arithmetic_flags_outlive_a_fault_whose_page_is_flushed(bare: BareX86, condition: str) -> None:
    """A copy-on-write fault between a comparison and its jump: nobody must see the nested run of `invlpg`."""
    slot = bare.slot(DATA)
    for value in (0, 1, 0x80, 0x7F, 0xFF):
        bare.words[slot] = bare.data | READ_ONLY
        bare.cpu.flush_all()

        def repair(va: int, _access: int) -> None:
            bare.words[slot] = bare.data | READ_WRITE
            bare.cpu.flush_page(va)

        bare.cpu.on_fault = repair
        source = "mov al, {value}; mov rbx, {data}; mov rcx, [rbx]; cmp al, 0x80; "
        source += "{store}set{condition} dl; syscall"
        results = []
        for store in ("mov [rbx], rbx; ", ""):
            bare["rdx"] = 0
            bare.run(source.format(value=value, data=DATA, store=store, condition=condition))
            results.append(bare["rdx"] & 1)
        assert results[0] == results[1], f"{value:#x}"
