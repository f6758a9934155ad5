"""Colour scales with even steps, computed in OKLab (Ottosson 2020, the space in which equal distances look equal).

Each scale has a form for light and one for dark pages: the low end is near the background in both, so that what is
large stands out and what is nothing recedes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np

LEVELS = 64
TEXT_LEVELS = 24

_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def to_oklab(hex_colour: str) -> np.ndarray:
    """[3] OKLab coordinates of a colour such as "#1a2b3c"."""
    rgb = np.array([int(hex_colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return _LAB @ np.cbrt(_LMS @ linear)


def _linear(lab: np.ndarray) -> np.ndarray:
    return np.linalg.inv(_LMS) @ (np.linalg.inv(_LAB) @ lab) ** 3


def _hex(lab: np.ndarray) -> str:
    """The nearest colour a screen has: chroma is reduced until it fits, lightness and hue stay."""
    for shrink in np.linspace(1, 0, 101):
        linear = _linear(lab * np.array([1, shrink, shrink]))
        if linear.min() >= -1e-4 and linear.max() <= 1 + 1e-4:
            break
    linear = np.clip(linear, 0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(float(c) * 255):02x}" for c in rgb)


def _even(path: Callable[[float], tuple[float, float, float]], levels: int) -> tuple[str, ...]:
    """``levels`` colours along a path of (lightness, chroma, hue in degrees), at equal distances in OKLab."""

    def lab(t: float) -> np.ndarray:
        lightness, chroma, hue = path(t)
        return np.array([lightness, chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))])

    fine = [to_oklab(_hex(lab(t))) for t in np.linspace(0, 1, 400)]  # measured after fitting, so that it stays even
    points = np.array([lab(t) for t in np.linspace(0, 1, 400)])
    walked = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(fine, axis=0), axis=1))])
    at = np.linspace(0, walked[-1], levels)
    return tuple(_hex(np.array([np.interp(x, walked, points[:, i]) for i in range(3)])) for x in at)


def _hump(t: float, height: float, base: float) -> float:
    return base + (height - base) * math.sin(math.pi * t) ** 0.8 if 0 < t < 1 else base


@cache
def sequential(dark: bool) -> tuple[str, ...]:
    """[LEVELS] colours from near the background to far from it: pale yellow, green, blue, deep indigo; or back."""
    if dark:
        return _even(lambda t: (0.27 + 0.66 * t, _hump(t, 0.125, 0.035), 285 - 180 * t), LEVELS)
    return _even(lambda t: (0.965 - 0.70 * t, _hump(t, 0.125, 0.03), 105 + 175 * t), LEVELS)


@cache
def diverging(dark: bool) -> tuple[str, ...]:
    """[LEVELS + 1] colours: blue for negative, the background's grey at zero, orange for positive."""
    middle, end = (0.27, 0.80) if dark else (0.965, 0.50)

    def arm(hue: float) -> tuple[str, ...]:
        return _even(lambda t: (middle + (end - middle) * t, 0.004 + 0.13 * t**0.8, hue), LEVELS // 2 + 1)

    return (*reversed(arm(255)), *arm(50)[1:])


@cache
def behind_text(dark: bool) -> tuple[str, ...]:
    """[TEXT_LEVELS] backgrounds on which the page's text stays readable (contrast of at least 4.5 to 1)."""
    if dark:
        return _even(lambda t: (0.235 + 0.215 * t, 0.01 + 0.085 * t, 75), TEXT_LEVELS)
    return _even(lambda t: (0.985 - 0.185 * t, 0.005 + 0.145 * t, 80), TEXT_LEVELS)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2 of two colours, from 1 to 21."""

    def luminance(colour: str) -> float:
        rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ np.array([0.2126, 0.7152, 0.0722]))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@cache
def stylesheet() -> str:
    """The rules for the classes q0..q63 and d0..d64 (cells) and w0..w23 (text), for light and dark pages."""
    rules = []
    for letter, scale, attribute in (
        ("q", sequential, "fill"),
        ("d", diverging, "fill"),
        ("w", behind_text, "background"),
    ):
        for i, (light, dark) in enumerate(zip(scale(False), scale(True), strict=True)):
            # browsers of before 2024 know no light-dark() and keep the first, the light one
            rules.append(f".{letter}{i}{{{attribute}:{light};{attribute}:light-dark({light},{dark})}}")
    return "\n".join(rules)
