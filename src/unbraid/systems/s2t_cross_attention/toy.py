"""The truth: a tiny Whisper trained on made-up speech whose alignment is known, and an estimator test without training.

python -m unbraid.systems.s2t_cross_attention.toy      # five seeds, writes results/s2t_cross_attention/world.json
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.train import fit_loop
from unbraid.data.speech.world import SpeechWorld, Spoken
from unbraid.systems.s2t_cross_attention.explanation import Explanation
from unbraid.systems.s2t_cross_attention.faithful import deletion_curve
from unbraid.systems.s2t_cross_attention.listener import Listener
from unbraid.systems.s2t_cross_attention.maps import aggregate, correlation, levels, spread_out
from unbraid.systems.s2t_cross_attention.perturb import Runs, fill_values
from unbraid.systems.s2t_cross_attention.segments import Masks, rectangles
from unbraid.systems.s2t_cross_attention.system import SpeechCrossAttention

START, END, PAD = 16, 17, 18
STEPS, BATCH, RATE = 300, 32, 2e-3
SHARES = slice(1, 6)  # of a curve in steps of 10 %: 10 to 50 %


def world_model(seed: int, mels: int = 16, frames: int = 100) -> nn.Module:
    """An untrained Whisper of two layers and four heads for the world's sixteen words."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=19, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, num_mel_bins=mels,
        max_source_positions=frames // 2, max_target_positions=16, decoder_start_token_id=START, bos_token_id=START,
        eos_token_id=END, pad_token_id=PAD, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config.suppress_tokens = None
    model.generation_config.begin_suppress_tokens = None
    return model


def spoken_batch(drawn: Spoken) -> tuple[Tensor, Tensor]:
    """Features [n, mels, frames] and tokens [n, words + 2] with start and end."""
    n = len(drawn.ids)
    ends = [np.full((n, 1), START), drawn.ids, np.full((n, 1), END)]
    return torch.from_numpy(drawn.features), torch.from_numpy(np.concatenate(ends, 1))


def train_world(seed: int, steps: int = STEPS, progress: bool | None = None) -> tuple[nn.Module, SpeechWorld, float]:
    """Trains the model on its world until it understands it.

    Args:
        seed: of templates, weights and utterances.
        steps: of training; the sheet needed about 230.
        progress: show a bar on stderr.

    Returns:
        The model, its world, and its token accuracy on fresh utterances (teacher-forced).
    """
    world = SpeechWorld(seed=seed)
    model = world_model(seed)

    def batches(step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        del generator
        return spoken_batch(world.draw(BATCH, seed * 1_000_003 + step))

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        logits = module(input_features=x, decoder_input_ids=y[:, :-1]).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), y[:, 1:].flatten())

    def one_cycle(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)

    fit_loop(
        model, loss, batches, steps=steps, lr=RATE, scheduler=one_cycle, grad_clip=1.0, seed=seed, progress=progress
    )
    model.eval()
    x, y = spoken_batch(world.draw(64, 77_000_000 + seed))
    with torch.no_grad():
        right = model(input_features=x, decoder_input_ids=y[:, :-1]).logits.argmax(-1) == y[:, 1:]
    return model, world, float(right.float().mean())


def explainer(masks: int, encoder_masks: int, seed: int) -> SpeechCrossAttention:
    """SPES as the sheet's check runs it: rectangular grids of three granularities, silence as filling."""
    return SpeechCrossAttention(
        masks=masks, encoder_masks=encoder_masks, granularities=(200, 400, 800), widths=(1, 2, 4), segments="grid",
        fill="zero", batch_size=60, beams=1, seed=seed,
    )  # fmt: skip


def check_world(
    seed: int,
    utterances: int = 6,
    masks: int = 1200,
    encoder_masks: int = 600,
    steps: int = STEPS,
    progress: bool | None = None,
    on_step: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Trains, explains and compares with the known alignment.

    Returns:
        Figures by name: `x_*` and `h_*` are correlations of cross-attention with saliency at each level, `truth_*`
        those of a map with the known segments, `deletion_*` token errors, mean over 10 to 50 % of frames deleted.
    """
    model, world, accuracy = train_world(seed, steps, progress)
    drawn = world.draw(utterances, 91_000_000 + seed)
    system = explainer(masks, encoder_masks, seed)
    found: dict[str, list[float]] = {}
    for n in range(utterances):
        features = torch.from_numpy(drawn.features[n])
        ids = [*drawn.ids[n].tolist(), END]
        e = system.explain(model, None, features, ids=ids)
        truth = drawn.truth(e.valid)[n]
        for key, value in compare(e, truth).items():
            found.setdefault(key, []).append(value)
        for key, value in deletions(model, e, features, n + 100 * seed).items():
            found.setdefault(f"deletion_{key}", []).append(value)
        if on_step is not None:
            on_step()
    out = {key: float(np.nanmean(values)) for key, values in found.items()}
    return {"seed": float(seed), "accuracy": accuracy, **out}


def compare(e: Explanation, truth: np.ndarray) -> dict[str, float]:
    """Correlations of one utterance with saliency and with the known segments [I, T']."""
    out: dict[str, float] = {}
    for which in ("x", "h"):
        found = levels(e.heads(), e.saliency(which))
        out[f"{which}_head"] = float(np.nanmean(found["head"]))
        out[f"{which}_layer"] = float(np.nanmean(found["layer"]))
        out[f"{which}_best_layer"] = float(np.nanmax(found["layer"]))
        out[f"{which}_all"] = found["all"]
        out[f"truth_{which}"] = correlation(e.saliency(which), truth)
    out["x_all_mean_pool"] = correlation(aggregate(e.heads()), e.saliency("x", "mean"))
    out["truth_attention"] = correlation(aggregate(e.heads()), truth)
    out["truth_shifted"] = correlation(aggregate(e.heads()), np.roll(truth, 1, axis=0))
    return out


def deletions(model: nn.Module, e: Explanation, features: Tensor, seed: int) -> dict[str, float]:
    """Mean token error with 10 to 50 % of the frames deleted, in the order of three maps."""
    listener = Listener(model)
    heard = listener.take(features)
    states = listener.encode(heard.raw, heard.valid)
    reference = [i for i in listener.transcribe(states, 1)[0] if i != END]
    frames, bins = heard.shape
    assert e.saliency_x is not None
    rankings = {
        "saliency": e.saliency_x[e.rows].mean((0, 2)),
        "attention": spread_out(aggregate(e.heads()).mean(0), frames),
        "random": np.random.default_rng(seed).random(frames),
    }
    out = {}
    for name, rank in rankings.items():
        _, errors = deletion_curve(
            listener, heard, np.repeat(rank[:, None], bins, 1), reference, lambda ids: [i for i in ids if i != END],
            0.1, 1, fill_values(heard.grid, heard.valid, "zero"),
        )  # fmt: skip
        out[name] = float(errors[SHARES].mean())
    return out


def linear_runs(
    seed: int, count: int, frames: int = 60, bins: int = 16, counts: Sequence[int] = (60, 120, 240), **options: Any
) -> tuple[Runs, np.ndarray]:
    """Runs of a "model" without a network: the score of token i is the share of its own bins that was occluded.

    Args:
        seed: of masks and of where the bins lie.
        count: runs.
        frames: of the spectrogram.
        bins: of the spectrogram.
        counts: segments per granularity (rectangles).
        options: of `Masks`.

    Returns:
        The runs, and [I, T, F] bool: which bins each of four tokens depends on.
    """
    rng = np.random.default_rng([seed, 23])
    own = np.zeros((4, frames, bins), bool)
    for i in range(4):
        t, f = int(rng.integers(frames // 4)) + i * frames // 4, int(rng.integers(bins // 2))
        own[i, max(0, t - 6) : t + 6, f : f + bins // 2] = True
    masks = Masks([rectangles(frames, bins, n) for n in counts], seed=seed, **options)
    scores = []
    for number in range(-(-count // masks.batch)):
        hidden = ~masks.draw(number)[:, masks.labels[masks.granularity(number)]]
        scores.append((hidden[:, None] & own[None]).sum((2, 3)) / own.sum((1, 2)))
    return Runs(masks, np.concatenate(scores)[:count].astype(np.float32), np.ones(4, np.float32)), own


def linear_expectation(runs: Runs, own: np.ndarray) -> np.ndarray:
    """What the mean estimator converges to for `linear_runs` with every segment occluded by itself.

    With a segment occluded the score is its share of the token's bins plus p times the rest; granularities are
    averaged.
    """
    total = np.zeros(own.shape)
    p = runs.masks.probability
    for which, labels in enumerate(runs.masks.labels):
        n = runs.masks.segments(which)
        share = np.stack([np.bincount(labels[o], minlength=n) / o.sum() for o in own])
        total += (p + (1 - p) * share)[:, labels]
    return total / len(runs.masks.labels)


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve; NaN where all are of one kind."""
    from sklearn.metrics import roc_auc_score

    truth = np.asarray(positive, bool).ravel()
    return float(roc_auc_score(truth, np.asarray(values).ravel())) if 0 < truth.sum() < truth.size else float("nan")


def check_seeds(seeds: int, out: Path) -> dict[str, Any]:
    """`check_world` over seeds 0, 1, ...; `out` is rewritten after each, and seeds found in it are not run again."""
    rows: list[dict[str, float]] = []
    if out.exists():
        rows = json.loads(out.read_text(encoding="utf-8"))["seeds"]
    data: dict[str, Any] = {}
    for seed in range(len(rows), seeds):
        rows.append(check_world(seed))
        names = [n for n in rows[0] if n != "seed"]
        summary = {
            n: {"mean": float(np.mean([r[n] for r in rows])), "min": min(r[n] for r in rows),
                "max": max(r[n] for r in rows)}
            for n in names
        }  # fmt: skip
        data = {"what": check_world.__doc__, "torch": torch.__version__, "summary": summary, "seeds": rows}
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, out)
    return data


if __name__ == "__main__":
    print(json.dumps(check_seeds(5, Path("results/s2t_cross_attention/world.json")).get("summary"), indent=1))
