"""Scores from interventions on the factors: beta-VAE (Z-diff), FactorVAE (Z-min-var) and Z-max-var."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Unpack

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.metrics.disentanglement.inputs import Score, Shared, at_least, factor_names, make_blocks
from unbraid.metrics.disentanglement.resample import around
from unbraid.metrics.disentanglement.sampling import Encode, make_sampler

VALUES_AT_ONCE = 60_000


def factor_vae(
    z: Any = None,
    factors: Any = None,
    *,
    grid: Any = None,
    encode: Encode | None = None,
    sizes: Sequence[int] | None = None,
    batch: int = 64,
    votes: int = 10_000,
    test_votes: int = 5_000,
    variance_points: int = 10_000,
    prune: float = 0.05,
    rescale: bool = False,
    **given: Unpack[Shared],
) -> Score:
    """FactorVAE score, Z-min-var (Kim and Mnih 2018, arXiv:1802.05983).

    A vote fixes one factor for ``batch`` observations and names the code whose variance, over its variance in all
    data, is least. The score is the accuracy on fresh votes of the majority rule learned from the votes.

    Args:
        z: [N, J] codes; with ``factors``. Rows that are no complete grid are drawn from those that share a value:
            another estimator, named "buckets" in the answer.
        factors: [N, K].
        grid: [prod sizes, J] codes of all combinations instead, the last factor fastest.
        encode: or [n, K] factors -> [n, J] codes.
        sizes: [K] numbers of values, with ``grid`` or ``encode``.
        batch: observations per vote.
        votes: to learn the rule from.
        test_votes: to score it.
        variance_points: observations from which the codes' variances come.
        prune: codes with a smaller standard deviation cannot be voted for (0.05 in disentanglement_lib's settings; 0
            never prunes, as disent does: then a passive code, whose normalised variance has no scale, may win).
        rescale: (score - 1/K) / (1 - 1/K), as ubisoft's library does.
        given: `Shared`; with ``bootstrap`` the votes are resampled.

    Returns:
        From 1/K to 1; ``matrix`` is the table of votes [codes, factors]. 0 when no code is active.

    Raises:
        UnbraidError: an argument has another form.
    """
    return _by_votes(
        "factor_vae", z, factors, grid, encode, sizes, batch, votes, test_votes, variance_points, prune, rescale, given
    )


def z_max_var(
    z: Any = None,
    factors: Any = None,
    *,
    grid: Any = None,
    encode: Encode | None = None,
    sizes: Sequence[int] | None = None,
    batch: int = 64,
    votes: int = 10_000,
    test_votes: int = 5_000,
    variance_points: int = 10_000,
    prune: float = 0.05,
    rescale: bool = False,
    **given: Unpack[Shared],
) -> Score:
    """Z-max-var (Kim et al. 2019, arXiv:1902.01568): one factor varies, the code that varies most is named.

    Arguments and answer as for `factor_vae`.

    Args:
        z: [N, J] codes; with ``factors``, in which some rows must differ in one factor only.
        factors: [N, K].
        grid: [prod sizes, J] codes of all combinations instead, the last factor fastest.
        encode: or [n, K] factors -> [n, J] codes.
        sizes: [K] numbers of values, with ``grid`` or ``encode``.
        batch: observations per vote.
        votes: to learn the rule from.
        test_votes: to score it.
        variance_points: observations from which the codes' variances come.
        prune: codes with a smaller standard deviation cannot be voted for.
        rescale: (score - 1/K) / (1 - 1/K).
        given: `Shared`; with ``bootstrap`` the votes are resampled.

    Returns:
        From 1/K to 1.

    Raises:
        UnbraidError: an argument has another form.
    """
    return _by_votes(
        "z_max_var", z, factors, grid, encode, sizes, batch, votes, test_votes, variance_points, prune, rescale, given
    )


def beta_vae(
    z: Any = None,
    factors: Any = None,
    *,
    grid: Any = None,
    encode: Encode | None = None,
    sizes: Sequence[int] | None = None,
    batch: int = 64,
    train: int = 10_000,
    test: int = 5_000,
    standardise: bool = False,
    rescale: bool = False,
    **given: Unpack[Shared],
) -> Score:
    """beta-VAE score, Z-diff (Higgins et al. 2017).

    A point is the mean absolute difference of the codes over ``batch`` pairs that share one factor; the score is the
    accuracy with which a logistic regression (L2, C = 1) names that factor on fresh points. Codes are not
    standardised, so the penalty makes it depend on their scale.

    Args:
        z: [N, J] codes; with ``factors``. Rows that are no complete grid are drawn from those that share a value:
            another estimator, named "buckets" in the answer.
        factors: [N, K].
        grid: [prod sizes, J] codes of all combinations instead, the last factor fastest.
        encode: or [n, K] factors -> [n, J] codes.
        sizes: [K] numbers of values, with ``grid`` or ``encode``.
        batch: pairs per point.
        train: points to learn from.
        test: points to score.
        standardise: divide the features by their standard deviation first, which the literature does not.
        rescale: (score - 1/K) / (1 - 1/K), as ubisoft's library does.
        given: `Shared`; blocks give the mean over their codes; with ``bootstrap`` the test points are resampled.

    Returns:
        From 1/K to 1; ``matrix`` holds the mean feature [codes, factors].

    Raises:
        UnbraidError: an argument has another form.
    """
    setup = _Setup(z, factors, grid, encode, sizes, given)
    at_least(batch, 1, "batch")
    rng = np.random.default_rng([setup.seed, 0xBE7A])
    x, label = setup.features(at_least(train, 2, "train"), batch, rng)
    x_test, label_test = setup.features(at_least(test, 1, "test"), batch, rng)
    spread = x.std(axis=0) if standardise else np.ones(x.shape[1])
    spread = np.where(spread > 0, spread, 1.0)
    from sklearn.linear_model import LogisticRegression

    if setup.sampler.count == 1:
        right = np.ones(len(label_test), dtype=bool)  # one factor: there is nothing to tell apart
    else:
        model = LogisticRegression().fit(x / spread, label)
        right = model.predict(x_test / spread) == label_test
    draw = np.random.default_rng([setup.seed, 0xB007])
    draws = draw.binomial(len(right), right.mean(), setup.bootstrap) / len(right)
    table = np.stack([x[label == k].mean(axis=0) for k in range(setup.sampler.count)], axis=1)
    return setup.answer("beta_vae", float(right.mean()), draws, table, rescale)


class _Setup:
    """Source, blocks and shared arguments of a score from interventions."""

    def __init__(
        self,
        z: Any,
        factors: Any,
        grid: Any,
        encode: Encode | None,
        sizes: Sequence[int] | None,
        given: Shared,
    ) -> None:
        shared: dict[str, Any] = dict(given)
        for name in shared:
            if name not in Shared.__annotations__:
                raise UnbraidError(
                    f"there is no argument {name!r}; all metrics take {', '.join(Shared.__annotations__)}."
                )
        self.sampler, self.active = make_sampler(z, factors, grid, encode, sizes, shared)
        self.blocks, self.labels = make_blocks(shared.get("blocks"), self.active)
        self.single = all(len(block) == 1 for block in self.blocks)
        self.table = z is not None
        self.seed = at_least(shared.get("seed", 0), 0, "seed")
        self.bootstrap = at_least(shared.get("bootstrap", 0), 0, "bootstrap")
        self.representation = str(shared.get("representation", "mean"))
        total = int(self.sampler.factors.max()) + 1
        count = len(sizes) if sizes is not None else total
        names = shared.get("names")
        names = factor_names(names, len(names) if names is not None and self.table else count)
        self.names = [names[k] for k in self.sampler.factors]

    def active_codes(self, codes: np.ndarray) -> np.ndarray:
        """[..., A]: tables come with passive codes taken out already."""
        return codes if self.table or self.active.all() else codes[..., self.active]

    def pooled(self, values: np.ndarray, how: Callable[..., np.ndarray] = np.mean) -> np.ndarray:
        """[..., U] from [..., A]."""
        if self.single:
            at = [int(block[0]) for block in self.blocks]
            return values if at == list(range(values.shape[-1])) else values[..., at]
        return np.stack([how(values[..., block], axis=-1) for block in self.blocks], axis=-1)

    def chunks(self, total: int, batch: int) -> Iterator[int]:
        """Numbers of batches that are drawn at once, so that they stay in the processor's cache."""
        step = max(1, VALUES_AT_ONCE // (batch * self.sampler.width))
        yield from [step] * (total // step) + ([total % step] if total % step else [])

    def features(self, points: int, batch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """[points, U] mean differences and [points] factors."""
        x, labels = [], []
        for count in self.chunks(points, 2 * batch):
            which = rng.integers(self.sampler.count, size=count)
            one, two = (self.active_codes(codes) for codes in self.sampler.pairs(which, batch, rng))
            np.subtract(one, two, out=one)
            np.abs(one, out=one)
            x.append(self.pooled(_mean(one)))
            labels.append(which)
        return np.concatenate(x), np.concatenate(labels)

    def answer(
        self, name: str, score: float, draws: np.ndarray, table: np.ndarray, rescale: bool, **more: Any
    ) -> Score:
        """The `Score`, with the interval laid around it."""
        chance = 1 / self.sampler.count

        def scaled(value: Any) -> Any:
            return (value - chance) / (1 - chance) if rescale and chance < 1 else value

        name += f"[{self.sampler.name}{',rescaled' if rescale else ''}]"
        said: dict[str, Any] = {
            "score": float(scaled(score)),
            "interval": around(scaled(score), scaled(draws)),
            "matrix": table,
        }
        said |= {"active": self.active, "estimator": name, "representation": self.representation}
        return Score(**said, codes=list(self.labels), factors=self.names, chance=chance, **more)


def _mean(values: np.ndarray) -> np.ndarray:
    """[M, J] the mean over B of [M, B, J]; a product with ones is several times faster than ``mean``."""
    ones = np.full(values.shape[1], 1 / values.shape[1])
    found: np.ndarray = np.matmul(ones, values)
    return found


def variances(codes: np.ndarray) -> np.ndarray:
    """[M, J] variances (ddof 1) within the batches of [M, B, J], which is used up."""
    codes -= codes[:, :1]  # from an observation of the batch: no digits are lost where its codes lie close together
    mean = _mean(codes)
    np.multiply(codes, codes, out=codes)
    return np.maximum(_mean(codes) - mean**2, 0.0) * (codes.shape[1] / (codes.shape[1] - 1))


def _by_votes(
    name: str,
    z: Any,
    factors: Any,
    grid: Any,
    encode: Encode | None,
    sizes: Sequence[int] | None,
    batch: int,
    votes: int,
    test_votes: int,
    variance_points: int,
    prune: float,
    rescale: bool,
    given: Shared,
) -> Score:
    setup = _Setup(z, factors, grid, encode, sizes, given)
    at_least(batch, 2, "batch")
    if not isinstance(prune, int | float) or isinstance(prune, bool) or not prune >= 0:
        raise UnbraidError(f"prune is {prune!r}; it must be a standard deviation of at least 0.")
    rng = np.random.default_rng([setup.seed, 0xFAC])
    points = setup.active_codes(setup.sampler.observe(at_least(variance_points, 2, "variance_points"), rng))
    scale = points.var(axis=0, ddof=1)
    usable = (np.sqrt(scale) >= prune) & (scale > 0)  # a constant code has no variance to divide by
    live = np.array([usable[block].any() for block in setup.blocks])
    counts = [at_least(n, 1, what) for n, what in ((votes, "votes"), (test_votes, "test_votes"))]
    tables = [_votes(setup, name, n, batch, scale, usable, live, rng) for n in counts]
    more = {"num_active": int(live.sum()), "test_matrix": tables[1]}
    if not live.any():
        return setup.answer(name, 0.0, np.empty(0), tables[0], False, **more)
    draws = np.empty(setup.bootstrap)
    again = np.random.default_rng([setup.seed, 0xB007])
    for i in range(setup.bootstrap):
        drawn = [again.multinomial(int(t.sum()), (t / t.sum()).ravel()).reshape(t.shape) for t in tables]
        draws[i] = majority(*drawn)
    return setup.answer(name, majority(*tables), draws, tables[0], rescale, **more)


def majority(votes: np.ndarray, test: np.ndarray) -> float:
    """Accuracy on test votes [U, K] of the rule "the factor that most votes of this code named"."""
    return float(test[np.arange(len(votes)), votes.argmax(axis=1)].sum() / test.sum())


def _votes(
    setup: _Setup,
    name: str,
    total: int,
    batch: int,
    scale: np.ndarray,
    usable: np.ndarray,
    live: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """[U, K] how often each code was named while each factor was fixed (or varied)."""
    table = np.zeros((len(setup.blocks), setup.sampler.count), dtype=np.int64)
    if not live.any():
        return table
    weight = np.where(usable & (scale > 0), 1 / np.where(scale > 0, scale, 1.0), 0.0)
    most = name == "z_max_var"
    for count in setup.chunks(total, batch):
        which = rng.integers(setup.sampler.count, size=count)
        draw = setup.sampler.varied if most else setup.sampler.fixed
        share = variances(setup.active_codes(draw(which, batch, rng))) * weight
        if not setup.single:  # a block's share: the mean over its usable codes
            number = np.array([max(1, usable[block].sum()) for block in setup.blocks])
            share = setup.pooled(share, np.sum) / number
        else:
            share = setup.pooled(share)
        share[:, ~live] = -np.inf if most else np.inf
        named = share.argmax(axis=1) if most else share.argmin(axis=1)
        table += np.bincount(named * table.shape[1] + which, minlength=table.size).reshape(table.shape)
    return table
