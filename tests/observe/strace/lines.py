"""What strace and ours say of one program, made comparable: what may differ between two runs has one name."""

from __future__ import annotations

import re
from collections.abc import Iterable

_REPLACED = (
    (r"0x[0-9a-f]{5,}", "ADDRESS"),
    (r'getrandom\("[^"]*"', "getrandom(BYTES"),
    (r"left \{[^}]*\}", "left TIME"),
    (r"sysinfo\(\{.*\}\)", "sysinfo({...})"),
    (r'execve\(".*/([^"]*)", \[".*?"(?:\.\.\.)?\], ADDRESS /\* .* \*/\)', r"execve(\1)"),
    (r'readlink\("/proc/self/exe", .*\) = \d+', 'readlink("/proc/self/exe")'),
    (r"getppid\(\) = \d+", "getppid() = PARENT"),
    (r"\b\d{11,}\b", "LARGE"),
    # The kernel's own word for a call that a signal has ended. The program gets EINTR.
    (r"\? ERESTARTNOHAND \(.*\)", "-1 EINTR (Interrupted system call)"),
)
_OWN_ID = re.compile(r"^(?:getpid|gettid|set_tid_address)\(.*\) += (\d+)$")
_ITS_PLACES = r"(?<== ){0}$|(?<=kill\(){0}|(?<=^tgkill\(SELF, ){0}|(?<=si_pid=){0}"
_NOT_SERVED = ("rseq(",)
"""Calls that a kernel may not have, and a C library does without."""


def comparable(lines: Iterable[str]) -> list[str]:
    """The lines with fixed names for addresses, for what chance has made, and for the process's number.

    Padding goes with the length of those, and is left out.
    """
    kept = [line for line in lines if not line.startswith(_NOT_SERVED)]
    own = next((found[1] for line in kept if (found := _OWN_ID.match(line))), "none")
    texts = []
    for line in kept:
        text = re.sub(" += ", " = ", line)
        for _ in range(2):  # tgkill has it twice
            text = re.sub(_ITS_PLACES.format(own), "SELF", text)
        for pattern, name in _REPLACED:
            text = re.sub(pattern, name, text)
        texts.append(text)
    return texts


def without_prefix(text: str) -> list[str]:
    """Our lines without task and time."""
    return [line.split(" ", 2)[2] for line in text.splitlines()]
