"""One training run, step by step."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NoReturn
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from unbraid.core.errors import UnbraidError
from unbraid.core.training import rng
from unbraid.core.training.history import History
from unbraid.core.training.options import PRECISIONS, Options
from unbraid.core.training.progress import Bar, Interrupt

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from unbraid.core.training.batches import Stream
    from unbraid.core.training.saving import Saver

log = logging.getLogger("unbraid.train")


class Step(nn.Module):
    """The loss as a module's forward pass, so that the loss may call any method of the module.

    A wrapper for several processes (DistributedDataParallel) acts on ``forward``. Wrapped around this, it sees the
    whole computation, and the loss is given the module itself rather than the wrapper, which has none of its methods.
    """

    def __init__(self, module: nn.Module, loss: Callable[..., Any], device: torch.device, precision: str) -> None:
        super().__init__()
        self.module = module
        self.__dict__["_loss"] = loss  # not as a part of this module, should the loss be a module too
        self._device, self._dtype, self._enabled = device.type, PRECISIONS[precision], precision != "no"

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """The loss, a scalar with gradient, and the further numbers."""
        with torch.autocast(self._device, self._dtype, enabled=True) if self._enabled else nullcontext():
            made = self.__dict__["_loss"](self.module, batch)
        value, extra = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
        if not isinstance(value, Tensor) or value.numel() != 1 or not isinstance(extra, Mapping):
            form = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
            raise UnbraidError(
                f"loss returned something of {form}; return a scalar tensor, or (scalar, dict of numbers)."
            )
        for name, number in extra.items():
            if not (isinstance(number, int | float) or (isinstance(number, Tensor) and number.numel() == 1)):
                raise UnbraidError(
                    f"loss returned {name!r} = {number!r} beside the loss; only numbers can be recorded."
                )
        if not value.requires_grad:
            raise UnbraidError("the loss does not depend on any weight that asks for a gradient.")
        value = value.reshape(())
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value, dict(extra)


class Loop:
    """The state of a run between two steps, and how to take the next one."""

    def __init__(
        self,
        step: nn.Module,
        module: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        stream: Stream,
        options: Options,
        accelerator: Accelerator,
        device: torch.device,
        callbacks: Sequence[Callable[..., Any]],
    ) -> None:
        self.step, self.module, self.optimizer, self.scheduler = step, module, optimizer, scheduler
        self.stream, self.options, self.accelerator, self.device = stream, options, accelerator, device
        self.callbacks = callbacks
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        half = "fp16" in (options.mixed_precision, accelerator.mixed_precision)
        self.scaler = accelerator.scaler or torch.amp.GradScaler(device.type, enabled=half)
        self.half = half
        self.history = History()
        self.done = 0
        self.earlier = 0.0
        self._began = time.monotonic()
        self._inside: str = ""

    @property
    def seconds(self) -> float:
        """Time in training, without that between an interruption and its resumption."""
        return self.earlier + time.monotonic() - self._began

    def run(self, saver: Saver | None, bar: Bar, interrupt: Interrupt) -> History:
        """Take all steps; see `fit_loop`."""
        self._began = time.monotonic()
        start = None
        try:
            while self.done < self.options.steps and not self.history.stopped:
                start = (rng.get_state(self.device), self.stream.position) if saver else None
                self._take(saver, bar, interrupt)
                if saver and self.done % self.options.save_every == 0:
                    saver.save(self)
        except KeyboardInterrupt:
            self._save_interrupted(saver, start)
            raise
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        if saver:
            saver.save(self)
        return self.history

    def _take(self, saver: Saver | None, bar: Bar, interrupt: Interrupt) -> None:
        """One step, from its batches to its record."""
        self._inside = "gradient"
        loss, extra = self._gradient()
        names = crc32("\n".join(sorted(extra)).encode())
        mean, asked, other = self._mean([loss, float(interrupt.asked), float(names)])
        if other != names:
            raise UnbraidError("the processes' losses returned different names of numbers; return the same in each.")
        norm = self._norm(mean, saver)
        lr = float(self.optimizer.param_groups[0]["lr"])
        self._inside = "update"
        self._update(mean)
        self.done += 1
        self._inside = ""
        bar.show(self.done, mean)
        self._record(mean, lr, norm, extra)
        if asked:
            self._inside = "agreed"
            raise KeyboardInterrupt

    def _gradient(self) -> tuple[float, dict[str, Any]]:
        """Add up the gradient over the batches of a step; the loss and the further numbers are their means."""
        from accelerate.utils import send_to_device

        count = self.options.accumulate
        total = 0.0
        sums: dict[str, Any] = {}
        for k in range(count):
            batch = send_to_device(self.stream.take(), self.device)
            quiet = nullcontext() if k == count - 1 else self.accelerator.no_sync(self.step)
            with quiet:  # gradients are exchanged between processes once a step only
                value, extra = self.step(batch)
                self.scaler.scale(value / count).backward()
            total += float(value.detach()) / count
            for name, item in extra.items():
                number = item.detach().reshape(()) if isinstance(item, Tensor) else item
                sums[str(name)] = sums.get(str(name), 0.0) + number / count
        return total, sums

    def _mean(self, values: list[float]) -> list[float]:
        """The means over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        reduced: Any = self.accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=self.device), "mean")
        return reduced.tolist()

    def _norm(self, loss: float, saver: Saver | None) -> float:
        """The gradient's norm, after which it is clipped; loss and gradient are known to be finite from here on."""
        if not math.isfinite(loss):
            self._fail(f"the loss is {loss}", saver)
        self.scaler.unscale_(self.optimizer)
        if self.options.grad_clip is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.options.grad_clip)
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        value = float(norm)
        if not math.isfinite(value) and not self.half:  # with fp16 such steps are left out, and the scale is lowered
            self._fail(f"the loss is {loss:.6g} but the norm of its gradient is {value}", saver)
        return value

    def _fail(self, what: str, saver: Saver | None) -> NoReturn:
        last = "" if saver is None or saver.last is None else f" The last checkpoint is that of step {saver.last}."
        raise UnbraidError(
            f"training stopped at step {self.done + 1}: {what}; the weights are those of step {self.done}.{last} "
            "Lower lr, set grad_clip, or look at this step's batch."
        )

    def _update(self, loss: float) -> None:
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        skipped = self.half and self.scaler.get_scale() < before
        if self.scheduler is not None and not skipped:
            if isinstance(self.scheduler, ReduceLROnPlateau):
                self.scheduler.step(loss)
            else:
                self.scheduler.step()

    def _record(self, loss: float, lr: float, norm: float, extra: Mapping[str, Any]) -> None:
        due = self.done % self.options.record_every == 0 or self.done in (1, self.options.steps)
        if not due and not self.callbacks:
            return
        names = sorted(extra)
        means = self._mean([float(extra[name]) for name in names]) if names else []
        numbers = dict(zip(names, means, strict=True))
        if due:
            self.history.add(self.done, loss, lr, norm, self.seconds, numbers)
            self.accelerator.log({"loss": loss, "lr": lr, "grad_norm": norm, **numbers}, step=self.done)
        if self.callbacks:
            logs = {"loss": loss, "lr": lr, "grad_norm": norm, **numbers}
            wishes = [bool(callback(self.done, self.module, logs)) for callback in self.callbacks]
            if self._mean([float(any(wishes))])[0]:  # one process that wants to stop stops all
                self.history.stopped = "callback"

    def _save_interrupted(self, saver: Saver | None, start: tuple[rng.State, tuple[int, int]] | None) -> None:
        """Keep what was done until Ctrl-C, if the weights are those of a whole step."""
        if saver is None or start is None:
            return
        if self._inside == "update":
            log.warning("interrupted while weights were being changed: no checkpoint of this step")
        elif self._inside == "agreed" or self.accelerator.num_processes == 1:
            if self._inside == "gradient":  # this step is taken again: from the same batch, with the same randomness
                rng.set_state(start[0], self.device)
                self.stream.seek(start[1])
            saver.save(self)
