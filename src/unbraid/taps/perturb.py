"""Damaged attention for guidance: chosen heads moved by their own strength towards a simpler map, no map ever made.

With A the attention of a head and O = A V its output, the damaged map is (1 - u) A + u A', so the output is
(1 - u) O + u A' V, and A' V is cheap: V itself where A' is the identity, its mean where A' is uniform, and so on.
Paths other than the straight line between A and the identity need one number per row more, the diagonal of A.

Reference: arXiv 2506.10978 (SoftPAG), 2403.17377 (PAG), 2408.00760 (query mean). Symbols as in `AttentionCall`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from unbraid.core.calls import AttentionCall, Tap
from unbraid.core.engine import fused
from unbraid.core.engine.logits import HIDDEN, dense
from unbraid.core.engine.rows import budget
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.taps.edit_base import hidden_only

Damage = Literal["identity", "uniform", "query_mean", "argmax", "temperature"]
Scope = Literal["joint", "image", "text"]
Path = Literal["linear", "chord", "slerp", "log"]
SCOPES: dict[str, tuple[str, ...]] = {
    "identity": ("joint", "image"), "uniform": ("joint",), "query_mean": ("joint", "image", "text"),
    "argmax": ("joint",), "temperature": ("joint",),
}  # fmt: skip
PATHS = ("linear", "chord", "slerp", "log")
SMOOTH = 1e-6  # added to the identity where its logarithm is mixed
FLAT = 1e-4  # radians under which an arc is walked as a line


class Perturb(Tap):
    """See `perturb`.

    Attributes:
        edited: the batch rows to edit, as a slice; None for all. May be set anew before each forward.
    """

    def __init__(
        self, table: Mapping[str, Tensor] | None, amount: float, kind: Damage, scope: Scope, path: Path, tau: float
    ) -> None:
        self.table, self.amount, self.kind, self.scope, self.path, self.tau = table, amount, kind, scope, path, tau
        self.edited: slice | None = None
        self.picked: dict[str, list[int]] = {}
        self._ready: dict[Any, tuple[Tensor, Tensor]] = {}
        if table is not None:
            grad = {site: u.requires_grad for site, u in table.items()}
            self.picked = {
                site: list(range(u.shape[1])) if grad[site] else (u != 0).any(0).nonzero().flatten().tolist()
                for site, u in table.items()
            }
            self.heads = HeadSet((site, h) for site, hs in self.picked.items() for h in hs)

    def wants(self, c: AttentionCall) -> bool:
        """Whether any head of the site, and any row, is to be edited."""
        some = self.amount != 0 and self.edited != slice(0, 0)
        return some and (self.table is None or bool(self.picked.get(c.site)))

    def heads_at(self, c: AttentionCall) -> list[int] | None:
        """The heads of this site."""
        return None if self.table is None else self.picked.get(c.site, [])

    def out(self, c: AttentionCall, y: Tensor) -> Tensor:
        """(1 - u) O + u A' V of the chosen heads and rows; all else stays as it is, bit for bit."""
        self._check(c)
        rows = slice(*(self.edited or slice(None)).indices(y.shape[0]))
        heads = list(range(c.heads)) if self.table is None else self.picked[c.site]
        pick, u = self._strengths(c, y, heads, rows.stop - rows.start)
        every, whole = len(heads) == c.heads, rows == slice(0, y.shape[0], 1)
        part = c if whole else at_rows_of_batch(c, rows)
        mine = y if whole else y[rows]
        if every:
            new = self._damaged(part, mine, u)
        else:
            new = self._damaged(part.select(heads), mine.index_select(1, pick), u)
        if every and whole:
            return new
        out = y.clone()  # keeps the kernel's order in memory, which the model is about to read
        if every:
            out[rows] = new
        else:
            out[rows].index_copy_(1, pick, new)
        return out

    def _strengths(self, c: AttentionCall, y: Tensor, heads: list[int], rows: int) -> tuple[Tensor, Tensor]:
        """Head numbers, and [1|rows, heads, 1, 1]; kept, as a denoiser is called many times."""
        key = (c.site, y.device, y.dtype, len(heads))
        found = self._ready.get(key)
        if found is None:
            pick = torch.as_tensor(heads, device=y.device)
            if self.table is None:
                u = torch.full((1, len(heads)), self.amount, dtype=torch.float64)
            else:
                u = self.table[c.site]
                if u.shape[1] > c.heads:
                    raise UnbraidError(
                        f"perturb has strengths for {u.shape[1]} heads of {c.site!r}, which has heads 0 to "
                        f"{c.heads - 1}; give one for each of them."
                    )
                u = u[:, heads] * self.amount
            found = pick, u.to(y.dtype).to(y.device)[..., None, None]
            if not u.requires_grad:  # strengths that are learned change
                self._ready[key] = found
        if found[1].shape[0] not in (1, rows):
            raise UnbraidError(
                f"perturb has strengths for {found[1].shape[0]} rows at {c.site!r}, but {rows} rows of the batch are "
                "edited."
            )
        return found

    def _damaged(self, c: AttentionCall, y: Tensor, u: Tensor) -> Tensor:
        if self.path != "linear":
            return along(self.path, c, y, u)
        if self.kind == "identity" and self.scope == "image" and c.kind == "joint":
            image, text = segments(c)
            new = y.clone()
            new[:, :, image] = torch.lerp(y[:, :, image], image_identity(c, image, text).to(y.dtype), u)
            return new
        return torch.lerp(y, self._target(c).to(y.dtype).expand_as(y), u)

    def _target(self, c: AttentionCall) -> Tensor:
        """A' V, [B, heads, Q or 1, V]."""
        if self.kind == "identity":
            return own_values(c)
        if self.kind == "uniform":
            return mean_values(c)
        if self.kind == "argmax":
            return strongest_values(c)
        if self.kind == "temperature":
            mask = c.mask if c.mask is None or c.mask.dtype == torch.bool else c.mask / self.tau
            return attended(c.replace(scale=c.scale / self.tau, mask=mask))
        query = c.query
        if self.scope != "joint" and c.kind == "joint":
            image, text = segments(c)
            query = query[:, :, image if self.scope == "image" else text]
        mask = c.mask if c.mask is None or c.mask.dim() < 2 or c.mask.shape[-2] == 1 else c.mask[..., :1, :]
        return attended(c.replace(query=query.mean(2, keepdim=True), mask=mask))

    def _check(self, c: AttentionCall) -> None:
        if c.causal:
            raise UnbraidError(f"perturb is for diffusion models; the attention of {c.site!r} is causal.")
        square = c.kind != "cross" and c.queries == c.keys
        if self.kind == "identity" and not square:
            raise UnbraidError(
                f"The identity needs self-attention; {c.site!r} is {c.kind}. Choose other heads, or kind='uniform', "
                "'query_mean', 'argmax' or 'temperature'."
            )
        if c.kind == "joint" and c.segments is None and self.scope != "joint":
            raise UnbraidError(
                f"scope={self.scope!r}: it is not known which tokens of {c.site!r} are text; use scope='joint'."
            )


def attended(c: AttentionCall) -> Tensor:
    """The model's own kernel on a changed call, or the engine's where a key bias was added."""
    return fused.attend(c, c.value) if c.key_bias is not None or c.kernel is None else c.kernel(c)


def own_values(c: AttentionCall) -> Tensor:
    """[B, H, Q, V], what the identity fetches."""
    return c.expand(c.value)


def mean_values(c: AttentionCall) -> Tensor:
    """[B, H, 1 or Q, V], what uniform attention fetches: the mean over all keys in sight."""
    if c.mask is None and c.key_bias is None:
        return c.expand(c.value.mean(2, keepdim=True))
    mask = c.mask if c.mask is None or c.mask.dtype == torch.bool else c.mask > HIDDEN / 10
    plain = c.replace(query=torch.zeros_like(c.query), mask=mask, key_bias=hidden_only(c.key_bias))
    return fused.attend(plain, c.value)


def strongest_values(c: AttentionCall) -> Tensor:
    """[B, H, Q, V], the value of each query's strongest key, in blocks of query rows."""
    values = c.expand(c.value)
    step = max(1, budget(c.device) // max(1, c.batch * c.heads * c.keys))
    dtype = torch.float64 if c.query.dtype == torch.float64 else torch.float32
    found = []
    for start in range(0, c.queries, step):
        rows = torch.arange(start, min(start + step, c.queries), device=c.device)
        at = dense(c.at_rows(rows), dtype).argmax(-1, keepdim=True)
        found.append(values.gather(2, at.expand(-1, -1, -1, values.shape[-1])))
    return torch.cat(found, 2)


def segments(c: AttentionCall) -> tuple[slice, slice]:
    """The image's tokens and the text's."""
    found = {s.name: slice(s.start, s.stop) for s in c.segments or ()}
    return found["image"], found["text"]


def own_logits(c: AttentionCall) -> Tensor:
    """[B, H, Q], each token's logit with itself."""
    own = (c.query * c.expand(c.key)).sum(-1) * c.scale
    if c.key_bias is not None:
        own = own + c.key_bias
    if c.mask is None:
        return own
    mask = c.mask
    while mask.dim() < 4:
        mask = mask.unsqueeze(0)
    mask = mask.expand(*mask.shape[:2], c.queries, c.keys).diagonal(dim1=-2, dim2=-1)
    return own.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else own + mask


def log_sums(c: AttentionCall) -> Tensor:
    """[B, H, Q], log-sum-exp of each row's logits; in double precision where the call is."""
    if c.query.dtype != torch.float64:
        return fused.lse(c)
    logits = (c.query * c.scale) @ c.expand(c.key).transpose(-1, -2)  # only tests work in double precision
    if c.key_bias is not None:
        logits = logits + c.key_bias[..., None, :]
    if c.mask is not None:
        logits = logits.masked_fill(~c.mask, -math.inf) if c.mask.dtype == torch.bool else logits + c.mask
    return logits.logsumexp(-1)


def attended_with_sums(c: AttentionCall) -> tuple[Tensor, Tensor]:
    """The output and `log_sums`; by one call where the kernel tells both."""
    plain = c.mask is None and c.key_bias is None and c.query.dtype == torch.float32
    if not (plain and c.device.type == "cpu" and c.value.shape[-1] == c.query.shape[-1]):
        return attended(c), log_sums(c)
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        c.query, c.expand(c.key), c.expand(c.value), 0.0, False, attn_mask=None, scale=c.scale
    )
    return out, sums


def image_identity(c: AttentionCall, image: slice, text: slice) -> Tensor:
    """[B, H, image tokens, V]: each image token sees itself and all text, renormalised (PAG in diffusers' SD3).

    The other image tokens' logits are minus infinity; what is left is a mix of the attention to the text alone and of
    the token's own value, in the ratio of their summed exponentials.
    """
    mask = c.mask
    if mask is not None and mask.dim() >= 2 and mask.shape[-2] > 1:
        mask = mask[..., image, :]
    words = c.replace(
        query=c.query[:, :, image], key=c.key[:, :, text], value=c.value[:, :, text],
        mask=None if mask is None else mask[..., text],
        key_bias=None if c.key_bias is None else c.key_bias[..., text],
    )  # fmt: skip
    told, sums = attended_with_sums(words)
    share = torch.sigmoid(own_logits(c)[:, :, image] - sums)[..., None].to(told.dtype)
    return torch.lerp(told, own_values(c)[:, :, image], share)


def along(path: str, c: AttentionCall, y: Tensor, u: Tensor) -> Tensor:
    """The output on another path from A to the identity, from O and the diagonal of A alone.

    Args:
        path: "chord", the square of the straight line between square roots, normalised; "slerp", the arc between
            them; "log", the straight line between logarithms, normalised, with the identity smoothed by 1e-6.
        c: the call.
        y: its output O, [B, H, Q, V].
        u: [B|1, H, 1, 1], 0 at A and 1 at the identity.
    """
    v, u = own_values(c), u.to(torch.float64 if y.dtype == torch.float64 else torch.float32)
    own = own_logits(c).to(u.dtype)
    if path == "log":
        soft = 1 - u
        mask = c.mask
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.clamp(min=torch.finfo(mask.dtype).min) * soft.to(mask.dtype)
        bias = None if c.key_bias is None else c.key_bias.clamp(min=HIDDEN) * soft[..., 0]
        flat = c.replace(query=c.query * soft.to(c.query.dtype), mask=mask, key_bias=bias)
        ratio = (u * math.log((1 + SMOOTH) / SMOOTH)).expm1()
        extra = ratio * (own * soft[..., 0] - log_sums(flat)).exp()[..., None]
        new = (attended(flat) + extra * v) / (1 + extra)
    else:
        a = (own - log_sums(c)).exp().clamp(max=1)[..., None]
        root = a.sqrt()
        before, after = 1 - u, u
        if path == "slerp":
            angle = torch.arccos(root.clamp(max=1))
            near = angle < FLAT
            sine = torch.where(near, torch.ones_like(angle), angle.sin())
            before = torch.where(near, 1 - u, ((1 - u) * angle).sin() / sine)
            after = torch.where(near, u, (u * angle).sin() / sine)
        diagonal = (before * root + after).square()
        new = (before.square() * (y - a * v) + diagonal * v) / (before.square() * (1 - a) + diagonal)
    return torch.where(u == 0, y, new.to(y.dtype))


def at_rows_of_batch(c: AttentionCall, rows: slice) -> AttentionCall:
    """The same call for some rows of the batch."""

    def cut(x: Tensor | None) -> Tensor | None:
        return x if x is None or x.dim() < 3 or x.shape[0] == 1 else x[rows]

    mask = c.mask if c.mask is None or c.mask.dim() < 4 else cut(c.mask)
    return c.replace(query=c.query[rows], key=cut(c.key), value=cut(c.value), mask=mask, key_bias=cut(c.key_bias))


Strengths = HeadSet | HeadScores | Mapping[str, Any]


def strengths(heads: Strengths, amount: float = 1.0) -> dict[str, Tensor]:
    """Site -> [1 or rows, heads] strengths of any form that `perturb` takes.

    Raises:
        UnbraidError: a strength outside 0 to 1, or of another shape.
    """
    if isinstance(heads, HeadSet):
        table = {}
        for site, numbers in heads.by_site().items():
            table[site] = torch.zeros(1, max(numbers) + 1, dtype=torch.float64)
            table[site][0, numbers] = amount
        return table
    given = heads.scores if isinstance(heads, HeadScores) else heads
    table = {
        site: torch.as_tensor(u, dtype=None if isinstance(u, Tensor) else torch.float64) for site, u in given.items()
    }
    for site, u in table.items():
        if u.dim() not in (1, 2) or not bool((torch.isfinite(u) & (u >= 0) & (u <= 1)).all()):
            raise UnbraidError(
                f"Strengths of {site!r} must be [heads] or [rows, heads] numbers from 0 to 1; given are "
                f"{list(u.shape)} from {float(u.min()):g} to {float(u.max()):g}."
            )
    return {site: (u if u.dim() == 2 else u[None]) * amount for site, u in table.items()}


def joined(many: Sequence[Strengths], amount: float = 1.0) -> dict[str, Tensor]:
    """One strength table from one per row of the batch: rows with different heads in one forward."""
    tables = [strengths(one, amount) for one in many]
    out: dict[str, Tensor] = {}
    for site in dict.fromkeys(site for table in tables for site in table):
        width = max(table[site].shape[1] for table in tables if site in table)
        out[site] = torch.zeros(len(tables), width, dtype=torch.float64)
        for row, table in enumerate(tables):
            if site in table:
                out[site][row, : table[site].shape[1]] = table[site][0]
    return out


def perturb(
    heads: Strengths | Sequence[Strengths] | None = None,
    kind: Damage = "identity",
    amount: float = 1.0,
    *,
    scope: Scope = "joint",
    path: Path = "linear",
    temperature: float = 4.0,
    rows: slice | None = None,
) -> Perturb:
    """Damages the attention of chosen heads: A becomes (1 - u) A + u A', as guidance by perturbed attention needs it.

    Args:
        heads: which heads: a `HeadSet`, strengths u per head (`HeadScores`, or site -> [heads], 0 leaves a head
            untouched, or site -> [rows, heads]), or a list with one of these for each row; None for all heads of the
            attached sites.
        kind: A': "identity" (SoftPAG), "uniform", "query_mean" (every query is their mean: SoftSEG), "argmax" (all on
            the strongest key: SoftMG) or "temperature" (logits divided by `temperature`).
        amount: u from 0 to 1 of the heads, or a factor on their strengths; 0 leaves the model as it is, bit for bit.
        scope: of joint attention. With identity, "joint" takes text and image tokens (the paper), "image" lets each
            image token see itself and the text (PAG as diffusers does it for SD3); with query_mean, the tokens
            whose mean query is taken.
        path: from A to the identity: "linear", "chord" (of square roots), "slerp" (their arc) or "log".
        temperature: above 1 flattens, below 1 sharpens.
        rows: the rows of the batch to edit; None for all.

    Returns:
        A tap. Memory is linear in the tokens for all of them; "argmax" works in blocks of rows.

    Raises:
        UnbraidError: an unknown kind, scope or path, or a strength that is no number from 0 to 1.

    Example:
        >>> with attach(pipe.transformer, taps.perturb(heads, amount=0.5)):
        ...     pipe.transformer(**inputs)
    """
    if kind not in SCOPES:
        raise UnbraidError(f"kind={kind!r} is unknown; choose from {', '.join(SCOPES)}.")
    if scope not in SCOPES[kind]:
        raise UnbraidError(f"scope={scope!r} does not go with kind={kind!r}; choose from {', '.join(SCOPES[kind])}.")
    if path not in PATHS or (path != "linear" and (kind, scope) != ("identity", "joint")):
        raise UnbraidError(
            f"path={path!r} does not go with kind={kind!r} and scope={scope!r}; choose from {', '.join(PATHS)}, "
            "those but the first with kind='identity' and scope='joint' only."
        )
    if not 0 <= amount <= 1:
        raise UnbraidError(f"The strength is {amount}; it must lie between 0 (no change) and 1 (attention replaced).")
    if not (math.isfinite(temperature) and temperature > 0):
        raise UnbraidError(f"temperature={temperature} must be a positive number.")
    table: dict[str, Tensor] | None = None
    if isinstance(heads, HeadSet | HeadScores | Mapping):
        table = strengths(heads, 1.0)
    elif heads is not None:
        table = joined(list(heads), 1.0)
    made = Perturb(table, float(amount), kind, scope, path, float(temperature))
    made.edited = rows
    return made
