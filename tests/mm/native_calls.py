"""Carries out a list of memory calls on this very process and prints what the host's kernel answered.

Run as a program: standard input is the list as JSON, the argument a file to map. Addresses are pages
counted from `BASE`. An answer is a page number, or the name of an errno. Loads and stores are done by system
calls on a pipe, so that a page that forbids them is an EFAULT and no signal.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys

PAGE = 4096
BASE = 0x2000_0000_0000
PAGES = 64
ASKED = ("lo", "sr", "rr", "dc", "lf", "wf", "dd")
_FAILED = (1 << 64) - 1

Call = list[int | str]


class Host:
    """The calls of the host, by the names that the list uses."""

    def __init__(self, path: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        word = ctypes.c_uint64
        self._calls = {}
        for name, count in (
            ("mmap", 6),
            ("munmap", 2),
            ("mprotect", 3),
            ("mremap", 5),
            ("madvise", 3),
            ("msync", 3),
            ("mlock2", 3),
            ("munlock", 2),
        ):
            function = libc[name]
            function.restype, function.argtypes = word, [word] * count
            self._calls[name] = function
        for name in ("read", "write"):
            function = libc[name]
            function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_int, word, word]
            self._calls[name] = function
        self._file = os.open(path, os.O_RDWR)
        self._reading, self._writing = os.pipe()

    def answer(self, name: str, arguments: list[int]) -> int | str:
        """What the call returns: a page number for an address, 0, a byte, or an errno's name."""
        at = BASE + arguments[0] * PAGE
        if name == "load":
            if self._calls["write"](self._writing, at, 1) != 1:
                return errno.errorcode[ctypes.get_errno()]
            return os.read(self._reading, 1)[0]
        if name == "store":
            os.write(self._writing, bytes([arguments[1]]))
            if self._calls["read"](self._reading, at, 1) != 1:
                os.read(self._reading, 1)
                return errno.errorcode[ctypes.get_errno()]
            return 0
        result = self._calls[name](*self._bytes(name, at, arguments))
        if result & 0xFFFF_FFFF == 0xFFFF_FFFF:
            return errno.errorcode[ctypes.get_errno()]
        return (result - BASE) // PAGE if name in ("mmap", "mremap") else 0

    def _bytes(self, name: str, at: int, arguments: list[int]) -> list[int]:
        """The arguments of the C function, from pages to bytes."""
        if name == "mmap":  # page, pages, protection, flags, whether of the file, its page
            _at, count, protection, flags, of_file, offset = arguments
            return [at, count * PAGE, protection, flags, self._file if of_file else _FAILED, offset * PAGE]
        if name == "mremap":  # page, old pages, new pages, flags, target page
            _at, old, new, flags, target = arguments
            return [at, old * PAGE, new * PAGE, flags, BASE + target * PAGE]
        return [at, arguments[1] * PAGE, *arguments[2:]]

    @staticmethod
    def flags() -> list[str]:
        """For each page those letters of /proc/self/smaps that tell what mlock and madvise asked."""
        found, pages = [""] * PAGES, range(0)
        with open("/proc/self/smaps", encoding="utf-8", errors="replace") as smaps:
            for line in smaps:
                name = line.split()[0]
                if "-" in name:
                    start, end = (int(bound, 16) for bound in name.split("-"))
                    pages = range(max(0, (start - BASE) // PAGE), min(PAGES, (end - BASE) // PAGE))
                elif name == "VmFlags:":
                    for number in pages:
                        found[number] = " ".join(word for word in line.split() if word in ASKED)
        return found

    @staticmethod
    def permissions() -> list[str]:
        """For each page what /proc/self/maps says: "rw-p" and so on, or nothing."""
        found = [""] * PAGES
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                bounds, flags = line.split()[:2]
                start, end = (int(bound, 16) for bound in bounds.split("-"))
                for number in range(max(0, (start - BASE) // PAGE), min(PAGES, (end - BASE) // PAGE)):
                    found[number] = flags
        return found


def main() -> None:
    host = Host(sys.argv[1])
    calls: list[tuple[str, list[int]]] = json.load(sys.stdin)
    answers = [host.answer(name, arguments) for name, arguments in calls]
    shown = {"answers": answers, "permissions": host.permissions(), "flags": host.flags()}
    json.dump(shown, sys.stdout)


if __name__ == "__main__":
    main()
