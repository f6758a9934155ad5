"""Denoisers and codes of other kinds with as many numbers: PCA, a deterministic auto-encoder, and MNE's Xdawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from unbraid.core.errors import UnbraidError
from unbraid.core.train import fit_loop
from unbraid.layers.vae import encode_all, signal_vae


class Control(NamedTuple):
    """Codes [n, J] of all epochs, and what they decode to [n, channels, samples]."""

    codes: np.ndarray
    made: np.ndarray


def pca(x: np.ndarray, train: np.ndarray, latents: int) -> Control:
    """Principal components of the training epochs.

    Args:
        x: [n, channels, samples].
        train: [n] whether an epoch is for training.
        latents: how many components.

    Raises:
        UnbraidError: more components than epochs or inputs.
    """
    flat = x.reshape(len(x), -1).astype(np.float64)
    if not 1 <= latents <= min(int(train.sum()), flat.shape[1]):
        raise UnbraidError(f"{latents} components of {int(train.sum())} epochs of {flat.shape[1]} numbers: take fewer.")
    mean = flat[train].mean(0)
    vectors = np.linalg.eigh(np.cov((flat[train] - mean).T))[1][:, ::-1][:, :latents]
    codes = (flat - mean) @ vectors
    return Control(codes, (codes @ vectors.T + mean).reshape(x.shape))


def autoencoder(
    x: np.ndarray, train: np.ndarray, latents: int, steps: int, *, batch: int = 128, lr: float = 1e-3, seed: int = 0
) -> Control:
    """A deterministic auto-encoder with the VAE's networks: no noise on the code, no prior, the same squared error.

    Args:
        x: [n, channels, samples].
        train: [n] whether an epoch is for training.
        latents: of the code.
        steps: of Adam.
        batch: epochs per step.
        lr: learning rate.
        seed: of weights and order.
    """
    mean, scale = x[train].mean(0), float((x[train] - x[train].mean(0)).std())
    put = ((x - mean) / scale).astype(np.float32)
    net, inside = signal_vae(x.shape[1:], latents, seed=seed), torch.from_numpy(put[train])

    def draw(number: int, generator: torch.Generator) -> torch.Tensor:
        return inside[torch.randint(len(inside), (batch,), generator=generator)]

    def loss(module: Any, seen: torch.Tensor) -> Any:
        error = (module.decode(module.encode(seen)[0]) - seen).square().flatten(1).sum(1).mean()
        return error, {"error": error.detach()}

    fit_loop(net, loss, draw, steps=steps, optimizer=lambda p: torch.optim.Adam(p, lr=lr), seed=seed, progress=False)
    codes = encode_all(net.eval(), put)[0]
    with torch.no_grad():
        made = net.decode(torch.as_tensor(codes, dtype=torch.float32)).double().numpy()
    return Control(codes, made * scale + mean)


def xdawn(
    x: np.ndarray, events: np.ndarray, train: np.ndarray, rate: float, components: int = 2
) -> np.ndarray:  # fmt: skip
    """[held out, channels, samples] denoised by MNE's Xdawn, spatial filters that were shown which event each is.

    Args:
        x: [n, channels, samples].
        events: [n] whole numbers: the kinds whose evoked potentials the filters keep.
        train: [n] whether an epoch is for training.
        rate: samples per second.
        components: of each kind.

    Raises:
        UnbraidError: MNE is not installed, or there are fewer channels than components.
    """
    from unbraid.systems.eeg_scan.recordings import _mne, to_epochs

    if not 1 <= components <= x.shape[1]:
        raise UnbraidError(f"components is {components}; with {x.shape[1]} channels it must be 1 to {x.shape[1]}.")
    mne = _mne()
    times, sites = np.arange(x.shape[2]) / rate, [f"c{i}" for i in range(x.shape[1])]
    seen, held = to_epochs(x[train], times, sites), to_epochs(x[~train], times, sites)
    kinds, seen.events[:, 2] = np.unique(events[train], return_inverse=True)
    seen.event_id = {str(kind): i for i, kind in enumerate(kinds)}
    with mne.use_log_level("error"):
        filters = mne.preprocessing.Xdawn(n_components=components, correct_overlap=False).fit(seen)
        made = filters.apply(held)  # for each kind, as which it is must not be known of a new trial
    return np.mean([one.get_data(copy=False) for one in made.values()], axis=0)
