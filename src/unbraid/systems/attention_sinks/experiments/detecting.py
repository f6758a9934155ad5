"""Detection on real models: the ten metrics on many short texts, as the sink metric's authors measure it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbraid.core.heads import HeadScores
from unbraid.data import text
from unbraid.systems.attention_sinks.detection.findings import SinkReport, report


def opening(tokenizer: Any) -> list[int]:
    """What the tokenizer itself puts in front of a text: a BOS, or nothing."""
    return [int(i) for i in tokenizer("a")["input_ids"][: -len(tokenizer("a", add_special_tokens=False)["input_ids"])]]


def short_texts(tokenizer: Any, length: int, count: int, seed: int) -> Tensor:
    """Texts [count, length] that begin as the tokenizer begins them."""
    front = torch.tensor(opening(tokenizer), dtype=torch.int64)
    body = text.windows(tokenizer, length - len(front), count, seed)
    return torch.cat([front.expand(count, -1), body], 1)


def detect(
    model: Any, tokenizer: Any, length: int, count: int, seed: int, step: Callable[[int], None], batch: int = 20
) -> SinkReport:
    """The ten metrics on `count` texts of `length` tokens."""
    ids = short_texts(tokenizer, length, count, seed)

    def each() -> Any:
        for one in ids.to(next(model.parameters()).device).split(batch):
            yield {"input_ids": one}
            step(len(one))

    return report(model, each())


def plain(found: SinkReport) -> dict[str, Any]:
    """A report as plain data: what the page needs of it."""
    tables = {
        name: None if table is None else table.to_dict()
        for name, table in (
            ("alpha", found.alpha), ("first", found.first_share), ("write", found.write), ("value", found.value_ratio),
            ("rank", found.key_rank),
        )
    }  # fmt: skip
    return {
        "summary": found.summary(), "tables": tables, "layers": found.layers, "massive": strongest(found),
        "rates": {f"{e:g}": found.rate_per_text(e).tolist() for e in (0.1, 0.2, 0.3, 0.5)}, "texts": found.texts,
        "length": found.length, "first share": found.first_token_share, "lifecycle": found.lifecycle,
        "tokens": places(found), "keys per group": key_ranks(found),
    }  # fmt: skip


def places(found: SinkReport) -> list[dict[str, Any]]:
    """Metric 1 by place: in how many (text, layer) pairs each position is a sink token."""
    counts: dict[int, int] = {}
    for token in found.tokens:
        counts[token["token"]] = counts.get(token["token"], 0) + 1
    pairs = found.texts * len(found.alpha.sites)
    most = sorted(counts.items(), key=lambda x: -x[1])[:8]
    return [{"token": t, "share of (text, layer)": n / pairs} for t, n in most]


def strongest(found: SinkReport, most: int = 12) -> list[dict[str, Any]]:
    """Massive activations by (token, channel): layers, largest value, share of texts."""
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for m in found.massive:
        groups.setdefault((m["token"], m["channel"]), []).append(m)
    rows = [
        {
            "token": token, "channel": channel, "first block": min(m["layer"] for m in ms),
            "last block": max(m["layer"] for m in ms), "largest": max((m["value"] for m in ms), key=abs),
            "share of texts": len({m["text"] for m in ms}) / found.texts,
        }
        for (token, channel), ms in groups.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda r: -abs(r["largest"]))[:most]


def key_ranks(found: SinkReport) -> list[float]:
    """Rank correlations of key distinctiveness with attention, of all heads."""
    if found.key_rank is None:
        return []
    x = np.concatenate(list(found.key_rank.scores.values()))
    return x[np.isfinite(x)].tolist()


def scores(data: dict[str, Any], name: str) -> HeadScores | None:
    """A table of `plain` again."""
    table = data["tables"][name]
    return None if table is None else HeadScores.from_dict(table)
