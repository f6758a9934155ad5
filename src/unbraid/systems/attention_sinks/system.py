"""`AttentionSinks`: a model's sinks, measured on given texts, kept and saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.core.system import System
from unbraid.systems.attention_sinks import CARD
from unbraid.systems.attention_sinks.detection.findings import SinkReport, report


class AttentionSinks(System):
    """Measures the attention sinks of a model by the survey's ten metrics.

    Reference: arXiv 2604.10098; the sink metric is that of arXiv 2410.10781.

    Args:
        epsilon: a head has a sink when its mean attention on the first token exceeds this.
        tau: a key counts as sink token when it gets this many times the average attention of its layer.
        floor: smallest magnitude of a massive activation.
        ratio: smallest multiple of the median magnitude that makes an activation massive.
        sinks: sink set of the metrics on values, writes and keys, as positions from the first token of each text.

    Attributes:
        scores_: sink metric per head.
        first_share_: share of all attention that goes to the first token, per head.
        sink_rate_: share of (layer, head, text) above epsilon.
        summary_: the ten metrics in a line each.
        tokens_: keys above the threshold.
        massive_: massive activations.
        layers_: numbers of each block's residual stream.
        seen: the whole report of the last `fit`; not saved.

    Example:
        >>> sinks = AttentionSinks().fit(model, tokenizer("Once upon a time", return_tensors="pt"))
        >>> sinks.sink_rate_, sinks.heads_, sinks.summary_
    """

    card = CARD

    def __init__(
        self,
        epsilon: float = 0.3,
        tau: float = 20.0,
        floor: float = 100.0,
        ratio: float = 1_000.0,
        sinks: Sequence[int] = (0,),
    ) -> None:
        self.epsilon = epsilon
        self.tau = tau
        self.floor = floor
        self.ratio = ratio
        self.sinks = sinks

    def fit(self, model: nn.Module, inputs: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> AttentionSinks:
        """Runs the model once per batch and measures.

        Args:
            model: any model whose attention can be tapped.
            inputs: keyword arguments of the model, or several such batches.

        Returns:
            Itself.

        Raises:
            UnbraidError: there is no text, an option is out of range, or the model cannot be tapped.
        """
        self.seen: SinkReport = report(
            model, inputs, sinks=self.sinks, epsilon=self.epsilon, tau=self.tau, floor=self.floor, ratio=self.ratio
        )
        self.scores_: HeadScores = self.seen.alpha
        self.first_share_ = self.seen.first_share
        self.sink_rate_ = self.seen.sink_rate()
        self.summary_ = self.seen.summary()
        self.tokens_ = self.seen.tokens
        self.massive_ = self.seen.massive
        self.layers_ = self.seen.layers
        return self

    @property
    def heads_(self) -> HeadSet:
        """Heads with a sink, strongest first.

        Raises:
            UnbraidError: nothing was measured yet.
        """
        if "scores_" not in vars(self):
            raise UnbraidError("AttentionSinks is not fitted yet; call fit(model, inputs) first.")
        return self.scores_.above(self.epsilon)
