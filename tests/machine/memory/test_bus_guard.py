"""The SIGBUS guard: a lost page stops the guest at its instruction; foreign signals do what they always did.

Every scenario runs in a child, which a regression would kill.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from aether_emu.machine import native
from aether_emu.machine.memory.aperture import Aperture, ApertureFile, BackingFailed, BeyondEnd
from aether_emu.machine.memory.bus_guard import BusGuard, SignalHandlerError
from tests.machine.child import HANG_SECONDS, in_other_process, outcome_of, survives
from tests.machine.memory.small_disk import fill_disk, on_small_disk
from tests.machine.unicorn.flat_guest import CODE, FlatGuest, assemble, emu_stop_address

BASE = 0x1_0000_0000
PAGE = 4096

# Each access to [rdi], in page 1 of the file, with the instructions that prepare it.
ACCESSES = {
    "load": ("", "mov rax, [rdi]"),
    "store": ("", "mov [rdi], r8"),
    "locked add": ("", "lock add [rdi], r8"),
    "exchange-add": ("", "lock xadd [rdi], rax"),
    "read-modify-write": ("", "add [rdi], r8"),
    "push": ("lea rsp, [rdi + 8]", "push r8"),
    "vector load": ("", "movdqu xmm0, [rdi]"),
    "string move": ("mov rsi, rdi; mov ecx, 100", "rep movsb"),
    "string fill": ("mov ecx, 100", "rep stosb"),
}


class Scene:
    """A file of two pages (or `content`) in an aperture that a guest maps, under guard."""

    def __init__(
        self,
        source: str,
        *,
        content: bytes = b"*" * 2 * PAGE,
        writable: bool = True,
        page_size: int = PAGE,
    ) -> None:
        self.fd, path = tempfile.mkstemp()
        os.unlink(path)
        os.write(self.fd, content)
        self.aperture = Aperture(BASE, 8 << 20, page_size)
        self.file: ApertureFile = self.aperture.attach(self.fd, "file", writable=writable)
        self.guest = FlatGuest(source, self.aperture)
        self.guest["rdi"] = self.file.frames(0, 2, write=writable)[0] + PAGE
        self.guard = BusGuard.instance()
        self.token = self.guard.register(
            self.aperture.host_address, self.aperture.size, emu_stop_address(), self.guest.handle
        )

    def drained(self) -> list[int]:
        """Guest-physical addresses of the accesses that found no page."""
        return [address - self.aperture.host_address + BASE for address in self.guard.drain(self.token)]

    def truncate(self, length: int) -> None:
        """Another process cuts or extends the file."""
        in_other_process(lambda: os.ftruncate(self.fd, length))


@pytest.fixture(params=["machine code", "python"])
def handler_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(BusGuard, "_instance", None)
    if request.param == "python":
        monkeypatch.setattr(native, "available", lambda: False)
    return str(request.param)


@pytest.mark.parametrize("kind", ACCESSES)
@pytest.mark.parametrize("writable", [True, False], ids=["shared", "private"])
def test_the_guest_stops_at_the_access_with_the_state_before_it(
    handler_kind: str, kind: str, writable: bool
) -> None:
    prepare, access = ACCESSES[kind]

    def scenario() -> None:
        scene = Scene(f"inc rbx; {prepare}; {access}; inc rdx; nop", writable=writable)
        guest, target = scene.guest, scene.guest["rdi"]
        guest["r8"], guest["rax"] = 7, 9
        guest.run()
        assert (guest["rbx"], guest["rdx"]) == (1, 1) and scene.drained() == []
        # More than once: the signal must not stay blocked, nor the zero page stay where the file was.
        for _ in range(3):
            scene.truncate(PAGE)
            guest["rdi"], guest["rbx"], guest["rdx"], guest["rax"] = target, 0, 0, 9
            guest.run()
            assert guest["rip"] == CODE + len(assemble(f"inc rbx; {prepare}"))
            assert (guest["rbx"], guest["rdx"], guest["rax"], guest["rdi"]) == (1, 0, 9, target)
            assert scene.drained() == [target]
            scene.truncate(2 * PAGE)
            assert scene.aperture.lost(scene.aperture.host_address + PAGE) == (scene.file, 1)
            guest.run(guest["rip"])
            assert (guest["rbx"], guest["rdx"]) == (1, 1) and scene.drained() == []

    survives(scenario)


def test_a_string_move_stops_in_its_middle_and_goes_on_from_there(handler_kind: str) -> None:
    def scenario() -> None:
        scene = Scene("mov ecx, 100; rep movsb; nop")
        guest = scene.guest
        guest["rsi"], guest["rdi"] = BASE, BASE + PAGE - 40
        scene.truncate(PAGE)
        guest.run()
        assert (guest["rip"], guest["rcx"], guest["rdi"]) == (CODE + 5, 60, BASE + PAGE)
        assert scene.drained() == [BASE + PAGE]
        scene.truncate(2 * PAGE)
        scene.aperture.lost(scene.aperture.host_address + PAGE)
        guest.run(guest["rip"])
        assert (guest["rcx"], guest["rsi"]) == (0, BASE + 100)
        assert os.pread(scene.fd, 61, PAGE) == b"*" * 60 + bytes(1)

    survives(scenario)


@pytest.mark.parametrize("kind", ["load", "store", "exchange-add", "string move"])
def test_truncation_while_the_guest_runs_stops_it_at_the_access(handler_kind: str, kind: str) -> None:
    prepare, access = ACCESSES[kind]

    def scenario() -> None:
        # The guest counts its rounds in page 0, where the other process reads them before it truncates.
        count = "inc rbx; mov [r9], rbx; mov rdi, r10"
        scene = Scene(f"round: {count}; {prepare}; {access}; inc rdx; jmp round")
        guest = scene.guest
        guest["r9"], guest["r10"] = BASE, BASE + PAGE
        os.pwrite(scene.fd, bytes(8), 0)

        def cut() -> None:
            while int.from_bytes(os.pread(scene.fd, 8, 0), "little") < 1000:
                os.sched_yield()
            os.ftruncate(scene.fd, PAGE)

        child = os.fork()
        if child == 0:
            signal.alarm(HANG_SECONDS)
            cut()
            os._exit(0)
        guest.run()
        os.waitpid(child, 0)
        assert guest["rbx"] - guest["rdx"] == 1 and guest["rbx"] >= 1000
        assert guest["rip"] == CODE + len(assemble(f"{count}; {prepare}"))
        (lost,) = scene.drained()
        assert BASE + PAGE <= lost < BASE + PAGE + 100

    survives(scenario)


def test_an_access_inside_a_c_function_stops_the_guest_at_the_next_access_or_block(handler_kind: str) -> None:
    def scenario() -> None:
        scene = Scene("fld tbyte ptr [rdi]; inc rbx; mov rax, [r9]; inc rdx; nop")
        guest = scene.guest
        guest["r9"] = BASE
        scene.truncate(PAGE)
        guest.run()
        assert (guest["rbx"], guest["rdx"]) == (1, 0)
        assert scene.drained()[0] == BASE + PAGE

    survives(scenario)


def test_a_lost_page_is_recovered_and_the_next_access_to_it_is_beyond_the_end(handler_kind: str) -> None:
    def scenario() -> None:
        scene = Scene("mov rax, [rdi]; nop")
        scene.truncate(PAGE)
        scene.guest.run()
        (address,) = scene.guard.drain(scene.token)
        assert scene.aperture.lost(address) == (scene.file, 1)
        assert scene.file.size == PAGE
        with pytest.raises(BeyondEnd):
            scene.file.frame(1)
        scene.truncate(2 * PAGE)
        os.pwrite(scene.fd, b"restored", PAGE)
        scene.guest["rdi"] = scene.file.frame(1)
        scene.guest.run()
        assert scene.guest["rax"].to_bytes(8, "little") == b"restored"

    survives(scenario)


def test_a_store_into_a_hole_on_a_full_disk_stops_the_guest_and_can_be_repeated(
    handler_kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scenario() -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        scene = Scene("mov [rdi], rsi; nop")
        os.ftruncate(scene.fd, 4 * PAGE)
        fill_disk(tmp_path)
        scene.guest["rdi"], scene.guest["rsi"] = BASE + 2 * PAGE, 0x77
        scene.guest.run()
        assert scene.guest["rip"] == CODE and scene.drained() == [BASE + 2 * PAGE]
        scene.aperture.lost(scene.aperture.host_address + 2 * PAGE)
        with pytest.raises(BackingFailed):
            scene.file.frame(2, write=True)
        (tmp_path / "filler").unlink()
        assert scene.file.frame(2, write=True) == BASE + 2 * PAGE
        scene.guest.run()
        assert scene.guest["rip"] == scene.guest.end
        assert scene.file.read(2 * PAGE, 1) == b"\x77"

    on_small_disk(tmp_path, scenario)


@pytest.mark.parametrize("page_size", [16384, 65536])
def test_a_wild_access_behind_a_large_page_that_ends_the_file_stops_the_guest(
    handler_kind: str, page_size: int
) -> None:
    def scenario() -> None:
        scene = Scene("mov rax, [rdi]; nop", content=b"x" * 5000, page_size=page_size)
        scene.guest["rdi"], scene.guest["rax"] = BASE + page_size - 8, 1
        scene.guest.run()
        assert (scene.guest["rip"], scene.guest["rax"]) == (scene.guest.end, 0)
        scene.guest["rdi"] = BASE + page_size
        scene.guest.run()
        assert scene.guest["rip"] == CODE and scene.drained() == [BASE + page_size]

    survives(scenario)


def test_python_touching_a_lost_page_survives_too(handler_kind: str) -> None:
    def scenario() -> None:
        scene = Scene("nop")
        scene.truncate(0)
        assert ctypes.string_at(scene.aperture.host_address, 2 * PAGE) == bytes(2 * PAGE)
        assert {address & -PAGE for address in scene.drained()} == {BASE, BASE + PAGE}

    survives(scenario)


def test_a_stop_between_runs_does_not_stop_the_next_run(handler_kind: str) -> None:
    def scenario() -> None:
        scene = Scene("inc rbx; inc rdx; nop")
        scene.truncate(0)
        ctypes.string_at(scene.aperture.host_address, 1)
        scene.guest.run()
        assert (scene.guest["rip"], scene.guest["rdx"]) == (scene.guest.end, 1)

    survives(scenario)


def test_each_range_has_its_own_addresses_and_engine(handler_kind: str) -> None:
    def scenario() -> None:
        first, second = Scene("mov rax, [rdi]; nop"), Scene("mov rax, [rdi]; nop")
        for scene in (first, second):
            scene.truncate(PAGE)
        second.guest.run()
        assert second.guest["rip"] == CODE
        assert first.drained() == [] and second.drained() == [BASE + PAGE]
        first.guest.run()
        assert first.guest["rip"] == CODE
        assert second.drained() == [] and first.drained() == [BASE + PAGE]

    survives(scenario)


def test_engines_that_share_a_range_are_aimed_at_in_turn(handler_kind: str) -> None:
    def scenario() -> None:
        scene = Scene("mov rax, [rdi]; nop")
        other = FlatGuest("mov rax, [rdi]; nop", scene.aperture)
        other["rdi"] = BASE + PAGE
        scene.truncate(PAGE)
        scene.guard.aim(scene.token, emu_stop_address(), other.handle)
        other.run()
        assert other["rip"] == CODE and scene.drained() == [BASE + PAGE]

    survives(scenario)


def test_a_host_that_refuses_the_handler_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def scenario() -> None:
        monkeypatch.setattr(signal, "SIGBUS", signal.SIGKILL)  # nobody may handle it
        monkeypatch.setattr(BusGuard, "_instance", None)
        with pytest.raises(SignalHandlerError, match=os.strerror(errno.EINVAL)) as caught:
            BusGuard.instance()
        assert caught.value.errno == errno.EINVAL

    survives(scenario)


def test_overlapping_ranges_are_refused() -> None:
    def scenario() -> None:
        guard = BusGuard.instance()
        guard.register(0x10000, 0x1000)
        guard.register(0x11000, 0x1000)
        with pytest.raises(AssertionError, match="guarded already"):
            guard.register(0x10FFF, 2)

    survives(scenario)


def test_an_unregistered_range_is_foreign_again_and_the_others_stay(handler_kind: str) -> None:
    def scenario() -> None:
        scenes = [Scene("mov rax, [rdi]; nop") for _ in range(3)]
        for scene in scenes:
            scene.truncate(PAGE)
        for index in (1, 2):
            scenes[index].guard.unregister(scenes[index].token)
        scenes[0].guest.run()
        assert scenes[0].drained() == [BASE + PAGE]
        os.write(2, b"only the unregistered one may die\n")
        scenes[1].guest.run()

    assert outcome_of(scenario) == (signal.SIGBUS, "")


def foreign_fault() -> None:
    fd = os.memfd_create("foreign")
    os.ftruncate(fd, PAGE)
    aperture = Aperture(BASE, 2 << 20, PAGE)
    file = aperture.attach(fd, "foreign", writable=True)
    file.frame(0)
    os.ftruncate(fd, 0)
    ctypes.string_at(aperture.host_address, 1)


def sent_signal() -> None:
    os.kill(os.getpid(), signal.SIGBUS)


def guarded(action: Callable[[], None], *, disposition: signal.Handlers | None = None) -> Callable[[], None]:
    """The action, after a guard was installed over the given disposition."""

    def scenario() -> None:
        signal.signal(signal.SIGBUS, disposition or signal.SIG_DFL)
        Scene("nop")
        action()

    return scenario


@pytest.mark.parametrize("action", [foreign_fault, sent_signal])
def test_a_foreign_bus_error_kills_the_process_as_ever(handler_kind: str, action: Callable[[], None]) -> None:
    assert outcome_of(guarded(action)) == (signal.SIGBUS, "")


def test_a_sent_signal_is_foreign_even_if_its_sender_reads_like_a_guarded_address(handler_kind: str) -> None:
    def scenario() -> None:
        # Where a fault has its address, a sent signal has the sender's process and user.
        BusGuard.instance().register(os.getpid() | os.getuid() << 32, 1)
        sent_signal()

    assert outcome_of(scenario) == (signal.SIGBUS, "")


def test_an_ignored_signal_stays_ignored_and_a_fault_cannot_be(handler_kind: str) -> None:
    survives(guarded(sent_signal, disposition=signal.SIG_IGN))
    assert outcome_of(guarded(foreign_fault, disposition=signal.SIG_IGN)) == (signal.SIGBUS, "")


@pytest.mark.parametrize("action", [foreign_fault, sent_signal])
def test_the_previous_handler_gets_what_is_foreign(
    handler_kind: str, action: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    def scenario() -> None:
        faulthandler.enable(2)
        Scene("nop")
        action()

    assert outcome_of(scenario) == (signal.SIGBUS, "")
    assert "Bus error" in capfd.readouterr().err


def test_without_the_guard_the_process_dies() -> None:
    """The hazard itself: if this ever fails, the scenarios above prove nothing."""

    def scenario() -> None:
        scene = Scene("mov rax, [rdi]; nop")
        scene.guard.unregister(scene.token)
        scene.truncate(PAGE)
        scene.guest.run()

    assert outcome_of(scenario) == (signal.SIGBUS, "")
