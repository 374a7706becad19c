"""/sys/kernel/mm/transparent_hugepage: where huge pages come without being asked for, as root wants it.

What is written counts at once. The order of words and of refusals is Linux's (mm/huge_memory.c, mm/shmem.c,
mm/khugepaged.c).
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from aether_emu.errors import Refused, shown
from aether_emu.linux.files.synthetic import Text
from aether_emu.linux.kernel import Kernel
from aether_emu.mm.counters import Event
from aether_emu.mm.huge_settings import COMPACTS, chosen
from aether_emu.mm.physical import Huge, SharedHuge

_SIZE = 4096
_WRITABLE = stat.S_IFREG | 0o644
_MOST = (1 << 32) - 1


def in_brackets(words: tuple[str, ...], word: str) -> bytes:
    """The words as a line, the chosen one in brackets."""
    return " ".join(f"[{each}]" if each == word else each for each in words).encode() + b"\n"


def transparent_texts(kernel: Kernel) -> Mapping[str, Text]:
    """What is in the folder, by paths below it."""
    thp, shared = kernel.physical.thp, kernel.physical.shared_huge
    assert thp is not None and shared is not None, "a machine with Linux has them"
    page = kernel.config.page_size
    texts = {
        "enabled": _choice(kernel, thp.WORDS, lambda: thp.setting, thp.change),
        "defrag": _choice(kernel, COMPACTS, lambda: thp.compacts, partial(_set_defrag, thp, shared)),
        "shmem_enabled": _choice(kernel, shared.WORDS, lambda: shared.setting, shared.change),
        "use_zero_page": _number(lambda: int(thp.zero_page), partial(_set_zero_page, thp), most=1),
        "hpage_pmd_size": Text(lambda: b"%d\n" % (page << thp.order), size=_SIZE),
    }
    for order in shared.modes:
        folder = f"hugepages-{page << order >> 10}kB"
        texts[f"{folder}/shmem_enabled"] = _choice(
            kernel, shared.MODES, partial(shared.modes.__getitem__, order), partial(shared.change_mode, order)
        )
        if order in thp.modes:
            texts[f"{folder}/enabled"] = _choice(
                kernel, thp.MODES, partial(thp.modes.__getitem__, order), partial(thp.change_mode, order)
            )
    return {**texts, **{f"khugepaged/{name}": text for name, text in _scan_texts(kernel, thp).items()}}


def _choice(
    kernel: Kernel, words: tuple[str, ...], value: Callable[[], str], change: Callable[[str], None]
) -> Text:
    """One of some words. The scan may have something to do from then on, or nothing any more."""

    def accept(data: bytes) -> int:
        change(chosen(_word(data).decode("latin-1"), words))
        assert kernel.khugepaged is not None, "a machine with Linux has it"
        kernel.khugepaged.consider(kernel.time_now())
        return len(data)

    return Text(lambda: in_brackets(words, value()), _WRITABLE, accept, size=_SIZE)


def _number(value: Callable[[], int], change: Callable[[int], None], *, least: int = 0, most: int) -> Text:
    """A number within bounds."""

    def accept(data: bytes) -> int:
        text = _word(data).removeprefix(b"+")
        if not text.isdigit() or len(text) > _SIZE or not least <= int(text) <= most:
            raise Refused(errno.EINVAL, f"that is a number from {least} to {most}, not {shown(data)}")
        change(int(text))
        return len(data)

    return Text(lambda: b"%d\n" % value(), _WRITABLE, accept, size=_SIZE)


def _word(data: bytes) -> bytes:
    """What was written, without the end of its line (Linux: sysfs_streq)."""
    return data.removesuffix(b"\n")


def _set_defrag(thp: Huge, shared: SharedHuge, word: str) -> None:
    thp.compacts = shared.compacts = word


def _set_zero_page(thp: Huge, wanted: int) -> None:
    thp.zero_page = bool(wanted)


def _scan_texts(kernel: Kernel, thp: Huge) -> dict[str, Text]:
    """Of khugepaged."""
    khugepaged, n = kernel.khugepaged, kernel.physical.counters.n
    assert khugepaged is not None, "a machine with Linux has it"
    scan, last = khugepaged.scan, (1 << thp.order) - 1

    def set_terms(**wanted: Any) -> None:
        scan.terms = replace(scan.terms, **wanted)

    def set_pages(wanted: int) -> None:
        scan.pages = wanted

    def set_alloc_sleep(wanted: int) -> None:
        khugepaged.alloc_sleep = wanted

    def set_sleep(wanted: int) -> None:
        khugepaged.set_sleep(wanted, kernel.time_now())

    return {
        "defrag": _number(lambda: int(scan.terms.moves), lambda to: set_terms(moves=bool(to)), most=1),
        "pages_to_scan": _number(lambda: scan.pages, set_pages, least=1, most=_MOST),
        "scan_sleep_millisecs": _number(lambda: khugepaged.sleep, set_sleep, most=_MOST),
        "alloc_sleep_millisecs": _number(lambda: khugepaged.alloc_sleep, set_alloc_sleep, most=_MOST),
        "max_ptes_none": _number(lambda: scan.terms.absent, lambda to: set_terms(absent=to), most=last),
        "max_ptes_shared": _number(lambda: scan.terms.shared, lambda to: set_terms(shared=to), most=last),
        "max_ptes_swap": _number(lambda: scan.terms.swapped, lambda to: set_terms(swapped=to), most=last),
        "pages_collapsed": Text(lambda: b"%d\n" % n[Event.HUGE_COLLAPSE], size=_SIZE),
        "full_scans": Text(lambda: b"%d\n" % scan.passes, size=_SIZE),
    }
