"""Batches by number: any can be gone to, and processes share them."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from train_script import by_step

from unbraid.core.errors import UnbraidError
from unbraid.core.training.batches import make_stream, mix, share


class Counting(IterableDataset):
    def __iter__(self):
        yield from (torch.tensor([float(i)]) for i in range(10))


class Loader(DataLoader):
    """Not a plain DataLoader, so nothing is known of how it iterates."""


class Shuffled:
    """Draws its order from Python's own randomness, when it is iterated."""

    def __iter__(self):
        order = random.sample(range(10), 10)
        return (torch.tensor([float(i)]) for i in order)


def ten():
    return TensorDataset(torch.arange(10.0))


MAKERS = {
    "function": lambda: by_step,
    "loader": lambda: DataLoader(ten(), 3, shuffle=True),
    "own generator": lambda: DataLoader(ten(), 3, shuffle=True, generator=torch.Generator()),
    "no batching": lambda: DataLoader(ten(), batch_size=None, shuffle=True),
    "other loader": lambda: Loader(ten(), 3, shuffle=True),
    "list": lambda: list(torch.arange(10.0)),
    "array": lambda: np.arange(10.0),
    "iterable": Shuffled,
    "iterable dataset": Counting,
    "its loader": lambda: DataLoader(Counting(), 2),
}


def stream(make, **options):
    return make_stream(make(), **{"batch_size": 3, "seed": 5, "rank": 0, "world": 1, **options})


def flat(batch):
    while isinstance(batch, list | tuple):
        batch = batch[0]
    return batch.flatten().tolist()


@pytest.mark.parametrize("kind", list(MAKERS))
def test_any_batch_can_be_gone_to(kind):
    whole = stream(MAKERS[kind])
    seen, positions = [], []
    for _ in range(25):
        positions.append(whole.position)
        seen.append(flat(whole.take()))
        torch.rand(3)  # training uses randomness between batches
    for i in (0, 1, 4, 11, 24):
        other = stream(MAKERS[kind])
        torch.manual_seed(i)
        random.seed(i)
        other.seek(positions[i])
        assert flat(other.take()) == seen[i]
    if kind not in ("function", "iterable dataset", "its loader"):
        assert seen != sorted(seen), "it is shuffled"
        assert flat(stream(MAKERS[kind], seed=6).take()) != seen[0], "by the seed"


def test_an_epoch_holds_every_item_once_and_the_next_is_in_another_order():
    stream = make_stream(
        DataLoader(TensorDataset(torch.arange(12.0)), 4, shuffle=True), batch_size=None, seed=0, rank=0, world=1
    )
    epochs = [[x for _ in range(3) for x in stream.take()[0].tolist()] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [float(i) for i in range(12)]
    assert epochs[0] != epochs[1]


def test_processes_share_a_batch_without_gap_or_overlap():
    for make in (lambda: by_step, lambda: DataLoader(TensorDataset(torch.arange(12.0)), 4, shuffle=True)):
        whole = make_stream(make(), batch_size=4, seed=2, rank=0, world=1).take()[0]
        parts = [make_stream(make(), batch_size=4, seed=2, rank=r, world=2).take()[0] for r in (0, 1)]
        assert torch.equal(torch.cat(parts), whole)
    nested = {
        "x": torch.arange(4),
        "y": [np.arange(4), (torch.zeros(4, 2),)],
        "names": list("abcd"),
        "k": 3,
        "s": torch.tensor(1),
    }
    part = share(nested, 1, 2)
    assert part["x"].tolist() == [2, 3]
    assert part["y"][0].tolist() == [2, 3]
    assert part["y"][1][0].shape == (2, 2)
    assert (part["names"], part["k"], part["s"].item()) == (["c", "d"], 3, 1)
    for batch, message in (
        (torch.zeros(3), "cannot be shared equally"),
        ([torch.zeros(2), torch.zeros(4)], r"\[2, 4\]"),
    ):
        with pytest.raises(UnbraidError, match=message):
            share(batch, 0, 2)


def test_seeds_that_are_neighbours_are_not_alike():
    seeds = [mix(s, k) for s in (0, 1, -1) for k in range(50)]
    assert len(set(seeds)) == 150
    assert all(0 <= s < 2**63 for s in seeds)
