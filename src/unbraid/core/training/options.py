"""What `fit_loop` was asked for: checked before any work is done."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unbraid.core.errors import UnbraidError

if TYPE_CHECKING:
    from accelerate import Accelerator

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

OptimizerLike = Optimizer | Callable[[list[nn.Parameter]], Optimizer] | None
SchedulerLike = LRScheduler | Callable[[Optimizer], LRScheduler] | None


@dataclass(frozen=True)
class Options:
    """The numbers and words of a run; the constructor refuses what makes no sense."""

    steps: int
    lr: float
    seed: int
    mixed_precision: str
    grad_clip: float | None
    accumulate: int
    checkpoint_every: int | None
    keep: int
    log_every: int | None

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "checkpoint_every", "keep", "log_every"):
            value = vars(self)[name]
            if value is None and name in ("checkpoint_every", "log_every"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UnbraidError(f"{name} is {value!r}; it must be a whole number of at least 1.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise UnbraidError(f"seed is {self.seed!r}; it must be a whole number.")
        for name in ("lr", "grad_clip"):
            value = vars(self)[name]
            if value is None and name == "grad_clip":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < math.inf):
                raise UnbraidError(f"{name} is {value!r}; it must be a positive number.")
        if self.mixed_precision not in PRECISIONS:
            raise UnbraidError(
                f"mixed_precision is {self.mixed_precision!r}; it must be one of {', '.join(PRECISIONS)}."
            )

    @property
    def save_every(self) -> int:
        """Steps between checkpoints: a tenth of the run unless said."""
        return self.checkpoint_every or max(1, self.steps // 10)

    @property
    def record_every(self) -> int:
        """Steps between entries of the history: about 500 in all unless said."""
        return self.log_every or max(1, self.steps // 500)


def make_accelerator(given: Accelerator | None, precision: str, tracker: Any, project_dir: str | None) -> Accelerator:
    """The accelerator to use: the caller's, or one of our own that leaves the placing of modules to us.

    Raises:
        UnbraidError: the caller's does not fit, or a tracker is not known or not installed.
    """
    if given is None:
        made = _own_accelerator(tracker, project_dir)
    elif tracker is not None:
        raise UnbraidError("give trackers to your accelerator, Accelerator(log_with=...), not to fit_loop as well.")
    elif given.gradient_accumulation_steps != 1:
        raise UnbraidError(
            "say accumulate= in fit_loop and leave gradient_accumulation_steps of your accelerator at 1."
        )
    else:
        made = given
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and made.num_processes == 1:
        raise UnbraidError(
            f"{launched} processes were launched, but accelerate was set up for one before fit_loop was called; "
            "without GPUs, set it up with Accelerator(cpu=True) or PartialState(cpu=True), or leave it to fit_loop."
        )
    kind = made.distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise UnbraidError(
            f"fit_loop trains with data parallel processes; accelerate is set up for {kind}: reconfigure it."
        )
    if made.mixed_precision not in ("no", precision) and precision != "no":
        raise UnbraidError(
            f"mixed_precision is {precision!r}, but accelerate is set up for {made.mixed_precision!r}; say the same."
        )
    if made.mixed_precision not in PRECISIONS:
        raise UnbraidError(
            f"accelerate is set up for {made.mixed_precision!r}; fit_loop knows {', '.join(PRECISIONS)}."
        )
    return made


def _own_accelerator(tracker: Any, project_dir: str | None) -> Accelerator:
    from accelerate import Accelerator

    # Without GPUs accelerate must be told that the processes it launched belong together: otherwise each silently
    # thinks that it is alone, and all write the same files.
    processes_on_cpu = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    trackers = [] if tracker is None else list(tracker) if isinstance(tracker, list | tuple) else [tracker]
    try:
        made = Accelerator(
            cpu=processes_on_cpu, device_placement=False, log_with=trackers or None, project_dir=project_dir
        )
    except ValueError as error:
        hint = " (give checkpoint_dir, it is written there)" if "logging_dir" in str(error) else ""
        raise UnbraidError(f"accelerate cannot be set up: {error}{hint}") from None
    missing = [
        t for t in trackers if isinstance(t, str) and t != "all" and t not in [str(found) for found in made.log_with]
    ]
    if missing:
        raise UnbraidError(f"the tracker {missing[0]!r} is not installed: pip install {missing[0]}.")
    return made


def place(module: nn.Module, device: Any, accelerator: Accelerator, *, given: bool) -> torch.device:
    """Where to train; the module is moved there only if that was asked for, or if there are several processes.

    Raises:
        UnbraidError: there is no such device, or it is not what the processes were launched for.
    """
    home = next(module.parameters()).device
    theirs = given or accelerator.num_processes > 1
    if device is None:
        target = accelerator.device if theirs else home
    else:
        try:
            target = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UnbraidError(
                f"device {device!r} cannot be used here ({reason}); give 'cpu', 'cuda', 'cuda:1' or 'mps'."
            ) from None
        if theirs and target.type != accelerator.device.type:
            raise UnbraidError(f"device is {device!r}, but accelerate runs on {accelerator.device}; leave device out.")
        target = accelerator.device if theirs else target
    if target != home:
        module.to(target)
    return target


def make_optimizer(module: nn.Module, optimizer: OptimizerLike, lr: float) -> Optimizer:
    """AdamW over the weights that ask for a gradient, the caller's optimizer, or what the caller's function makes.

    Raises:
        UnbraidError: nothing can be trained, or it is no optimizer of these weights.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise UnbraidError(
            f"no weight of {type(module).__name__} asks for a gradient; set requires_grad where you train."
        )
    made: Any = torch.optim.AdamW(trained, lr=lr) if optimizer is None else optimizer
    if not isinstance(made, Optimizer) and callable(made):
        made = made(trained)
    if not isinstance(made, Optimizer):
        raise UnbraidError(
            f"optimizer is a {type(made).__name__}; give a torch Optimizer, or a function parameters -> Optimizer."
        )
    held = {id(p) for group in made.param_groups for p in group["params"]}
    if not held & {id(p) for p in trained}:
        raise UnbraidError("the optimizer holds no weight of the module; make it from module.parameters().")
    return made


def make_scheduler(scheduler: SchedulerLike, optimizer: Optimizer) -> LRScheduler | None:
    """The caller's scheduler, or what the caller's function makes.

    Raises:
        UnbraidError: it is no scheduler of this optimizer.
    """
    made: Any = scheduler
    if made is not None and not isinstance(made, LRScheduler) and callable(made):
        made = made(optimizer)
    if made is not None and (not isinstance(made, LRScheduler) or made.optimizer is not optimizer):
        raise UnbraidError(
            "scheduler must be a torch LRScheduler of this optimizer, or a function optimizer -> LRScheduler."
        )
    return made


def as_callbacks(callbacks: Any) -> Sequence[Callable[..., Any]]:
    """Callbacks as a list.

    Raises:
        UnbraidError: one of them cannot be called.
    """
    listed = [callbacks] if callable(callbacks) else list(callbacks)
    for one in listed:
        if not callable(one):
            raise UnbraidError(f"a callback must be a function (step, module, logs), not {one!r}.")
    return listed
