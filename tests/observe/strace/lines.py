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

_AS_ON_ARM64 = (
    (r"^open\(", "openat(AT_FDCWD, "),
    (r"^access\(", "faccessat(AT_FDCWD, "),
    (r"^readlink\(", "readlinkat(AT_FDCWD, "),
    (r"^lstat\((.*)\) = ", r"newfstatat(AT_FDCWD, \1, AT_SYMLINK_NOFOLLOW) = "),
    (r"^rename\((.*), (.*)\) = ", r"renameat(AT_FDCWD, \1, AT_FDCWD, \2) = "),
    (r"^unlink\((.*)\) = ", r"unlinkat(AT_FDCWD, \1, 0) = "),
    (r"^pipe\((.*)\) = ", r"pipe2(\1, 0) = "),
    # A C library for arm64 has no restorer of its own.
    (r"sa_flags=SA_RESTORER, sa_restorer=ADDRESS", "sa_flags=0"),
    (r"sa_flags=SA_RESTORER\|([A-Z_|]*), sa_restorer=ADDRESS", r"sa_flags=\1"),
    # A register that was interrupted, and the size of a C library's own data.
    (r"^(rt_sigreturn\(.*\)) = .*", r"\1"),
    (r"^mmap\(NULL, 44[08],", "mmap(NULL, 44x,"),
    (r"^readlinkat\(AT_FDCWD, \"/proc/self/exe\".*", "readlinkat(AT_FDCWD, EXE)"),
)
"""What an x86_64 program says otherwise than the same source built for arm64, which has no old calls."""


def as_on_arm64(lines: Iterable[str]) -> list[str]:
    """Lines of `comparable` as the same program has them on arm64."""
    texts = [line for line in lines if not line.startswith("arch_prctl(")]
    for pattern, name in _AS_ON_ARM64:
        texts = [re.sub(pattern, name, text) for text in texts]
    return texts


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
