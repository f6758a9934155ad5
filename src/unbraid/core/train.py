"""The one training loop. Several processes, devices and trackers are accelerate's business; exactness is ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.core.training import rng
from unbraid.core.training.batches import make_stream, mix
from unbraid.core.training.history import History
from unbraid.core.training.loop import Loop, Step
from unbraid.core.training.options import (
    OptimizerLike,
    Options,
    SchedulerLike,
    as_callbacks,
    make_accelerator,
    make_optimizer,
    make_scheduler,
    place,
)
from unbraid.core.training.progress import Bar, Interrupt
from unbraid.core.training.saving import Saver

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["History", "fit_loop"]

Loss = Callable[[Any, Any], Tensor | tuple[Tensor, Mapping[str, Any]]]


def fit_loop(
    module: nn.Module,
    loss: Loss,
    batches: Any,
    *,
    steps: int,
    optimizer: OptimizerLike = None,
    lr: float = 1e-3,
    scheduler: SchedulerLike = None,
    batch_size: int | None = 32,
    seed: int = 0,
    device: str | torch.device | None = None,
    mixed_precision: str = "no",
    grad_clip: float | None = None,
    accumulate: int = 1,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int | None = None,
    keep: int = 2,
    resume: bool = True,
    log_every: int | None = None,
    tracker: Any = None,
    callbacks: Any = (),
    progress: bool | None = None,
    accelerator: Accelerator | None = None,
) -> History:
    """Train ``module`` in place.

    The same seed gives the same weights, and so does a run that was killed and resumed: bit for bit on one machine with
    one number of threads (other numbers add in another order, as do some GPU kernels).
    For that, the n-th batch must be the same each time. A function of (number, generator) gives that; a dataset or
    DataLoader is read in an order drawn from the seed (only random transforms in worker processes begin anew when a run
    is resumed); any other iterable must not keep a state of its own. Random states around the call are neither used nor
    changed.

    With several processes (``accelerate launch --num_processes N``) each takes an equal share of every batch, so a run
    with N processes follows that of one, up to the order in which floating point numbers are added.

    Args:
        module: what is trained; only weights that ask for a gradient.
        loss: (module, batch) -> scalar, or (scalar, dict of further numbers to record). With several processes, its
            mean over equal shares of a batch must be that of the batch. It may call any method of the module.
        batches: a DataLoader; a dataset or list of items; an iterable of batches; or a function
            (number, generator) -> batch, which need not know about processes.
        steps: optimizer steps to take in all, those of a resumed run included.
        optimizer: a torch Optimizer, or a function parameters -> Optimizer; None: AdamW with ``lr``.
        lr: learning rate of the default optimizer.
        scheduler: an LRScheduler, or a function optimizer -> LRScheduler; stepped once an optimizer step.
        batch_size: of a dataset given as ``batches``, over all processes; None: its items are batches.
        seed: of the order of data, dropout and all else.
        device: where to train; None: where the module is, or where accelerate's processes are.
        mixed_precision: "no", "bf16" or "fp16"; weights stay as they are.
        grad_clip: greatest norm of the gradient.
        accumulate: batches per optimizer step.
        checkpoint_dir: folder for checkpoints; None: none are written. Nothing in them is pickled.
        checkpoint_every: steps between checkpoints; None: a tenth of the run. The last step is always kept.
        keep: how many checkpoints are kept.
        resume: go on from the newest checkpoint in ``checkpoint_dir``; False: refuse a folder that has one.
        log_every: steps between entries of the history and of trackers; None: about 500 entries in all.
        tracker: name or names of trackers that accelerate knows ("tensorboard", ...), or its GeneralTracker objects.
        callbacks: functions (step, module, numbers) called after each step; one that returns True ends the training.
        progress: whether to show a bar on stderr; None: if that is a terminal.
        accelerator: your own, if you need options of it that fit_loop has not.

    Returns:
        `History`.

    Raises:
        UnbraidError: an argument does not fit; the loss or its gradient is not finite (the message has the step; the
            weights are those of the step before, and no later checkpoint is written); the checkpoint is of another run.
        KeyboardInterrupt: on Ctrl-C, after the step has ended and a checkpoint is written.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> def batch(step, generator):
        ...     x = torch.randn(8, 2, generator=generator)
        ...     return x, x.sum(1, keepdim=True)
        >>> history = fit_loop(model, lambda m, b: (m(b[0]) - b[1]).square().mean(), batch, steps=200, lr=0.05)
        >>> history.losses[-1] < history.losses[0] / 100
        True
    """
    options = Options(steps, lr, seed, mixed_precision, grad_clip, accumulate, checkpoint_every, keep, log_every)
    if not isinstance(module, nn.Module) or not callable(loss):
        raise UnbraidError(
            f"fit_loop needs a torch module and a function; given are {type(module).__name__}, {loss!r}."
        )
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise UnbraidError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1, or None.")
    called = as_callbacks(callbacks)
    opt = make_optimizer(module, optimizer, lr)
    schedule = make_scheduler(scheduler, opt)
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    launched = make_accelerator(accelerator, mixed_precision, tracker, None if folder is None else str(folder))
    where = place(module, device, launched, given=accelerator is not None)
    rank, world = launched.process_index, launched.num_processes
    stream = make_stream(batches, batch_size=batch_size, seed=seed, rank=rank, world=world)
    settings = {"seed": seed, "accumulate": accumulate, "mixed_precision": mixed_precision, "grad_clip": grad_clip}
    settings |= {"optimizer": type(opt).__name__, "lr": lr if optimizer is None else None}
    with rng.untouched(where), _training(module), _tracking(launched, {**settings, "steps": steps}):
        rng.seed_all(mix(seed, 0, rank), where)
        step = launched.prepare_model(Step(module, loss, where, mixed_precision), device_placement=False)
        loop = Loop(step, module, opt, schedule, stream, options, launched, where, called)
        saver = None if folder is None else Saver(folder, keep, settings)
        if saver is not None:
            saver.start(loop, resume)
        with Bar(steps, loop.done, progress, launched.is_main_process) as bar, Interrupt() as interrupt:
            return loop.run(saver, bar, interrupt)


@contextmanager
def _training(module: nn.Module) -> Iterator[None]:
    """The module in training mode, and afterwards each part in the mode in which it was."""
    modes = {part: part.training for part in module.modules()}
    module.train()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def _tracking(accelerator: Accelerator, config: dict[str, Any]) -> Iterator[None]:
    """Trackers of our own accelerator are begun and ended here; those of the caller's are the caller's."""
    ours = bool(accelerator.log_with) and not accelerator.trackers
    if ours:
        accelerator.init_trackers("unbraid", config={key: "none" if v is None else v for key, v in config.items()})
    try:
        yield
    finally:
        if ours:
            for tracker in accelerator.trackers:
                tracker.finish()
