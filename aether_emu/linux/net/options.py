"""getsockopt(2) and setsockopt(2): the options of a socket, as integers.

An option is served if it changes what a program sees, or if nothing of it could be seen between processes of
one machine (keep-alive probes, priorities): that is kept and shown. Any other is refused with ENOPROTOOPT.
"""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

from aether_emu.errors import Refused

SOL_SOCKET, IPPROTO_IP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_IPV6 = 1, 0, 6, 17, 41
SO_REUSEADDR, SO_TYPE, SO_ERROR, SO_BROADCAST, SO_SNDBUF, SO_RCVBUF = 2, 3, 4, 6, 7, 8
SO_LINGER, SO_REUSEPORT, SO_PASSCRED, SO_PEERCRED, SO_RCVLOWAT = 13, 15, 16, 17, 18
SO_RCVTIMEO, SO_SNDTIMEO, SO_ACCEPTCONN, SO_PROTOCOL, SO_DOMAIN = 20, 21, 30, 38, 39
IPV6_V6ONLY = 26
TCP_INFO = 11
DEFAULT_BUFFER = 212_992
_SMALLEST_SEND, _SMALLEST_RECEIVE = 4608, 2304
_INT_MAX = (1 << 31) - 1


class _Option(NamedTuple):
    """An option that is an integer: its value at first, those that may be set, and what of them is kept.

    With `resets`, -1 stands for the value at first.
    """

    value: int = 0
    lowest: int = -1 << 31
    highest: int = _INT_MAX
    is_flag: bool = False
    mask: int = -1
    resets: bool = False


_FLAG = _Option(is_flag=True)
_OF_SOCKETS = {
    SO_REUSEADDR: _FLAG,
    5: _FLAG,  # SO_DONTROUTE
    SO_BROADCAST: _FLAG,
    SO_SNDBUF: _Option(DEFAULT_BUFFER),
    SO_RCVBUF: _Option(DEFAULT_BUFFER),
    9: _FLAG,  # SO_KEEPALIVE
    10: _FLAG,  # SO_OOBINLINE
    11: _FLAG,  # SO_NO_CHECK
    12: _Option(0, 0, 6),  # SO_PRIORITY
    SO_REUSEPORT: _FLAG,
    SO_PASSCRED: _FLAG,
    SO_RCVLOWAT: _Option(1),
}
_OF_TCP = {
    1: _FLAG,  # TCP_NODELAY
    2: _Option(0, 88, 32767),  # TCP_MAXSEG
    3: _FLAG,  # TCP_CORK
    4: _Option(7200, 1, 32767),  # TCP_KEEPIDLE
    5: _Option(75, 1, 32767),  # TCP_KEEPINTVL
    6: _Option(9, 1, 127),  # TCP_KEEPCNT
    7: _Option(6, 1, 127),  # TCP_SYNCNT
    8: _Option(60),  # TCP_LINGER2
    9: _Option(0),  # TCP_DEFER_ACCEPT
    12: _FLAG,  # TCP_QUICKACK
    18: _Option(0, 0),  # TCP_USER_TIMEOUT
}
_OF_IP = {
    1: _Option(0, mask=0xFF),  # IP_TOS
    2: _Option(64, 1, 255, resets=True),  # IP_TTL
    10: _Option(1, 0, 5),  # IP_MTU_DISCOVER
    24: _FLAG,  # IP_BIND_ADDRESS_NO_PORT
    33: _Option(1, 0, 255),  # IP_MULTICAST_TTL
    34: _Option(1, is_flag=True),  # IP_MULTICAST_LOOP
}
_OF_IPV6 = {
    16: _Option(64, 0, 255, resets=True),  # IPV6_UNICAST_HOPS
    18: _Option(1, 0, 255, resets=True),  # IPV6_MULTICAST_HOPS
    19: _Option(1, is_flag=True),  # IPV6_MULTICAST_LOOP
    23: _Option(1, 0, 5),  # IPV6_MTU_DISCOVER
    IPV6_V6ONLY: _FLAG,
    67: _Option(0, 0, 255, resets=True),  # IPV6_TCLASS
}
_INTEGERS = {
    SOL_SOCKET: _OF_SOCKETS,
    IPPROTO_TCP: _OF_TCP,
    IPPROTO_IP: _OF_IP,
    IPPROTO_IPV6: _OF_IPV6,
}


class Options:
    """The options of one socket that were set, by level and number; timeouts in ns, None for ever."""

    def __init__(self) -> None:
        self._set: dict[tuple[int, int], int] = {}
        self._defaults: dict[tuple[int, int], int] = {}
        self.linger: tuple[int, int] = (0, 0)
        self.receive_timeout: int | None = None
        self.send_timeout: int | None = None

    def copy(self) -> Options:
        """The same for a connection that is accepted: it has those of its listener."""
        other = Options()
        other._set, other._defaults = dict(self._set), dict(self._defaults)
        other.linger = self.linger
        other.receive_timeout, other.send_timeout = self.receive_timeout, self.send_timeout
        return other

    def get(self, level: int, number: int) -> int:
        """The value of one that is an integer. Refused(ENOPROTOOPT)."""
        known = _INTEGERS.get(level, {}).get(number)
        if known is None:
            raise Refused(errno.ENOPROTOOPT, f"option {number} of level {level}")
        return self._set.get((level, number), self._defaults.get((level, number), known.value))

    def put(self, level: int, number: int, value: int) -> None:
        """Have another value while nobody sets one."""
        self._defaults[level, number] = value

    def set(self, level: int, number: int, value: int) -> None:
        """Set one that is an integer. Refused(ENOPROTOOPT, EINVAL)."""
        known = _INTEGERS.get(level, {}).get(number)
        if known is None:
            raise Refused(errno.ENOPROTOOPT, f"option {number} of level {level}")
        if known.resets and value == -1:
            value = known.value
        if known.is_flag:
            value = int(value != 0)
        elif level == SOL_SOCKET and number in (SO_SNDBUF, SO_RCVBUF):
            smallest = _SMALLEST_SEND if number == SO_SNDBUF else _SMALLEST_RECEIVE
            value = max(2 * min(value & 0xFFFF_FFFF, DEFAULT_BUFFER), smallest)
        elif level == SOL_SOCKET and number == SO_RCVLOWAT:
            value = _INT_MAX if value < 0 else value or 1
        elif not known.lowest <= value <= known.highest:
            raise Refused(errno.EINVAL, f"option {number} of level {level}: {value}")
        self._set[level, number] = value & known.mask

    def capture(self) -> dict[str, Any]:
        """All of them."""
        return {
            "set": [[*key, value] for key, value in self._set.items()],
            "defaults": [[*key, value] for key, value in self._defaults.items()],
            "linger": list(self.linger),
            "timeouts": [self.receive_timeout, self.send_timeout],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `capture` gave."""
        self._set = {(level, number): value for level, number, value in state["set"]}
        self._defaults = {(level, number): value for level, number, value in state["defaults"]}
        self.linger = (state["linger"][0], state["linger"][1])
        self.receive_timeout, self.send_timeout = state["timeouts"]

    @property
    def send_buffer(self) -> int:
        """SO_SNDBUF."""
        return self.get(SOL_SOCKET, SO_SNDBUF)

    @property
    def receive_buffer(self) -> int:
        """SO_RCVBUF."""
        return self.get(SOL_SOCKET, SO_RCVBUF)
