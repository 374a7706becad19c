"""Pages that go to swap and come back, beside what any way of doing it must do to their bytes.

The floor compresses each page, keeps the result, copies it back expanded: no entry, no flush, no accounts.
Half of the pages are a word all over, as much of real memory is; the floor finds that too.
"""

from __future__ import annotations

import random

from aether_emu.computer import Computer, lowest_kernel_base, unicorn_cpus
from aether_emu.config import Config
from aether_emu.mm import mapping
from aether_emu.mm.fault import Faults
from aether_emu.mm.limits import Limits
from aether_emu.mm.reclaim import Reclaim
from aether_emu.mm.swap.codec import best_codec
from aether_emu.mm.user import UserMemory
from aether_emu.observe.bench.figure import BenchError, Figure, collector_off, now
from aether_emu.observe.bench.reserved import BESIDE, reserve
from aether_emu.observe.bench.tables import FORMATS
from aether_emu.policy.reclaim import connect

_PAGES, _AT, _REPETITIONS = 2048, 1 << 30, 5


def _contents(size: int) -> list[bytes]:
    chance = random.Random(1)
    texts = [chance.randbytes(size >> 4) * 16 for _ in range(64)]
    return [bytes([number & 255]) * size if number % 2 else texts[number % 64] for number in range(_PAGES)]


def _ours(isa: str, beside: int) -> float:
    """CPU seconds for each page, with `beside` more bytes mapped that nobody touches."""
    fmt = FORMATS[isa]()
    size, cpus = fmt.page_size, unicorn_cpus(isa, fmt, ticks=lambda _hz: 0, random=lambda: 0)
    computer = Computer(
        fmt, cpus, ram=2 * _PAGES * size, aperture=8 << 20, kernel_base=lowest_kernel_base(fmt)
    )
    connect(
        computer.physical, fmt, Config(ram=2 * _PAGES * size, swap=_PAGES * size, swap_pool=_PAGES * size)
    )
    limits = Limits(user_base=size, user_end=1 << 40, areas=64, stack=1 << 20)
    space = computer.new_space(limits)
    try:
        reserve(space, beside)
        flags = mapping.MAP_PRIVATE | mapping.MAP_ANONYMOUS | mapping.MAP_FIXED
        mapping.map_memory(space, mapping.Request(_AT, _PAGES * size, 3, flags, None, 0))
        UserMemory(space).write(_AT, b"".join(_contents(size)))
        reclaim, faults = computer.physical.reclaim, Faults(computer.physical)
        assert isinstance(reclaim, Reclaim)
        frames = space.shown(_AT, _AT + _PAGES * size).tolist()
        with collector_off():
            began = now()
            taken = reclaim.take(frames)
            for page in range(_PAGES):
                faults.resolve(space, _AT + page * size, 9)
            spent = now() - began
        if taken != _PAGES or UserMemory(space).read(_AT, _PAGES * size) != b"".join(_contents(size)):
            raise BenchError("pages did not go, or came back wrong")
        return spent / _PAGES
    finally:
        space.destroy()
        computer.close()


def _floor(isa: str) -> float:
    size, codec = FORMATS[isa]().page_size, best_codec()
    pages, memory, kept = _contents(size), bytearray(size), list[bytes]()
    with collector_off():
        began = now()
        for page in pages:
            kept.append(page[:8] if page[:8] * (size >> 3) == page else codec.compress(page))
        for each in kept:
            memory[:] = each * (size >> 3) if len(each) == 8 else codec.expand(each)
        return (now() - began) / _PAGES


def figure(isa: str, goal: float) -> Figure:
    """Pages out and back, of one ISA."""
    return Figure(
        "swap",
        isa,
        f"take {_PAGES} pages to swap, and bring each back by a fault",
        "mm.reclaim, mm.swap",
        f"each page compressed and expanded ({best_codec().name}), or found to be one word",
        "page",
        lambda: _ours(isa, 0),
        lambda: _floor(isa),
        _REPETITIONS,
        goal,
    )


def growth(isa: str, goal: float) -> Figure:
    """The same where 64 GiB more are mapped, which nobody touches, beside where they are not."""
    return Figure(
        "growth-swap",
        isa,
        "a page goes to swap and comes back where 64 GiB more are mapped that nobody touches",
        "mm.reclaim, mm.swap",
        "the same without those",
        "page",
        lambda: _ours(isa, BESIDE),
        lambda: _ours(isa, 0),
        _REPETITIONS,
        goal,
    )
