"""Linear tasks in context: L pairs (x, y) of a fresh task and a query, isotropic, anisotropic, one task or several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unbraid.core.errors import UnbraidError
from unbraid.core.training.batches import mix


class Batch(NamedTuple):
    """Sequences with what is asked of them; leading dimensions may be added in front.

    Attributes:
        x: [B, L, d] covariates.
        y: [B, L, N] labels.
        query: [B, d] covariates asked about.
        answer: [B, N] their labels, noise included.
    """

    x: Tensor
    y: Tensor
    query: Tensor
    answer: Tensor

    @property
    def tokens(self) -> Tensor:
        """[B, L, d + N]: z = (x; y)."""
        return torch.cat([self.x, self.y], -1)


@dataclass(frozen=True)
class Regression:
    """How sequences are drawn: y = b'x + noise with a fresh b ~ N(0, I/d) each (arXiv 2503.12734, Section 2).

    Args:
        dimension: d of x.
        length: L, pairs in context.
        noise: variance of the labels' noise, that of the answer included.
        rho: covariance rho^|i-j| between coordinates i and j of x; 0: isotropic.
        supports: for several tasks, the coordinates (from 0) that each task reads; None: one task that reads all.
        shared: whether all tasks have one b; otherwise each has its own.

    Raises:
        UnbraidError: a number is out of range.
    """

    dimension: int = 5
    length: int = 40
    noise: float = 0.1
    rho: float = 0.0
    supports: tuple[tuple[int, ...], ...] | None = None
    shared: bool = True

    def __post_init__(self) -> None:
        for name in ("dimension", "length"):
            whole(name, getattr(self, name))
        if not (isinstance(self.noise, int | float) and math.isfinite(self.noise) and self.noise >= 0):
            raise UnbraidError(f"noise is {self.noise!r}; it is a variance: a number of at least 0.")
        if not (isinstance(self.rho, int | float) and -1 < self.rho < 1):
            raise UnbraidError(f"rho is {self.rho!r}; a correlation must lie between -1 and 1.")
        if self.supports is not None:
            listed = [tuple(int(j) for j in s) for s in self.supports]
            wrong = [s for s in listed if not s or len(set(s)) < len(s) or not all(0 <= j < self.dimension for j in s)]
            if not listed or wrong:
                said = f"{wrong[0] if wrong else 'nothing'}"
                raise UnbraidError(
                    f"supports holds {said}; each task needs different coordinates from 0 to {self.dimension - 1}."
                )
            object.__setattr__(self, "supports", tuple(listed))

    @property
    def tasks(self) -> int:
        """N."""
        return 1 if self.supports is None else len(self.supports)

    @property
    def width(self) -> int:
        """D = d + N of a token."""
        return self.dimension + self.tasks

    def masks(self) -> Tensor:
        """[N, d], 1 where a task reads a coordinate."""
        made = torch.zeros(self.tasks, self.dimension, dtype=torch.float64)
        for n, support in enumerate(self.supports or (tuple(range(self.dimension)),)):
            made[n, list(support)] = 1.0
        return made

    def covariance(self) -> Tensor:
        """[d, d] of x, double."""
        at = torch.arange(self.dimension, dtype=torch.float64)
        apart = (at[:, None] - at).abs()
        return torch.where(apart == 0, 1.0, torch.tensor(self.rho, dtype=torch.float64) ** apart)

    def sample(self, batch: int, seed: int, length: int | None = None, dtype: torch.dtype = torch.float32) -> Batch:
        """Draws sequences; the same seed gives the same.

        Args:
            batch: how many.
            seed: of the draw.
            length: pairs in context; None: the task's.
            dtype: of the numbers.

        Raises:
            UnbraidError: batch or length is not at least 1.
        """
        whole("batch", batch)
        long = whole("length", self.length if length is None else length)
        generator, d, n = torch.Generator().manual_seed(seed), self.dimension, self.tasks
        x = torch.randn(batch, long + 1, d, generator=generator, dtype=dtype)
        if self.rho:
            x = x @ torch.linalg.cholesky(self.covariance()).to(dtype).T
        own = 1 if self.shared else n
        weights = torch.randn(batch, own, d, generator=generator, dtype=dtype) / math.sqrt(d)
        noise = torch.randn(batch, long + 1, n, generator=generator, dtype=dtype) * math.sqrt(self.noise)
        y = x @ (weights * self.masks().to(dtype)).transpose(-1, -2) + noise
        return Batch(x[:, :-1], y[:, :-1], x[:, -1], y[:, -1])


def whole(name: str, value: object, least: int = 1) -> int:
    """A whole number of at least `least`.

    Raises:
        UnbraidError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UnbraidError(f"{name} is {value!r}; it must be a whole number of at least {least}.")
    return value


def training_batches(task: Regression, batch: int, seeds: Sequence[int]) -> Callable[[int, torch.Generator], Batch]:
    """Batches for `fit_loop`: the n-th batch of each seed, stacked [S, B, ...].

    A seed's batches do not depend on which other seeds are trained beside it.

    Args:
        task: what is drawn.
        batch: sequences per seed and step.
        seeds: one for each member.
    """

    def made(step: int, generator: torch.Generator) -> Batch:
        drawn = [task.sample(batch, mix(seed, 11, step)) for seed in seeds]
        return Batch(*(torch.stack(parts) for parts in zip(*drawn, strict=True)))

    return made


def check_sequences(x: Any, y: Any, query: Any, dimension: int, tasks: int) -> Batch:
    """Sequences of a user, tensors or arrays, as a `Batch` without answers.

    Args:
        x: [B, L, d].
        y: [B, L] or [B, L, N].
        query: [B, d].
        dimension: d that is expected.
        tasks: N that is expected.

    Raises:
        UnbraidError: a shape does not fit, or a number is not finite.
    """
    try:
        x, y, query = (torch.as_tensor(v) for v in (x, y, query))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnbraidError(f"x, y and query must be arrays of numbers ({error}).") from None
    x, y, query = (v if v.is_floating_point() else v.float() for v in (x, y, query))
    y = y[..., None] if y.dim() == x.dim() - 1 else y
    fits = (
        x.dim() == 3 and x.shape[1] > 0 and x.shape[-1] == dimension
        and tuple(y.shape) == (*x.shape[:2], tasks) and tuple(query.shape) == (x.shape[0], dimension)
    )  # fmt: skip
    if not fits:
        raise UnbraidError(
            f"x, y and query have shapes {list(x.shape)}, {list(y.shape)} and {list(query.shape)}; they must be "
            f"[B, L, {dimension}], [B, L, {tasks}] and [B, {dimension}] with at least one pair."
        )
    for name, value in {"x": x, "y": y, "query": query}.items():
        if not torch.isfinite(value).all():
            raise UnbraidError(f"{name} holds numbers that are not finite; leave those sequences out.")
    return Batch(x, y, query, torch.zeros(x.shape[0], tasks, dtype=x.dtype, device=x.device))
