"""How long tasks stood still for want of memory, in virtual time (pressure-stall information; psi.c).

`some` is the time in which a task stored pages that had to go, or waited for one that had gone; `full` the
part of it in which no other task could have run. As in Linux the averages are of 10, 60 and 300 s, made anew
every 2 s; the totals are in us.
"""

from __future__ import annotations

from typing import Any

_PERIOD = 2 * 10**9
_ONE = 1 << 11  # averages are fixed-point numbers with so many parts
_DECAYS = (1677, 1981, 2034)  # of `_ONE`, in 2 s: for 10, 60 and 300 s (EXP_10s, EXP_60s, EXP_300s)


class Pressure:
    """The figures of one machine. All times are in ns."""

    def __init__(self) -> None:
        self._costs = 0  # what all stalls have cost so far
        self._totals = [0, 0]  # some, full
        self._averages = [[0, 0, 0], [0, 0, 0]]
        self._since, self._before = 0, [0, 0]  # the period that runs: its start, and the totals then

    def note(self, now: int, costs: int, *, alone: bool) -> None:
        """It is `now`, and stalls have cost so much in all. `alone`: nobody else could have run."""
        more, self._costs = costs - self._costs, costs
        self._totals[0] += more
        self._totals[1] += more if alone else 0
        missed = (now - self._since) // _PERIOD
        if missed <= 0:
            return
        for kind, averages in enumerate(self._averages):
            grown = min(self._totals[kind] - self._before[kind], _PERIOD)
            share = grown * 100 * _ONE // _PERIOD
            for which, decay in enumerate(_DECAYS):
                averages[which] = _later(averages[which], decay, share, missed)
        self._since += missed * _PERIOD
        self._before = list(self._totals)

    def excuse(self, costs: int) -> None:
        """So much of what stalls will be said to have cost was no stall."""
        self._costs += costs

    def text(self) -> bytes:
        """/proc/pressure/memory."""
        lines = []
        for name, averages, total in zip(("some", "full"), self._averages, self._totals, strict=True):
            ten, sixty, more = map(_percent, averages)
            lines.append(f"{name} avg10={ten} avg60={sixty} avg300={more} total={total // 1000}\n")
        return "".join(lines).encode()

    def capture(self) -> dict[str, Any]:
        """All of it, as plain data."""
        return {
            "costs": self._costs,
            "totals": list(self._totals),
            "averages": [list(each) for each in self._averages],
            "period": (self._since, list(self._before)),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured one."""
        self._costs, self._totals = state["costs"], list(state["totals"])
        self._averages = [list(each) for each in state["averages"]]
        since, before = state["period"]
        self._since, self._before = since, list(before)


def _later(average: int, decay: int, share: int, periods: int) -> int:
    """An average after so many periods, in the first of which `share` of the time was lost, then none."""
    for number in range(periods):
        sample = 0 if number else share
        grown = average * decay + sample * (_ONE - decay)
        average = (grown + (_ONE - 1 if sample >= average else 0)) // _ONE
        if not average:
            break
    return average


def _percent(average: int) -> str:
    return f"{average // _ONE}.{average % _ONE * 100 // _ONE:02d}"
