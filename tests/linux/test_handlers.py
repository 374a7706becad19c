"""Deciding in the kernel's stead: faults and calls that handlers answer, by programs on both ISAs."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from aether_emu.arch.paging import Access, Attributes, PageFlags
from aether_emu.errors import HandlerError, MappingError
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.calls import memory
from aether_emu.linux.files import flags as fl
from aether_emu.linux.handlers import Call, Fault
from aether_emu.linux.task.ended import Ended
from aether_emu.mm.fault import RESOLVED, Outcome
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.mapping import (
    MADV_POPULATE_WRITE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_POPULATE,
    MAP_PRIVATE,
    Request,
    map_memory,
)
from aether_emu.system import Machine
from tests.small_programs import DATA, EXIT, every_isa, loaded

HOLE = 0x70_0000
# Exits with the byte that it loads from DATA + 0x1000; HOLE is in no area.
LOAD = {
    "x86_64": f"mov rbx, {DATA + 0x1000}; movzx edi, byte ptr [rbx]; {EXIT['x86_64']}",
    "arm64": f"mov x19, #{DATA}; add x19, x19, #0x1000; ldrb w0, [x19]; {EXIT['arm64']}",
}
STORE = {
    "x86_64": f"mov rbx, {DATA + 0x1000}; mov byte ptr [rbx], 5; movzx edi, byte ptr [rbx]; {EXIT['x86_64']}",
    "arm64": f"mov x19, #{DATA}; add x19, x19, #0x1000; mov w1, #5; strb w1, [x19]; ldrb w0, [x19]; "
    f"{EXIT['arm64']}",
}
LOAD_HOLE = {
    "x86_64": f"mov rbx, {HOLE}; movzx edi, byte ptr [rbx]; {EXIT['x86_64']}",
    "arm64": f"mov x19, #{HOLE}; ldrb w0, [x19]; {EXIT['arm64']}",
}
GETPID = {
    "x86_64": f"mov eax, 39; syscall; mov edi, eax; {EXIT['x86_64']}",
    "arm64": f"mov x8, #172; svc #0; {EXIT['arm64']}",
}
READ = {  # read(0, DATA + 0x1000, 1), then exit with -result
    "x86_64": f"xor edi, edi; mov esi, {DATA + 0x1000}; mov edx, 1; xor eax, eax; syscall; mov edi, eax; "
    f"neg edi; {EXIT['x86_64']}",
    "arm64": f"mov x0, #0; mov x1, #{DATA}; add x1, x1, #0x1000; mov x2, #1; mov x8, #63; svc #0; "
    f"neg x0, x0; {EXIT['arm64']}",
}


TOUCH_AND_DROP = {  # 20 times: store to DATA + 0x1000, then madvise(DATA + 0x1000, 0x1000, MADV_DONTNEED)
    "x86_64": f"""
        mov rbx, {DATA + 0x1000}
        mov ebp, 20
    again:
        mov byte ptr [rbx], 5
        mov rdi, rbx
        mov esi, 0x1000
        mov edx, 4
        mov eax, 28
        syscall
        dec ebp
        jnz again
        xor edi, edi
    """
    + EXIT["x86_64"],
    "arm64": f"""
        mov x19, #{DATA}
        add x19, x19, #0x1000
        mov x20, #20
    again:
        strb w20, [x19]
        mov x0, x19
        mov x1, #0x1000
        mov x2, #4
        mov x8, #233
        svc #0
        subs x20, x20, #1
        b.ne again
        mov x0, #0
    """
    + EXIT["arm64"],
}


def _only_data(handler: Callable[[Fault], Outcome | None]) -> Callable[[Fault], Outcome | None]:
    """The handler for data faults of the program, the manager for the rest."""
    return lambda fault: None if fault.access & Access.EXECUTE else handler(fault)


@every_isa
def test_a_handler_brings_a_page_of_its_own_bytes(tmp_path: Path, isa: str) -> None:
    faults: list[Fault] = []

    def fill(fault: Fault) -> Outcome | None:
        faults.append(fault)
        return fault.map(b"\x2a")

    for program in (LOAD, STORE):
        with loaded(tmp_path, isa, program) as machine:
            machine.on_fault(_only_data(fill))
            assert machine.run() == Ended(code=42 if program is LOAD else 5)
            (fault,) = faults
            assert (fault.address, fault.page, fault.in_call) == (DATA + 0x1000, DATA + 0x1000, False)
            assert fault.area is not None
            assert fault.area.start == DATA
            assert machine.process is not None
            assert machine.process.read(DATA + 0x1000, 2) == (b"\x2a\0" if program is LOAD else b"\x05\0")
            faults.clear()


@every_isa
def test_a_handler_chooses_the_bits_of_the_entry(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, STORE) as machine:
        asked = 0

        def read_only(fault: Fault) -> Outcome | None:
            nonlocal asked
            asked += 1
            if asked > 1:
                return fault.deny()
            return fault.map(b"\x2a", PageFlags.READ | PageFlags.USER | PageFlags.ACCESSED)

        machine.on_fault(_only_data(read_only))
        ended = machine.run()
        assert (ended.signal, asked) == (sig.SIGSEGV, 2)
        assert machine.process is not None
        walk = machine.process.mm.walk(DATA + 0x1000)
        assert "user read\n" in str(walk)


@every_isa
def test_a_handler_writes_the_entry_bit_by_bit(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, LOAD) as machine:
        raw = machine.format.leaf_bits(Attributes(PageFlags.READ | PageFlags.USER))  # not yet accessed
        machine.on_fault(_only_data(lambda fault: fault.map(b"x", bits=raw) if _absent(fault) else None))
        assert machine.run() == Ended(code=ord("x"))
        assert machine.process is not None
        (leaf,) = machine.process.mm.walk(DATA + 0x1000).steps[-1:]
        assert leaf.entry & 0xFFF == raw & 0xFFF | (1 << 5 if isa == "x86_64" else 1 << 10)  # A, AF


def test_a_reserved_bit_of_a_handlers_is_the_architectures_fault(tmp_path: Path) -> None:
    with loaded(tmp_path, "x86_64", LOAD) as machine:
        raw = 1 << 51 | machine.format.leaf_bits(Attributes(PageFlags.READ | PageFlags.USER))
        machine.on_fault(_only_data(lambda fault: fault.map(b"x", bits=raw) if _absent(fault) else None))
        ended = machine.run()
        assert (ended.signal, ended.why) == (sig.SIGKILL, "a damaged page table")


def _absent(fault: Fault) -> bool:
    return fault.process.mm.table.find(fault.page) is None


@every_isa
def test_a_handler_maps_a_frame_that_it_has_taken(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, LOAD) as machine:
        frame = machine.physical.take(Kind.ANON, 0, 0)
        machine.physical.page_bytes(frame)[0] = 9
        machine.on_fault(_only_data(lambda fault: fault.map(frame)))
        assert machine.run() == Ended(code=9)


@every_isa
def test_a_handler_denies_and_gives_bus_errors(tmp_path: Path, isa: str) -> None:
    for outcome, number in (("deny", sig.SIGSEGV), ("bus_error", sig.SIGBUS)):
        with loaded(tmp_path, isa, LOAD) as machine:
            machine.on_fault(_only_data(lambda fault, how=outcome: getattr(fault, how)()))  # type: ignore[misc]  # bound now
            assert machine.run().signal == number
    with loaded(tmp_path, isa, READ, stdin=b"1") as machine:
        machine.on_fault(lambda fault: fault.deny() if fault.in_call else None)
        assert machine.run() == Ended(code=errno.EFAULT)


@every_isa
def test_a_handler_makes_the_area_that_is_missing(tmp_path: Path, isa: str) -> None:
    def make(fault: Fault) -> Outcome | None:
        if fault.area is None:
            flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
            map_memory(fault.process.mm, Request(fault.page, 4096, 3, flags, None, 0))
            return fault.map(b"\x07")
        return None

    with loaded(tmp_path, isa, LOAD_HOLE) as machine:
        machine.on_fault(make)
        assert machine.run() == Ended(code=7)
    with loaded(tmp_path, isa, LOAD_HOLE) as machine:
        machine.on_fault(lambda fault: fault.map(b"") if fault.area is None else None)
        with pytest.raises(HandlerError, match="is in no area"):
            machine.run()


@every_isa
def test_the_last_handler_is_asked_first_and_may_see_the_managers_decision(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, LOAD) as machine:
        order: list[str] = []

        def first(_fault: Fault) -> None:
            order.append("first")

        machine.on_fault(_only_data(first))

        def second(fault: Fault) -> Outcome | None:
            order.append("second")
            return fault.decide() if len(order) > 3 else None

        attached = machine.on_fault(_only_data(second))
        assert machine.run() == Ended(code=0)
        assert order == ["second", "first"]
        attached.detach()
        assert not attached.attached


@every_isa
@pytest.mark.parametrize("wrong", ["resolved for ever", "a number", "raises"])
def test_a_handler_that_goes_wrong_ends_the_run_with_its_error(tmp_path: Path, isa: str, wrong: str) -> None:
    def bad(_fault: Fault) -> Outcome | None:
        if wrong == "raises":
            raise IndexError("mine")
        return RESOLVED if wrong == "resolved for ever" else 5  # type: ignore[return-value]  # the misuse

    with loaded(tmp_path, isa, LOAD) as machine:
        attached = machine.on_fault(_only_data(bad))
        with pytest.raises(IndexError if wrong == "raises" else HandlerError):
            machine.run()
        attached.detach()
        assert machine.run() == Ended(code=0)


@every_isa
@pytest.mark.parametrize("how", ["decided", "mapped"])
def test_a_page_that_is_dropped_and_touched_again_is_resolved_any_number_of_times(
    tmp_path: Path, isa: str, how: str
) -> None:
    addresses: list[int] = []

    def bring(fault: Fault) -> Outcome:
        addresses.append(fault.address)
        return fault.decide() if how == "decided" else fault.map()

    with loaded(tmp_path, isa, TOUCH_AND_DROP) as machine:
        machine.on_fault(_only_data(bring))
        assert machine.run() == Ended(code=0)
    assert addresses == [DATA + 0x1000] * 20


def test_what_cannot_be_put_into_an_area_is_refused(tmp_path: Path) -> None:
    with loaded(tmp_path, "x86_64", LOAD) as machine:
        errors: list[Exception] = []

        def wrong(fault: Fault) -> Outcome | None:
            for content in (b"x" * 4097, 1 << 40, machine.physical.zero_frame):
                with pytest.raises(MappingError) as caught:
                    fault.map(content)
                errors.append(caught.value)
            return None

        machine.on_fault(_only_data(wrong))
        assert machine.run() == Ended(code=0)
        assert len(errors) == 3


@every_isa
def test_a_handler_answers_a_call_instead_of_the_kernel(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, GETPID) as machine:

        @machine.on_system_call(names=["getpid"])
        def answer(call: Call) -> int:
            assert call.name == "getpid"
            return 42

        assert machine.run() == Ended(code=42)
        assert answer.attached
        assert machine.kernel.calls_by_name() == {"getpid": 1, "exit_group": 1}


@every_isa
def test_a_handler_makes_the_call_and_changes_its_result(tmp_path: Path, isa: str) -> None:
    results: list[int | None] = []

    def double(call: Call) -> int | None:
        results.append(call.make())
        with pytest.raises(HandlerError, match="made already"):
            call.make()
        return None if results[-1] is None else 7

    with loaded(tmp_path, isa, GETPID) as machine:
        machine.on_system_call(double, "getpid")
        assert machine.run() == Ended(code=7)
        assert results == [1000]


@every_isa
def test_handlers_cost_nothing_once_they_are_gone(tmp_path: Path, isa: str) -> None:
    def callbacks(machine: Machine) -> tuple[object, ...]:
        cpu, entry = machine.cpu, machine.entry
        return (
            cpu.on_fault,
            cpu.resolve,
            cpu.on_system_call,
            cpu.on_trap,
            entry.debugger,
            vars(entry)["_fault_in"],
        )

    with loaded(tmp_path, isa, GETPID) as machine:
        before = callbacks(machine)
        attached = [
            machine.on_fault(lambda _fault: None),
            machine.on_system_call(lambda _call: None),
            machine.breakpoint(DATA),
            machine.on_access(DATA, 8),
        ]
        assert all(
            now != then for now, then in zip(callbacks(machine), before, strict=True) if then is not None
        )
        for one in attached:
            one.detach()
        assert callbacks(machine) == before
        assert machine.run().status == 1000 & 0xFF


# write(1, DATA + 0x1000, 4); read(0, DATA + 0x2000, 4), and its sixth byte
TRANSFER = {
    "x86_64": f"""
        mov eax, 1; mov edi, 1; mov esi, {DATA + 0x1000}; mov edx, 4; syscall
        xor eax, eax; xor edi, edi; mov esi, {DATA + 0x2000}; mov edx, 4; syscall
        movzx edi, byte ptr [rsi + 5]
    """
    + EXIT["x86_64"],
    "arm64": f"""
        mov x19, #{DATA}
        add x1, x19, #0x1000
        mov x0, #1
        mov x2, #4
        mov x8, #64
        svc #0
        add x1, x19, #0x2000
        mov x0, #0
        mov x2, #4
        mov x8, #63
        svc #0
        ldrb w0, [x1, #5]
    """
    + EXIT["arm64"],
}


def _paged(fault: Fault) -> Outcome | None:
    """A demand pager: each page of the data has the number of the page in every byte."""
    if not DATA <= fault.address < DATA + 0x8000:
        return None
    return fault.map(bytes([fault.page >> 12 & 0xFF]) * fault.process.mm.page_size)


@every_isa
def test_a_pagers_pages_are_what_calls_write_and_read_into(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, TRANSFER, stdin=b"abcd") as machine:
        machine.on_fault(_paged)
        assert machine.run() == Ended(code=DATA + 0x2000 >> 12 & 0xFF)
        assert machine.process is not None
        assert machine.process.read(DATA + 0x2000, 5) == b"abcd" + bytes([DATA + 0x2000 >> 12 & 0xFF])


@every_isa
@pytest.mark.parametrize("how", ["read", "write", "mlock", "populate", "advice", "proc"])
def test_a_pager_is_asked_whoever_brings_the_page(tmp_path: Path, isa: str, how: str) -> None:
    page, expected = DATA + 0x1000, bytes([DATA + 0x1000 >> 12 & 0xFF])
    with loaded(tmp_path, isa, TRANSFER) as machine:
        machine.on_fault(_paged)
        task, process = machine.entry.task, machine.process
        assert process is not None
        if how == "read":
            assert process.read(page, 1) == expected
        elif how == "write":
            process.write(page + 5, b"x")
        elif how == "mlock":
            assert memory.sys_mlock(task, page, 0x1000) == 0
        elif how == "advice":
            assert memory.sys_madvise(task, page, 0x1000, MADV_POPULATE_WRITE) == 0
        elif how == "populate":
            flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_POPULATE
            assert memory.sys_mmap(task, page, 0x1000, 3, flags, -1, 0) == page
        else:
            fd = process.files.open(fl.AT_FDCWD, b"/proc/self/mem", fl.O_RDONLY)
            assert process.files.pread(fd, 1, page) == expected
        found = process.mm.table.find(page)
        assert found is not None
        assert process.read(page, 4) == 4 * expected


@every_isa
def test_what_a_handler_reads_itself_is_the_managers_to_decide(tmp_path: Path, isa: str) -> None:
    asked = []

    def look(fault: Fault) -> None:
        asked.append(fault.page)
        assert fault.process.read(DATA + 0x3000, 1) == b"\0"

    with loaded(tmp_path, isa, LOAD) as machine:
        machine.on_fault(look)
        machine.run()
        assert DATA + 0x1000 in asked
        assert DATA + 0x3000 not in asked
