"""Two processes on one machine (gloo, CPU) against one: the same losses, each process with its half of each batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TOLERANCE = 1e-6  # relative, of losses and weights after 12 steps in fp32: sums are added in another order


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What `train_parallel.py` found with one process and with two, and the folder of the latter."""
    script, results = str(Path(__file__).with_name("train_parallel.py")), []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # --multi_gpu means "several processes": without it, and with --cpu, accelerate ignores --num_processes
    options = ("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no")
    options += ("--dynamo_backend", "no", "--main_process_port", "0")
    for launcher in ((), ("-m", "accelerate.commands.launch", *options)):
        folder = tmp_path_factory.mktemp("runs")
        command = [sys.executable, *launcher, script, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        results.append(json.loads((folder / "out.json").read_text()))
    assert [r["processes"] for r in results] == [1, 2]
    return *results, folder


@pytest.mark.parametrize("kind", ["function", "loader", "list", "last"])
def test_two_processes_follow_one_with_the_whole_batch(runs, kind):
    one, two, _ = (runs[0][kind], runs[1][kind], None)
    assert one["sizes"] == [16] * 12
    assert two["sizes"] == [8] * 12, "each has its half"
    assert len(set(one["losses"])) > 6
    assert one["losses"] != two["losses"] or kind == "list", "they are not one process twice"
    assert np.allclose(one["losses"], two["losses"], rtol=TOLERANCE, atol=0)
    assert np.allclose(one["weights"], two["weights"], rtol=TOLERANCE, atol=TOLERANCE)


def test_checkpoints_of_two_processes(runs):
    _, two, folder = runs
    checkpoints = folder / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["step-00000008", "step-00000012"]
    assert sorted(p.name for p in checkpoints.glob("*12/rng*.json")) == ["rng-00000.json", "rng-00001.json"]
    assert two["again"]["calls"] == 0, "it had ended, and was not trained again"
    assert two["again"]["losses"] == two["function"]["losses"]
    assert two["again"]["weights"] == two["function"]["weights"]


def test_what_is_not_finite_in_one_process_stops_all(runs):
    for result in runs[:2]:
        assert "stopped at step 7: the loss is nan" in result["nan"]["error"]


def test_a_batch_that_cannot_be_shared_is_refused(runs):
    one, two, _ = runs
    assert len(one["odd"]["losses"]) == 12
    assert "a batch of 15 cannot be shared equally by 2 processes" in two["odd"]["error"]


def test_one_process_that_wants_to_stop_stops_all(runs):
    assert [len(result["stop"]["losses"]) for result in runs[:2]] == [5, 5]


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    """What accelerate does to a script that sets it up itself on a machine without GPUs."""
    from accelerate import PartialState

    from unbraid.core.errors import UnbraidError
    from unbraid.core.training.options import make_accelerator

    assert PartialState().num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnbraidError, match="2 processes were launched, but accelerate was set up for one"):
        make_accelerator(None, "no", None, None)
