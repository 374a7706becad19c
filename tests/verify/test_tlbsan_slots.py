"""TLBSan and the slots of the file aperture: frames outside the allocator, which show another file next.

While the threads of a program yield, more of a file is read in its address space than the aperture has slots
for, so that the first slot is bound anew while two CPUs walk its entries.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu import Protection
from aether_emu.linux.files.streams import BufferStream
from aether_emu.machine.memory.aperture import SLOT_SIZE
from aether_emu.mm.tlb import Gather, Tlb
from aether_emu.system import Machine
from aether_emu.verify.tlbsan import Finding, Sanitizer
from aether_emu.verify.tlbsan.finding import Rule
from tests.verify.small_tables import BASE, FRAMES, LARGE, PAGE, Tables

_PROGRAMS = Path(__file__).resolve().parents[1] / "programs" / "bin"
_AT, _SLOTS = 0x1000_0000, 4
every_isa = pytest.mark.parametrize("isa", ["x86_64", "arm64"])


class _Run:
    """`flushes share` whose address space shows more of a file than there are slots, from the first
    sched_yield on. `late` is true from then on.
    """

    def __init__(self, isa: str, folder: Path) -> None:
        self.late = False
        shown = folder / "shown"
        shown.write_bytes(b"x" * (SLOT_SIZE * (_SLOTS + 2)))
        self.machine = Machine(isa, cpus=2, ram="64M", seed=7, tlbsan=True, aperture=_SLOTS * SLOT_SIZE)
        streams = {name: BufferStream(b"") for name in ("stdin", "stdout", "stderr")}
        process = self.machine.load(_PROGRAMS / isa / "flushes", ["flushes", "unmap"], streams=streams)

        def begin() -> None:
            if all(root.cpus != 3 for root in self.sanitizer.roots.values()):
                return  # CPU 1 has no thread yet
            waiting.detach()
            process.mm.map_file(str(shown), _AT, shown.stat().st_size, Protection.READ)
            self.late = True
            for slot in range(_SLOTS + 2):
                assert process.read(_AT + slot * SLOT_SIZE, 1) == b"x"

        waiting = self.machine.on_system_call(lambda _call: begin(), ["sched_yield"])

    @property
    def sanitizer(self) -> Sanitizer:
        assert isinstance(self.machine.tlbsan, Sanitizer)
        return self.machine.tlbsan

    def finding(self) -> Finding:
        try:
            with pytest.raises(Finding) as caught:
                self.machine.run()
        finally:
            self.machine.abandon()
        return caught.value


@every_isa
def test_a_slot_whose_entries_are_flushed_is_bound_anew(
    isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _Run(isa, tmp_path)
    slots, freed = [], run.sanitizer.slot_freed

    def watched(address: int, length: int) -> None:
        slots.append(address)
        freed(address, length)

    monkeypatch.setattr(run.sanitizer, "slot_freed", watched)
    with run.machine:
        assert run.machine.run().status == 0
    assert run.late
    assert len(slots) > len(set(slots)) > 1


@every_isa
def test_a_slot_that_other_cpus_may_still_hold_is_found(
    isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, ask = _Run(isa, tmp_path), Tlb._ask
    monkeypatch.setattr(Tlb, "_ask", lambda tlb, *a, **k: None if run.late else ask(tlb, *a, **k))
    found = run.finding()
    assert found.rule is Rule.REUSE
    assert found.cpu != found.edited.place.cpu
    assert found.frame is not None
    assert found.frame >= run.machine.ram.size // PAGE  # behind RAM
    assert "FileBacking.frames" in str(found.edited)


@every_isa
def test_a_slot_that_is_not_flushed_at_all_is_found(
    isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, issue = _Run(isa, tmp_path), Gather._issue
    monkeypatch.setattr(Gather, "_issue", lambda gather: None if run.late else issue(gather))
    assert run.finding().rule is Rule.REUSE


@every_isa
def test_a_cpu_that_idled_may_hold_a_page_of_a_slot_until_it_works(isa: str) -> None:
    tables = Tables(isa)
    sanitizer = tables.sanitizer
    sanitizer.idles = lambda cpu: cpu == 1
    slot = FRAMES  # the first frame behind RAM
    with tables.edit():
        tables.put(3, 9, tables.leaf(slot + 1))
    sanitizer.to_user(0)
    with pytest.raises(Finding) as caught:
        sanitizer.slot_freed(BASE + slot * PAGE, LARGE)  # it is still shown
    assert (caught.value.va, caught.value.frame) == (9 * PAGE, slot + 1)
    tables = Tables(isa)
    sanitizer = tables.sanitizer
    sanitizer.idles = lambda cpu: cpu == 1
    with tables.edit():
        tables.put(3, 9, tables.leaf(slot + 1))
    sanitizer.to_user(0)
    with tables.edit():
        tables.put(3, 9, 0)
    sanitizer.slot_freed(BASE + (slot + 512) * PAGE, LARGE)  # another slot
    with pytest.raises(Finding) as caught:
        sanitizer.slot_freed(BASE + slot * PAGE, LARGE)
    assert caught.value.cpu == 0  # who took it away has not dropped it
    tables = Tables(isa)
    sanitizer = tables.sanitizer
    sanitizer.idles = lambda cpu: cpu == 1
    with tables.edit():
        tables.put(3, 9, tables.leaf(slot + 1))
    sanitizer.to_user(0)
    with tables.edit():
        tables.put(3, 9, 0)
    sanitizer.flush_page(0, 9 * PAGE)
    sanitizer.slot_freed(BASE + slot * PAGE, LARGE)
    with pytest.raises(Finding) as caught:
        sanitizer.works(1)
    assert (caught.value.rule, caught.value.cpu, caught.value.frame) == (Rule.REUSE, 1, slot + 1)
