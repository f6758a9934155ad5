"""What the oracle looks at: distances to every background, the spectrum and a coarse copy; patches of pixels; crops."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from unbraid.data.scenes import grounds
from unbraid.data.scenes.damage import resized
from unbraid.data.scenes.paint import HATCH, PAPER, masks
from unbraid.data.scenes.sampling import BACKGROUNDS
from unbraid.data.scenes.scene import FADES, GROUNDS, PLACES, SHAPES, SIZES, STYLES, TEXTURES, Background, Scene, Thing

SIDE = 64  # pixels at which everything is read
CAP = 0.06  # squared distance beyond which a pixel is something else
RINGS, SECTORS = 7, 8
CROP = 24  # samples along a crop
REACH = 1.45  # of a crop, in radii
WHOLE = {"background": BACKGROUNDS, "texture": TEXTURES, "fade": FADES, "style": STYLES}
TEMPLATES = [(shape, size) for size in SIZES for shape in SHAPES]
OFFSETS = [
    (0, 0),
    (0, 1),
    (1, 0),
    (0, -1),
    (-1, 0),
    (2, 2),
    (2, -2),
    (-2, 2),
    (-2, -2),
    (0, 3),
    (3, 0),
    (0, -3),
    (-3, 0),
]


@lru_cache(maxsize=1)
def candidates() -> tuple[list[Background], np.ndarray]:
    """Every background, and [m, 3, 64, 64] how it looks on average."""
    listed = [Background(colour, texture) for colour in GROUNDS for texture in TEXTURES]
    listed += [Background(c, fade=f) for c in GROUNDS if c not in ("white", "grey", "black") for f in FADES[1:]]
    listed += [Background(place=place) for place in PLACES]
    made = [
        np.mean([grounds.paint(ground, SIDE, np.random.default_rng(seed)) for seed in range(12)], axis=0)
        for ground in listed
    ]
    return listed, np.stack(made).astype(np.float32)


@lru_cache(maxsize=1)
def _small_candidates() -> np.ndarray:
    small = resized(candidates()[1], SIDE // 2)
    paper = small + 0.25 * (PAPER - small)
    return np.concatenate([small, paper]).reshape(2 * len(small), -1)


@lru_cache(maxsize=1)
def _bins() -> np.ndarray:
    """[64, 33] which ring and sector of the spectrum each frequency belongs to; -1: the mean."""
    fy, fx = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None, :]
    far = np.sqrt(fx**2 + fy**2)
    ring = np.clip((far * 2 * RINGS).astype(int), 0, RINGS - 1)
    sector = ((np.arctan2(fy, fx + 1e-9) / np.pi + 0.5) * SECTORS).astype(int).clip(0, SECTORS - 1)
    made = ring * SECTORS + sector
    made[0, 0] = -1
    return np.asarray(made)


def whole(images: np.ndarray) -> np.ndarray:
    """[n, f] features of [n, 3, 64, 64] images as wholes."""
    n = len(images)
    half = images.reshape(n, 3, SIDE // 2, 2, SIDE // 2, 2).mean(axis=(3, 5))
    flat = half.reshape(n, -1)
    near = []
    for row in flat:  # one image at a time stays in the cache
        away = np.square(_small_candidates() - row).reshape(-1, 3, (SIDE // 2) ** 2).sum(axis=1)
        near.append(np.minimum(away, CAP).mean(axis=1))
    distance = np.stack(near)
    grey = images.mean(axis=1)
    power = np.square(np.abs(np.fft.rfft2(grey - grey.mean(axis=(1, 2), keepdims=True)))) / SIDE**2
    index = _bins()
    kept = index >= 0
    spectrum = np.stack([np.bincount(index[kept], p[kept], RINGS * SECTORS) for p in power])
    spectrum = np.log(spectrum / np.bincount(index[kept], minlength=RINGS * SECTORS).clip(1) + 1e-6)
    x, y = grounds.axes(SIDE)
    wave = np.exp(2j * np.pi * (x + y) / HATCH).astype(np.complex64)
    sharp = grey - _box(grey, 2)
    beat = np.abs(_block_sums(sharp * wave, 16).reshape(n, -1)) / 64
    coarse = half.reshape(n, 3, 8, 4, 8, 4).mean(axis=(3, 5)).reshape(n, -1)
    rough = np.square(sharp).reshape(n, 8, 8, 8, 8).mean(axis=(2, 4)).reshape(n, -1)
    parts = [np.sqrt(distance) * 8, np.sqrt(distance / distance.min(axis=1, keepdims=True).clip(1e-5)).clip(0, 9)]
    parts += [0.3 * spectrum, 6 * beat, 2 * coarse - 1, 8 * np.sqrt(rough)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _block_sums(field: np.ndarray, side: int) -> np.ndarray:
    n, size = len(field), field.shape[1]
    return np.asarray(field.reshape(n, size // side, side, size // side, side).sum(axis=(2, 4)))


def _box(grey: np.ndarray, reach: int) -> np.ndarray:
    from scipy.ndimage import uniform_filter

    return np.asarray(uniform_filter(grey, (0, 2 * reach + 1, 2 * reach + 1), mode="nearest"))


def patches(images: np.ndarray) -> np.ndarray:
    """[n, 64, 64, f] what stands round each pixel: its own colour, neighbours and means."""
    n = len(images)
    pad = 4
    wide = np.pad(images.transpose(0, 2, 3, 1), ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="edge")
    made = np.empty((n, SIDE, SIDE, 3 * len(OFFSETS) + 3), np.float32)
    for k, (dy, dx) in enumerate(OFFSETS):
        made[..., 3 * k : 3 * k + 3] = wide[:, pad + dy : pad + dy + SIDE, pad + dx : pad + dx + SIDE]
    from scipy.ndimage import uniform_filter

    made[..., 3 * len(OFFSETS) :] = uniform_filter(images, (0, 0, 5, 5), mode="nearest").transpose(0, 2, 3, 1)
    return made


def conditions(answers: dict[str, np.ndarray]) -> np.ndarray:
    """[n, c] what is known of images as wholes, as probabilities."""
    return np.concatenate([answers[name] for name in WHOLE], axis=1).astype(np.float32)


def expected(answers: dict[str, np.ndarray]) -> np.ndarray:
    """[n, 64, 64, 3] the background that is most probable, as it would be without things."""
    listed, looks = candidates()
    joint = np.zeros((len(answers["style"]), len(listed)), np.float32)
    for k, ground in enumerate(listed):
        joint[:, k] = answers["background"][:, BACKGROUNDS.index(ground.name)]
        if not ground.place:
            joint[:, k] *= answers["texture"][:, TEXTURES.index(ground.texture)]
            joint[:, k] *= answers["fade"][:, FADES.index(ground.fade)]
    made = looks[joint.argmax(axis=1)].transpose(0, 2, 3, 1)
    sketch = answers["style"][:, STYLES.index("sketch"), None, None, None]
    return np.asarray(made + 0.25 * sketch * (PAPER[:, 0, 0] - made), np.float32)


@lru_cache(maxsize=1)
def templates() -> tuple[np.ndarray, np.ndarray]:
    """[24, 64, 64] things in the middle, and [24, 64, 33] their transforms for correlation."""
    made = masks([Scene((Thing(shape, size=size),)) for shape, size in TEMPLATES], SIDE)[:, 0]
    return made, np.conj(np.fft.rfft2(np.fft.ifftshift(made, axes=(1, 2)))).astype(np.complex64)


def crop(layers: np.ndarray, x: float, y: float, radius: float) -> np.ndarray:
    """[c, CROP, CROP] samples of [c, 64, 64] layers in a square round a thing, straight lines between pixels."""
    at = (np.arange(CROP) + 0.5) / CROP * 2 - 1
    cols, rows = ((centre + at * REACH * radius) * SIDE - 0.5 for centre in (x, y))
    return np.asarray(_between(SIDE, rows) @ layers @ _between(SIDE, cols).T)


def _between(size: int, at: np.ndarray) -> np.ndarray:
    at = np.clip(at, 0, size - 1)
    return np.asarray(np.clip(1 - np.abs(at[:, None] - np.arange(size)), 0, None), np.float32)
