"""Random states: set, keep and put back, so that training neither depends on nor disturbs what runs around it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def get_state(device: torch.device) -> State:
    """The states of torch (CPU, and ``device`` if it is another), numpy and Python, as plain data and tensors."""
    state: State = {"torch": torch.default_generator.get_state(), "python": random.getstate()}
    state["numpy"] = np.random.get_state(legacy=False)  # noqa: NPY002 - the global generator is what is being kept
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    elif device.type == "xpu":
        state["xpu"] = torch.xpu.get_rng_state(device)
    return state


def set_state(state: State, device: torch.device) -> None:
    """Put back what `get_state` gave; a device's state is left out where there is no such device now."""
    torch.default_generator.set_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    elif "mps" in state and device.type == "mps":
        torch.mps.set_rng_state(state["mps"])
    elif "xpu" in state and device.type == "xpu":
        torch.xpu.set_rng_state(state["xpu"], device)


def seed_all(seed: int, device: torch.device) -> None:
    """Seed torch (CPU, and ``device``), numpy and Python."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    if device.type == "cuda":
        torch.cuda.default_generators[
            torch.cuda.current_device() if device.index is None else device.index
        ].manual_seed(seed)
    elif device.type in ("mps", "xpu"):
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """A block after which the random states are what they were before it."""
    before = get_state(device)
    try:
        yield
    finally:
        set_state(before, device)
