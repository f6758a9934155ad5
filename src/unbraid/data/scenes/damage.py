"""What happens to pictures on their way: blur, noise, blocks, a cast of colour, a smaller copy in between."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from unbraid.core.errors import UnbraidError

KINDS = ("blur", "noise", "blocks", "cast", "small")
BLOCK = 8


def degrade(images: np.ndarray, kind: str, strength: float = 1.0, seed: int = 0) -> np.ndarray:
    """Worsen images as transport, compression or a generator might.

    Args:
        images: [n, 3, H, W] from 0 to 1.
        kind: ``blur`` (a Gaussian of a pixel at 64), ``noise`` (deviation 0.05), ``blocks`` (the cosine transform of
            8 x 8 blocks in coarse steps, as JPEG has them), ``cast`` (each channel scaled and shifted by up to 0.06) or
            ``small`` (halved and enlarged again; by four at strength 2).
        strength: times that.
        seed: of what is random.

    Returns:
        As many images, float32 from 0 to 1.

    Raises:
        UnbraidError: there is no such kind.
    """
    if kind not in KINDS:
        raise UnbraidError(f"there is no degradation {kind!r}; there are {', '.join(KINDS)}.")
    made = _HOW[kind](np.asarray(images, np.float32), float(strength), np.random.default_rng([seed, KINDS.index(kind)]))
    return np.asarray(np.clip(made, 0, 1), np.float32)


def _blur(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    deviation = strength * images.shape[2] / 64
    return np.asarray(gaussian_filter(images, (0, 0, deviation, deviation), mode="nearest"))


def _noise(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return images + np.float32(0.05 * strength) * rng.standard_normal(images.shape, np.float32)


def _blocks(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    n, channels, height, width = images.shape
    k = np.arange(BLOCK)
    basis = np.cos(np.pi * (2 * k[None, :] + 1) * k[:, None] / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
    basis[0] /= np.sqrt(2)
    basis = basis.astype(np.float32)
    high, wide = -height % BLOCK, -width % BLOCK
    full = np.pad(images, ((0, 0), (0, 0), (0, high), (0, wide)), mode="edge")
    tiles = full.reshape(n, channels, -1, BLOCK, full.shape[3] // BLOCK, BLOCK).transpose(0, 1, 2, 4, 3, 5)
    step = (0.06 + 0.03 * (k[:, None] + k[None, :])) * strength  # finer tones are kept more coarsely
    wave = basis @ tiles @ basis.T
    tiles = basis.T @ (np.round(wave / step) * step).astype(np.float32) @ basis
    return np.asarray(tiles.transpose(0, 1, 2, 4, 3, 5).reshape(full.shape)[:, :, :height, :width])


def _cast(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    shape = (len(images), 3, 1, 1)
    gain, shift = (rng.uniform(-0.06, 0.06, shape).astype(np.float32) * np.float32(strength) for _ in range(2))
    return images * (1 + gain) + shift


def _small(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    times = 2**strength
    side = max(8, round(images.shape[2] / times))
    return resized(resized(images, side), images.shape[2])


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """[n, 3, size, size] images at another size: means of areas downwards, straight lines upwards."""
    high, wide = (_weights(size, side) for side in images.shape[2:])
    return np.asarray(high @ images @ wide.T, np.float32)


def _weights(new: int, old: int) -> np.ndarray:
    """[new, old] how much each old pixel gives to each new one."""
    if new == old:
        return np.eye(new, dtype=np.float32)
    centre = (np.arange(new) + 0.5) / new * old - 0.5
    reach = max(1.0, old / new)  # a tent as wide as the coarser of both pixels
    made = np.clip(1 - np.abs(centre[:, None] - np.arange(old)) / reach, 0, None)
    at = np.clip(np.round(centre).astype(int), 0, old - 1)
    made[made.sum(axis=1) == 0, at[made.sum(axis=1) == 0]] = 1
    return np.asarray(made / made.sum(axis=1, keepdims=True), np.float32)


_HOW: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "blur": _blur,
    "noise": _noise,
    "blocks": _blocks,
    "cast": _cast,
    "small": _small,
}
