"""Batches by number: whatever gives them, the n-th of a run is the same after a resumption as without one.

A batch is the global one: with several processes each takes its own, equal share of it, so that results do not depend
on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from unbraid.core.errors import UnbraidError
from unbraid.core.training import rng

Position = tuple[int, int]
_CPU = torch.device("cpu")
ByStep = Callable[[int, torch.Generator], Any]


def mix(*numbers: int) -> int:
    """A seed of 63 bits from several numbers, such that neighbours have nothing in common."""
    state = np.random.SeedSequence([n % 2**64 for n in numbers]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


class Stream(Protocol):
    """Batches one after the other, from any position."""

    @property
    def position(self) -> Position:
        """(epoch, batches taken in it); what `seek` takes."""

    def seek(self, position: Position) -> None:
        """Go to where `position` once was."""

    def take(self) -> Any:
        """The next batch, this process's share of it."""


def make_stream(batches: Any, *, batch_size: int | None, seed: int, rank: int, world: int) -> Stream:
    """A stream from a loader, a dataset, an iterable or a function of the step; see `fit_loop`.

    Raises:
        UnbraidError: it is none of these, is prepared by accelerate already, or is empty.
    """
    if any(base.__module__.startswith("accelerate.") for base in type(batches).__mro__):
        raise UnbraidError(
            "fit_loop shares batches out itself: give the plain DataLoader, not one prepared by accelerate."
        )
    sized = hasattr(batches, "__getitem__") and hasattr(batches, "__len__") and not isinstance(batches, Mapping)
    if type(batches) is DataLoader and not isinstance(batches.dataset, IterableDataset):
        return _Indexed(batches, seed, rank, world)
    if sized and not isinstance(batches, DataLoader):
        return _Indexed(_loader(batches, batch_size), seed, rank, world)
    if isinstance(batches, IterableDataset):
        return _Iterated(DataLoader(batches, batch_size=batch_size), seed, rank, world)
    if isinstance(batches, Iterable) and not isinstance(batches, Mapping | str | bytes):
        return _Iterated(batches, seed, rank, world)
    if callable(batches):
        return _Computed(batches, seed, rank, world)
    raise UnbraidError(
        f"batches is a {type(batches).__name__}; accepted are a DataLoader, a dataset, an iterable of batches, or a "
        "function (step, generator) -> batch."
    )


def _loader(dataset: Any, batch_size: int | None) -> DataLoader:
    if not len(dataset):
        raise UnbraidError("the dataset given as batches is empty.")
    if batch_size is not None and len(dataset) < batch_size:
        raise UnbraidError(
            f"the dataset has {len(dataset)} items, fewer than one batch of {batch_size}: lower batch_size."
        )
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=batch_size is not None)


class _Computed:
    """A function of the number of the batch and of a generator that depends on nothing but it and the seed."""

    def __init__(self, function: ByStep, seed: int, rank: int, world: int) -> None:
        self._function, self._seed, self._rank, self._world = function, seed, rank, world
        self._next = 0

    @property
    def position(self) -> Position:
        return 0, self._next

    def seek(self, position: Position) -> None:
        self._next = position[1]

    def take(self) -> Any:
        number, self._next = self._next, self._next + 1
        generator = torch.Generator().manual_seed(mix(self._seed, 1, number))
        return share(self._function(number, generator), self._rank, self._world)


class _Indexed:
    """A loader over a dataset with indices. Its order is drawn once an epoch, apart from the training's randomness.

    So any batch can be gone to without loading those before it, and each process loads its own share only.
    """

    def __init__(self, loader: DataLoader, seed: int, rank: int, world: int) -> None:
        self._loader, self._seed, self._rank, self._world = loader, seed, rank, world
        self._epoch, self._taken = 0, 0
        self._items: Iterator[Any] | None = None

    @property
    def position(self) -> Position:
        return self._epoch, self._taken

    def seek(self, position: Position) -> None:
        self._epoch, self._taken = position
        self._items = iter(self._rest())

    def take(self) -> Any:
        if self._items is None:
            self.seek((self._epoch, self._taken))
        try:
            batch = next(self._items)  # type: ignore[arg-type]
        except StopIteration:
            if not self._taken:
                raise UnbraidError(
                    "the DataLoader given as batches has no batch; is drop_last larger than the data?"
                ) from None
            self.seek((self._epoch + 1, 0))
            return self.take()
        self._taken += 1
        return batch

    def _rest(self) -> DataLoader:
        """A loader of what is left of the epoch."""
        loader = self._loader
        options: dict[str, Any] = {
            "num_workers": loader.num_workers,
            "collate_fn": loader.collate_fn,
            "pin_memory": loader.pin_memory,
            "timeout": loader.timeout,
            "worker_init_fn": loader.worker_init_fn,
            "generator": torch.Generator().manual_seed(mix(self._seed, 2, self._epoch)),
        }
        if loader.num_workers:
            options |= {
                "prefetch_factor": loader.prefetch_factor,
                "multiprocessing_context": loader.multiprocessing_context,
            }
        order = self._order()[self._taken :]
        if loader.batch_sampler is None:  # batching is off: an item of the dataset is a batch
            mine = DataLoader(loader.dataset, batch_size=None, sampler=order, **options)
            return mine if self._world == 1 else _Shared(mine, self._rank, self._world)  # type: ignore[return-value]
        parts: list[Any] = [_part(batch, self._rank, self._world) for batch in order]
        return DataLoader(loader.dataset, batch_sampler=parts, **options)

    def _order(self) -> list[Any]:
        sampler = self._loader.sampler if self._loader.batch_sampler is None else self._loader.batch_sampler
        for part in (sampler, self._loader.sampler):
            set_epoch = getattr(part, "set_epoch", None)
            if callable(set_epoch):
                set_epoch(self._epoch)
        own = (self._loader.generator, getattr(self._loader.sampler, "generator", None))
        with _seeded(mix(self._seed, 3, self._epoch)):
            for generator in own:
                if isinstance(generator, torch.Generator):
                    generator.manual_seed(mix(self._seed, 3, self._epoch))
            return list(sampler)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A block with randomness of its own, so that an epoch's order neither changes nor depends on the training's."""
    with rng.untouched(_CPU):
        rng.seed_all(seed, _CPU)
        yield


class _Shared:
    """Batches of a loader, cut to one process's share."""

    def __init__(self, batches: Iterable[Any], rank: int, world: int) -> None:
        self._batches, self._rank, self._world = batches, rank, world

    def __iter__(self) -> Iterator[Any]:
        return (share(batch, self._rank, self._world) for batch in self._batches)


class _Iterated:
    """Any iterable of batches; begun again when it ends.

    An epoch is begun, up to its first batch, with randomness of its own, as that is when orders are drawn. So the n-th
    batch is the same after a resumption, unless the iterable keeps a state of its own between epochs.
    """

    def __init__(self, batches: Iterable[Any], seed: int, rank: int, world: int) -> None:
        self._batches, self._seed, self._rank, self._world = batches, seed, rank, world
        self._epoch, self._taken = 0, 0
        self._items: Iterator[Any] | None = None

    @property
    def position(self) -> Position:
        return self._epoch, self._taken

    def seek(self, position: Position) -> None:
        self._epoch, self._taken = position[0], 0
        set_epoch = getattr(self._batches, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(self._epoch)
        with _seeded(mix(self._seed, 4, self._epoch)):
            items = iter(self._batches)
            first = list(islice(items, 1))
        self._items = chain(first, items)
        self._taken = sum(1 for _ in islice(self._items, position[1]))

    def take(self) -> Any:
        if self._items is None:
            self.seek((self._epoch, self._taken))
        try:
            batch = next(self._items)  # type: ignore[arg-type]
        except StopIteration:
            if not self._taken or isinstance(self._batches, Iterator):
                raise UnbraidError(
                    f"batches ran out after {self._taken} in epoch {self._epoch}; give something that can be iterated "
                    "again (a list, a loader, a dataset), or a function (step, generator) -> batch."
                ) from None
            self.seek((self._epoch + 1, 0))
            return self.take()
        self._taken += 1
        return share(batch, self._rank, self._world)


def _part(items: Sequence[Any], rank: int, world: int) -> Sequence[Any]:
    if len(items) % world:
        raise UnbraidError(
            f"a batch of {len(items)} cannot be shared equally by {world} processes; give a batch size that {world} "
            "divides, and drop_last=True."
        )
    each = len(items) // world
    return items[rank * each : (rank + 1) * each]


def share(batch: Any, rank: int, world: int) -> Any:
    """One process's equal part of a batch: tensors and arrays along their first axis, lists of that length likewise.

    Raises:
        UnbraidError: the batch holds no tensor or array, cannot be divided, or holds tensors of different lengths.
    """
    if world == 1:
        return batch
    lengths = {len(leaf) for leaf in _leaves(batch) if leaf.ndim}
    if len(lengths) != 1:
        raise UnbraidError(
            f"{world} processes can share a batch whose tensors have first axes of one length; here they have "
            f"{sorted(lengths)}."
        )
    return _cut(batch, lengths.pop(), rank, world)


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, torch.Tensor | np.ndarray):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _leaves(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _leaves(value)


def _cut(batch: Any, length: int, rank: int, world: int) -> Any:
    if isinstance(batch, torch.Tensor | np.ndarray):
        return _part(batch, rank, world) if batch.ndim else batch  # type: ignore[arg-type]
    if isinstance(batch, Mapping):
        return {key: _cut(value, length, rank, world) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        if len(batch) == length and not any(True for _ in _leaves(batch)):
            return _part(batch, rank, world)
        cut = [_cut(value, length, rank, world) for value in batch]
        return type(batch)(*cut) if hasattr(batch, "_fields") else type(batch)(cut)
    return batch
