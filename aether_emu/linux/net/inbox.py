"""What was sent to a socket and not received yet: messages, or a stream of bytes cut where they were sent."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from aether_emu.errors import Refused
from aether_emu.linux.files.open_file import OpenFile

_PAGE, _HEAD, _ALIGNED, _RECORD = 4096, 320, 512, 256
_IN_ONE = 4 * _PAGE - _HEAD


class Credentials(NamedTuple):
    """Who sent something, as SO_PEERCRED and SCM_CREDENTIALS show it."""

    pid: int
    uid: int
    gid: int


NOBODY = Credentials(0, 0xFFFF_FFFF, 0xFFFF_FFFF)


class SocketAccount:
    """Bytes that all sockets hold for those who have not received them yet: `used` of `limit`."""

    def __init__(self, memory: int) -> None:
        self.limit, self.used = memory // 8, 0

    def take(self, size: int) -> None:
        """So many bytes more. Refused(ENOBUFS) beyond the limit."""
        if self.used + size > self.limit:
            raise Refused(errno.ENOBUFS, f"sockets hold {self.limit} bytes of memory at most")
        self.used += size

    def give_back(self, size: int) -> None:
        """So many bytes fewer."""
        self.used -= size


def cost_of(size: int, in_one: int = _IN_ONE) -> int:
    """What Linux reckons for a message of `size` bytes in a buffer (skb->truesize).

    Up to `in_one` bytes are one piece of a power of two, with room for what the kernel writes around it; what
    goes beyond takes whole pages.
    """
    pages = min(size, -(-max(0, size - in_one) // _PAGE) * _PAGE)
    head = max(size - pages + _HEAD, _ALIGNED)
    return (1 << (head - 1).bit_length()) + _RECORD + -(-pages // _PAGE) * _PAGE


class Payer(Protocol):
    """Whose buffer a message takes room in: its sender's, of UDP its receiver's."""

    def paid(self, cost: int) -> None:
        """So much of it is free again."""


class Message:
    """Something sent: bytes, who sent them and from where, and the open files that go with them.

    `rights` are held by the message. `cost` is what it takes of the buffer of `payer`, until it is received.
    """

    __slots__ = ("address", "cost", "credentials", "data", "payer", "rights")

    def __init__(
        self,
        data: bytes,
        cost: int,
        payer: Payer,
        *,
        address: bytes = b"",
        rights: tuple[OpenFile, ...] = (),
        credentials: Credentials | None = None,
    ) -> None:
        self.data, self.cost, self.payer = data, cost, payer
        self.address, self.rights, self.credentials = address, rights, credentials


class Received(NamedTuple):
    """What a call received. `size` is that of the whole message, of which `data` may be the beginning.

    `rights` are held once more for the receiver, who lets them go once they have descriptors.
    """

    data: bytes
    size: int
    address: bytes = b""
    rights: tuple[OpenFile, ...] = ()
    credentials: Credentials | None = None


class Inbox:
    """Messages in the order in which they came. `size` counts the bytes that are left in them."""

    def __init__(self, account: SocketAccount) -> None:
        self._account = account
        self.messages: deque[Message] = deque()
        self.size = 0
        self._skipped = 0  # bytes of the first message that were received already

    def __len__(self) -> int:
        return len(self.messages)

    def put(self, message: Message) -> None:
        """Append one. Refused(ENOBUFS) when sockets hold all that they may."""
        self._account.take(message.cost)
        self.messages.append(message)
        self.size += len(message.data)

    def extend(self, data: bytes, most: int) -> bool:
        """Append to a last message whose cost is its size, unless it would have more than `most` bytes."""
        last = self.messages[-1] if self.messages else None
        if last is None or len(last.data) + len(data) > most:
            return False
        self._account.take(len(data))
        last.data += data
        last.cost += len(data)
        self.size += len(data)
        return True

    @property
    def first_size(self) -> int:
        """Bytes that are left of the first message."""
        return len(self.messages[0].data) - self._skipped if self.messages else 0

    def take_message(self, count: int, *, peek: bool) -> Received:
        """The first message, of which the receiver has room for `count` bytes: the rest is lost."""
        message = self.messages[0]
        data = message.data[:count] if count < len(message.data) else message.data
        got = Received(data, len(message.data), message.address, message.rights, message.credentials)
        if peek:
            _hold(message.rights)
        else:
            self._drop_first()
        return got

    def take_bytes(self, count: int, *, peek: bool, apart: bool) -> Received:
        """Up to `count` bytes of a stream: not beyond open files, nor, `apart`, beyond another's message."""
        parts: list[bytes] = []
        left = count
        rights: tuple[OpenFile, ...] = ()
        address, who = b"", None
        at, skipped = 0, self._skipped
        while left and at < len(self.messages):
            message = self.messages[at]
            if parts and apart and message.credentials != who:
                break
            if not parts:
                address, who = message.address, message.credentials
            whole = not skipped and len(message.data) <= left
            part = message.data if whole else message.data[skipped : skipped + left]
            parts.append(part)
            left -= len(part)
            rights = message.rights
            if peek:
                _hold(rights)
                at, skipped = at + 1, 0
            else:
                self._advance(message, len(part))
                skipped = self._skipped
            if rights:
                break
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return Received(data, len(data), address, rights, who)

    def _advance(self, message: Message, count: int) -> None:
        """So many bytes of the first message were received, and its open files with the first of them."""
        self.size -= count
        message.rights = ()
        self._skipped += count
        if self._skipped == len(message.data):
            self._skipped = 0
            self.messages.popleft()
            self._account.give_back(message.cost)
            message.payer.paid(message.cost)

    def _drop_first(self) -> None:
        message = self.messages.popleft()
        self.size -= len(message.data) - self._skipped
        self._skipped = 0
        self._account.give_back(message.cost)
        message.payer.paid(message.cost)

    def clear(self, let_go: Callable[[tuple[OpenFile, ...]], None]) -> None:
        """Nobody will receive what is left; open files are let go by `let_go`."""
        while self.messages:
            rights = self.messages[0].rights
            self._drop_first()
            let_go(rights)

    def capture(self, payer: Callable[[Payer], int], file: Callable[[OpenFile], int]) -> dict[str, Any]:
        """The messages, with the numbers of who pays for them and of the open files in them."""
        messages = [
            [
                *(one.data, one.cost, payer(one.payer), one.address),
                [file(each) for each in one.rights],
                None if one.credentials is None else list(one.credentials),
            ]
            for one in self.messages
        ]
        return {"messages": messages, "skipped": self._skipped}

    def restore(
        self, state: dict[str, Any], payer: Callable[[int], Payer], file: Callable[[int], OpenFile]
    ) -> None:
        """Take over what `capture` gave. Whoever calls holds the open files for the messages."""
        for data, cost, who, address, rights, told in state["messages"]:
            passed = tuple(file(each) for each in rights)
            sender = None if told is None else Credentials(*told)
            self.put(Message(data, cost, payer(who), address=address, rights=passed, credentials=sender))
        self._skipped = state["skipped"]
        self.size -= self._skipped


def _hold(files: tuple[OpenFile, ...]) -> None:
    for file in files:
        file.hold()
