"""Data with known factors."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.core.errors import UnbraidError
from unbraid.data.factors import FactorData

SIZES = {"shape": 3, "colour": 4, "place": 5}


def grid():
    return FactorData.grid(SIZES, lambda row: row * 10.0)


def test_a_grid_holds_every_combination_once():
    data = grid()
    assert len(data) == 60
    assert len({tuple(row) for row in data.factors}) == 60
    assert (data.names, data.sizes) == (("shape", "colour", "place"), (3, 4, 5))
    assert np.array_equal(data.x, data.factors * 10.0)


def test_observations_are_rendered_when_they_are_needed():
    calls = []

    def render(i):
        calls.append(i)
        return np.full((2, 2), i)

    data = FactorData(render, np.arange(6).reshape(6, 1))
    part = data.subset([4, 1]).subset([1])
    assert calls == []
    x, factors = part[0]
    assert (calls, x.tolist(), factors.tolist()) == ([1], [[1, 1], [1, 1]], [1])
    assert part[-1][0].tolist() == x.tolist()
    calls.clear()
    assert data.subset([3, 0]).x.shape == (2, 2, 2)
    assert calls == [3, 0]


def test_arrays_and_functions_are_the_same_data():
    factors = np.random.default_rng(0).integers(0, 3, (20, 2))
    images = np.random.default_rng(1).random((20, 4, 4))
    one, two = FactorData(images, factors), FactorData(lambda i: images[i], factors)
    for change in (lambda d: d, lambda d: d.sample(7, 3), lambda d: d.split(0.5, 1)[1], lambda d: d.pairs(5, 0, 2)[1]):
        assert np.array_equal(change(one).x, change(two).x)
        assert np.array_equal(change(one).factors, change(two).factors)
    assert [f.tolist() for _, f in one] == factors.tolist()


def test_samples_follow_the_seed():
    data = grid()
    assert np.array_equal(data.sample(10, 1).factors, data.sample(10, 1).factors)
    assert not np.array_equal(data.sample(10, 1).factors, data.sample(10, 2).factors)
    assert len({tuple(row) for row in data.sample(60, 0).factors}) == 60
    assert len(data.sample(200, 0, replace=True)) == 200


@pytest.mark.parametrize("share", ["colour", 1, ["shape", "place"], ("place", 0, "colour")])
def test_pairs_share_what_they_should_and_only_that(share):
    data = grid().subset(np.arange(59))  # groups of different sizes
    listed = [share] if isinstance(share, str | int) else share
    columns = [data.column(name) for name in listed]
    if len(columns) == 3:
        with pytest.raises(UnbraidError, match="no two observations share"):
            data.pairs(5, share, 0)
        return
    one, two = data.pairs(4000, share, 0)
    assert np.array_equal(one.factors[:, columns], two.factors[:, columns])
    assert (one.factors != two.factors).any(axis=1).all(), "never an observation with itself"
    for column in set(range(3)) - set(columns):
        assert (one.factors[:, column] != two.factors[:, column]).mean() > 0.3
    again = data.pairs(4000, share, 0)
    assert np.array_equal(two.factors, again[1].factors)


def test_partners_are_drawn_evenly():
    data = FactorData(np.arange(5.0), [[0], [0], [0], [1], [2]])
    one, two = data.pairs(6000, 0, seed=0)
    counts = np.zeros((5, 5))
    np.add.at(counts, (one.x.astype(int), two.x.astype(int)), 1)
    assert counts.diagonal().sum() == counts[3:].sum() == 0
    assert np.abs(counts[:3, :3][~np.eye(3, dtype=bool)] / 1000 - 1).max() < 0.15


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 60), st.integers(0, 1000), st.lists(st.floats(0.1, 0.3), min_size=1, max_size=3))
def test_parts_are_disjoint_and_complete(n, seed, shares):
    data = FactorData(np.arange(float(n)), np.zeros((n, 1), int))
    seen = np.concatenate([part.x for part in data.split(shares, seed)])
    assert len(set(seen)) == len(seen)
    assert abs(len(seen) - sum(shares) * n) <= 1
    assert sorted(np.concatenate([part.x for part in data.split(0.5, seed)])) == list(range(n))


def test_continuous_and_discrete_factors_side_by_side():
    values = [[0.0, 0.25], [1.0, -3.5], [1.0, 0.25]]
    data = FactorData(np.zeros(3), values, names=["kind", "angle"], sizes=[2, None])
    assert data.sizes == (2, None)
    assert "angle: continuous" in repr(data)
    one, two = data.pairs(10, "angle", 0)
    assert set(one.factors[:, 1]) == {0.25}
    assert set(two.factors[:, 0]) == {0.0, 1.0}
    assert FactorData(np.zeros(3), values).sizes == (None, None)


def test_masks_choose():
    data = grid()
    part = data.subset(data.factors[:, 0] == 2)
    assert len(part) == 20
    assert set(part.factors[:, 0]) == {2}
    assert part.sizes == data.sizes
    assert len(data.subset([])) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FactorData(np.zeros(3), np.zeros((2, 1), int)), "2 observations"),
        (lambda: FactorData(np.zeros(3), np.zeros(3)), r"shape \[n, f\]"),
        (lambda: FactorData(np.zeros(1), [["a"]]), r"shape \[n, f\]"),
        (lambda: FactorData(np.zeros(1), [[np.nan]]), "NaN"),
        (lambda: FactorData(np.zeros(1), [[-2]]), "from -2 to -2"),
        (lambda: FactorData(np.zeros(1), [[3]], sizes=[3]), "from 0 to 2"),
        (lambda: FactorData(np.zeros(1), [[0.5]], sizes=[3]), "whole numbers"),
        (lambda: FactorData(np.zeros(1), [[0]], sizes=[0]), "positive whole number or None"),
        (lambda: FactorData(np.zeros(1), [[0]], sizes=[1, 1]), "sizes must be 1"),
        (lambda: FactorData(np.zeros(1), [[0, 0]], names=["a", "a"]), "2 different names"),
        (lambda: FactorData.grid({"a": 0}, abs), "positive whole number"),
        (lambda: FactorData.grid({}, abs), "at least one factor"),
        (lambda: grid().sample(61, 0), "61 of 60"),
        (lambda: grid().sample(0, 0), "1 to 60"),
        (lambda: grid().pairs(3, "weight", 0), "there are shape, colour, place"),
        (lambda: grid().pairs(3, [], 0), "a factor to share"),
        (lambda: grid().pairs(0, 0, 0), "n of at least 1"),
        (lambda: grid().pairs(3, 3, 0), "no factor 3"),
        (lambda: grid().split((0.5, 0.6), 0), "at most 1 in all"),
        (lambda: grid().split(1.0, 0), "positive"),
        (lambda: grid().split((0.001, 0.5), 0), "too few"),
        (lambda: grid().subset([60]), "60 observations"),
        (lambda: grid().subset([True]), "length"),
        (lambda: grid().subset([0.5]), "whole numbers or a mask"),
        (lambda: grid()[1:3], "see subset"),
        (lambda: grid().subset([]).x, "nothing to render"),
        (lambda: grid().loader(61, 0), "1 to 60"),
    ],
)
def test_a_wrong_argument_is_one_sentence(make, message):
    with pytest.raises(UnbraidError, match=message):
        make()


def test_indices_beyond_the_end_end_a_loop():
    with pytest.raises(IndexError):
        grid()[60]
    assert len(list(grid())) == 60


def test_numpy_is_enough():
    code = "import sys, unbraid.data.factors as f; f.FactorData([1.0], [[0]]).x; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_loader_gives_tensors_and_fit_loop_takes_the_data():
    import torch

    from unbraid.core.train import fit_loop

    data = FactorData.grid(SIZES, lambda row: row.astype(np.float32))
    batches = list(data.loader(16, seed=3))
    assert [tuple(x.shape) for x, _ in batches] == [(16, 3)] * 3
    x, factors = batches[0]
    assert (x.dtype, factors.dtype) == (torch.float32, torch.int64)
    assert torch.equal(x, factors.float())
    assert torch.equal(x, next(iter(data.loader(16, seed=3)))[0])
    model = torch.nn.Linear(3, 3)

    def loss(module, batch):
        return (module(batch[0]) - batch[1].float()).square().mean()

    history = fit_loop(model, loss, data, steps=300, lr=0.05, batch_size=20, progress=False)
    assert history.losses[-1] < history.losses[0] / 20
