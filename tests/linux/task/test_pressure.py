"""Pressure-stall figures follow Linux's formula, in virtual time."""

from __future__ import annotations

from aether_emu.linux.pressure import Pressure

SECOND = 10**9


def test_nothing_has_stalled_yet() -> None:
    assert Pressure().text() == (
        b"some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    )


def test_averages_are_those_of_the_kernel() -> None:
    """Half of each of ten periods of two seconds; then none for a minute."""
    pressure = Pressure()
    for period in range(1, 11):
        pressure.note(period * 2 * SECOND, period * SECOND, alone=period % 2 == 0)
    some, full = pressure.text().decode().splitlines()
    assert some.endswith("total=10000000")
    assert full.endswith("total=5000000")
    figures = dict(part.split("=") for part in some.split()[1:])
    # 50 * (1 - e**-2), 50 * (1 - e**(-20/60)), 50 * (1 - e**(-20/300))
    assert abs(float(figures["avg10"]) - 43.23) < 0.5
    assert abs(float(figures["avg60"]) - 14.17) < 0.5
    assert abs(float(figures["avg300"]) - 3.22) < 0.5
    pressure.note(80 * SECOND, 10 * SECOND, alone=True)
    assert float(dict(part.split("=") for part in pressure.text().decode().split()[1:4])["avg10"]) < 0.3


def test_a_restored_one_goes_on() -> None:
    pressure, other = Pressure(), Pressure()
    pressure.note(3 * SECOND, SECOND, alone=True)
    other.restore(pressure.capture())
    for each in (pressure, other):
        each.note(9 * SECOND, 2 * SECOND, alone=False)
    assert pressure.text() == other.text()
