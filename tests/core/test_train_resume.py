"""Checkpoints: that an interruption leaves no trace in the weights, and what is refused."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from train_script import BATCHES, STEPS, by_step, fresh, loss, run
from train_small import fit, linear

from unbraid.core.errors import UnbraidError
from unbraid.core.training.checkpoint import Frozen, steps_in


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Runs on every kind of batches that were killed by SIGKILL after step 13."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, str(Path(__file__).with_name("train_script.py")), str(folder), "13"]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=120)
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    """Sums over other numbers of threads differ in their last bits, and the killed process had one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(one, other):
    return [name for name, value in one.items() if not torch.equal(other[name], value)] == []


@pytest.mark.parametrize("kind", list(BATCHES))
def test_a_killed_and_resumed_run_ends_with_the_same_weights_bit_for_bit(tmp_path, killed, kind):
    history, weights = run(tmp_path, kind)
    assert steps_in(killed / kind) == [5, 10]
    torch.manual_seed(99)
    again, resumed = run(killed / kind, kind)
    assert again.resumed_from == 10
    assert same(weights, resumed)
    for name in ("steps", "losses", "lr", "grad_norm", "extra"):
        assert vars(history)[name] == vars(again)[name]
    assert history.steps == list(range(1, STEPS + 1))
    assert steps_in(killed / kind) == [20, 24], "only the newest are kept"
    start = fresh().state_dict()
    unmoved = {name for name in start if torch.equal(weights[name], start[name])}
    assert unmoved == {"frozen.weight", "frozen.bias", "average.bias"}, "there was something to lose"


@pytest.mark.parametrize("moment", ["signal", "callback", "loss", "batch"])
def test_ctrl_c_writes_a_checkpoint_and_goes_on_exactly(tmp_path, moment):
    """By a signal, which waits for the step to end, and as an exception from the caller's own functions."""
    # batch statistics cannot be taken back from a step that an exception broke off
    kind = "no statistics" if moment in ("loss", "batch") else "loader"
    _, weights = run(tmp_path / "whole", "function", net=fresh(kind))
    calls = []

    def spoiled_loss(net, batch):
        calls.append(0)
        if len(calls) == 14 and moment == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        if len(calls) == 14 and moment == "loss":
            raise KeyboardInterrupt
        return loss(net, batch)

    def spoiled_batches(step, generator):
        if step == 13 and moment == "batch":
            raise KeyboardInterrupt
        return by_step(step, generator)

    def spoiled_callback(step, *_):
        if step == 7 and moment == "callback":
            raise KeyboardInterrupt

    net, handler = fresh(kind), signal.getsignal(signal.SIGINT)
    spoiled = {"loss": spoiled_loss, "batches": spoiled_batches, "callbacks": [spoiled_callback]}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", "function", net=net, **spoiled)
    assert signal.getsignal(signal.SIGINT) is handler
    assert steps_in(tmp_path / "run")[-1] == (7 if moment in ("signal", "callback") else 6)
    assert all(p.grad is None for p in net.parameters())
    _, resumed = run(tmp_path / "run", "function", net=fresh(kind))
    assert same(weights, resumed)


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    def twice(module, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        fit(loss=twice, checkpoint_dir=tmp_path)


def test_nothing_is_pickled_and_half_a_checkpoint_never_counts(tmp_path):
    fit(checkpoint_dir=tmp_path, checkpoint_every=2)
    files = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {".json", ".safetensors"}
    (tmp_path / ".step-00000099.part").mkdir()
    (tmp_path / ".step-00000099.part" / "state.json").write_text("{")
    assert fit(checkpoint_dir=tmp_path, steps=5).resumed_from == 4
    assert not list(tmp_path.glob(".step-*"))


def test_a_failing_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    from unbraid.core.training import saving

    fit(checkpoint_dir=tmp_path, checkpoint_every=2)

    def full(*_args):
        raise OSError("no space left")

    monkeypatch.setattr(saving, "write_arrays", full)
    with pytest.raises(OSError, match="no space"):
        fit(checkpoint_dir=tmp_path, steps=8, checkpoint_every=2)
    assert steps_in(tmp_path) == [2, 4]
    monkeypatch.undo()
    assert fit(checkpoint_dir=tmp_path, steps=8, checkpoint_every=2).resumed_from == 4


def test_a_finished_run_is_not_taken_again(tmp_path):
    one = linear()
    fit(one, checkpoint_dir=tmp_path)
    two = linear(seed=9)
    history = fit(two, loss=lambda *_: pytest.fail("trained"), checkpoint_dir=tmp_path)
    assert torch.equal(one.weight, two.weight)
    assert (history.resumed_from, history.steps) == (4, [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "written with seed=0, now seed=1"),
        ({"lr": 0.5}, "lr=0.001, now lr=0.5"),
        ({"accumulate": 2}, "accumulate"),
        ({"optimizer": lambda p: torch.optim.SGD(p, 0.1)}, "optimizer='AdamW', now optimizer='SGD'"),
        ({"resume": False}, "holds a run up to step 4"),
        ({"steps": 3}, "beyond steps=3"),
        ({"module": nn.Linear(4, 1, bias=False)}, "another module: they differ in 'bias'"),
        ({"module": nn.Sequential(nn.Linear(4, 1))}, "another module"),
        ({"module": nn.Linear(3, 1)}, "another module"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, message):
    fit(checkpoint_dir=tmp_path)
    with pytest.raises(UnbraidError, match=message):
        fit(checkpoint_dir=tmp_path, **change)


def test_a_damaged_checkpoint_is_named(tmp_path):
    fit(checkpoint_dir=tmp_path, checkpoint_every=2)
    (tmp_path / "step-00000004" / "state.json").write_text("{")
    with pytest.raises(UnbraidError, match="step-00000004 cannot be read"):
        fit(checkpoint_dir=tmp_path)


def test_frozen_weights_are_not_saved_unless_they_change(tmp_path):
    from safetensors import safe_open

    module = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 1))

    def keys(step):
        with safe_open(tmp_path / f"step-{step:08d}" / "weights.safetensors", framework="np") as file:
            return set(file.keys())

    def touch(step, module, _logs):
        if step == 3:
            module[0].bias.data += 1  # without a trace in the tensor's version counter

    fit(module, checkpoint_dir=tmp_path, checkpoint_every=2, callbacks=touch)
    assert keys(2) == {"1.weight", "1.bias"}
    assert keys(4) == {"0.bias", "1.weight", "1.bias"}
    with pytest.raises(UnbraidError, match=r"frozen weight '0.weight' is not what it was"):
        fit(nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 1)), checkpoint_dir=tmp_path, steps=9)


def test_checksums_see_every_bit():
    module = nn.Linear(3, 2).requires_grad_(False).to(torch.bfloat16)
    frozen = Frozen(module)
    assert frozen.changed(dict(module.state_dict())) == {}
    module.weight.data.view(torch.int16)[0, 0] ^= 1
    assert set(frozen.changed(dict(module.state_dict()))) == {"weight"}


def test_a_state_that_cannot_be_saved_is_known_at_the_start(tmp_path):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return object()

        def set_extra_state(self, state):
            pass

    with pytest.raises(UnbraidError, match="cannot be saved"):
        fit(Odd(4, 1), loss=lambda *_: pytest.fail("trained"), checkpoint_dir=tmp_path)


def test_a_plateau_scheduler_with_infinity_in_its_state_is_resumed(tmp_path):
    def plateau(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)

    whole, parts = linear(), linear()
    fit(whole, steps=8, scheduler=plateau)
    fit(parts, steps=3, scheduler=plateau, checkpoint_dir=tmp_path)
    again = linear(4)
    fit(again, steps=8, scheduler=plateau, checkpoint_dir=tmp_path)
    assert torch.equal(whole.weight, again.weight)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.NAdam])
def test_other_optimizers_are_resumed_exactly(tmp_path, optimizer):
    def make(parameters):
        return optimizer(parameters, lr=0.01, **({"momentum": 0.9} if optimizer is torch.optim.SGD else {}))

    whole, parts, again = linear(), linear(), linear(7)
    fit(whole, steps=8, optimizer=make)
    fit(parts, steps=3, optimizer=make, checkpoint_dir=tmp_path)
    fit(again, steps=8, optimizer=make, checkpoint_dir=tmp_path)
    assert torch.equal(whole.weight, again.weight)
