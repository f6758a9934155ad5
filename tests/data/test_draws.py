"""Draws with known structure: correlated factors, interventions, counterfactuals, missing labels, files."""

import numpy as np
import pytest

from unbraid.core.errors import UnbraidError
from unbraid.data import draws, worlds
from unbraid.data.factors import FactorData

SIZES = {"shape": 3, "colour": 4, "place": 10, "height": 10}


def grid():
    return FactorData.grid(SIZES, lambda rows: rows * 10.0, batched=True)


def test_a_batched_renderer_is_asked_once_for_many():
    calls = []

    def render(rows):
        calls.append(len(rows))
        return rows * 10.0

    data = FactorData.grid(SIZES, render, batched=True)
    assert np.array_equal(data.x, data.factors * 10.0)
    assert calls == [1200]
    assert data[7][0].tolist() == (data.factors[7] * 10.0).tolist()
    batch = next(iter(data.loader(32, seed=0)))
    assert calls[-1] == 32, "a batch at a time"
    assert np.array_equal(batch[0].numpy(), batch[1].numpy() * 10.0)


def test_codes_are_equal_where_rows_are():
    rng = np.random.default_rng(0)
    for table in (rng.integers(0, 5, (300, 4)), rng.integers(-3, 3, (300, 2)), rng.integers(0, 3, (300, 3)) / 2):
        code = draws.codes(table)
        _, want = np.unique(table, axis=0, return_inverse=True)
        _, mine = np.unique(code, return_inverse=True)
        assert np.array_equal(mine, want.reshape(-1)), "in the order of the rows"
    wide = rng.integers(0, 1 << 19, (200, 9))  # their product is beyond 64 bits
    assert len(np.unique(draws.codes(np.concatenate([wide, wide])))) == 200


@pytest.mark.parametrize("opposed", [False, True])
def test_correlated_factors_follow_the_law_they_are_drawn_by(opposed):
    data = grid()
    some = data.correlated(60_000, ("place", "height"), seed=1, sigma=0.3, opposed=opposed)
    at = np.arange(10) / 9
    want = np.exp(-((at[:, None] - (1 - at if opposed else at)[None]) ** 2) / (2 * 0.3**2))
    counts = np.zeros((10, 10))
    np.add.at(counts, (some.factors[:, 2], some.factors[:, 3]), 1)
    assert abs(counts / 60_000 - want / want.sum()).max() < 0.0015
    together = np.corrcoef(some.factors[:, 2], some.factors[:, 3])[0, 1]
    assert (together < -0.5) if opposed else (together > 0.5)
    assert abs(np.corrcoef(some.factors.T)[0, 1:]).max() < 0.03, "the others are as they were"
    weaker = data.correlated(20_000, [(2, 3)], seed=1, sigma=2.0)
    assert abs(np.corrcoef(weaker.factors[:, 2], weaker.factors[:, 3])[0, 1]) < 0.1
    again = data.correlated(100, [("place", "height"), ("shape", "colour")], seed=4)
    assert np.array_equal(again.x, data.correlated(100, [("place", "height"), ("shape", "colour")], seed=4).x)


def test_an_intervention_changes_one_factor_and_the_observation_with_it():
    some = grid().sample(200, seed=0)
    done = some.intervene("colour", 3)
    assert set(done.factors[:, 1]) == {3}
    assert np.array_equal(np.delete(done.factors, 1, axis=1), np.delete(some.factors, 1, axis=1))
    assert np.array_equal(done.x, done.factors * 10.0)
    assert np.array_equal(done.intervene("place", 0).intervene("colour", 1).x[:, 1], np.full(200, 10.0))
    world = worlds.make("sprites")
    some = world.sample(50, seed=1)
    assert np.array_equal(some.intervene("shape", 2).x, world.images(some.intervene("shape", 2).factors))


def test_counterfactuals_differ_in_what_they_should_only():
    before, after = grid().counterfactuals(500, "place", seed=2)
    assert (before.factors[:, 2] != after.factors[:, 2]).all()
    assert np.array_equal(np.delete(before.factors, 2, axis=1), np.delete(after.factors, 2, axis=1))


def test_hidden_labels_are_minus_one_and_exactly_as_many():
    data = grid().sample(500, seed=0)
    hidden = data.hide(0.9, seed=3)
    assert ((hidden.factors == -1).sum(axis=0) == 450).all()
    assert np.array_equal(hidden.known, hidden.factors >= 0)
    assert np.array_equal(hidden.factors[hidden.known], data.factors[hidden.known])
    assert np.array_equal(hidden.x, data.x)
    assert (hidden.known.all(axis=1).mean()) < 0.02, "each factor on its own"
    rows = data.hide(0.5, seed=3, factors=["shape", "place"], rows=True)
    assert np.array_equal(rows.known[:, 0], rows.known[:, 2])
    assert rows.known[:, [1, 3]].all()
    assert data.known.all()
    one, other = hidden.pairs(50, "shape", seed=0)
    assert (one.factors[:, 0] >= 0).all(), "what is unknown is shared by nobody"
    assert np.array_equal(one.factors[:, 0], other.factors[:, 0])
    continuous = worlds.make("discs", n=40).hide(0.25, seed=0)
    assert np.isnan(continuous.factors).sum() == 40
    assert (~continuous.known).sum() == 40
    x, labels = next(iter(hidden.loader(64, seed=0)))
    assert len(x) == 64
    assert int((labels == -1).sum()) > 100


def test_a_file_is_written_once_and_read_again(tmp_path):
    calls = []

    def render(rows):
        calls.append(len(rows))
        return rows * 10.0

    data = FactorData.grid(SIZES, render, batched=True)
    kept = data.cached(tmp_path, progress=False)
    assert np.array_equal(kept.x, data.factors * 10.0)
    drawn = sum(calls)
    again = data.cached(tmp_path, progress=False)
    assert sum(calls) - drawn < 100, "a few, to see that they are the same"
    assert np.array_equal(again.sample(20, 0).x, data.sample(20, 0).x)
    assert [p.suffix for p in tmp_path.iterdir()] == [".npy"]
    other = FactorData.grid(SIZES, lambda rows: rows * 11.0, batched=True).cached(tmp_path, progress=False)
    assert np.array_equal(other.x, data.factors * 11.0)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cached_world_is_a_world(tmp_path):
    world = worlds.make("xy", size=16, sizes={"x": 6, "y": 6})
    kept = world.cached(tmp_path, progress=False)
    some = world.sample(50, seed=0)
    assert abs(kept.sample(50, seed=0).x - some.x).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(kept.images(some.factors), kept.sample(50, seed=0).x)
    assert np.array_equal(kept.oracle(some.x), some.factors)
    file = next(tmp_path.iterdir())
    assert file.stat().st_size < len(world) * 3 * 256 + 1000
    file.write_bytes(b"half")
    assert abs(world.cached(tmp_path, progress=False).x - world.x).max() < 0.01, "a broken file is made anew"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grid().correlated(5, ("place", "weight"), 0), "no factor 'weight'"),
        (lambda: grid().correlated(5, ("place", "place"), 0), "two different factors"),
        (lambda: grid().correlated(5, ("place", "height"), 0, sigma=0), "positive sigma"),
        (lambda: grid().correlated(5, ("place", "height"), 0, sigma=float("nan")), "positive sigma"),
        (lambda: grid().correlated(5, [("place", "height", "shape")], 0), "two different factors"),
        (lambda: grid().hide(0.5, 0).correlated(5, ("place", "height"), 0), "are hidden; draw first"),
        (lambda: grid().hide(1.5, 0), "from 0 to 1"),
        (lambda: grid().hide(True, 0), "from 0 to 1"),
        (lambda: grid().hide(0.5, 0, "weight"), "no factor"),
        (lambda: grid().intervene("shape", 3), "it has values 0 to 2"),
        (lambda: grid().intervene("shape", 1.5), "no counterpart with shape = 1.5"),
        (lambda: grid().intervene("shape", float("nan")), "set to a number"),
        (lambda: grid().intervene("shape", "square"), "set to a number"),
        (lambda: grid().hide(0.1, 0).intervene("shape", 1), "are hidden"),
        (lambda: worlds.make("discs", n=20).intervene("x", 0.3), "continuous values"),
        (lambda: grid().counterfactuals(5, list(SIZES), 0), "not none or all"),
        (lambda: worlds.make("discs", n=20).counterfactuals(5, "x", 0), "no two observations share"),
        (lambda: grid().cached("/proc/nowhere"), "cannot be used"),
        (lambda: grid().subset([]).cached("/tmp"), "no observation to keep"),
    ],
)
def test_bad_input_is_one_sentence(make, message):
    with pytest.raises(UnbraidError, match=message):
        make()
