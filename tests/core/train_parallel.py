"""Training without dropout on each kind of batches, in as many processes as there are; `accelerate launch` runs it.

``train_parallel.py FOLDER`` writes what came out to FOLDER/out.json.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from unbraid.core.errors import UnbraidError
from unbraid.core.train import fit_loop

RANK, WORLD = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
LAST = RANK == WORLD - 1
KINDS = ("function", "again", "loader", "list", "nan", "odd", "stop", "last")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

    def encode(self, x):  # the loss calls this, not forward: what only knows forward would fail here
        return self.layers(x)


def target(x):
    return x, x.prod(1, keepdim=True)


def batches(kind):
    x, y = target(torch.randn(64, 4, generator=torch.Generator().manual_seed(0)))
    if kind in ("loader", "odd"):
        return DataLoader(TensorDataset(x, y), batch_size=16 if kind == "loader" else 15, shuffle=True)
    if kind == "list":
        return [{"x": x[i : i + 16], "y": y[i : i + 16], "names": ["n"] * 16} for i in range(0, 64, 16)]
    return lambda step, generator: target(torch.randn(16, 4, generator=generator))


def loss(net, batch):
    x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
    assert not isinstance(batch, dict) or len(batch["names"]) == len(x)
    return (net.encode(x) - y).square().mean(), {"size": len(x)}


def train(kind, folder):
    torch.manual_seed(0)
    net, calls = Net(), []

    def spoiled(net, batch):
        calls.append(0)
        value, extra = loss(net, batch)
        spoil = LAST and kind == "nan" and len(calls) == 7
        return value * float("nan") if spoil else value, extra

    def stop(step, *_):
        return LAST and kind == "stop" and step == 5

    saved = {"checkpoint_dir": folder / "checkpoints", "checkpoint_every": 4} if kind in ("function", "again") else {}
    options = {"accumulate": 2, "batch_size": None} if kind == "list" else {}
    try:
        history = fit_loop(
            *(net, spoiled, batches(kind)),
            **{"steps": 12, "lr": 0.01, "log_every": 1, "progress": False, "callbacks": stop, **saved, **options},
        )
    except UnbraidError as error:
        return {"error": str(error)}
    done = {"losses": history.losses, "sizes": history.extra["size"], "calls": len(calls)}
    return {**done, "weights": net.layers[0].weight.tolist()}


def main(folder):
    results = {kind: train(kind, folder) for kind in KINDS}
    if not RANK:
        (folder / "out.json").write_text(json.dumps({**results, "processes": PartialState().num_processes}))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
