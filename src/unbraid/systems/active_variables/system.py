"""`ActiveVariables`: which latents of a VAE carry something, for which inputs, and what its means hide."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from unbraid.core.claim import Table
from unbraid.core.errors import UnbraidError
from unbraid.core.system import System
from unbraid.data.factors import FactorData
from unbraid.data.observations import Observations
from unbraid.layers.vae import GaussianVAE
from unbraid.systems.active_variables import CARD
from unbraid.systems.active_variables.adapters import (
    Output,
    Posterior,
    Spatial,
    evaluating,
    home,
    posterior,
    suspicious,
)
from unbraid.systems.active_variables.labels import AU, Bootstrap, agreement, check_bounds, classify, criteria
from unbraid.systems.active_variables.pruning import Pruned, prune
from unbraid.systems.active_variables.scores import informative, scores
from unbraid.systems.active_variables.statistics import Moments, predicted_correlation

CODES_KEPT = 20_000_000  # numbers; beyond, codes are not kept, and scores that need them are left out


class ActiveVariables(System):
    """Labels each latent of a trained VAE active, mixed or passive, and scores mean against sampled codes (2109.12679).

    Args:
        tau: bound of the variance of sigma^2 over the data, below which a latent is of one kind for all inputs.
        delta: bound of the distance of the mean of sigma^2 from 0 (active) or 1 (passive).
        points: observations looked at, drawn evenly from the data; None: all.
        bins: of the histograms behind the mutual information.
        bootstrap: draws for how sure a label is; 0 for none.
        output: what a function x -> (mu, second) returns second: "logvar", "var", "std" or "none".
        spatial: latents [B, C, H, W] as C latents of H W points ("channel") or as C H W latents ("position").
        batch: observations per pass.
        seed: of draws.
    """

    card = CARD
    labels_: list[str]
    rows_: list[dict[str, Any]]

    def __init__(
        self,
        tau: float = 0.1,
        delta: float = 0.1,
        points: int | None = 10_000,
        bins: int = 20,
        bootstrap: int = 200,
        output: Output = "logvar",
        spatial: Spatial = "channel",
        batch: int = 500,
        seed: int = 0,
    ) -> None:
        self.tau = tau
        self.delta = delta
        self.points = points
        self.bins = bins
        self.bootstrap = bootstrap
        self.output = output
        self.spatial = spatial
        self.batch = batch
        self.seed = seed

    def fit(self, model: Any, data: Any, by: str | int | np.ndarray | None = None) -> ActiveVariables:
        """Look at the posteriors of the data once.

        Args:
            model: a `GaussianVAE`, `diffusers.AutoencoderKL`, pythae model, or a function x -> (mu, second).
            data: `FactorData`, an array or a tensor of observations; the whole distribution, not a corner of it, in
                which a mixed latent would look active or passive.
            by: labels for each subpopulation too: the name or number of a factor, or [n] whole numbers.

        Returns:
            Itself, with `labels_`, `rows_` (a row of numbers per latent), `mean_cov_` and `sampled_cov_` [J, J],
            `kl_` and `signal_` [J], `soft_` ([J, 3] shares of bootstrap draws, or None), `by_` (value -> labels),
            `notes_`, and `n_` (points seen).

        Raises:
            UnbraidError: thresholds, data or the model's output do not fit.
        """
        self._check()
        source = Observations(data, model.shape if isinstance(model, GaussianVAE) else None, held=0)
        at = np.arange(len(source))
        if self.points is not None and self.points < len(source):
            at = np.sort(np.random.default_rng(self.seed).choice(len(source), self.points, replace=False))
        groups = None if by is None else _groups(data, by, len(source))[at]
        moments, soft, per, codes = self._pass(model, source, at, groups)
        self.notes_ = []
        if codes is not None and moments is None:
            return self._without_variances(codes)
        assert moments is not None
        self._moments, self._codes = moments, codes
        self.labels_ = classify(moments.var_mean, moments.var_var, self.tau, self.delta)
        self.soft_ = soft
        self.rows_ = criteria(moments, self.labels_, soft, None if codes is None else codes["mean"])
        self.mean_cov_, self.sampled_cov_ = moments.mu_cov, moments.sampled_cov
        self.kl_, self.signal_, self.n_ = moments.kl, moments.signal, moments.n
        self.by_ = {key: classify(m.var_mean, m.var_var, self.tau, self.delta) for key, m in per.items()}
        doubt = suspicious(self.output, moments.var_mean)
        self.notes_ += [doubt] if doubt else []
        return self

    def _check(self) -> None:
        check_bounds(self.tau, self.delta)
        least = {"bins": (self.bins, 2), "batch": (self.batch, 1), "bootstrap": (self.bootstrap, 0)}
        if self.points is not None:
            least["points"] = (self.points, 1)
        for name, (value, low) in least.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise UnbraidError(f"{name} is {value!r}; it must be a whole number of at least {low}.")

    def _pass(
        self, model: Any, source: Observations, at: np.ndarray, groups: np.ndarray | None
    ) -> tuple[Moments | None, np.ndarray | None, dict[str, Moments], dict[str, np.ndarray] | None]:
        """One pass: moments, bootstrap shares, moments per group, codes (kept where they are few)."""
        read: Posterior = posterior(model, self.output, self.spatial)
        like, rng = home(model), np.random.default_rng(self.seed)
        moments: Moments | None = None
        boot: Bootstrap | None = None
        per: dict[str, Moments] = {}
        kept: dict[str, list[np.ndarray]] = {"mean": [], "sampled": []}
        with evaluating(model):
            for start in range(0, len(at), self.batch):
                rows = at[start : start + self.batch]
                mu, var = read(torch.from_numpy(source.take(rows)).to(like))
                points, latents = (1 if mu.ndim == 2 else mu.shape[1]), mu.shape[-1]
                mu = mu.reshape(-1, latents)
                keep = points * len(at) * latents <= CODES_KEPT
                if keep or var is None:
                    kept["mean"].append(mu)
                if var is None:
                    continue
                var = var.reshape(-1, latents)
                if moments is None:
                    moments, boot = Moments(latents), Bootstrap(latents, self.bootstrap, self.seed)
                assert boot is not None
                moments.update(mu, var)
                boot.update(var, points)
                if keep:
                    kept["sampled"].append(mu + np.sqrt(var) * rng.standard_normal(mu.shape))
                for key in [] if groups is None else np.unique(groups[start : start + self.batch]).tolist():
                    mask = np.repeat(groups[start : start + self.batch] == key, points)  # type: ignore[index]
                    per.setdefault(str(key), Moments(latents)).update(mu[mask], var[mask])
        codes = {name: np.concatenate(parts) for name, parts in kept.items() if parts}
        return moments, None if boot is None else boot.shares(self.tau, self.delta), per, codes or None

    def _without_variances(self, codes: dict[str, np.ndarray]) -> ActiveVariables:
        """A deterministic encoder: its means are all there is."""
        mu = codes["mean"]
        spread = mu.var(0)
        self.labels_ = ["active" if v > AU else "passive" for v in spread]
        self.rows_ = [
            {"latent": f"z{j}", "label": label, "variance of mean": float(v)}
            for j, (label, v) in enumerate(zip(self.labels_, spread, strict=True))
        ]
        self.mean_cov_ = np.cov(mu.T, bias=True).reshape(mu.shape[1], mu.shape[1])
        self.soft_, self.by_, self.n_ = None, {}, len(mu)
        self._codes = codes
        vars(self).pop("_moments", None)  # of an earlier fit
        self.notes_.append(
            f"The encoder has no variances, so the paper's labels do not exist: active here means Var(mu) > {AU}, "
            "which cannot tell mixed latents."
        )
        return self

    def indices(self, *kinds: str) -> list[int]:
        """The latents of these kinds; without any, the informative ones (active and mixed).

        Raises:
            UnbraidError: an unknown kind, or nothing was fitted.
        """
        labels = self._fitted()
        if set(kinds) - {"active", "mixed", "passive"}:
            raise UnbraidError(f"kinds are active, mixed and passive, not {list(kinds)}.")
        return [j for j, label in enumerate(labels) if label in kinds] if kinds else informative(labels)

    def table(self) -> Table:
        """A row of numbers per latent."""
        self._fitted()
        return Table.from_records(self.rows_, f"{self.n_:,} points; tau {self.tau}, delta {self.delta}.")

    def criteria(self) -> Table:
        """How many latents of each label other criteria call informative."""
        self._with_variances()
        return Table.from_records(agreement(self.rows_))

    def scores(self) -> Table:
        """Correlation scores of mean and sampled codes, on every index set.

        Raises:
            UnbraidError: nothing was fitted, without variances, or there is one latent only.
        """
        moments = self._with_variances()
        if len(self.labels_) < 2:
            raise UnbraidError("a model with one latent has no correlations between latents; scores need two.")
        return Table.from_records(scores(moments, self.labels_, self._codes or {}, self.bins))

    def identity(self) -> dict[str, float]:
        """How well one draw of samples keeps to corr(z) = corr(mu) sqrt(r_i r_j), which holds for any VAE.

        Returns:
            "largest" difference over all pairs, "bound" 3 / sqrt(n), "within": share of pairs within the bound, and
            "pairs".
        """
        moments = self._with_variances()
        codes = (self._codes or {})["sampled"]
        off = ~np.eye(codes.shape[1], dtype=bool)
        error = np.abs(np.corrcoef(codes.T) - predicted_correlation(moments))[off]
        bound = 3 / np.sqrt(len(codes))
        return {
            "largest": float(error.max(initial=0)),
            "bound": float(bound),
            "within": float((error <= bound).mean()) if error.size else 1.0,
            "pairs": error.size // 2,
        }

    def transform(self, codes: np.ndarray, *kinds: str) -> np.ndarray:
        """Codes [n, J] cut to the latents of these kinds (by default the informative ones).

        Raises:
            UnbraidError: the codes have another number of latents.
        """
        z, width = np.asarray(codes), len(self._fitted())
        if z.ndim != 2 or z.shape[1] != width:
            raise UnbraidError(f"codes must be [n, {width}], as the model has {width} latents, not {z.shape}.")
        return z[:, self.indices(*kinds)]

    def prune(self, vae: GaussianVAE, data: Any, tolerance: float | None = None) -> Pruned:
        """The VAE without its passive latents; see `unbraid.systems.active_variables.pruning.prune`."""
        return prune(vae, self.indices(), data, tolerance=tolerance, seed=self.seed)

    def _fitted(self) -> list[str]:
        if "labels_" not in vars(self):
            raise UnbraidError("nothing has been looked at yet; call fit(model, data) first.")
        return self.labels_

    def _with_variances(self) -> Moments:
        self._fitted()
        found: Moments | None = vars(self).get("_moments")
        if found is None:
            raise UnbraidError(
                "this needs the posteriors of fit(model, data): they are not saved, and encoders without variances "
                "have none."
            )
        return found


def _groups(data: Any, by: str | int | np.ndarray, n: int) -> np.ndarray:
    if isinstance(by, str | int):
        if not isinstance(data, FactorData):
            raise UnbraidError(f"by={by!r} names a factor, but the data have none; give [n] whole numbers.")
        at = data.column(by)
        if data.sizes[at] is None:
            raise UnbraidError(
                f"factor {data.names[at]!r} is continuous; give [n] whole numbers, such as its quartiles."
            )
        return np.asarray(data.factors[:, at])
    found = np.asarray(by)
    if found.shape != (n,) or found.dtype.kind not in "biu":
        raise UnbraidError(f"by must be {n} whole numbers, one per observation, not {found.dtype} {found.shape}.")
    return found
