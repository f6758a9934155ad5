"""What a training run recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from unbraid.core.errors import UnbraidError
from unbraid.core.figures import Lines
from unbraid.core.series import Series

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class History:
    """The course of a training run, one entry per logged step (also those before it was resumed).

    Attributes:
        steps: number of optimizer steps taken, from 1.
        losses: of that step, the mean over its batches and over all processes.
        lr: learning rate with which the step was taken (of the first parameter group).
        grad_norm: norm of the gradient before clipping.
        seconds: since the run began, without the time between an interruption and its resumption.
        extra: name -> the further numbers that the loss returned; None where it did not return that one.
        resumed_from: the step of the checkpoint that this call went on from, or None.
        stopped: "" if all steps were taken; "callback" if a callback asked to stop.
    """

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    extra: dict[str, list[float | None]] = field(default_factory=dict)
    resumed_from: int | None = None
    stopped: str = ""

    def __len__(self) -> int:
        return len(self.steps)

    def add(
        self, step: int, loss: float, lr: float, grad_norm: float, seconds: float, extra: Mapping[str, float]
    ) -> None:
        """Record one step."""
        for name in extra:
            self.extra.setdefault(name, [None] * len(self))
        for name, values in self.extra.items():
            values.append(extra.get(name))
        self.steps.append(step)
        self.losses.append(loss)
        self.lr.append(lr)
        self.grad_norm.append(grad_norm)
        self.seconds.append(seconds)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def frame(self) -> pd.DataFrame:
        """One row per logged step; needs pandas.

        Raises:
            UnbraidError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise UnbraidError('History.frame() needs pandas: pip install "unbraid[frames]".') from None
        columns = {"step": self.steps, "loss": self.losses, "lr": self.lr, "grad_norm": self.grad_norm}
        return pd.DataFrame({**columns, "seconds": self.seconds, **self.extra})

    def figure(self, title: str = "Training loss") -> Lines:
        """The losses as a figure for a `Result`."""
        return Lines(title, [Series("loss", self.steps, self.losses)], "step", "loss")
