"""Training: what it refuses, what it records, and what it leaves alone. Resuming is in `test_train_resume.py`."""

import math
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from train_script import Noisy, by_step
from train_small import fit, linear, square

from unbraid.core.errors import UnbraidError
from unbraid.core.train import History
from unbraid.core.training import rng
from unbraid.core.training.checkpoint import steps_in


def test_it_works_outside_the_main_thread():
    caught = []
    thread = threading.Thread(target=lambda: caught.append(len(fit())))
    thread.start()
    thread.join()
    assert caught == [4]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_with_the_step_and_keeps_the_last_good_checkpoint(tmp_path, what):
    module = linear()
    counted = []

    def loss(module, batch):
        counted.append({n: p.detach().clone() for n, p in module.named_parameters()})
        value = square(module, batch)
        if len(counted) == 8:
            # the derivative of the square root at 0 is infinite, while its value is not
            return value + math.nan if what == "loss" else value + (0 * module.weight.sum()).sqrt()
        return value

    with pytest.raises(
        UnbraidError, match=r"stopped at step 8: the loss is .*last checkpoint is that of step 6"
    ) as caught:
        fit(module, loss, steps=20, checkpoint_dir=tmp_path, checkpoint_every=3)
    assert ("nan" in str(caught.value)) or what == "gradient"
    assert steps_in(tmp_path) == [3, 6]
    for name, value in module.named_parameters():
        assert torch.equal(value, counted[7][name]), "the weights are those of the step before"
        assert value.isfinite().all()
    again = linear()
    history = fit(again, steps=20, checkpoint_dir=tmp_path, checkpoint_every=3)
    assert history.resumed_from == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.0}, "steps is 2.0"),
        ({"accumulate": 0}, "accumulate"),
        ({"keep": 0}, "keep"),
        ({"lr": -1}, "lr is -1"),
        ({"lr": math.nan}, "lr is nan"),
        ({"grad_clip": 0}, "grad_clip"),
        ({"seed": "a"}, "seed"),
        ({"mixed_precision": "fp8"}, "no, bf16, fp16"),
        ({"device": "warp:9"}, "cannot be used here"),
        ({"batch_size": 0}, "batch_size"),
        ({"batches": 3}, "accepted are"),
        ({"batches": {"a": 1}}, "accepted are"),
        ({"batches": []}, "is empty"),
        ({"batches": [1, 2], "batch_size": 3}, "fewer than one batch"),
        ({"batches": iter([(torch.ones(2, 4), torch.ones(2, 1))])}, "ran out after 1"),
        ({"batches": DataLoader(Noisy(), 64, drop_last=True)}, "has no batch"),
        ({"module": "model"}, "needs a torch module"),
        ({"module": nn.ReLU()}, "no weight of ReLU"),
        ({"optimizer": "adam"}, "optimizer is a str"),
        ({"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)}, "holds no weight"),
        ({"scheduler": 3}, "scheduler must be"),
        ({"callbacks": [3]}, "callback"),
        ({"tracker": "nothing"}, "accelerate cannot be set up"),
        ({"tracker": "wandb"}, "pip install wandb"),
        ({"loss": lambda m, b: m(b[0])}, r"shape \(16, 1\)"),
        ({"loss": lambda m, b: 0.5}, "type float"),
        ({"loss": lambda m, b: torch.tensor(0.5)}, "does not depend on any weight"),
        ({"loss": lambda m, b: (square(m, b), {"a": "text"})}, "only numbers can be recorded"),
    ],
)
def test_it_refuses_before_it_works(options, message):
    with pytest.raises(UnbraidError, match=message):
        fit(**options)


def test_history_records_what_was_asked():
    def loss(module, batch):
        return square(module, batch), {"even": 1} if len(batch[0]) else {}

    history = fit(loss=loss, steps=10, log_every=4, scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 5, 0.1))
    assert history.steps == [1, 4, 8, 10]
    assert history.lr == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    assert history.extra == {"even": [1.0] * 4}
    assert history.seconds == sorted(history.seconds)
    assert all(norm > 0 for norm in history.grad_norm)
    assert history.figure().series[0].x == (1, 4, 8, 10)
    frame = history.frame()
    assert list(frame.columns) == ["step", "loss", "lr", "grad_norm", "seconds", "even"]
    assert len(fit(steps=2000, log_every=None)) == 501


def test_a_number_that_comes_and_goes_has_gaps():
    history = History()
    history.add(1, 0.5, 0.1, 1.0, 0.0, {"a": 1.0})
    history.add(2, 0.4, 0.1, 1.0, 0.0, {"b": 2.0})
    assert history.extra == {"a": [1.0, None], "b": [None, 2.0]}


def test_accumulation_equals_the_larger_batch():
    data = [by_step(i, torch.Generator().manual_seed(i)) for i in range(8)]
    pairs = [tuple(torch.cat(parts) for parts in zip(data[i], data[i + 1], strict=True)) for i in range(0, 8, 2)]
    small, large = linear(), linear()
    sgd = {
        "optimizer": lambda p: torch.optim.SGD(p, 0.1),
        "batch_size": None,
        "log_every": 1,
    }  # feels the gradient's size
    a = fit(small, batches=iter(data), accumulate=2, **sgd)
    b = fit(large, batches=iter(pairs), **sgd)
    assert a.losses == pytest.approx(b.losses, rel=1e-6)
    assert torch.allclose(small.weight, large.weight, atol=1e-7)


def test_clipping_bounds_the_step():
    module = linear()
    before = module.weight.detach().clone()
    history = fit(module, steps=1, grad_clip=1e-3, optimizer=lambda p: torch.optim.SGD(p, 1.0))
    assert history.grad_norm[0] > 1e-2, "the norm is that before clipping"
    assert (module.weight - before).norm() <= 1e-3


def test_it_leaves_no_trace_around_it():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 1)).eval()
    module[1].train()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    fit(module, batches=Noisy(), batch_size=8)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected  # noqa: NPY002
    assert [part.training for part in module] == [False, True, False]
    assert all(p.grad is None for p in module.parameters())
    with pytest.raises(RuntimeError, match="mine"):
        fit(module, loss=lambda *_: (_ for _ in ()).throw(RuntimeError("mine")))
    assert [part.training for part in module] == [False, True, False]


def test_the_seed_decides_everything():
    def weights(seed):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 1))
        torch.manual_seed(random.randrange(10**6))  # what is around it does not matter
        fit(module, batches=Noisy(), batch_size=8, seed=seed)
        return module[2].weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_callbacks_see_each_step_and_can_stop(tmp_path):
    seen = []

    def stop(step, module, logs):
        seen.append((step, isinstance(module, nn.Linear), sorted(logs)))
        return step == 3

    history = fit(steps=50, callbacks=[stop], checkpoint_dir=tmp_path)
    assert seen == [(i, True, ["grad_norm", "loss", "lr"]) for i in (1, 2, 3)]
    assert history.stopped == "callback"
    assert steps_in(tmp_path) == [3]


def test_mixed_precision_keeps_the_weights_as_they_are():
    kinds = set()

    def loss(module, batch):
        made = module(batch[0])
        kinds.add(made.dtype)
        return (made - batch[1]).square().mean()

    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("no", torch.float32)):
        module = linear()
        history = fit(module, loss, mixed_precision=precision, lr=0.05, steps=30)
        assert kinds == {dtype}
        assert module.weight.dtype == torch.float32
        assert history.losses[-1] < history.losses[0]
        kinds.clear()


def test_schedulers_that_look_at_the_loss_and_plain_objects():
    module = linear()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1e9)
    history = fit(module, steps=6, optimizer=optimizer, scheduler=plateau, log_every=1)
    assert history.lr[-1] < 1e-2


def test_trackers_hear_what_is_recorded(tmp_path):
    from accelerate.tracking import GeneralTracker

    class Memory(GeneralTracker):
        name = "memory"
        requires_logging_directory = False

        def __init__(self):
            super().__init__()
            self.heard, self.config, self.ended = [], None, False

        @property
        def tracker(self):
            return self.heard

        def store_init_configuration(self, values):
            self.config = values

        def log(self, values, step, **more):
            self.heard.append((step, sorted(values)))

        def finish(self):
            self.ended = True

    memory = Memory()
    fit(tracker=memory, log_every=2, loss=lambda m, b: (square(m, b), {"more": 1.0}))
    assert memory.heard == [(step, ["grad_norm", "loss", "lr", "more"]) for step in (1, 2, 4)]
    assert memory.config["lr"] == 1e-3
    assert memory.ended


def test_a_bar_only_where_it_is_wanted(capsys):
    fit()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    fit(progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "training" in captured.err
    assert "4/4" in captured.err


def test_random_states_come_back():
    cpu = torch.device("cpu")
    state = rng.get_state(cpu)
    first = torch.rand(2).tolist(), random.random(), float(np.random.rand())  # noqa: NPY002
    rng.set_state(state, cpu)
    assert (torch.rand(2).tolist(), random.random(), float(np.random.rand())) == first  # noqa: NPY002
