"""`EEGScan`: a beta-VAE of epochs without labels, then SCAN's head that ties labels to its latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from unbraid.core.errors import UnbraidError
from unbraid.core.system import System
from unbraid.layers.vae import GaussianVAE, encode_all, seeded, signal_vae
from unbraid.losses.training import train_vae
from unbraid.losses.vae import kl_between
from unbraid.systems.eeg_scan import CARD
from unbraid.systems.eeg_scan.epochs import as_epochs, as_labels, as_subjects, mean_by, sub_averages, whitening
from unbraid.systems.eeg_scan.head import Likelihood, ScanHead, khot
from unbraid.systems.eeg_scan.matching import bootstrap, cells, separation
from unbraid.systems.eeg_scan.training import train_head

How = Literal["decoder", "trials", "match"]
STEPS = {"tiny": (60, 60), "small": (3_000, 1_500), "medium": (20_000, 3_000), "paper": (100_000, 15_000)}


class Prototype(NamedTuple):
    """What a label looks like: the mean [channels, samples] of what its code decodes to, and the spread around it."""

    mean: np.ndarray
    spread: np.ndarray


class Contrast(NamedTuple):
    """Per latent [J]: separation by SCAN, in closed form, and the latter's interval over subjects (95 %)."""

    head: np.ndarray
    matched: np.ndarray
    low: np.ndarray
    high: np.ndarray


class EEGScan(System):
    """A disentangled code of event-related potentials, and labels tied to it afterwards (arXiv 2010.15274).

    Args:
        latents: of the code.
        hidden: units of the encoder's layers; the decoder has them in reverse.
        beta: weight of the divergence, against the squared error summed over channels and samples (in units of the
            data's standard deviation); with ``whiten``, against half of it, the likelihood of noise of variance 1.
        whiten: make the noise white first, by the covariance of trials around their subject's mean: the code then
            spends nothing on background rhythms.
        averaged: trials of a subject whose mean is one epoch for the VAE: 1 is single trials, 0 all that there are.
        label_hidden: units of SCAN's head.
        strength: lambda, weight of the divergence from the observations' posterior to the label's.
        beta_y: weight of the prior of the label's code.
        likelihood: of labels: "bernoulli" per value, or "softmax" within each factor.
        dropout: share of known labels left unnamed in a step of SCAN.
        balanced: weigh rare values up.
        size: length of training: "tiny" (seconds), "small" (half a minute), "medium" or "paper".
        steps: of the VAE; None: the size's.
        label_steps: of SCAN; None: the size's.
        batch: epochs per step of the VAE.
        lr: learning rate of both.
        seed: of weights, order and draws.
    """

    card = CARD

    def __init__(
        self,
        latents: int = 10,
        hidden: Sequence[int] = (128, 128),
        beta: float = 1.0,
        whiten: bool = False,
        averaged: int = 1,
        label_hidden: int = 64,
        strength: float = 10.0,
        beta_y: float = 1.0,
        likelihood: Likelihood = "bernoulli",
        dropout: float = 0.5,
        balanced: bool = True,
        size: Literal["tiny", "small", "medium", "paper"] = "small",
        steps: int | None = None,
        label_steps: int | None = None,
        batch: int = 128,
        lr: float = 1e-3,
        seed: int = 0,
    ) -> None:
        self.latents, self.hidden, self.beta, self.whiten, self.averaged = latents, hidden, beta, whiten, averaged
        self.label_hidden, self.strength, self.beta_y, self.likelihood = label_hidden, strength, beta_y, likelihood
        self.dropout, self.balanced, self.size, self.steps = dropout, balanced, size, steps
        self.label_steps, self.batch, self.lr, self.seed = label_steps, batch, lr, seed

    def fit(
        self,
        x: Any,
        labels: Any = None,
        subjects: Any = None,
        names: Sequence[str] | None = None,
        keep: str | Path | None = None,
        progress: bool | None = None,
    ) -> EEGScan:
        """Train the VAE on epochs, and SCAN on their labels where there are any.

        Args:
            x: an `ErpStudy` (which brings labels and subjects), or [n, channels, samples].
            labels: [n] or [n, K] whole numbers from 0, -1 where unknown; None: no SCAN yet, see `remap`.
            subjects: [n] whose trial each is; None: each trial is its own.
            names: [K] of the factors.
            keep: folder for checkpoints.
            progress: show bars; None: on a terminal.

        Returns:
            Itself, with `vae_`, `kl_` (nats per latent), `beta_norm_` (beta J / D), `residual_` (variance that the
            reconstructions leave, in the unit of the epochs squared), `shape_`, and what `remap` learns.

        Raises:
            UnbraidError: settings or data that do not fit.
        """
        self._check()
        epochs = as_epochs(x)
        who = as_subjects(x, subjects, len(epochs))
        given = as_labels(x, labels, names, len(epochs))
        self.shape_ = [int(s) for s in epochs.shape[1:]]
        seen = sub_averages(epochs, who, self.averaged, self.seed)
        self.mean_ = epochs.reshape(len(epochs), -1).mean(0)
        self.scale_ = float((seen.reshape(len(seen), -1) - self.mean_).std())
        made = whitening(epochs.reshape(len(epochs), -1), who) if self.whiten else (None, None)
        self.whitening_: Any = made[0]
        self.unwhitening_: Any = made[1]
        vae = self.build_module("vae_")
        folder = None if keep is None else Path(keep)
        train_vae(
            vae, self._in(seen), "beta", self.beta, size=self.size, steps=self.steps or STEPS[self.size][0],
            batch=min(self.batch, len(seen)), lr=self.lr, seed=self.seed, progress=progress,
            keep=None if folder is None else folder / "vae",
        )  # fmt: skip
        self.vae_: Any = vae.eval()
        mu, logvar = encode_all(vae, self._in(epochs))
        self.kl_ = (0.5 * (mu**2 + np.exp(logvar) - 1 - logvar)).mean(0)
        self.beta_norm_ = float(self.beta * self.latents / np.prod(self.shape_))
        self.residual_ = float(((self.decode(mu) - epochs) ** 2).mean())
        if given is not None:
            self._tie(mu, logvar, *given, who, None if folder is None else folder / "labels", progress)
        return self

    def remap(
        self, x: Any, labels: Any = None, subjects: Any = None, names: Sequence[str] | None = None,
        keep: str | Path | None = None, progress: bool | None = None,
    ) -> EEGScan:  # fmt: skip
        """Tie other labels to the same code: only SCAN is trained anew, in seconds. Arguments as for `fit`.

        Returns:
            Itself, with `head_`, `names_`, `sizes_`, and `cells_` (sums for `contrast`).
        """
        self._check()
        epochs = as_epochs(x, self._fitted().shape)
        given = as_labels(x, labels, names, len(epochs))
        if given is None:
            raise UnbraidError("remap needs labels [n] or [n, K], or a study that brings them.")
        who = as_subjects(x, subjects, len(epochs))
        mu, logvar = encode_all(self.vae_, self._in(epochs))
        self._tie(mu, logvar, *given, who, keep, progress)
        return self

    def _tie(
        self, mu: np.ndarray, logvar: np.ndarray, labels: np.ndarray, names: list[str], sizes: list[int],
        who: np.ndarray, keep: str | Path | None, progress: bool | None,
    ) -> None:  # fmt: skip
        self.names_, self.sizes_ = names, sizes
        head = self.build_module("head_")
        train_head(
            head, mu, logvar, labels, strength=self.strength, beta_y=self.beta_y, dropout=self.dropout,
            balanced=self.balanced, steps=self.label_steps or STEPS[self.size][1], lr=self.lr, seed=self.seed,
            keep=keep, progress=progress,
        )  # fmt: skip
        self.head_: Any = head
        self.cells_ = cells(mu, logvar, labels, who, sizes)

    def build_module(self, name: str) -> Any:
        """The VAE or the head, without what they learned."""
        if name == "vae_":
            # scale sqrt(1/2) makes the loss the summed squared error, which the literature's betas refer to
            scale = 1.0 if self.whiten else float(np.sqrt(0.5))
            return signal_vae(self.shape_, self.latents, hidden=self.hidden, scale=scale, seed=self.seed).eval()
        if name == "head_":
            with seeded(self.seed):
                return ScanHead(self.sizes_, self.latents, self.label_hidden, self.likelihood).eval()
        return super().build_module(name)

    def transform(self, x: Any, subjects: Any = None) -> np.ndarray:
        """[n, J] posterior means of epochs; with ``subjects`` [n], their mean per subject (in rising order)."""
        mu = self.posterior(x)[0]
        return mu if subjects is None else mean_by(mu, as_subjects(x, subjects, len(mu)))[1]

    def posterior(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        """Means and log variances [n, J] of epochs."""
        return encode_all(self._fitted(), self._in(as_epochs(x, self.vae_.shape)))

    def denoise(self, x: Any) -> np.ndarray:
        """[n, channels, samples] decoded from the codes' means, in the unit of the epochs."""
        return self.decode(self.transform(x))

    def decode(self, z: np.ndarray) -> np.ndarray:
        """[n, channels, samples] of codes [n, J], in the unit of the epochs.

        Raises:
            UnbraidError: codes of another shape.
        """
        vae, codes = self._fitted(), torch.as_tensor(np.asarray(z), dtype=torch.float32)
        if codes.dim() != 2 or codes.shape[1] != self.latents:
            raise UnbraidError(f"codes must be [n, {self.latents}], not {tuple(codes.shape)}.")
        with torch.no_grad():
            return self._out(vae.decode(codes).numpy())

    def predict_proba(
        self, x: Any, factor: str | None = None, subjects: Any = None, how: How = "decoder"
    ) -> np.ndarray:
        """[n, values] how probable each value of a factor is.

        Args:
            x: epochs.
            factor: its name; None: the only one.
            subjects: [n]: one answer per subject (in rising order) from the mean over the subject's trials.
            how: "decoder": SCAN's p(y|z_x), for a subject of the trials' mean code. "trials": the same, but a subject's
                answer is the mean of its trials' log-probabilities, as SCAN has learned from trials and not from means.
                "match": in proportion to exp(-KL(q(z_x|x) || q(z_y|y))), which value's code covers the epochs best.
        """
        at, part = self._values(factor)
        mu, logvar = self.posterior(x)
        if how not in ("decoder", "trials", "match"):
            raise UnbraidError(f"how is {how!r}; it must be 'decoder', 'trials' or 'match'.")
        who = None if subjects is None else as_subjects(x, subjects, len(mu))
        with torch.no_grad():
            if how != "match":
                z = torch.as_tensor(mean_by(mu, who)[1] if who is not None and how == "decoder" else mu)
                told = self.head_.probabilities(self.head_.logits(z.float()))[at].double().numpy()
                if who is None or how == "decoder":
                    return told
                fit = np.log(told.clip(1e-12))
            else:
                codes = [self.code({self.names_[at]: v}) for v in range(part.stop - part.start)]
                m, s = torch.as_tensor(mu), torch.as_tensor(logvar)
                fit = -torch.stack([kl_between(m, s, *map(torch.as_tensor, c)).sum(1) for c in codes], 1).numpy()
        fit = fit if who is None else mean_by(fit, who)[1]
        fit = np.exp(fit - fit.max(1, keepdims=True))
        return fit / fit.sum(1, keepdims=True)

    def prototype(self, labels: Mapping[str, int], draws: int = 256) -> Prototype:
        """What a label, or several at once (AND), looks like: codes drawn from q(z_y|y) and decoded.

        Args:
            labels: factor -> value; factors that are not named stay open.
            draws: of the code.

        Raises:
            UnbraidError: no such factor or value, or fewer than two draws.
        """
        if draws < 2:
            raise UnbraidError(f"draws is {draws}; a mean and a spread need at least 2.")
        mu, logvar = self.code(labels)
        eps = np.random.default_rng(self.seed).standard_normal((draws // 2, self.latents))
        z = mu + np.exp(logvar / 2) * np.concatenate([eps, -eps])  # antithetic: the mean of the codes is exact
        signals = self.decode(z)
        return Prototype(signals.mean(0), signals.std(0))

    def contrast(
        self, factor: str | None = None, a: int = 0, b: int = 1, draws: int = 1_000, seed: int = 0
    ) -> Contrast:
        """Which latents tell two values of a factor apart: |mu_a - mu_b| / sqrt((s_a^2 + s_b^2) / 2).

        The interval is a bootstrap over subjects of SCAN's closed form (`matching.matched`), as trials of one subject
        are not independent and training SCAN a thousand times takes hours.

        Args:
            factor: its name; None: the only one.
            a: a value.
            b: another.
            draws: of the bootstrap.
            seed: of the bootstrap.

        Returns:
            The contrast; its interval is NaN where there is a single subject only.
        """
        at, part = self._values(factor)
        size = part.stop - part.start
        if not (0 <= a < size and 0 <= b < size and a != b) or draws < 2:
            raise UnbraidError(f"a={a} and b={b} must be two values of {self.names_[at]!r} below {size}; draws > 1.")
        codes = [self.code({self.names_[at]: v}) for v in (a, b)]
        (mu_a, var_a), (mu_b, var_b) = ((mu, np.exp(logvar)) for mu, logvar in codes)
        whole, again = bootstrap(
            self.cells_, part.start + a, part.start + b, draws, self.strength, self.beta_y, seed
        )  # fmt: skip
        if len(self.cells_["count"]) < 2:
            again[:] = np.nan  # one subject says nothing about others
        low, high = np.percentile(again, [2.5, 97.5], axis=0)
        return Contrast(separation(mu_a, var_a, mu_b, var_b), whole, low, high)

    def relevance(self, labels: Mapping[str, int]) -> np.ndarray:
        """[J] log(1 / s_y): how sure a label's code is of each latent; about 0 where it leaves the prior."""
        return -0.5 * self.code(labels)[1]

    def traverse(self, latent: int, values: Sequence[float] = (-2.0, -1.0, 0.0, 1.0, 2.0)) -> np.ndarray:
        """[values, channels, samples] decoded while one latent takes these values and the others stay at 0.

        Raises:
            UnbraidError: there is no such latent.
        """
        self._fitted()
        if isinstance(latent, bool) or not 0 <= latent < self.latents:
            raise UnbraidError(f"latent is {latent!r}; the code has 0 to {self.latents - 1}.")
        z = np.zeros((len(values), self.latents))
        z[:, latent] = values
        return self.decode(z)

    def code(self, labels: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
        """q(z_y|y) of named labels: mean and log variance [J].

        Raises:
            UnbraidError: no such factor or value.
        """
        self._fitted(labels=True)
        row = np.full((1, len(self.names_)), -1)
        for name, value in labels.items():
            at, part = self._values(name)
            if not 0 <= value < part.stop - part.start:
                raise UnbraidError(f"{name} has the values 0 to {part.stop - part.start - 1}, not {value!r}.")
            row[0, at] = value
        with torch.no_grad():
            mu, logvar = self.head_.encode(torch.from_numpy(khot(row, self.sizes_)))
        return mu[0].double().numpy(), logvar[0].double().numpy()

    def _values(self, factor: str | None) -> tuple[int, slice]:
        """Number of a factor, and its columns among all values."""
        self._fitted(labels=True)
        name = self.names_[0] if factor is None and len(self.names_) == 1 else factor
        if name not in self.names_:
            raise UnbraidError(f"factor is {factor!r}; name one of {', '.join(self.names_)}.")
        at = self.names_.index(name)
        begin = sum(self.sizes_[:at])
        return at, slice(begin, begin + self.sizes_[at])

    def _in(self, epochs: np.ndarray) -> np.ndarray:
        flat = epochs.reshape(len(epochs), -1) - self.mean_
        flat = flat / self.scale_ if self.whitening_ is None else flat @ self.whitening_
        return flat.reshape(epochs.shape).astype(np.float32)

    def _out(self, made: np.ndarray) -> np.ndarray:
        flat = made.reshape(len(made), -1).astype(np.float64)
        flat = flat * self.scale_ if self.unwhitening_ is None else flat @ self.unwhitening_
        return (flat + self.mean_).reshape(-1, *self.shape_)

    def _check(self) -> None:
        numbers = {n: vars(self)[n] for n in ("latents", "label_hidden", "batch", "steps", "label_steps")}
        for name, value in numbers.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UnbraidError(f"{name} is {value!r}; it must be a whole number of at least 1.")
        if self.size not in STEPS:
            raise UnbraidError(f"size is {self.size!r}; it must be one of {', '.join(STEPS)}.")
        if not 0 <= self.dropout < 1 or self.strength <= 0 or self.beta_y < 0 or self.beta < 0:
            raise UnbraidError(
                f"dropout={self.dropout} must lie in [0, 1), strength={self.strength} above 0, beta_y={self.beta_y} "
                f"and beta={self.beta} at 0 or above."
            )

    def _fitted(self, labels: bool = False) -> GaussianVAE:
        if "vae_" not in vars(self):
            raise UnbraidError("this EEGScan has learned nothing yet; call fit(x, ...) or from_pretrained(folder).")
        if labels and "head_" not in vars(self):
            raise UnbraidError("no labels are tied to the code yet; call remap(x, labels).")
        return self.vae_
