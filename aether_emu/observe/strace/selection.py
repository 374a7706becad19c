"""What of a run is shown: calls by name, families of calls, page faults, signals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aether_emu.errors import ConfigError
from aether_emu.linux.abi.arm64_calls import SYSTEM_CALLS as ARM64_CALLS
from aether_emu.linux.abi.x86_64_calls import SYSTEM_CALLS as X86_CALLS
from aether_emu.observe.strace.declarations import CALLS

KINDS = ("page-fault", "signal", "syscall")
_ALIASES = {"page-faults": "page-fault", "signals": "signal", "syscalls": "syscall"}
_NAMES = frozenset(X86_CALLS.values()) | frozenset(ARM64_CALLS.values())


def _with_role(role: str) -> frozenset[str]:
    return frozenset(
        name for name, call in CALLS.items() if any(kind.role == role for kind in call.arguments)
    )


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FAMILIES: dict[str, frozenset[str]] = {
    "file": _with_role("file") | {"getcwd"},
    "desc": _with_role("desc")
    | _words(
        """open creat pipe pipe2 eventfd eventfd2 memfd_create epoll_create epoll_create1 poll ppoll select
        pselect6 socketpair"""
    ),
    "memory": _words(
        """brk madvise mincore mlock mlock2 mlockall mmap mprotect mremap mseal msync munlock munlockall
        munmap process_madvise process_mrelease pkey_mprotect remap_file_pages
        mbind get_mempolicy set_mempolicy move_pages
        shmat shmdt"""
    ),
    "process": _words(
        """clone clone3 execve execveat exit exit_group fork vfork kill tkill tgkill wait4 waitid
        rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal"""
    ),
    "signal": _words(
        """kill tkill tgkill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
        rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sigaltstack signalfd signalfd4"""
    ),
    "network": _words(
        """accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg
        sendfile sendmmsg sendmsg sendto setsockopt shutdown socket socketpair"""
    ),
    "creds": _words(
        """getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setresuid setresgid
        setreuid setregid setfsuid setfsgid setgroups capget capset prctl"""
    ),
    "clock": _words("clock_adjtime clock_getres clock_gettime clock_settime gettimeofday settimeofday time"),
}


@dataclass(frozen=True)
class Selection:
    """What is shown. `calls` is None for every call."""

    calls: frozenset[str] | None
    faults: bool
    signals: bool

    def shows(self, call: str) -> bool:
        """Whether a call of this name is shown."""
        return self.calls is None or call in self.calls


EVERYTHING = Selection(None, faults=True, signals=True)


def all_words() -> list[str]:
    """What `select` knows: kinds, families, names of calls."""
    return [*KINDS, *(f"%{name}" for name in sorted(FAMILIES)), *sorted(CALLS)]


def select(words: Iterable[str]) -> Selection:
    """What `--strace-only` asks for. Raises ConfigError, with the nearest word, for one that means nothing.

    A family is `%memory` or `memory`; `signal` alone are the signals that arrive, `%signal` the calls about
    them.
    """
    calls: set[str] | None = set()
    kinds = set()
    for word in words:
        name = _ALIASES.get(word, word)
        if name in ("syscall", "all"):
            calls = None
        if name == "all":
            kinds |= {"page-fault", "signal"}
        elif name in KINDS:
            kinds.add(name)
        elif name.removeprefix("%") in FAMILIES:
            if calls is not None:
                calls |= FAMILIES[name.removeprefix("%")]
        elif name in _NAMES:
            if calls is not None:
                calls.add(name)
        else:
            raise ConfigError("strace-only", word, _nearest(word))
    return Selection(
        None if calls is None else frozenset(calls), faults="page-fault" in kinds, signals="signal" in kinds
    )


def _nearest(word: str) -> str:
    known = [*KINDS, "all", *(f"%{family}" for family in FAMILIES), *FAMILIES, *sorted(_NAMES)]
    edits, _, nearest = min((_edits(word, name), index, name) for index, name in enumerate(known))
    families = " ".join(f"%{family}" for family in FAMILIES)
    allowed = f"a system call, one of {' '.join(KINDS)}, or a family ({families})"
    return f"did you mean {nearest}?" if 2 * edits < len(word) else allowed


def _edits(first: str, second: str) -> int:
    """How many letters have to be changed, added or left out to make one word the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for count, letter in enumerate(first, 1):
        before, row[0] = row[0], count
        for index, other in enumerate(second, 1):
            before, row[index] = (
                row[index],
                min(row[index] + 1, row[index - 1] + 1, before + (letter != other)),
            )
    return row[-1]
