"""One trained model of the study: how it is trained, and everything that is measured on it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from unbraid.core.pieces import Pieces
from unbraid.data.factors import FactorData
from unbraid.layers.nets import Kind
from unbraid.layers.vae import GaussianVAE, encode_all, image_vae
from unbraid.losses.objectives import STRENGTHS as ZOO
from unbraid.losses.objectives import ObjectiveName
from unbraid.losses.training import train_vae
from unbraid.systems.active_variables.downstream import LEARNERS, Learner, accuracies, guess, linear_r2
from unbraid.systems.active_variables.dynamics import Dynamics
from unbraid.systems.active_variables.scores import informative, largest_with
from unbraid.systems.active_variables.statistics import correlation
from unbraid.systems.active_variables.system import ActiveVariables

# From weak to strong, explored on seed 100 to span from few collapsed latents to many. The literature's values
# belong to 64 x 64 images: at 16 x 16 a sixteenth of the pixels stands against the same regulariser.
STRENGTHS: dict[ObjectiveName, tuple[float, ...]] = {
    "beta": (0.5, 1, 2, 4),
    "beta_tc": (1, 2, 4, 10),
    "factor": (1, 3, 10, 20),
    "dip_ii": (1, 5, 20, 50),
    "annealed": (10, 8, 6, 3),  # nats; log 3,072 = 8.03 is all that the images can tell
    "dip_i": (1, 2, 5, 10),
}
# A gamma with which the annealed VAE still learns to reconstruct (60 made it spend its capacity on nothing), and a
# discriminator that keeps up with 3,000 steps of a small model.
OPTIONS: dict[ObjectiveName, dict[str, Any]] = {
    "annealed": {"gamma": 10.0},
    "factor": {"width": 128, "depth": 3, "lr": 1e-3},
}


def digest(x: np.ndarray) -> str:
    """What tells one set of images from another."""
    return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:16]


class Scale(NamedTuple):
    """What a size of the study means."""

    side: int
    kind: Kind
    width: int
    steps: int
    batch: int
    lr: float


SCALES: dict[str, Scale] = {
    "tiny": Scale(16, "mlp", 32, 150, 64, 2e-3),
    "small": Scale(16, "mlp", 128, 3_000, 128, 1e-3),
    "medium": Scale(32, "conv", 32, 20_000, 64, 5e-4),
    "paper": Scale(64, "conv", 32, 300_000, 64, 1e-4),
}


def strengths(objective: ObjectiveName, levels: int, size: str) -> list[float]:
    """So many strengths from weak to strong: of this study's, or for "paper" of the literature's."""
    listed = (ZOO if size == "paper" else STRENGTHS)[objective]
    picked = np.linspace(0, len(listed) - 1, min(levels, len(listed))).round().astype(int) if levels > 1 else [1]
    return [float(listed[i]) for i in picked]


@dataclass(frozen=True)
class Spec:
    """What a model is trained on and how.

    Attributes:
        world: its name.
        objective: its name.
        level: 0 for the weakest of the strengths looked at.
        strength: of the objective.
        seed: of weights, order and draws.
        steps: of training.
        kind: of network.
        width: of its first hidden layer.
        lr: learning rate.
        batch: observations per step.
        latents: J.
        options: of the objective.
        images: digest of what it is trained on: a world that draws otherwise makes other models.
    """

    world: str
    objective: ObjectiveName
    level: int
    strength: float
    seed: int
    steps: int
    kind: Kind = "mlp"
    width: int = 128
    lr: float = 1e-3
    batch: int = 128
    latents: int = 10
    options: Mapping[str, Any] = field(default_factory=dict)
    images: str = ""

    @property
    def key(self) -> dict[str, Any]:
        """What the finished model depends on."""
        return {**vars(self), "options": dict(self.options)}

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.objective} {self.strength:g}, seed {self.seed}"


@dataclass(eq=False)
class Model:
    """A trained model and what was measured on it.

    Attributes:
        spec: how it was made.
        vae: itself.
        active: the fitted system.
        row: its row of numbers.
        sets: rows of scores per index set.
        downstream: rows of accuracies per index set and learner.
    """

    spec: Spec
    vae: GaussianVAE
    active: ActiveVariables
    row: dict[str, Any] = field(default_factory=dict)
    sets: list[dict[str, Any]] = field(default_factory=list)
    downstream: list[dict[str, Any]] = field(default_factory=list)


def trained(spec: Spec, x: np.ndarray, store: Pieces, watch: Dynamics | None = None) -> GaussianVAE:
    """The VAE of a spec, read back where it was trained before (unless it is to be watched)."""
    channels, side = x.shape[1], x.shape[2]
    vae = image_vae(channels, side, spec.latents, kind=spec.kind, width=spec.width, seed=spec.seed)
    found = None if watch is not None else store.load_arrays("vae", spec.key)
    if found is None:
        train_vae(
            vae, x, spec.objective, spec.strength, steps=spec.steps, batch=spec.batch, lr=spec.lr,
            seed=spec.seed, options=spec.options, callbacks=() if watch is None else watch, progress=False,
        )  # fmt: skip
        store.save_arrays("vae", spec.key, {name: w.numpy() for name, w in vae.state_dict().items()})
    else:
        vae.load_state_dict({name: torch.from_numpy(w) for name, w in found.items()})
    return vae.eval()


def measured(spec: Spec, vae: GaussianVAE, data: FactorData, x: np.ndarray, points: int) -> Model:
    """Labels, scores and their gaps."""
    active = ActiveVariables(points=points, seed=spec.seed).fit(vae, x)
    model = Model(spec, vae, active, sets=active.scores().records)
    model.row = row_of(model)
    pruned = active.prune(vae, x) if active.indices() else None
    model.row["reconstruction (nats)"] = None if pruned is None else pruned.loss_before
    model.row["after pruning (nats)"] = None if pruned is None else pruned.loss_after
    return model


def row_of(model: Model) -> dict[str, Any]:
    """One row per model: counts, gaps between mean and sampled codes, correlations of passive latents."""
    a, spec = model.active, model.spec
    passive, rest = a.indices("passive"), informative(a.labels_)
    tc = {(r["set"], r["codes"]): r["total correlation"] for r in model.sets}
    mi = {(r["set"], r["codes"]): r["mean mutual information"] for r in model.sets}
    rank = {r["codes"]: r["effective rank"] for r in model.sets if r["set"] == "full"}
    same = a.identity()
    row: dict[str, Any] = {
        "world": spec.world, "objective": spec.objective, "strength": spec.strength, "level": spec.level,
        "seed": spec.seed, "active": len(a.indices("active")), "mixed": len(a.indices("mixed")),
        "passive": len(passive), "KL (nats)": float(a.kl_.sum()),
        "largest KL of a passive": float(a.kl_[passive].max()) if passive else None,
        "smallest KL of the others": float(a.kl_[rest].min()) if rest else None,
        "TC mean": tc["full", "mean"], "TC sampled": tc["full", "sampled"],
        "TC gap": tc["full", "mean"] - tc["full", "sampled"],
        "MI mean": mi["full", "mean"], "MI sampled": mi["full", "sampled"],
        "passive |corr| mean": largest_with(a.mean_cov_, passive),
        "passive |corr| sampled": largest_with(a.sampled_cov_, passive),
        "effective rank mean": rank["mean"], "effective rank sampled": rank["sampled"],
        "identity: pairs": same["pairs"], "identity: within 3/sqrt(N)": same["within"],
        "identity: largest": same["largest"], "identity: 3/sqrt(N)": same["bound"],
    }  # fmt: skip
    for name, members in (("active", a.indices("active")), ("informative", rest), ("passive", passive)):
        gap = {kind: gap_of(a, members, kind) for kind in ("mean", "sampled")} if len(members) > 1 else None
        row[f"TC gap of {name}"] = None if gap is None else gap["mean"] - gap["sampled"]
    return row


def gap_of(a: ActiveVariables, members: Sequence[int], kind: str) -> float:
    """Total correlation of some latents' mean or sampled codes."""
    from unbraid.systems.active_variables.gauss import total_correlation

    cov = a.mean_cov_ if kind == "mean" else a.sampled_cov_
    return total_correlation(cov[np.ix_(members, members)])


def downstream(
    model: Model, data: FactorData, x: np.ndarray, train: int, test: int, learners: Sequence[Learner] = LEARNERS
) -> list[dict[str, Any]]:
    """Accuracy per index set and learner, or R^2 where factors are continuous; trained and tested on different points.

    Boosted trees do not care about scale and take long, so they are asked about fewer sets.
    """
    rng = np.random.default_rng(model.spec.seed)
    at = rng.choice(len(data), train + test, replace=False)
    mu, logvar = encode_all(model.vae, x[at])
    y, labels = data.factors[at], model.active.labels_
    passive = [j for j, label in enumerate(labels) if label == "passive"]
    sets = {
        "all means": mu, "active+mixed means": mu[:, informative(labels)], "passive means": mu[:, passive],
        "passive means, standardised": mu[:, passive] / np.maximum(mu[:train, passive].std(0), 1e-12),
        "all samples": mu + np.exp(logvar / 2) * rng.standard_normal(mu.shape),
        "uniform guess": np.zeros((len(at), 1)),
    }  # fmt: skip
    few = ("all means", "active+mixed means", "uniform guess")
    rows = []
    for learner in learners if data.factors.dtype.kind == "i" else ("linear R2",):
        for name, codes in sets.items():
            if not codes.shape[1] or (learner == "boosting" and name not in few):
                continue
            if learner == "linear R2" and name == "uniform guess":
                continue
            found = _scored(learner, name, (codes[:train], y[:train], codes[train:], y[train:]), model.spec.seed)
            each = dict(zip(data.names, found.tolist(), strict=True))
            rows.append(
                {"objective": model.spec.objective, "strength": model.spec.strength, "seed": model.spec.seed,
                 "learner": learner, "codes": name, "latents": 0 if name == "uniform guess" else codes.shape[1],
                 "mean": float(np.nanmean(found)), "least": float(np.nanmin(found)), **each}
            )  # fmt: skip
    return rows


def _scored(learner: str, name: str, parts: tuple[np.ndarray, ...], seed: int) -> np.ndarray:
    if name == "uniform guess":
        return guess(parts[1], parts[3], seed)
    train, train_factors, test, test_factors = parts
    if learner not in LEARNERS:
        return linear_r2(train, train_factors, test, test_factors)
    return accuracies(train, train_factors, test, test_factors, learner, seed)


def heat(model: Model) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Correlations of mean and of sampled codes, latents in the order active, mixed, passive, and that order."""
    labels = model.active.labels_
    order = sorted(range(len(labels)), key=lambda j: (("active", "mixed", "passive").index(labels[j]), j))
    pick = np.ix_(order, order)
    mean, sampled = (np.nan_to_num(correlation(c))[pick] for c in (model.active.mean_cov_, model.active.sampled_cov_))
    return mean, sampled, order
