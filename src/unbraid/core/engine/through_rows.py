"""Taps that see probabilities themselves: block after block of query rows, edited ones turned into the output."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unbraid.core.calls import Answer, AttentionCall
from unbraid.core.engine.logits import dense


def through_rows(c: AttentionCall, work: list[Any], elements: int, *, want_output: bool) -> tuple[Tensor | None, int]:
    """Shows P to the taps in blocks of query rows, all heads together; makes the output from edited rows.

    Args:
        c: the call.
        work: row taps, and questions that come after an edit, in order.
        elements: probabilities that may be alive at once (at least one row of every head).
        want_output: make the output from what the taps leave.

    Returns:
        The output [B, H, Q, V] (at the softmax seam: the edited probabilities) or None, and the number of blocks.
    """
    shown = [w for w in work if hasattr(w, "show")]
    graph = torch.is_grad_enabled() and (want_output or any(w.tap.grad_rows for w in shown))
    step = max(1, elements // max(1, c.batch * c.heads * c.keys))
    value = None if c.value is None else c.expand(c.value).float()
    parts: list[Tensor] = []
    later = {id(w): Later(w) for w in work if w not in shown}
    count = 0
    with torch.set_grad_enabled(graph), torch.autocast(c.device.type, enabled=False):
        for start in range(0, c.queries, step):
            count += 1
            rows = torch.arange(start, min(c.queries, start + step), device=c.device)
            p = dense(c.at_rows(rows))
            for item in work:
                if id(item) in later:
                    later[id(item)].add(p, start)
                else:
                    changed = item.show(item.call, p, start)
                    p = changed if item.edits and changed is not None else p
            if want_output:
                if c.dropout:
                    p = F.dropout(p, c.dropout)
                parts.append(p if value is None else p @ value)
    for question in later.values():
        question.finish()
    if not want_output:
        return None, count
    out = torch.cat(parts, 2)
    return out.to(c.logits.dtype if c.value is None else c.query.dtype), count  # type: ignore[union-attr]


class Later:
    """A question asked after an edit of rows: answered from the edited rows themselves."""

    def __init__(self, question: Any) -> None:
        self.question, self.parts = question, {}  # type: ignore[var-annotated]

    def add(self, p: Tensor, start: int) -> None:
        """Takes a block of edited rows [B, H, r, K] that begins at query `start`."""
        ask, r = self.question.ask, p.shape[2]

        def keep(name: str, x: Any) -> None:
            self.parts.setdefault(name, []).append(x)

        if ask.moments is not None:
            keep("moments", p @ (ask.moments if ask.moments.dim() == 4 else ask.moments[None, None]).float())
        if ask.weights is not None:
            w = ask.weights if ask.weights.dim() == 4 else ask.weights[None, None]
            part = p.transpose(-1, -2) @ w[:, :, start : start + r].float()
            self.parts["weights"] = [self.parts["weights"][0] + part] if "weights" in self.parts else [part]
        if ask.entropy:
            keep("entropy", torch.special.entr(p.clamp(min=0)).sum(-1))
        if ask.top:
            best = p.topk(min(ask.top, p.shape[-1]), -1)
            keep("top_values", best.values)
            keep("top_indices", best.indices)
        for name, at in (("entries", None if ask.entries is None else ask.entries[0]), ("rows", ask.rows)):
            if at is None:
                continue
            inside = (at >= start) & (at < start + r)
            local = at[inside] - start
            part = p[:, :, local, ask.entries[1][inside]] if name == "entries" else p[:, :, local]
            keep(name, part)
            keep(f"{name}_at", inside.nonzero().flatten())

    def finish(self) -> None:
        """Hands the whole answer to the tap."""
        got = self.parts

        def joined(name: str) -> Tensor | None:
            return torch.cat(got[name], 2) if name in got else None

        def ordered(name: str) -> Tensor | None:
            whole = joined(name)
            if whole is None:
                return None
            order = torch.cat(got[f"{name}_at"]).argsort()
            return whole.index_select(2, order)

        top = (joined("top_values"), joined("top_indices")) if "top_values" in got else None
        answer = Answer(
            moments=joined("moments"),
            weights=got["weights"][0] if "weights" in got else None,
            entropy=joined("entropy"),
            top=top,  # type: ignore[arg-type]
            entries=ordered("entries"),
            rows=ordered("rows"),
        )
        self.question.tap.take(self.question.call, answer)
