"""The paper's families of target functions (names from memory): averages over keys of F(x_0, x_i), unit tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unbraid.core.errors import UnbraidError

FORMS = "power:p, correlated:p:q or mixed:gamma:p, such as power:2, correlated:1:1, mixed:0.5:3"


@dataclass(frozen=True)
class Target:
    """One target; noiseless.

    Attributes:
        kind: "power": <beta, x_i>^p, no query (family i); "correlated": <x_0, x_i>^p <beta, x_i>^q (ii); "mixed":
            <x_0, S x_i>^p with S between the identity (gamma 0) and a random matrix (gamma 1) of equal norm (iii).
        p: power.
        q: power of <beta, x_i> in family (ii).
        gamma: how random S is, 0 to 1.
    """

    kind: Literal["power", "correlated", "mixed"]
    p: int
    q: int = 0
    gamma: float = 0.0

    @property
    def name(self) -> str:
        """As `target` reads it."""
        parts = {"power": (self.p,), "correlated": (self.p, self.q), "mixed": (f"{self.gamma:g}", self.p)}
        return ":".join(map(str, (self.kind, *parts[self.kind])))

    @property
    def formula(self) -> str:
        """For people."""
        if self.kind == "power":
            return _power("<b,xi>", self.p)
        if self.kind == "correlated":
            return f"{_power('<x0,xi>', self.p)} {_power('<b,xi>', self.q)}".strip()
        mixed = _power("<x0,S xi>" if self.gamma else "<x0,xi>", self.p)
        return mixed if not self.gamma else f"{mixed}, gamma {self.gamma:g}"

    def __call__(self, x: np.ndarray, beta: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Values.

        Args:
            x: [n, 1 + N, d] tokens.
            beta: [d] unit vector.
            noise: [d, d] standard normal numbers, for S.

        Returns:
            [n], neither centred nor scaled.
        """
        query, keys = x[:, 0], x[:, 1:]
        if self.kind == "power":
            return ((keys @ beta) ** self.p).mean(1)
        if self.kind == "correlated":
            return (np.einsum("nd,nid->ni", query, keys) ** self.p * (keys @ beta) ** self.q).mean(1)
        return (np.einsum("nd,nid->ni", query @ self.matrix(noise), keys) ** self.p).mean(1)

    def matrix(self, noise: np.ndarray) -> np.ndarray:
        """S: [d, d], of the identity's Frobenius norm."""
        d = len(noise)
        mixed = (1 - self.gamma) * np.eye(d) + self.gamma * noise * np.sqrt(d) / np.linalg.norm(noise)
        return mixed * np.sqrt(d) / np.linalg.norm(mixed)


def _power(base: str, exponent: int) -> str:
    return "" if not exponent else base if exponent == 1 else f"{base}^{exponent}"


def target(text: str) -> Target:
    """A target from its name.

    Args:
        text: power:p, correlated:p:q or mixed:gamma:p.

    Raises:
        UnbraidError: another form, or a power or gamma beyond its bounds.
    """
    whole, share = r"(\d{1,2})", r"(\d+(?:\.\d+)?)"
    for kind, pattern in (("power", whole), ("correlated", f"{whole}:{whole}"), ("mixed", f"{share}:{whole}")):
        found = re.fullmatch(f"{kind}:{pattern}", text.strip())
        if found is None:
            continue
        if kind == "mixed":
            made = Target("mixed", int(found[2]), gamma=float(found[1]))
        elif kind == "power":
            made = Target("power", int(found[1]))
        else:
            made = Target("correlated", int(found[1]), int(found[2]))
        if made.p + made.q < 1 or made.p > 10 or made.q > 10 or not 0 <= made.gamma <= 1:
            raise UnbraidError(f"target {text!r}: powers must be 0 to 10 and not all 0, gamma 0 to 1.")
        return made
    raise UnbraidError(f"there is no target {text!r}; give {FORMS}.")


def sphere_tokens(n: int, keys: int, d: int, seed: int) -> np.ndarray:
    """[n, 1 + keys, d] tokens, uniform on the unit sphere; the first n of a longer draw are those of a shorter one."""
    x = np.random.default_rng(np.random.SeedSequence([seed, 7])).standard_normal((n, 1 + keys, d))
    return x / np.linalg.norm(x, axis=2, keepdims=True)


def directions(d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The [d] direction beta, uniform on the sphere, and the [d, d] noise of S."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 11]))
    beta = rng.standard_normal(d)
    return beta / np.linalg.norm(beta), rng.standard_normal((d, d))
