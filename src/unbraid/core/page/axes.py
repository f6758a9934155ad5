"""Scales and ticks of a chart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from unbraid.core.show import show


@dataclass(frozen=True)
class Axis:
    """A straight or logarithmic map from values to positions in the drawing.

    Attributes:
        low: least value shown.
        high: greatest value shown.
        start: position of ``low``.
        stop: position of ``high``.
        log: whether equal factors, not equal differences, are equal distances.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value."""
        low, high, at = (
            (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return round(self.start + (at - low) / (high - low) * (self.stop - self.start), 2)

    def shows(self, value: float | int | None) -> bool:
        """Whether the value has a place on the axis."""
        return value is not None and (not self.log or value > 0)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """About ``count`` round values between the ends, with their text."""
        values = _decades(self.low, self.high) if self.log else nice_ticks(self.low, self.high, count)
        return [(value, tick_text(value, values)) for value in values]


def make_axis(
    values: Iterable[float | int | None], start: float, stop: float, *, log: bool = False, zero: bool = False
) -> Axis:
    """An axis that holds all values: rounded outwards, from zero if asked for or nearly there."""
    there = [float(v) for v in values if v is not None and (not log or v > 0)]
    if not there:
        return Axis(1.0, 10.0, start, stop, log) if log else Axis(0.0, 1.0, start, stop)
    low, high = min(there), max(there)
    if log:
        room = 2 if math.isclose(low, high) else (high / low) ** 0.03
        low, high = low / room, high * room
        return Axis(low, high, start, stop, True)
    if zero or 0 < low < 0.35 * high:
        low = min(low, 0.0)
    if zero or 0.35 * low < high < 0:
        high = max(high, 0.0)
    if math.isclose(low, high):  # nearer than steps between them can be added up
        low, high = (low - 0.5, high + 0.5) if abs(low) <= 1 else (low - abs(low) / 10, high + abs(high) / 10)
    step = nice_step((high - low) / 5)
    return Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, stop)


def tight_axis(values: Iterable[float | int | None], start: float, stop: float, *, log: bool = False) -> Axis:
    """An axis from the least to the greatest value, for the x of lines."""
    there = [float(v) for v in values if v is not None and (not log or v > 0)]
    if not there or min(there) == max(there) or (log and math.isclose(min(there), max(there))):
        return make_axis(there, start, stop, log=log)
    return Axis(min(there), max(there), start, stop, log)


def nice_step(step: float) -> float:
    """The nearest, by ratio, of 1, 2, 2.5, 5 or 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda candidate: abs(math.log(candidate / step)))


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values from ``low`` to ``high``."""
    step = nice_step((high - low) / count)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [i * step for i in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    span = math.log10(high / low)
    multiples = (1, 2, 5) if span < 2.2 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in multiples if low * (1 - 1e-9) <= m * 10.0**p <= high * (1 + 1e-9)]
    if len(found) < 2:
        return nice_ticks(low, high)
    return found[:: max(1, math.ceil(len(found) / 7))]


def tick_text(value: float, among: list[float]) -> str:
    """The tick's text with as many decimals as its neighbours need; the very large and small in powers of 1,000."""
    greatest = max(map(abs, among), default=0.0)
    even = len(among) > 2 and math.isclose(among[2] - among[1], among[1] - among[0], rel_tol=1e-6)
    if not even or not greatest:
        return show(float(value))
    power = 3 * math.floor(math.log10(greatest) / 3 + 1e-9)
    if not -3 <= power <= 3:
        short = tick_text(value / 10.0**power, [v / 10.0**power for v in among])
        return short if not float(short) else short + {6: "M", 9: "G"}.get(power, f"e{power}")
    step = among[1] - among[0]
    decimals = next((d for d in range(10) if math.isclose(round(step, d), step, rel_tol=1e-6)), 6)
    text = f"{value:,.{decimals}f}"
    return text.replace(",", "") if abs(value) < 10_000 else text
