"""What SCAN's code of a single label tends to, in closed form; quick enough to bootstrap over subjects."""

from __future__ import annotations

import numpy as np


def matched(
    mean: np.ndarray, second: np.ndarray, strength: float = 10.0, beta_y: float = 1.0, rounds: int = 50
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and variance that minimise strength E_x KL(q(z_x|x) || q) + beta_y KL(q || N(0, I)), per latent.

    This is SCAN's loss for one label, but for the likelihood of the label. Setting both derivatives to zero:
    mu = strength m / (strength + beta_y v), and beta_y v^2 + (strength - beta_y) v - strength V = 0 with
    V = E[s_x^2 + (mu_x - mu)^2]; solved in turn.

    Args:
        mean: [...] E mu_x over the observations that carry the label.
        second: [...] E[s_x^2 + mu_x^2] over them.
        strength: lambda.
        beta_y: weight of the prior; 0: the moments themselves.
        rounds: of the fixed point, which converges quickly.

    Returns:
        mu and variance, each [...].
    """
    v = np.maximum(second - mean**2, 1e-12)
    if beta_y == 0:
        return mean, v
    mu, b = mean, strength - beta_y
    for _ in range(rounds):
        mu = strength * mean / (strength + beta_y * v)
        whole = np.maximum(second - 2 * mean * mu + mu**2, 1e-12)
        # the positive root, written so that it does not cancel when b is large
        root = np.sqrt(b**2 + 4 * beta_y * strength * whole)
        v = 2 * strength * whole / (b + root) if b >= 0 else (root - b) / (2 * beta_y)
    return mu, v


def separation(mu_a: np.ndarray, var_a: np.ndarray, mu_b: np.ndarray, var_b: np.ndarray) -> np.ndarray:
    """|mu_a - mu_b| / sqrt((var_a + var_b) / 2) per latent."""
    return np.abs(mu_a - mu_b) / np.sqrt((var_a + var_b) / 2)


def cells(
    mu: np.ndarray, logvar: np.ndarray, labels: np.ndarray, subjects: np.ndarray, sizes: list[int]
) -> dict[str, np.ndarray]:
    """Sums over the observations of each subject, factor and value: all that a bootstrap over subjects needs.

    Returns:
        "count" [S, M], "first" [S, M, J] sums of mu, "second" [S, M, J] sums of s^2 + mu^2, M values of all factors.
    """
    who = np.unique(subjects, return_inverse=True)[1]
    people, total = int(who.max()) + 1, sum(sizes)
    count = np.zeros((people, total))
    first, second = np.zeros((2, people, total, mu.shape[1]))
    whole = np.exp(logvar) + mu**2
    begin = np.cumsum([0, *sizes[:-1]])
    for k, start in enumerate(begin):
        known = labels[:, k] >= 0
        at = (who[known], start + labels[known, k])
        np.add.at(count, at, 1)
        np.add.at(first, at, mu[known])
        np.add.at(second, at, whole[known])
    return {"count": count, "first": first, "second": second}


def bootstrap(
    table: dict[str, np.ndarray], a: int, b: int, draws: int, strength: float, beta_y: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Separation of two values in closed form: [J] on all subjects, and [draws, J] on subjects drawn again.

    Trait labels repeat over a subject's trials, so trials are no independent draws; subjects are.
    """
    rng = np.random.default_rng(seed)
    people = len(table["count"])
    weights = rng.multinomial(people, np.full(people, 1 / people), draws).astype(float)
    weights = np.concatenate([np.ones((1, people)), weights])
    found = []
    for column in (a, b):
        n = np.maximum(weights @ table["count"][:, column], 1e-12)[:, None]
        first, second = (weights @ table[key][:, column] / n for key in ("first", "second"))
        found.append(matched(first, second, strength, beta_y))
    apart = separation(*found[0], *found[1])
    return apart[0], apart[1:]
