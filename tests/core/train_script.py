"""What the tests of training train: a module with everything that a checkpoint could forget, on every kind of batches.

``python train_script.py FOLDER STEP`` trains once per kind, each in a process of its own that kills itself after STEP.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from unbraid.core.train import fit_loop

STEPS = 24


class Noisy(Dataset):
    """Items that use the global randomness of torch and numpy, as random transforms do."""

    def __len__(self):
        return 50

    def __getitem__(self, i):
        noise = torch.randn(4) + float(np.random.normal())  # noqa: NPY002
        return torch.full((4,), i / 50) + 0.01 * noise, torch.tensor([i / 50])


class Net(nn.Module):
    """Dropout, batch statistics, tied weights, a frozen part, and a moving average that training updates by hand."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 8))
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.inner[3].weight
        self.out = nn.Linear(8, 1)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.average = nn.Linear(8, 1).requires_grad_(False)

    def predict(self, x):
        return self.out(self.tied(self.frozen(self.inner(x)).relu()))


def by_step(step, generator):
    x = torch.randn(16, 4, generator=generator)
    return x, x.sum(1, keepdim=True)


def loss(net, batch):
    x, y = batch
    error = (net.predict(x) - y).square().mean()
    return error, {"average": net.average.weight.norm(), "constant": 1}


def follow(_step, net, _logs):
    """The moving average: changes weights that no gradient changes."""
    with torch.no_grad():
        net.average.weight.lerp_(net.out.weight, 0.1)


class Again:
    """An iterable that is no sequence."""

    def __iter__(self):
        return (by_step(i, torch.Generator().manual_seed(i)) for i in range(7))


BATCHES = {
    "function": lambda: by_step,
    "loader": lambda: DataLoader(Noisy(), batch_size=8, shuffle=True),
    "dataset": Noisy,
    "iterable": Again,
}


def fresh(kind="loader"):
    torch.manual_seed(1)
    net = Net()
    if kind == "no statistics":
        net.inner[1] = nn.Identity()
    return net


def run(folder, kind, *, net=None, loss=loss, callbacks=(), batches=None, **more):
    """Train `Net` with all that has a state; the history and the weights."""
    net = fresh() if net is None else net
    history = fit_loop(
        net,
        loss,
        BATCHES[kind]() if batches is None else batches,
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.02, amsgrad=True),
        scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.02, total_steps=STEPS),
        callbacks=[follow, *callbacks],
        checkpoint_dir=folder,
        **{"steps": STEPS, "batch_size": 8, "seed": 3, "grad_clip": 1.0, "accumulate": 2, "checkpoint_every": 5},
        **{"log_every": 1, "progress": False, **more},
    )
    return history, net.state_dict()


def main():
    folder, last = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)

    def die(step, _net, _logs):
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)

    for kind in BATCHES:
        child = os.fork()
        if not child:
            run(folder / kind, kind, callbacks=[die])
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    main()
