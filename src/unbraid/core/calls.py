"""One attention as it happens (`AttentionCall`), what a tap may ask of it (`Ask`, `Answer`), and the tap (`Tap`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadSet

if TYPE_CHECKING:
    from unbraid.core.attach import Session

Kind = Literal["self", "cross", "joint"]


class Segment(NamedTuple):
    """A run of tokens of a joint attention: `name` is "text" or "image", tokens `start` to `stop` (exclusive)."""

    name: str
    start: int
    stop: int


@dataclass(eq=False)
class AttentionCall:
    """One attention as it happens.

    Symbols: B batch, H query heads, G key/value heads (H is a multiple of G; G < H is grouped-query attention),
    Q queries, K keys, D head width, V value width.

    Attributes:
        site: qualified module name inside the attached model ("" is the attached module itself).
        index: order in which the sites were first executed, from 0.
        kind: "self", "cross" or "joint" (text and image in one sequence).
        query: [B, H, Q, D], after position rotation; None at the softmax seam, where only `logits` exist.
        key: [B, G, K, D].
        value: [B, G, K, V].
        mask: None, bool (True may be seen) or float (added to the logits), broadcastable to [B, H, Q, K].
        causal: query i sees keys 0..i only (aligned top left, as torch's `is_causal`).
        scale: the factor on query-key products.
        softcap: logits become softcap * tanh(logits / softcap) before masks.
        sinks: [H], one more logit per head whose value is zero (gpt-oss).
        key_bias: [B or 1, H or 1, K], added to every query's logits; -inf hides a key.
        dropout: probability used by the model's kernel (never by statistics).
        segments: joint attention only, and only where the order is known.
        logits: [B, H, Q, K], softmax seam only.
        module: the module whose forward makes this attention.
        kernel: the seam's own function from a call to its output [B, H, Q, V].
        extra: what else the seam knows (read-only for taps).
    """

    site: str
    index: int
    kind: Kind
    query: Any
    key: Any
    value: Any
    mask: Tensor | None = None
    causal: bool = False
    scale: float = 1.0
    softcap: float | None = None
    sinks: Tensor | None = None
    key_bias: Tensor | None = None
    dropout: float = 0.0
    segments: tuple[Segment, ...] | None = None
    logits: Tensor | None = None
    module: nn.Module | None = None
    kernel: Callable[[AttentionCall], Tensor] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def replace(self, **changes: Any) -> AttentionCall:
        """A copy with some attributes changed; what `Tap.call` returns."""
        return replace(self, **changes)

    @property
    def _shaped(self) -> Any:
        return self.logits if self.query is None else self.query

    @property
    def heads(self) -> int:
        """Number of query heads H."""
        return int(self._shaped.shape[1])

    @property
    def batch(self) -> int:
        """Batch size B."""
        return int(self._shaped.shape[0])

    @property
    def queries(self) -> int:
        """Number of queries Q."""
        return int(self._shaped.shape[2])

    @property
    def keys(self) -> int:
        """Number of keys K."""
        return int(self.logits.shape[3] if self.logits is not None else self.key.shape[2])

    @property
    def device(self) -> torch.device:
        """Where the call happens."""
        return self._shaped.device

    @property
    def offset(self) -> int:
        """Key position of query 0: K - Q for self-attention over a cache, else 0."""
        return 0 if self.causal or self.kind == "cross" else max(0, self.keys - self.queries)

    def expand(self, x: Tensor) -> Tensor:
        """Key or value heads [B, G, K, *] repeated to the query heads [B, H, K, *]."""
        groups = x.shape[1]
        return x if groups == self.heads else x.repeat_interleave(self.heads // groups, dim=1)

    def at_rows(self, rows: Tensor) -> AttentionCall:
        """The same call for some query rows [r] only; causality becomes a mask of [1, 1, r, K]."""
        mask = self.mask
        if mask is not None and mask.dim() >= 2 and mask.shape[-2] > 1:
            mask = mask.index_select(-2, rows)
        if self.causal:
            seen = torch.arange(self.keys, device=self.device)[None, None, None, :] <= rows[None, None, :, None]
            if mask is None:
                mask = seen
            elif mask.dtype == torch.bool:
                mask = mask & seen
            else:
                mask = mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
        return self.replace(
            query=None if self.query is None else self.query.index_select(2, rows),
            logits=None if self.logits is None else self.logits.index_select(2, rows),
            mask=mask,
            causal=False,
        )

    def select(self, heads: list[int]) -> AttentionCall:
        """The same call for some query heads only (key and value heads repeated as needed)."""
        pick = torch.as_tensor(heads, device=self.device)

        def per_head(x: Tensor | None, dim: int) -> Tensor | None:
            return x if x is None or x.shape[dim] == 1 else x.index_select(dim, pick)

        def shared(x: Tensor) -> Tensor:
            group = pick // (self.heads // x.shape[1])
            return x.index_select(1, group)

        mask = self.mask if self.mask is None or self.mask.dim() < 4 else per_head(self.mask, 1)
        return self.replace(
            query=None if self.query is None else self.query.index_select(1, pick),
            key=None if self.key is None else shared(self.key),
            value=None if self.value is None else shared(self.value),
            logits=None if self.logits is None else self.logits.index_select(1, pick),
            mask=mask,
            sinks=None if self.sinks is None else self.sinks.index_select(0, pick),
            key_bias=per_head(self.key_bias, 1),
        )


@dataclass(eq=False)
class Ask:
    """What a tap wants to know of the probabilities P = softmax(scale * q k + mask), [B, H, Q, K], without seeing P.

    Attributes:
        moments: values E, [K, g] or [B|1, H|1, K, g]; the answer is P @ E, [B, H, Q, g].
        weights: weights W on queries, [Q, w] or [B|1, H|1, Q, w]; the answer is P^T @ W, [B, H, K, w].
        entries: pairs (query index [m], key index [m]); the answer is P at these pairs, [B, H, m].
        entropy: row entropies in nats, [B, H, Q].
        top: number of largest probabilities per row; the answer is values and key indices, [B, H, Q, top] each.
        lse: row log-sum-exp of the logits, [B, H, Q] (sink logits excluded).
        rows: query indices [r]; the answer is P of these rows only, [B, H, r, K], at O(r K) cost.
        grad: gradients are wanted, so the answer stays attached to the graph.
    """

    moments: Tensor | None = None
    weights: Tensor | None = None
    entries: tuple[Tensor, Tensor] | None = None
    entropy: bool = False
    top: int = 0
    lse: bool = False
    rows: Tensor | None = None
    grad: bool = False


@dataclass(eq=False)
class Answer:
    """The engine's answer to an `Ask`: the same names, None where nothing was asked. All in float32."""

    moments: Tensor | None = None
    weights: Tensor | None = None
    entries: Tensor | None = None
    entropy: Tensor | None = None
    top: tuple[Tensor, Tensor] | None = None
    lse: Tensor | None = None
    rows: Tensor | None = None


class Tap:
    """Reads or edits attention calls. Every method may be absent; what a tap declares is what it costs.

    `call(c)` returns a changed call (queries, keys, values, mask, bias) or None;
    `ask(c)` returns what it wants to know of the probabilities, answered through `take(c, answer)`, or None;
    `rows(c, p, start)` sees probabilities [B, H, r, K] of the query rows start..start+r-1; a tap with `edits_rows`
    may return changed ones, from which the output is then made;
    `out(c, y)` returns a changed output [B, H, Q, V] or None;
    `out_as_rows(c, p, start)` is the same edit said in probabilities, for the softmax seam where no output is seen.

    Attributes:
        heads: the heads this tap is about, or None for all; checked against the model when attached.
        edits_rows: `rows` may return replacements.
        grad_rows: `rows` wants probabilities attached to the graph.
    """

    heads: HeadSet | None = None
    edits_rows: bool = False
    grad_rows: bool = False
    call: Callable[[AttentionCall], AttentionCall | None] | None = None
    ask: Callable[[AttentionCall], Ask | None] | None = None
    take: Callable[[AttentionCall, Answer], None] | None = None
    rows: Callable[[AttentionCall, Tensor, int], Tensor | None] | None = None
    out: Callable[[AttentionCall, Tensor], Tensor | None] | None = None
    out_as_rows: Callable[[AttentionCall, Tensor, int], Tensor | None] | None = None

    def opened(self, session: Session) -> None:
        """Called when a session with this tap opens."""

    def closed(self, session: Session) -> None:
        """Called when it closes, also after an exception."""

    def wants(self, c: AttentionCall) -> bool:
        """Whether this tap has business at the site of this call."""
        return self.heads is None or c.site in self.heads.sites

    def heads_at(self, c: AttentionCall) -> list[int] | None:
        """The heads of this site that the tap is about (None: all of them).

        Raises:
            UnbraidError: a head that the site does not have.
        """
        if self.heads is None:
            return None
        chosen = self.heads.by_site().get(c.site, [])
        wrong = [h for h in chosen if not 0 <= h < c.heads]
        if wrong:
            raise UnbraidError(
                f"{type(self).__name__} names head {wrong[0]} of {c.site!r}, which has heads 0 to {c.heads - 1}."
            )
        return chosen
