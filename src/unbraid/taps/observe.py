"""Observers: exact statistics of every head, without the attention matrix (only `Maps` keeps one, on purpose)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from unbraid.core.calls import Answer, Ask, AttentionCall
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.taps.observer import Group, Keep, Observer, only


class Received(Observer):
    """Attention that each key receives, summed over valid queries: values are [B, H, K].

    `scores()`: the share of all attention that goes to the most-attended key ("largest share"); "key" is that key.
    """

    name = "largest share received"

    def __init__(self, heads: HeadSet | None = None, keep: Keep = "last") -> None:
        super().__init__(heads, keep)
        self._received: dict[str, list[Tensor]] = {} if keep == "none" else self.values

    def ask(self, c: AttentionCall) -> Ask:
        """P^T w with w = 1 on valid queries."""
        w = self.valid(c)
        return Ask(weights=w.expand(-1, -1, c.queries)[..., None])

    def take(self, c: AttentionCall, answer: Answer) -> None:
        """Keeps sums; later calls of a growing cache are added key by key."""
        assert answer.weights is not None
        new = answer.weights[..., 0].detach()
        old = self._received.get(c.site)
        if old is None or old[0].shape[:2] != new.shape[:2]:
            self._received[c.site] = [new]
        elif self.keep == "all":
            self._received[c.site] = [*old, new]
        else:
            wide = new.clone()
            n = min(old[0].shape[-1], new.shape[-1])
            wide[..., :n] += old[0][..., :n]
            self._received[c.site] = [wide]

    def scores(self, which: str | None = None) -> HeadScores:
        """Largest share per head, or (which="key") the position of the key that gets it."""
        if not self._received:
            return super().scores(which)
        if which not in (None, "key"):
            raise UnbraidError(f"Received has no statistic {which!r}; choose 'key' or nothing.")
        table = {}
        for site, kept in self._received.items():
            n = max(x.shape[-1] for x in kept)
            total = torch.stack([torch.nn.functional.pad(x.sum(0), (0, n - x.shape[-1])) for x in kept]).sum(0)
            best = total.max(-1)
            share = best.values / total.sum(-1).clamp(min=1e-30)
            table[site] = only(
                self.heads, site, (best.indices if which == "key" else share).cpu().numpy().astype(float)
            )
        return HeadScores(table, name=self.name if which is None else "most attended key")


class Entropy(Observer):
    """Entropy of each row in nats: values are [B, H, Q]; `scores()` is the mean."""

    name = "entropy"

    def __init__(self, heads: HeadSet | None = None, keep: Keep = "last", grad: bool = False) -> None:
        super().__init__(heads, keep)
        self.grad = grad
        self.live: dict[str, Tensor] = {}

    def ask(self, c: AttentionCall) -> Ask:
        """Row entropies."""
        return Ask(entropy=True, grad=self.grad)

    def take(self, c: AttentionCall, answer: Answer) -> None:
        """Keeps them; with `grad` also attached to the graph, in `live[site]`."""
        assert answer.entropy is not None
        if self.grad:
            self.live[c.site] = answer.entropy
        self.remember(c, answer.entropy, entropy=answer.entropy)


class TopK(Observer):
    """The k most attended keys of each row: values are key indices [B, H, Q, k], -1 where fewer keys are in sight.

    `scores()`: mean probability of the first; "mass": of all k together. `probabilities` are kept like `values`.
    """

    name = "largest probability"

    def __init__(self, k: int, heads: HeadSet | None = None, keep: Keep = "last") -> None:
        super().__init__(heads, keep)
        if k < 1:
            raise UnbraidError(f"TopK needs k >= 1, not {k}.")
        self.k = k
        self.probabilities: dict[str, list[Tensor]] = {}

    def ask(self, c: AttentionCall) -> Ask:
        """The k largest probabilities per row."""
        return Ask(top=min(self.k, c.keys))

    def take(self, c: AttentionCall, answer: Answer) -> None:
        """Keeps indices and probabilities."""
        assert answer.top is not None
        p, at = answer.top
        self.remember(c, at, first=p[..., 0], mass=p.sum(-1))
        if self.keep != "none":
            old = self.probabilities.get(c.site, []) if self.keep == "all" else []
            self.probabilities[c.site] = [*old, p]


class ArgMax(TopK):
    """The most attended key of each row: values are [B, H, Q, 1]; lowest index among ties."""

    def __init__(self, heads: HeadSet | None = None, keep: Keep = "last") -> None:
        super().__init__(1, heads, keep)


class Mass(Observer):
    """Attention mass on groups of keys: values are [B, H, Q, groups].

    Args:
        groups: name -> key positions (negative ones count from the end), a slice, bools or weights [K] or [B, K], or
            a function of the call that returns [K] or [B|1, H|1, K] weights.
        heads: heads of interest.
        keep: what raw answers to keep.
        grad: keep answers attached to the graph in `live[site]`; stays linear in memory.

    Example:
        >>> mass = Mass({"sink": [0], "needle": slice(120, 140)})
    """

    name = "mass"

    def __init__(
        self, groups: Mapping[str, Group], heads: HeadSet | None = None, keep: Keep = "last", grad: bool = False
    ) -> None:
        super().__init__(heads, keep)
        if not groups:
            raise UnbraidError('Mass needs at least one group of keys, e.g. Mass({"first": [0]}).')
        self.groups, self.grad = dict(groups), grad
        self.live: dict[str, Tensor] = {}

    def ask(self, c: AttentionCall) -> Ask:
        """P @ E with one column per group."""
        columns = [_column(g, c, name) for name, g in self.groups.items()]
        if all(x.dim() == 1 for x in columns):
            return Ask(moments=torch.stack(columns, -1), grad=self.grad)
        four = [x[None, None] if x.dim() == 1 else x for x in columns]
        b, h = max(x.shape[0] for x in four), max(x.shape[1] for x in four)
        return Ask(moments=torch.stack([x.expand(b, h, -1) for x in four], -1), grad=self.grad)

    def take(self, c: AttentionCall, answer: Answer) -> None:
        """Keeps masses; the mean of each group is a statistic of its name."""
        assert answer.moments is not None
        if self.grad:
            self.live[c.site] = answer.moments
        self.remember(c, answer.moments, **{n: answer.moments[..., i] for i, n in enumerate(self.groups)})


def _column(group: Group, c: AttentionCall, name: str) -> Tensor:
    n, device = c.keys, c.device
    if callable(group):
        return group(c).to(device=device, dtype=torch.float32)
    if isinstance(group, Tensor) and group.dtype != torch.int64:
        if group.shape[-1] != n:
            raise UnbraidError(f"Group {name!r} has {group.shape[-1]} weights, but {c.site!r} has {n} keys.")
        if group.dim() == 2 and group.shape[0] not in (1, c.batch):
            raise UnbraidError(f"Group {name!r} is for {group.shape[0]} texts, but the batch has {c.batch}.")
        weights = group.to(device=device, dtype=torch.float32)
        return weights.unsqueeze(1) if group.dim() == 2 else weights
    column = torch.zeros(n, device=device)
    if isinstance(group, slice):
        column[group] = 1.0
        return column
    for i in group.tolist() if isinstance(group, Tensor) else group:
        if not -n <= int(i) < n:
            raise UnbraidError(f"Group {name!r} names key {int(i)}, but {c.site!r} has keys 0 to {n - 1}.")
        column[int(i)] = 1.0
    return column


class Distance(Observer):
    """How far back heads look, in tokens: values are [B, H, Q, 2] = mean of i - j, root mean square of i - j.

    `scores()` is the mean of i - j (positive: looks back); "rms" the root mean square, for heads that look both ways.
    """

    name = "distance"

    def ask(self, c: AttentionCall) -> Ask:
        """Mass, first and second moment of up to 16 runs of keys, each about its own centre.

        One pair of moments about a common centre would lose short distances in float32: squares of thousands cancel.
        """
        position, which, centre = self._runs(c)
        x = position - centre[which]
        e = torch.zeros(c.keys, len(centre), 3, device=c.device)
        rows = torch.arange(c.keys, device=c.device)
        e[rows, which] = torch.stack([torch.ones_like(x), x, x * x], -1)
        return Ask(moments=e.flatten(1))

    def _runs(self, c: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
        position = torch.arange(c.keys, device=c.device)
        width = max(256, -(-c.keys // 16))
        which = position // width
        centre = torch.arange(int(which[-1]) + 1, device=c.device) * width + width // 2
        return position.float(), which, centre.float()

    def take(self, c: AttentionCall, answer: Answer) -> None:
        """Turns moments into distances from each query."""
        assert answer.moments is not None
        _, _, centre = self._runs(c)
        m = answer.moments.unflatten(-1, (len(centre), 3))
        i = torch.arange(c.queries, device=c.device, dtype=torch.float32)[:, None] + c.offset
        far = i - centre
        mean = (far * m[..., 0] - m[..., 1]).sum(-1)
        square = (m[..., 2] - 2 * far * m[..., 1] + far * far * m[..., 0]).sum(-1)
        rms = square.clamp(min=0).sqrt()
        self.remember(c, torch.stack([mean, rms], -1), mean=mean, rms=rms)


class Entries(Observer):
    """Chosen probabilities: values are [B, H, m].

    Args:
        pairs: (query, key) positions, negative ones count from the end; or a function of the call that returns two
            int64 tensors [m]. `previous()` builds the pairs (i, i - 1).
        heads: heads of interest.
        keep: what raw answers to keep.
    """

    name = "probability"

    def __init__(
        self,
        pairs: Iterable[tuple[int, int]] | Callable[[AttentionCall], tuple[Tensor, Tensor]],
        heads: HeadSet | None = None,
        keep: Keep = "last",
    ) -> None:
        super().__init__(heads, keep)
        self.pairs = pairs if callable(pairs) else list(pairs)

    @staticmethod
    def previous(offset: int = 1) -> Callable[[AttentionCall], tuple[Tensor, Tensor]]:
        """Pairs (i, i - offset): the previous-token heads for offset 1."""

        def pairs(c: AttentionCall) -> tuple[Tensor, Tensor]:
            i = torch.arange(c.queries, device=c.device)
            i = i[i + c.offset >= offset]
            return i, i + c.offset - offset

        return pairs

    def ask(self, c: AttentionCall) -> Ask:
        """Entries of P."""
        if callable(self.pairs):
            return Ask(entries=self.pairs(c))
        for q, k in self.pairs:
            if not (-c.queries <= q < c.queries and -c.keys <= k < c.keys):
                raise UnbraidError(f"Entry ({q}, {k}) is outside the {c.queries} x {c.keys} attention of {c.site!r}.")
        both = torch.tensor([(q % c.queries, k % c.keys) for q, k in self.pairs], device=c.device).reshape(-1, 2)
        return Ask(entries=(both[:, 0], both[:, 1]))

    def take(self, c: AttentionCall, answer: Answer) -> None:
        """Keeps them; the mean is over entries and batch."""
        assert answer.entries is not None
        self.remember(c, answer.entries)
        part = answer.entries.double().sum((0, 2))
        total = self._sum.setdefault(c.site, {})
        total["mean"] = total.get("mean", 0) + part
        n = torch.tensor(float(answer.entries.shape[0] * answer.entries.shape[2]), dtype=torch.float64)
        self._count[c.site] = self._count.get(c.site, 0) + n.to(part.device)


class Rows(Observer):
    """Whole rows of P for chosen queries: values are [B, H, r, K], at O(r K) cost; `scores()` is their largest entry.

    Args:
        queries: query positions, negative ones count from the end; `Rows([-1])` is the last token or a decoding step.
        heads: heads of interest.
        keep: what raw answers to keep.
        grad: keep rows attached to the graph in `live[site]`.
    """

    name = "largest probability"

    def __init__(
        self, queries: Iterable[int], heads: HeadSet | None = None, keep: Keep = "last", grad: bool = False
    ) -> None:
        super().__init__(heads, keep)
        self.queries, self.grad = list(queries), grad
        self.live: dict[str, Tensor] = {}

    def ask(self, c: AttentionCall) -> Ask | None:
        """These rows; at calls with fewer queries (decoding) those that exist."""
        at = [q % c.queries for q in self.queries if -c.queries <= q < c.queries]
        return Ask(rows=torch.tensor(at, device=c.device), grad=self.grad) if at else None

    def take(self, c: AttentionCall, answer: Answer) -> None:
        """Keeps them."""
        assert answer.rows is not None
        if self.grad:
            self.live[c.site] = answer.rows
        self.remember(c, answer.rows)
        best = answer.rows.detach().amax(-1).double()
        total = self._sum.setdefault(c.site, {})
        total["largest"] = total.get("largest", 0) + best.sum((0, 2))
        n = torch.tensor(float(best.shape[0] * best.shape[2]), dtype=torch.float64, device=best.device)
        self._count[c.site] = self._count.get(c.site, 0) + n


class Maps(Observer):
    """Whole maps P, for pictures and losses: values are [B, H, Q, K]; `live[site]` keeps the graph with `grad`.

    Args:
        grad: keep the graph (the maps are then part of the backward pass).
        heads: heads of interest; other heads of the site are dropped.
        keep: which maps to keep.
        limit: largest number of entries of one map, all heads together; a longer one is an error, not a surprise.
    """

    name = "map"

    def __init__(
        self, grad: bool = False, heads: HeadSet | None = None, keep: Keep = "last", limit: int = 1 << 26
    ) -> None:
        super().__init__(heads, keep)
        self.grad, self.grad_rows, self.limit = grad, grad, limit
        self.live: dict[str, Tensor] = {}
        self._parts: list[Tensor] = []

    def rows(self, c: AttentionCall, p: Tensor, start: int) -> None:
        """Gathers blocks until the map is whole."""
        chosen = self.heads_at(c)
        size = c.batch * (len(chosen) if chosen is not None else c.heads) * c.queries * c.keys
        if size > self.limit:
            raise UnbraidError(
                f"Maps would keep {size:,} numbers at {c.site!r}, more than {self.limit:,}; choose heads=, a shorter "
                "input, Rows([...]), or raise limit=."
            )
        part = p if chosen is None else p[:, chosen]
        self._parts.append(part if self.grad else part.detach().clone())
        if start + p.shape[2] < c.queries:
            return
        whole = torch.cat(self._parts, 2) if len(self._parts) > 1 else self._parts[0]
        self._parts = []
        if self.grad:
            self.live[c.site] = whole
        self.remember(c, whole)


class Outputs(Observer):
    """Head outputs: values are [B, H, Q, V]; `mean[site]` is the mean over batch and valid queries, [H, V].

    What `patch` puts in and `ablate(to="mean")` needs.
    """

    name = "output"

    def __init__(self, heads: HeadSet | None = None, keep: Keep = "none") -> None:
        super().__init__(heads, keep)
        self._total: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}

    def out(self, c: AttentionCall, y: Tensor) -> None:
        """Keeps and averages; changes nothing."""
        self.remember(c, y.clone() if self.keep != "none" else y)
        valid = self.valid(c)
        part = (y.detach().float() * valid[..., None]).sum((0, 2)).double()
        count = valid.expand(c.batch, -1, c.queries).sum((0, 2)).double()[:, None]
        self._total[c.site] = self._total.get(c.site, 0) + part
        self._rows[c.site] = self._rows.get(c.site, 0) + count

    @property
    def mean(self) -> dict[str, Tensor]:
        """Mean output per head, site -> [H, V]."""
        return {site: (total / self._rows[site].clamp(min=1)).float() for site, total in self._total.items()}
