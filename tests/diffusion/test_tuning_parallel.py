"""Tuning in two processes (gloo, CPU), and in bfloat16: the processes hold the same weights, losses are finite."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = (
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--dynamo_backend", "no", "--main_process_port", "0", "--mixed_precision", "no",
)  # fmt: skip


def tuned(folder, precision, launcher=()):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    script = str(Path(__file__).with_name("tuning_parallel.py"))
    command = [sys.executable, *launcher, script, str(folder), precision]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(one.read_text()) for one in sorted(folder.glob("*.json"))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process has in single precision."""
    (found,) = tuned(tmp_path_factory.mktemp("alone"), "no")
    return found


def test_two_processes_hold_the_same_weights(alone, tmp_path):
    one, two = tuned(tmp_path, "no", LAUNCH)
    assert len(one["prior"]) == 3, "each has its share of the prior pictures"
    assert one["weights"] == two["weights"]
    assert one["words"] == two["words"]
    assert one["weights"] != alone["weights"], "noise is drawn in each process"
    # three steps move little: what they end with is near what one process ends with
    assert np.isclose(one["weights"], alone["weights"], rtol=0.01)
    assert np.isfinite(one["losses"] + one["word losses"]).all()


def test_bfloat16_follows_single_precision(alone, tmp_path):
    (half,) = tuned(tmp_path, "bf16")
    for name in ("losses", "prior", "word losses"):
        np.testing.assert_allclose(half[name], alone[name], rtol=0.02)
    assert np.isclose(half["words"], alone["words"], rtol=0.01)
