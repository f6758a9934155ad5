"""A simulated study of event-related potentials: subjects with traits, trials with noise, and the truth beneath.

Four waves (P1, N2, P3, LPP) with fixed topographies; depression lowers the LPP, age delays the P1, sex raises the N2.
Noise is 1/f with a rhythm of 10 Hz whose phase nobody knows. Needs numpy and scipy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.data.factors import FactorData

# site -> place on the scalp seen from above: to the right, to the front; 1 is a quarter of a circle from Cz. The
# names are those of MNE's standard montages; the first eight have weights of their own in every wave.
PLACES: dict[str, tuple[float, float]] = {
    "Fz": (0.0, 0.51), "Cz": (0.0, 0.0), "Pz": (0.0, -0.51), "C3": (-0.51, 0.0), "C4": (0.51, 0.0),
    "P3": (-0.42, -0.52), "P4": (0.42, -0.52), "Oz": (0.0, -1.02), "Fp1": (-0.32, 0.97), "AF3": (-0.35, 0.75),
    "F7": (-0.83, 0.6), "F3": (-0.42, 0.52), "FC1": (-0.25, 0.25), "FC5": (-0.75, 0.29), "T7": (-1.02, 0.0),
    "CP1": (-0.25, -0.25), "CP5": (-0.75, -0.29), "P7": (-0.83, -0.6), "PO3": (-0.35, -0.75), "O1": (-0.32, -0.97),
    "O2": (0.32, -0.97), "PO4": (0.35, -0.75), "P8": (0.83, -0.6), "CP6": (0.75, -0.29), "CP2": (0.25, -0.25),
    "T8": (1.02, 0.0), "FC6": (0.75, 0.29), "FC2": (0.25, 0.25), "F4": (0.42, 0.52), "F8": (0.83, 0.6),
    "AF4": (0.35, 0.75), "Fp2": (0.32, 0.97),
}  # fmt: skip
SITES = tuple(PLACES)
TRAITS = ("depression", "age", "sex")
START, STOP = -0.2, 0.8  # seconds around the stimulus


@dataclass(frozen=True)
class Wave:
    """One component of the potential.

    Attributes:
        name: as in the literature.
        latency: of its peak, seconds.
        width: standard deviation of its Gaussian, seconds.
        amplitude: at its strongest site, in units of the noise's scale.
        sites: weight at each of the first eight of `SITES`; `topographies` has the others.
    """

    name: str
    latency: float
    width: float
    amplitude: float
    sites: tuple[float, ...]


WAVES = (
    Wave("P1", 0.11, 0.025, 0.8, (0.3, 0.5, 0.7, 0.4, 0.4, 0.8, 0.8, 1.0)),
    Wave("N2", 0.22, 0.035, -0.9, (1.0, 0.8, 0.3, 0.7, 0.7, 0.3, 0.3, 0.1)),
    Wave("P3", 0.36, 0.05, 1.0, (0.4, 0.8, 1.0, 0.6, 0.6, 0.8, 0.8, 0.4)),
    Wave("LPP", 0.6, 0.12, 1.2, (0.3, 0.7, 1.0, 0.6, 0.6, 0.9, 0.9, 0.5)),
)
HEALTHY, DEPRESSED, LPP_SPREAD = 1.2, 0.5, 0.25  # amplitude of the LPP
DELAY = 0.05  # of the P1 in the old, seconds
N2_FEMALE, N2_SPREAD = -1.4, 0.2
SLOPE, RHYTHM = 0.75, 10.0  # of the noise: power of 1/f, hertz
CUT = 4  # epochs per stretch of noise that is made


class ErpStudy(FactorData):
    """Trials of all subjects, with labels as factors and the truth beside them.

    Args:
        x: [n, channels, samples] trials.
        clean: [n, channels, samples] the same without noise.
        labels: [n, 3] depression, age (0 young), sex (1 female), as the study has them: some may be wrong or -1.
        subjects: [n] whose trial it is.
        truth: [subjects, 3] the true traits.
        amounts: [subjects, 3] what they do: amplitude of the LPP, latency of the P1 (seconds), amplitude of the N2.
        times: [samples] seconds.
        channels: names of the sites.

    The topographies of the waves are `topographies(len(channels))`.

    Attributes:
        subjects, truth, amounts, times, channels, clean: as given.
    """

    def __init__(
        self,
        x: np.ndarray,
        clean: np.ndarray,
        labels: np.ndarray,
        subjects: np.ndarray,
        truth: np.ndarray,
        amounts: np.ndarray,
        times: np.ndarray,
        channels: tuple[str, ...],
    ) -> None:
        super().__init__(x, labels, TRAITS, (2, 2, 2))
        self.clean, self.subjects, self.truth, self.amounts = clean, subjects, truth, amounts
        self.times, self.channels = times, channels

    @property
    def rate(self) -> float:
        """Samples per second."""
        return float((len(self.times) - 1) / (self.times[-1] - self.times[0]))

    def split_subjects(self, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the trials of two groups of subjects; no subject is in both.

        Raises:
            UnbraidError: a group would be empty.
        """
        names = np.unique(self.subjects)
        first = round(share * len(names))
        if not 0 < first < len(names):
            raise UnbraidError(f"a share of {share} leaves one of the two groups of {len(names)} subjects empty.")
        chosen = np.random.default_rng(seed).permutation(names)[:first]
        inside = np.isin(self.subjects, chosen)
        return np.flatnonzero(inside), np.flatnonzero(~inside)


def topographies(channels: int) -> np.ndarray:
    """[waves, channels] weight of each wave at the first so many of `SITES`.

    The first eight are as `WAVES` has them; a smooth surface through those eight gives the others.

    Raises:
        UnbraidError: more channels than there are sites, or none.
    """
    if not 1 <= channels <= len(SITES):
        raise UnbraidError(f"channels is {channels}; the simulation knows 1 to {len(SITES)} sites.")
    own = np.array([wave.sites for wave in WAVES])
    places = np.array(list(PLACES.values()))
    known = own.shape[1]
    if channels <= known:
        return own[:, :channels]
    from scipy.interpolate import RBFInterpolator

    rest = RBFInterpolator(places[:known], own.T, kernel="linear")(places[known:channels]).T
    return np.concatenate([own, rest.clip(0.0, 1.0)], 1)


def simulate(
    subjects: int = 400,
    trials: int = 30,
    noise: float = 1.0,
    channels: int = 3,
    samples: int = 64,
    wrong: float = 0.0,
    unknown: float = 0.0,
    spread: float = 0.0,
    seed: int = 0,
) -> ErpStudy:
    """A study with known truth.

    Args:
        subjects: how many.
        trials: of each.
        noise: scale of the noise; 0 gives the clean potentials.
        channels: of `SITES`, the first so many; 32 make a montage for topographies.
        samples: from -0.2 to 0.8 s.
        wrong: share of labels that are turned round, per subject and trait.
        unknown: share of labels that are -1.
        spread: how far the 1/f noise reaches over the scalp (0.5 is the distance from Cz to Pz); 0: each site has its
            own, which no head does, and which makes averages over many sites too easy.
        seed: of everything.

    Raises:
        UnbraidError: a number is beyond what makes sense.

    Example:
        >>> study = simulate(subjects=6, trials=2)
        >>> study.x.shape, study.names
        ((12, 3, 64), ('depression', 'age', 'sex'))
    """
    if subjects < 4 or trials < 1 or samples < 16 or not 1 <= channels <= len(SITES):
        raise UnbraidError(
            f"subjects={subjects}, trials={trials}, samples={samples}, channels={channels}: give at least 4 subjects, "
            f"1 trial and 16 samples, and 1 to {len(SITES)} channels."
        )
    if not noise >= 0 or not 0 <= wrong <= 0.5 or not 0 <= unknown < 1 or not 0 <= spread <= 2:
        raise UnbraidError(
            f"noise={noise} must be 0 or more, wrong={wrong} at most 0.5, unknown={unknown} below 1, spread={spread} "
            "from 0 to 2."
        )
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (subjects, 3))
    amounts = np.stack([
        np.where(truth[:, 0] == 1, DEPRESSED, HEALTHY) + LPP_SPREAD * rng.standard_normal(subjects),
        WAVES[0].latency + DELAY * truth[:, 1] + 0.005 * rng.standard_normal(subjects),
        np.where(truth[:, 2] == 1, N2_FEMALE, WAVES[1].amplitude) + N2_SPREAD * rng.standard_normal(subjects),
    ], axis=1)  # fmt: skip
    times = np.linspace(START, STOP, samples)
    potentials = _potentials(amounts, times, channels)
    who = np.repeat(np.arange(subjects), trials)
    clean = potentials[who]
    x = clean + noise * _background(len(who), channels, samples, (STOP - START) / (samples - 1), spread, rng)
    labels = np.where(rng.random((subjects, 3)) < wrong, 1 - truth, truth)
    labels = np.where(rng.random((subjects, 3)) < unknown, -1, labels)
    return ErpStudy(
        x.astype(np.float32), clean.astype(np.float32), labels[who], who, truth, amounts, times, SITES[:channels]
    )  # fmt: skip


def _potentials(amounts: np.ndarray, times: np.ndarray, channels: int) -> np.ndarray:
    """[subjects, channels, samples] without noise."""
    out = np.zeros((len(amounts), channels, len(times)))
    for wave, sites in zip(WAVES, topographies(channels), strict=True):
        latency = amounts[:, 1] if wave.name == "P1" else np.full(len(amounts), wave.latency)
        size = {"LPP": amounts[:, 0], "N2": amounts[:, 2]}.get(wave.name, np.full(len(amounts), wave.amplitude))
        shape = np.exp(-0.5 * ((times - latency[:, None]) / wave.width) ** 2) * size[:, None]
        out += sites[None, :, None] * shape[:, None]
    return out


def _background(
    n: int, channels: int, samples: int, step: float, spread: float, rng: np.random.Generator
) -> np.ndarray:  # fmt: skip
    """[n, channels, samples] 1/f noise of variance 1, and a rhythm of random phase common to all sites.

    Epochs are cut from noise several times as long: noise made at the epoch's own length has no power at zero
    frequency, and the mean over an epoch would give the potential away exactly.
    """
    whole = CUT * samples
    frequencies = np.fft.rfftfreq(whole, step)
    weight = np.where(frequencies > 0, np.maximum(frequencies, 1e-9) ** -SLOPE, 0.0)
    pink = np.empty((n, channels, samples))
    for rows in np.array_split(np.arange(n), max(1, n // 1_000)):  # the longer noise need not be held at once
        white = np.fft.rfft(rng.standard_normal((len(rows), channels, whole)))
        pink[rows] = np.fft.irfft(white * weight, whole)[..., :samples]
    pink /= np.sqrt((weight[1:] ** 2).sum() * 2 / whole)
    if spread:
        at = np.array([PLACES[site] for site in SITES[:channels]])
        apart = ((at[:, None] - at) ** 2).sum(2)
        cov = 0.98 * np.exp(-apart / (2 * spread**2)) + 0.02 * np.eye(channels)  # 2 % are the electrode's own
        pink = np.linalg.cholesky(cov) @ pink
    phase = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    swing = np.abs(rng.standard_normal((n, 1, 1)))
    return pink + 0.5 * swing * np.sin(2 * np.pi * RHYTHM * np.arange(samples) * step + phase)
