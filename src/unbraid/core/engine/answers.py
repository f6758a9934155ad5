"""Answers the merged questions of one call by the recipes that the plan chose, and deals the answers out."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from unbraid.core.calls import Answer, Ask, AttentionCall, Tap
from unbraid.core.engine import fused
from unbraid.core.engine.cost import rates
from unbraid.core.engine.logits import dense
from unbraid.core.engine.plan import Plan, Shape, Wanted, plan
from unbraid.core.engine.rows import budget, sweep
from unbraid.core.errors import UnbraidError


@dataclass
class Options:
    """How the engine may work: see `attach` for what each option means."""

    bitwise: bool = True
    memory: int | None = None
    block: int | None = None
    recipe: str | None = None
    check: int = 0
    dry: bool = False


@dataclass
class Log:
    """What happened and what was planned, added up over calls."""

    calls: int = 0
    fused_calls: int = 0
    sweeps: int = 0
    blocks: int = 0
    patterns: int = 0
    predicted_fused: int = 0
    predicted_bytes: int = 0
    predicted_seconds: float = 0.0
    largest_error: float = 0.0
    checked_rows: int = 0
    plans: list[tuple[str, Shape, Wanted, Plan]] = field(default_factory=list)

    def add(self, other: Log) -> None:
        """Adds what happened in one call."""
        for name, value in vars(other).items():
            mine = vars(self)[name]
            most = name in ("predicted_bytes", "largest_error")
            vars(self)[name] = max(mine, value) if most else mine + value


@dataclass
class Question:
    """One tap's ask, with the call as that tap sees it."""

    tap: Tap
    call: AttentionCall
    ask: Ask


def give(question: Question, answer: Answer) -> None:
    """Hands an answer to the tap that asked."""
    if question.tap.take is None:
        raise UnbraidError(f"{type(question.tap).__name__} asks but has no take(call, answer) to hear the answer.")
    question.tap.take(question.call, answer)


def ask_together(
    c: AttentionCall, questions: list[Question], options: Options, log: Log, *, want_output: bool
) -> Tensor | None:
    """Merges what several taps ask, plans it, answers it, and deals the answers out."""
    merged, moments = merge([q.ask for q in questions])
    shape, wanted = Shape.of(c), Wanted.of(merged, sum(e.shape[-1] for e in moments))
    elements = options.block or budget(c.device)
    prices = rates(c.device)
    chosen = plan(shape, wanted, prices, elements, memory=options.memory, force=options.recipe)
    log.predicted_fused += chosen.fused_calls
    log.predicted_bytes = max(log.predicted_bytes, chosen.bytes)
    log.predicted_seconds += chosen.seconds
    if options.dry:
        log.plans.append((c.site, shape, wanted, chosen))
        return None
    swept = {k for k, v in chosen.recipe.items() if v == "rows"}
    reuse = bool(swept) and want_output and not options.bitwise and prices.product * shape.values <= prices.fused * 64
    reuse = reuse and c.dropout == 0 and not torch.is_grad_enabled() and c.value is not None
    before = fused.Counter.calls
    answer, y = execute(c, merged, moments, chosen, log, output=reuse)
    log.fused_calls += fused.Counter.calls - before
    if options.check:
        spot_check(c, merged, moments, answer, options.check, log)
    deal(questions, answer)
    return None if y is None else y.to(c.query.dtype)


def execute(
    c: AttentionCall, ask: Ask, moments: list[Tensor], chosen: Plan, log: Log, *, output: bool
) -> tuple[Answer, Tensor | None]:
    """Carries out a plan."""
    how = chosen.recipe
    y = None
    answer = Answer()
    if "rows" in how.values():
        part = Ask(
            weights=ask.weights if how.get("weights") == "rows" else None,
            entropy=ask.entropy and how.get("entropy") == "rows",
            lse=ask.lse and how.get("lse") == "rows",
            top=ask.top,
        )
        answer, y, n = sweep(c, part, moments if how.get("moments") == "rows" else [], chosen.elements, output)
        log.sweeps += 1
        log.blocks += n
    log_z = fused.lse(c) if "fused" in (how.get("entropy"), how.get("lse"), how.get("entries")) else None
    if how.get("moments") == "fused":
        answer.moments = fused.attend(c, _side_by_side(moments, c)).float()
    if how.get("weights") == "fused" and ask.weights is not None:
        answer.weights = fused.received(c, ask.weights)
    if how.get("entropy") == "fused" and log_z is not None:
        answer.entropy = fused.entropy(c, log_z)
    if how.get("lse") == "fused":
        answer.lse = log_z
    if ask.entries is not None:
        rows, keys = ask.entries
        if how["entries"] == "fused" and log_z is not None:
            answer.entries = fused.entries(c, rows, keys, log_z)
        else:
            distinct, back = rows.unique(return_inverse=True)
            answer.entries = dense(c.at_rows(distinct))[:, :, back, keys]
    if ask.rows is not None:
        answer.rows = dense(c.at_rows(ask.rows))
    return answer, y


def _side_by_side(moments: list[Tensor], c: AttentionCall) -> Tensor:
    four = [e.float() if e.dim() == 4 else e.float()[None, None] for e in moments]
    b, h = max(e.shape[0] for e in four), max(e.shape[1] for e in four)
    heads = h if h > 1 else 1
    joined = torch.cat([e.expand(b, heads, -1, -1) for e in four], -1)
    return joined.expand(-1, c.key.shape[1] if heads == 1 else heads, -1, -1)


def merge(asks: list[Ask]) -> tuple[Ask, list[Tensor]]:
    """One ask for all: columns side by side, the deepest top, every pair and every row."""
    weights = [a.weights if a.weights.dim() == 4 else a.weights[None, None] for a in asks if a.weights is not None]
    joined = None
    if weights:
        b, h = max(w.shape[0] for w in weights), max(w.shape[1] for w in weights)
        joined = torch.cat([w.float().expand(b, h, -1, -1) for w in weights], -1)
    pairs = [a.entries for a in asks if a.entries is not None]
    rows = [a.rows for a in asks if a.rows is not None]
    return Ask(
        weights=joined,
        entries=(torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])) if pairs else None,
        entropy=any(a.entropy for a in asks),
        top=max(a.top for a in asks),
        lse=any(a.lse for a in asks),
        rows=torch.cat(rows) if rows else None,
    ), [a.moments for a in asks if a.moments is not None]


def deal(questions: list[Question], answer: Answer) -> None:
    """Cuts a merged answer back into what each tap asked for."""
    at = {"moments": 0, "weights": 0, "entries": 0, "rows": 0}

    def part(name: str, size: int, whole: Tensor | None, dim: int) -> Tensor | None:
        if whole is None:
            return None
        start = at[name]
        at[name] += size
        return whole.narrow(dim, start, size)

    for question in questions:
        ask = question.ask
        mine = Answer(
            entropy=answer.entropy if ask.entropy else None,
            lse=answer.lse if ask.lse else None,
            top=(answer.top[0][..., : ask.top], answer.top[1][..., : ask.top]) if ask.top and answer.top else None,
        )
        if ask.moments is not None:
            mine.moments = part("moments", ask.moments.shape[-1], answer.moments, -1)
        if ask.weights is not None:
            mine.weights = part("weights", ask.weights.shape[-1], answer.weights, -1)
        if ask.entries is not None:
            mine.entries = part("entries", len(ask.entries[0]), answer.entries, -1)
        if ask.rows is not None:
            mine.rows = part("rows", len(ask.rows), answer.rows, 2)
        give(question, mine)


def with_graph(c: AttentionCall, ask: Ask, log: Log) -> Answer:
    """Answers with gradients: moments stay linear in memory, the rest needs the matrix in the graph."""
    answer = Answer()
    fuse = fused.can_fuse(c) and c.sinks is None
    if ask.moments is not None and fuse:
        answer.moments = fused.attend(c, _side_by_side([ask.moments], c))
        log.fused_calls += 1
        if not (ask.weights is not None or ask.entries or ask.entropy or ask.top or ask.lse or ask.rows is not None):
            return answer
    p = dense(c)
    log.patterns += 1
    if ask.moments is not None and answer.moments is None:
        e = ask.moments if ask.moments.dim() == 4 else ask.moments[None, None]
        answer.moments = p @ e.float()
    if ask.weights is not None:
        w = ask.weights if ask.weights.dim() == 4 else ask.weights[None, None]
        answer.weights = p.transpose(-1, -2) @ w.float()
    answer.entropy = torch.special.entr(p.clamp(min=1e-30)).sum(-1) if ask.entropy else None
    answer.entries = p[:, :, ask.entries[0], ask.entries[1]] if ask.entries else None
    answer.rows = p[:, :, ask.rows] if ask.rows is not None else None
    if ask.top:
        best = p.topk(min(ask.top, c.keys), -1)
        answer.top = (best.values, best.indices)
    return answer


def spot_check(c: AttentionCall, ask: Ask, moments: list[Tensor], answer: Answer, rows: int, log: Log) -> None:
    """Recomputes a few random rows densely in float64 and keeps the largest error."""
    pick = (
        torch.randperm(c.queries, generator=torch.Generator().manual_seed(log.calls))[:rows].to(c.device).sort().values
    )
    p = dense(c.at_rows(pick), torch.float64)
    errors = [0.0]
    if answer.entropy is not None:
        errors.append(float((torch.special.entr(p).sum(-1) - answer.entropy[:, :, pick]).abs().max()))
    if answer.moments is not None:
        at = 0
        for e in moments:
            e4 = (e if e.dim() == 4 else e[None, None]).double()
            got = answer.moments[:, :, pick, at : at + e.shape[-1]]
            size = e4.abs().amax().clamp(min=1.0)
            errors.append(float(((p @ e4 - got) / size).abs().max()))
            at += e.shape[-1]
    if answer.top is not None:
        k = answer.top[0].shape[-1]
        errors.append(float((p.topk(k, -1).values - answer.top[0][:, :, pick]).abs().max()))
    if answer.weights is not None and ask.weights is not None and c.sinks is None:
        mass = answer.weights.double().sum(2)
        w = (ask.weights if ask.weights.dim() == 4 else ask.weights[None, None]).double()
        if c.mask is None and c.logits is None:
            errors.append(float(((mass - w.sum(2)) / w.abs().sum(2).clamp(min=1.0)).abs().max()))
    log.largest_error = max(log.largest_error, *errors)
    log.checked_rows += len(pick) * c.batch * c.heads
