"""What the heads of a circuit do: where they look, whether they copy, and what they do on repeated random text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from unbraid import taps
from unbraid.core.attach import attach
from unbraid.core.calls import AttentionCall, Tap
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.core.patching import PathPatcher
from unbraid.data.prompts import PromptSet
from unbraid.systems.circuit_reuse.answering import Taps, last_logits

REPEATED = {"previous": "previous token", "duplicate": "duplicate token", "induction": "induction"}


@torch.inference_mode()
def looks(model: nn.Module, prompts: PromptSet, edits: Taps | None = None, batch: int = 25) -> dict[str, np.ndarray]:
    """Attention from the last token to every named place.

    Args:
        model: a decoder language model.
        prompts: of one task.
        edits: taps for a batch, which act before attention is read of later layers.
        batch: prompts per forward.

    Returns:
        place -> [prompts, layers, heads]; layers with fewer heads are filled with NaN.
    """
    device = next(model.parameters()).device
    names = sorted({name for p in prompts for name in p.places})
    out: dict[str, np.ndarray] = {}
    for group in prompts.groups(batch):
        rows = taps.Rows([-1])
        ids = torch.tensor([prompts[i].clean for i in group], device=device)
        with attach(model, *(edits(group) if edits is not None else ()), rows):
            last_logits(model, ids)
        table = [v[0][:, :, 0].float().cpu().numpy() for v in rows.values.values()]
        width = max(t.shape[1] for t in table)
        for name in names:
            if name not in out:
                out[name] = np.full((len(prompts), len(table), width), np.nan)
            for b, i in enumerate(group):
                at = list(prompts[i].places.get(name, ()))
                for layer, p in enumerate(table):
                    out[name][i, layer, : p.shape[1]] = p[b][:, at].sum(-1)
    return out


@torch.inference_mode()
def repeated(model: nn.Module, length: int = 50, count: int = 8, seed: int = 0) -> dict[str, HeadScores]:
    """Scores on random tokens that come twice: attention to the previous token, to the same token's first occurrence
    (duplicate), and to the token after that (induction), averaged over the second half.

    Args:
        model: a decoder language model.
        length: tokens of a half.
        count: texts.
        seed: of the tokens.
    """
    g = torch.Generator().manual_seed(seed)
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    half = torch.randint(0, int(vocabulary), (count, length), generator=g)
    ids = torch.cat([half, half], 1).to(next(model.parameters()).device)

    def back(by: int) -> Callable[[AttentionCall], tuple[Tensor, Tensor]]:
        def pairs(c: AttentionCall) -> tuple[Tensor, Tensor]:
            i = torch.arange(length, 2 * length, device=c.device)
            return i, i - by

        return pairs

    watch = {
        "previous": taps.Entries(back(1), keep="none"), "duplicate": taps.Entries(back(length), keep="none"),
        "induction": taps.Entries(back(length - 1), keep="none"),
    }  # fmt: skip
    with attach(model, *watch.values()):
        last_logits(model, ids)
    return {name: HeadScores(tap.scores().scores, REPEATED[name]) for name, tap in watch.items()}


def copying(
    model: nn.Module, prompts: PromptSet, tokens: Callable[[Any], Sequence[tuple[int, str]]], batch: int = 25
) -> dict[str, np.ndarray]:
    """Direct logit attribution of tokens beside attention to the place that holds them.

    Args:
        model: a decoder language model.
        prompts: of one task.
        tokens: from a pair to (token, place) items, as many for every pair.
        batch: prompts per forward.

    Returns:
        "attention" and "attribution", each [items of all prompts, heads], heads in the order of layers.
    """
    seen = looks(model, prompts, None, batch)
    attention: list[np.ndarray] = []
    attribution: list[np.ndarray] = []
    for group in prompts.groups(batch):
        some = [prompts[i] for i in group]
        items = [tokens(p) for p in some]
        patcher = PathPatcher(
            model, [list(p.clean) for p in some], [list(p.corrupt) for p in some], [p.answers[0] for p in some],
            [p.distractors[0] for p in some],
        )  # fmt: skip
        dla = patcher.attribution([[token for token, _ in item] for item in items])  # [heads, B, A]
        for b, i in enumerate(group):
            for a, (_, place) in enumerate(items[b]):
                attribution.append(dla[:, b, a])
                there = seen[place][i]
                attention.append(np.concatenate([there[k][:n] for k, n in enumerate(patcher.anatomy.heads)]))
    return {"attention": np.array(attention), "attribution": np.array(attribution)}


def slopes(pairs: dict[str, np.ndarray]) -> np.ndarray:
    """[heads] Pearson's r of attribution with attention: positive for movers, negative for negative movers."""
    x, y = pairs["attention"], pairs["attribution"]
    x, y = x - x.mean(0), y - y.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0))


def own_tokens(task: str) -> Callable[[Any], Sequence[tuple[int, str]]]:
    """Which tokens a task's movers could copy, and where they stand: the two names; the colours of right and twin."""
    if task == "ioi":
        return lambda p: [(p.answers[0], "IO"), (p.distractors[0], "S1")]
    if task == "coloured_objects":
        return lambda p: [(p.answers[0], "colour"), (p.distractors[0], "twin colour")]
    return lambda p: [(p.answers[0], "source"), (p.distractors[0], "end")]


def roles(
    model: nn.Module, prompts: PromptSet, heads: HeadSet, repeated_scores: dict[str, HeadScores], batch: int = 25
) -> list[dict[str, Any]]:
    """One row per head: attention from the last token to each place, copying, and scores on repeated random text.

    Args:
        model: a decoder language model.
        prompts: of one task.
        heads: which heads.
        repeated_scores: from `repeated`.
        batch: prompts per forward.
    """
    seen = looks(model, prompts, None, batch)
    pairs = copying(model, prompts, own_tokens(prompts.task), batch)
    table = repeated_scores["induction"]
    r = slopes(pairs)
    flat = list(table)
    rows = []
    for head in heads:
        layer = table.sites.index(head[0])
        row: dict[str, Any] = {"head": table.label(head)}
        row |= {f"to {name}": float(v[:, layer, head[1]].mean()) for name, v in seen.items() if name != "source"}
        row |= {
            "copies (r)": float(r[flat.index(head)]),
            "attribution": float(pairs["attribution"][::2, flat.index(head)].mean()),
        }
        row |= {REPEATED[name]: s[head] for name, s in repeated_scores.items()}
        rows.append(row)
    return rows


def downstream(
    model: nn.Module,
    prompts: PromptSet,
    movers: HeadSet,
    importance: HeadScores,
    edits: Taps,
    batch: int = 25,
) -> dict[str, Any]:
    """What the repair does to movers: their attention to right and wrong colours, and their direct logit attribution.

    Args:
        model: a decoder language model.
        prompts: of the repaired task.
        movers: heads to watch.
        importance: any table of the model's heads, which names them.
        edits: the repair.
        batch: prompts per forward.

    Returns:
        Attention before and its change per place, and the gain in attribution (answer minus distractor) of every head.
    """
    if not len(movers):
        return {"movers": 0}
    before, after = looks(model, prompts, None, batch), looks(model, prompts, edits, batch)
    sites = importance.sites
    at = [(sites.index(site), head) for site, head in movers]
    out: dict[str, Any] = {"movers": len(at)}
    for name in ("colour", "wrong"):
        change = np.stack([(after[name] - before[name])[:, i, h] for i, h in at], 1).mean(1)
        out[name] = float(change.mean())
        out[f"{name} interval"] = mean_interval(change)
        out[f"{name} before"] = float(np.mean([before[name][:, i, h].mean() for i, h in at]))
    gains = _attributions(model, prompts, edits, batch) - _attributions(model, prompts, None, batch)
    parts = np.split(gains, np.cumsum([len(v) for v in importance.scores.values()])[:-1])
    out["gains"] = HeadScores(dict(zip(sites, parts, strict=True)), "gain in attribution")
    out["mean gain"] = float(np.mean([out["gains"][h] for h in movers]))
    return out


def rank(gains: HeadScores, importance: HeadScores, heads: HeadSet) -> tuple[float, float, int]:
    """(Spearman's rho of gain and importance over heads, its p, number of heads); NaN for fewer than four."""
    if len(heads) < 4:
        return float("nan"), float("nan"), len(heads)
    rho, p = stats.spearmanr([importance[h] for h in heads], [gains[h] for h in heads])
    return float(rho), float(p), len(heads)


def _attributions(model: nn.Module, prompts: PromptSet, edits: Taps | None, batch: int) -> np.ndarray:
    """[heads] mean attribution of answer minus distractor, heads in the order of layers."""
    total: list[np.ndarray] = []
    for group in prompts.groups(batch):
        some = [prompts[i] for i in group]
        with attach(model, *(edits(group) if edits is not None else ()), strict=False):
            patcher = PathPatcher(
                model, [list(p.clean) for p in some], [list(p.corrupt) for p in some], [p.answers[0] for p in some],
                [p.distractors[0] for p in some], freeze_norm="none", whole=True,
            )  # fmt: skip
            dla = patcher.attribution([[p.answers[0], p.distractors[0]] for p in some])
        total.append((dla[..., 0] - dla[..., 1]).T)
    return np.concatenate(total).mean(0)


def mean_interval(values: np.ndarray, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over prompts."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@torch.inference_mode()
def example(model: nn.Module, pair: Any, heads: HeadSet, edit: Tap) -> dict[str, np.ndarray]:
    """Mean attention of heads from the last token of one prompt, without and with an edit: name -> [tokens]."""
    ids = torch.tensor([pair.clean], device=next(model.parameters()).device)
    out = {}
    for name, edits in (("before", []), ("after", [edit])):
        rows = taps.Rows([-1], heads=heads)
        with attach(model, *edits, rows):
            last_logits(model, ids)
        chosen = [rows.values[site][0][0, head, 0] for site, head in heads]
        out[name] = torch.stack(chosen).mean(0).float().cpu().numpy()
    return out
