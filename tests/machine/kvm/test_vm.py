"""The prober on the host's CPU: each kind of access and end, and a guest that never comes back."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keystone import KS_ARCH_X86, KS_MODE_64, Ks

from aether_emu.errors import EngineError
from aether_emu.machine.kvm import vm as kvm
from aether_emu.machine.probe import kvm as prober_kvm
from aether_emu.machine.probe.kvm import KvmProber
from aether_emu.machine.probe.prober import BATCH, CROSSING, LANDING, Attempts, Happened, Operation, Words


def _absence() -> str:
    try:
        kvm.offer()
    except kvm.KvmUnavailable as error:
        return str(error)
    return ""


ABSENCE = _absence()
needs_kvm = pytest.mark.skipif(bool(ABSENCE), reason=f"no KVM here: {ABSENCE}")

ROOT, TABLES, DATA, SIZE = 0x1000, 0x2000, 0x100000, 2 << 20
PAGE, FRONT = DATA + 0x3000, DATA + 0x2000
FIRST = 1 << 39 | 3 << 12  # the address of PAGE
GOOD, HOLE = 0x67, SIZE + 0x5000
ACCESSED, DIRTY = 0x20, 0x40


class Board:
    """A prober over 2 MiB in which every word holds its own address, and one page with one in front."""

    def __init__(self, seconds: float = 20.0) -> None:
        self.memory = kvm.page_aligned(SIZE)
        self.memory[:] = np.arange(SIZE // 8, dtype=np.uint64) * np.uint64(8)
        self.memory[: DATA // 8] = 0
        self.memory[(PAGE + LANDING) // 8] = int.from_bytes(prober_kvm.LANDING_CODE, "little")
        self.prober = KvmProber(self.memory, seconds=seconds)
        for slot, entry in self.prober.own_entries.items():
            self.memory[ROOT // 8 + slot] = entry
        for level, table in enumerate((ROOT, TABLES, TABLES + 0x1000)):
            self.memory[table // 8 + (level == 0)] = TABLES + level * 0x1000 | GOOD
        self.leaf = (TABLES + 0x2000) // 8 + 3
        self.memory[self.leaf - 1] = FRONT | GOOD
        self.configure()

    def configure(self, *, wp: bool = True, nxe: bool = True) -> None:
        self.prober.configure(wp=wp, smep=False, smap=False, pke=False, nxe=nxe)

    def attempt(
        self, leaf: int, operation: Operation, *, user: bool = True, address: int = FIRST
    ) -> Attempts:
        self.memory[self.leaf] = leaf
        offset = LANDING if operation is Operation.FETCH else 0
        addresses: Words = np.array([address + offset], np.uint64)
        return self.prober.run(ROOT, addresses, operation, user=user)

    def ends(self, leaf: int, operation: Operation, *, user: bool = True) -> tuple[Happened, int, int]:
        tried = self.attempt(leaf, operation, user=user)
        return Happened(int(tried.happened[0])), int(tried.code[0]), int(tried.address[0])


@pytest.fixture(scope="module")
def shared() -> Iterator[Board]:
    board = Board()
    yield board
    board.prober.close()


@pytest.fixture
def board(shared: Board) -> Board:
    shared.configure()
    return shared


# ---- the guest's code


def test_the_bytes_are_what_their_sources_say() -> None:
    sources = [prober_kvm._COLD]
    sources.extend(((prober_kvm._WARM), (prober_kvm._HANDLER)))
    assembler = Ks(KS_ARCH_X86, KS_MODE_64)
    assert [bytes(assembler.asm(source)[0]).hex() for source, _code in sources] == [
        code for _source, code in sources
    ]


# ---- hosts without it


def test_a_host_of_another_isa_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(kvm.KvmUnavailable, match="the host is aarch64, not x86_64"):
        kvm.offer()


@pytest.mark.parametrize(("device", "why"), [("missing", "No such file"), (None, "Inappropriate ioctl")])
def test_a_device_that_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str | None, why: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    path = tmp_path / device if device else Path("/dev/null")
    monkeypatch.setattr(kvm, "DEVICE", path)
    with pytest.raises(kvm.KvmUnavailable, match=f"{path}.*{why}"):
        kvm.VirtualMachine()


@pytest.mark.parametrize(
    ("module", "setting", "second_stage"),
    [("kvm_amd", "1", True), ("kvm_amd", "0", False), ("kvm_intel", "Y", True), ("kvm_other", "Y", False)],
)
def test_who_translates_is_read_from_the_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, setting: str, second_stage: bool
) -> None:
    parameters = tmp_path / module / "parameters"
    parameters.mkdir(parents=True)
    (parameters / ("npt" if module == "kvm_amd" else "ept")).write_text(f"{setting}\n", encoding="ascii")
    monkeypatch.setattr(kvm, "_MODULES", tmp_path)
    assert kvm._has_second_stage(module) is second_stage


# ---- accesses


@needs_kvm
@pytest.mark.parametrize("user", [True, False])
@pytest.mark.parametrize(
    ("operation", "left"),
    [
        (Operation.READ, ACCESSED),
        (Operation.WRITE, ACCESSED | DIRTY),
        (Operation.FETCH, ACCESSED),
        (Operation.MODIFY, ACCESSED | DIRTY),
        (Operation.CROSS_READ, ACCESSED),
        (Operation.CROSS_WRITE, ACCESSED | DIRTY),
    ],
)
def test_an_access_goes_through_and_leaves_its_flags(
    board: Board, operation: Operation, left: int, user: bool
) -> None:
    crosses = operation in (Operation.CROSS_READ, Operation.CROSS_WRITE)
    tried = board.attempt(PAGE | 0x7, operation, user=user, address=FIRST - crosses * CROSSING)
    assert tried.happened[0] == Happened.DONE
    assert board.memory[board.leaf] == PAGE | 0x7 | left


@needs_kvm
def test_a_read_gives_the_word_and_a_modify_the_one_before(board: Board) -> None:
    board.memory[PAGE // 8] = 0x1234
    assert board.attempt(PAGE | GOOD, Operation.READ).value[0] == 0x1234
    assert board.attempt(PAGE | GOOD, Operation.MODIFY).value[0] == 0x1234
    assert board.memory[PAGE // 8] == 0x1234 + FIRST
    board.attempt(PAGE | GOOD, Operation.WRITE)
    assert board.memory[PAGE // 8] == FIRST


@needs_kvm
@pytest.mark.parametrize(
    ("leaf", "operation", "user", "code"),
    [
        (0, Operation.READ, True, 0x4),
        (0, Operation.READ, False, 0x0),
        (PAGE | 0x65, Operation.WRITE, True, 0x7),
        (PAGE | 0x65, Operation.WRITE, False, 0x3),
        (PAGE | 0x65, Operation.MODIFY, True, 0x7),
        (PAGE | 0x63, Operation.READ, True, 0x5),
    ],
)
def test_a_fault_has_the_hardwares_code_and_address(
    board: Board, leaf: int, operation: Operation, user: bool, code: int
) -> None:
    assert board.ends(leaf, operation, user=user) == (Happened.FAULT, code, FIRST)


@needs_kvm
@pytest.mark.parametrize(
    ("operation", "user", "code"), [(Operation.READ, True, 0xD), (Operation.WRITE, False, 0xB)]
)
def test_an_address_beyond_the_physical_width_is_a_reserved_bit(
    board: Board, operation: Operation, user: bool, code: int
) -> None:
    width = board.prober.physical_bits
    leaf = PAGE | GOOD | (1 << width if width < 52 else 0)
    ended = board.ends(leaf, operation, user=user)
    assert ended == ((Happened.FAULT, code, FIRST) if width < 52 else (Happened.DONE, 0, 0))


@needs_kvm
@pytest.mark.parametrize("user", [True, False])
def test_a_fetch_of_what_is_not_executable_faults_at_the_fetch(board: Board, user: bool) -> None:
    ended = board.ends(PAGE | GOOD | 1 << 63, Operation.FETCH, user=user)
    assert ended == (Happened.FAULT, 0x11 | user << 2, FIRST + LANDING)


@needs_kvm
def test_the_control_bits_count(board: Board) -> None:
    board.configure(wp=False)
    assert board.ends(PAGE | 0x65, Operation.WRITE, user=False)[0] is Happened.DONE
    board.configure(nxe=False)
    assert board.ends(PAGE | GOOD | 1 << 63, Operation.READ)[:2] == (Happened.FAULT, 0xD)


@needs_kvm
def test_another_exception_gives_its_vector(board: Board) -> None:
    tried = board.attempt(PAGE | GOOD, Operation.READ, address=1 << 55)
    assert (tried.happened[0], tried.code[0], tried.address[0]) == (Happened.OTHER, 13, 0)


@needs_kvm
@pytest.mark.parametrize("user", [True, False])
@pytest.mark.parametrize("operation", [Operation.READ, Operation.WRITE, Operation.FETCH, Operation.MODIFY])
def test_a_hole_tells_its_physical_address_and_the_batch_goes_on(
    board: Board, operation: Operation, user: bool
) -> None:
    offset = LANDING if operation is Operation.FETCH else 0
    board.memory[board.leaf] = HOLE | GOOD
    board.memory[board.leaf + 1] = 0
    addresses: Words = np.array([FIRST + offset, FIRST + 0x1000, FIRST + offset], np.uint64)
    tried = board.prober.run(ROOT, addresses, operation, user=user)
    assert tried.happened.tolist() == [Happened.HOLE, Happened.FAULT, Happened.HOLE]
    assert tried.address.tolist() == [HOLE + offset, FIRST + 0x1000, HOLE + offset]


@needs_kvm
def test_a_modify_of_a_read_only_hole_is_a_fault(board: Board) -> None:
    assert board.ends(HOLE | 0x65, Operation.MODIFY, user=False) == (Happened.FAULT, 0x3, FIRST)


@needs_kvm
def test_a_stop_for_what_is_no_access_is_an_error_that_says_why(board: Board) -> None:
    board.memory[(PAGE + LANDING) // 8] = 0xEE  # out dx, al
    with pytest.raises(EngineError, match="stopped with KVM exit reason 2"):
        board.attempt(PAGE | GOOD, Operation.FETCH, user=False)


@needs_kvm
def test_entries_edited_between_batches_count(board: Board) -> None:
    for leaf, ended in (
        (PAGE | GOOD, Happened.DONE),
        (PAGE | 0x63, Happened.FAULT),
        (FRONT | GOOD, Happened.DONE),
    ):
        assert board.ends(leaf, Operation.READ)[0] is ended
    assert board.attempt(FRONT | GOOD, Operation.READ).value[0] == FRONT


@needs_kvm
def test_a_batch_may_be_full_and_each_access_has_its_answer(board: Board) -> None:
    board.memory[board.leaf] = PAGE | GOOD
    board.memory[board.leaf + 1] = 0
    odd = np.arange(BATCH) % 2
    tried = board.prober.run(
        ROOT, np.uint64(FIRST) + odd.astype(np.uint64) * np.uint64(4096), Operation.WRITE, user=True
    )
    assert tried.happened.tolist() == (odd * Happened.FAULT).tolist()
    assert tried.code.tolist() == (odd * 6).tolist()


@needs_kvm
def test_a_closed_prober_keeps_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    board = Board()
    assert board.ends(PAGE | GOOD, Operation.READ)[0] is Happened.DONE
    assert len(os.listdir("/proc/self/fd")) > len(before)
    board.prober.close()
    assert os.listdir("/proc/self/fd") == before


# ---- refusals


@needs_kvm
@pytest.mark.parametrize("count", [0, BATCH + 1])
def test_a_batch_of_another_size_is_refused(board: Board, count: int) -> None:
    with pytest.raises(EngineError, match=f"1 to {BATCH} accesses, not {count}"):
        board.prober.run(ROOT, np.zeros(count, np.uint64), Operation.READ, user=True)


@needs_kvm
@pytest.mark.parametrize("name", ["smep", "smap", "pke", "nxe"])
def test_a_control_that_is_not_on_offer_is_refused(
    board: Board, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked = {bit: bit == name for bit in ("smep", "smap", "pke", "nxe")}
    without: dict[str, Any] = {name: False}
    monkeypatch.setattr(board.prober, "offer", replace(board.prober.offer, **without))
    with pytest.raises(EngineError, match=f"no {name.upper()}"):
        board.prober.configure(wp=True, **asked)


@needs_kvm
def test_five_levels_that_are_not_on_offer_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    offer = replace(kvm.offer(), la57=False)
    monkeypatch.setattr(kvm, "offer", lambda: offer)
    with pytest.raises(EngineError, match="no 5-level paging"):
        KvmProber(kvm.page_aligned(SIZE), levels=5)


def test_five_levels_that_are_on_offer_get_as_far_as_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):
        pass

    def machine() -> None:
        raise Reached

    offer = kvm.Offer(52, 46, True, True, True, True, True, True, True, False, "", "")
    monkeypatch.setattr(kvm, "offer", lambda: offer)
    monkeypatch.setattr(kvm, "VirtualMachine", machine)
    with pytest.raises(Reached):
        KvmProber(kvm.page_aligned(SIZE), levels=5)


@needs_kvm
def test_memory_off_a_page_boundary_is_refused() -> None:
    with pytest.raises(EngineError, match="KVM refuses memory at 0x0"):
        KvmProber(kvm.page_aligned(SIZE)[1:513])


@needs_kvm
def test_another_thread_is_refused(board: Board) -> None:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            board.attempt(PAGE | GOOD, Operation.READ)
        except EngineError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [str(error) for error in raised] == ["a virtual machine runs in the thread that made it alone"]


@needs_kvm
@pytest.mark.parametrize("user", [True, False])
def test_a_guest_that_never_comes_back_is_stopped_and_can_go_on(user: bool) -> None:
    board = Board(seconds=0.1)
    landing = (PAGE + LANDING) // 8
    code = int(board.memory[landing])
    board.memory[landing] = 0xFEEB  # jmp to itself
    with pytest.raises(kvm.GuestHangs, match=r"did not stop in 0\.1 s"):
        board.attempt(PAGE | GOOD, Operation.FETCH, user=user)
    board.memory[landing] = code
    assert board.ends(PAGE | GOOD, Operation.FETCH, user=user)[0] is Happened.DONE
    board.prober.close()
