"""Keys, numbers, owners and permissions of what processes share by number (Linux 6.6: ipc/util.c).

    key --> Identifiers --> Shared          number = sequence << 15 | index

Indices are given in turn, so that a number is not used again soon. There is one namespace.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Generic, TypeVar

from aether_emu.errors import Refused
from aether_emu.linux.credentials import IPC_OWNER, SYS_ADMIN, Actor
from aether_emu.linux.ipc.objects import Kept
from aether_emu.mm.physical import Physical

PRIVATE, CREATE, EXCLUSIVE, NO_WAIT = 0, 0o1000, 0o2000, 0o4000
_INDEX_BITS = 15
_SEQUENCES = 1 << 16
_FEWEST = 64  # indices that are used in turn, however few things there are
_NOBODY = 0xFFFF_FFFF


class Shared(Kept):
    """Something with a key, a number, owners and a mode. `removed` once nobody finds it any more."""

    def __init__(self, actor: Actor, key: int, number: int, mode: int) -> None:
        who = actor.credentials
        self._actor, self.key, self.identifier, self.mode = actor, key, number, mode & 0o777
        self.uid = self.creator_uid = who.euid
        self.gid = self.creator_gid = who.egid
        self.removed = False
        self.change_time = 0

    @property
    def index(self) -> int:
        """Its place."""
        return self.identifier & (1 << _INDEX_BITS) - 1

    @property
    def sequence(self) -> int:
        """How often the indices had been used up when it was made."""
        return self.identifier >> _INDEX_BITS

    def permits(self, wanted: int) -> bool:
        """Whether who acts may use it so: bits of a mode, whoever they are meant for (ipcperms)."""
        who = self._actor.credentials
        granted = self.mode
        if who.euid in (self.uid, self.creator_uid):
            granted >>= 6
        elif who.in_group(self.gid) or who.in_group(self.creator_gid):
            granted >>= 3
        wanted = (wanted >> 6 | wanted >> 3 | wanted) & 7
        return not wanted & ~granted or who.has(IPC_OWNER)

    def require(self, wanted: int) -> None:
        """Refused(EACCES) unless it `permits`."""
        if not self.permits(wanted):
            raise Refused(errno.EACCES, "it is another user's")

    def require_owner(self) -> None:
        """Refused(EPERM) unless who acts may change or remove it."""
        who = self._actor.credentials
        if who.euid not in (self.uid, self.creator_uid) and not who.has(SYS_ADMIN):
            raise Refused(errno.EPERM, "it is another user's")

    def change(self, uid: int, gid: int, mode: int, now: int) -> None:
        """IPC_SET, as far as all have it. Refused(EINVAL)."""
        if _NOBODY in (uid, gid):
            raise Refused(errno.EINVAL, "-1 is nobody")
        self.uid, self.gid, self.change_time = uid, gid, now
        self.mode = self.mode & ~0o777 | mode & 0o777
        self.note(uid=uid, gid=gid, mode=self.mode)

    def embody(self, **fields: int) -> None:
        """See `Kept.embody`: who it is, and these fields."""
        owners = {"uid": self.uid, "gid": self.gid, "cuid": self.creator_uid, "cgid": self.creator_gid}
        found = {"id": self.identifier, "key": self.key & _NOBODY, "mode": self.mode}
        super().embody(**found, **owners, **fields)


S = TypeVar("S", bound=Shared)


class Identifiers(Generic[S]):
    """All things of one kind, `most` of them. `now` is the wall-clock time in seconds."""

    def __init__(self, actor: Actor, now: Callable[[], int], most: int) -> None:
        self.actor, self.now, self._most = actor, now, most
        self._at: dict[int, S] = {}
        self._next = 0
        self._sequence = 0
        self._last = -1

    def __len__(self) -> int:
        return len(self._at)

    @property
    def highest(self) -> int:
        """The highest index in use; 0 if there is none."""
        return max(self._at, default=0)

    def all(self) -> list[S]:
        """In the order of their indices."""
        return [self._at[index] for index in sorted(self._at)]

    def with_key(self, key: int) -> S | None:
        """The one that is found by a key."""
        return next((each for each in self._at.values() if each.key == key and not each.removed), None)

    def get(self, key: int, flags: int, make: Callable[[], S], check: Callable[[S], None]) -> S:
        """shmget(2), semget(2), msgget(2): ENOENT, EEXIST, EACCES, and what `check` refuses."""
        found = self.with_key(key) if key != PRIVATE else None
        if found is None:
            if key != PRIVATE and not flags & CREATE:
                raise Refused(errno.ENOENT, f"nothing has the key {key:#x}")
            return make()
        if flags & CREATE and flags & EXCLUSIVE:
            raise Refused(errno.EEXIST, f"the key {key:#x} is taken")
        check(found)
        found.require(flags)
        return found

    def take_number(self) -> int:
        """The number of a new one. Refused(ENOSPC)."""
        if len(self._at) >= self._most:
            raise Refused(errno.ENOSPC, f"there are {self._most} already")
        end = min(max(len(self._at) * 3 // 2, _FEWEST), self._most)
        line = (*range(self._next, end), *range(end))
        index: int = next(index for index in line if index not in self._at)
        if index <= self._last:
            self._sequence = (self._sequence + 1) % _SEQUENCES
        self._last, self._next = index, index + 1
        return (self._sequence << _INDEX_BITS) | index

    def add(self, made: S) -> S:
        """It can be found from now on."""
        made.change_time = self.now()
        self.place(made)
        return made

    def place(self, one: S) -> None:
        """It is at its index."""
        self._at[one.index] = one

    def capture_numbers(self) -> tuple[int, int, int]:
        """Which number the next one gets."""
        return self._next, self._sequence, self._last

    def restore_numbers(self, state: tuple[int, int, int]) -> None:
        """Take over what `capture_numbers` gave."""
        self._next, self._sequence, self._last = state

    def numbered(self, number: int) -> S:
        """The one of a number. Refused(EINVAL)."""
        found = self._at.get(number & (1 << _INDEX_BITS) - 1) if number >= 0 else None
        if found is None or found.identifier != number:
            raise Refused(errno.EINVAL, f"nothing has the number {number}")
        return found

    def at(self, index: int) -> S:
        """The one of an index. Refused(EINVAL)."""
        found = self._at.get(index & (1 << _INDEX_BITS) - 1)
        if found is None:
            raise Refused(errno.EINVAL, f"nothing is at {index}")
        return found

    def forget(self, one: S) -> None:
        """Nobody finds it any more."""
        one.removed = True
        self._at.pop(one.index, None)


class Memory:
    """Bytes of the kernel's memory that something takes, an eighth of all at most. `physical` has them."""

    def __init__(self, ram: int, physical: Physical | None = None) -> None:
        self.limit, self.used, self.physical = ram // 8, 0, physical

    def take(self, size: int) -> None:
        """So many more. Refused(ENOMEM)."""
        if self.used + size > self.limit:
            raise Refused(errno.ENOMEM, f"they hold {self.limit} bytes of memory at most")
        self.used += size

    def give_back(self, size: int) -> None:
        """So many fewer."""
        self.used -= size
