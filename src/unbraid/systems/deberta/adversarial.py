"""SiFT (arXiv 2006.03654): fine-tuning that asks for the same answers when normalised word vectors are pushed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, layer_norm, log_softmax, mse_loss, softmax
from transformers import TrainerCallback

from unbraid.core.errors import UnbraidError

Push = Literal["symmetric-kl", "kl", "mse"]
EPSILON = 1e-7  # of the normalisation without weights, as in the official code


def consistency(pushed: Tensor, clean: Tensor) -> Tensor:
    """The symmetric cross-entropy between two answers, each towards the other held fixed; a mean over rows.

    Args:
        pushed: logits [rows, classes]; one column is a number, compared by its square.
        clean: the same of the clean pass.

    Returns:
        A scalar; not 0 where both are equal, but their entropies.
    """
    if pushed.shape[-1] == 1:
        return mse_loss(pushed, clean.detach()) + mse_loss(clean, pushed.detach())
    pushed, clean = pushed.float(), clean.float()
    forth = -(softmax(clean, -1).detach() * log_softmax(pushed, -1)).sum(-1)
    back = -(softmax(pushed, -1).detach() * log_softmax(clean, -1)).sum(-1)
    return (forth + back).mean()


def _push_loss(pushed: Tensor, clean: Tensor, kind: Push) -> Tensor:
    """What the perturbation ascends; sums over rows, the clean side is fixed."""
    pushed, clean = pushed.float(), clean.detach().float()
    if kind == "mse" or pushed.shape[-1] == 1:
        return mse_loss(pushed, clean, reduction="sum")
    ahead, target = log_softmax(pushed, -1), log_softmax(clean, -1)
    found = kl_div(ahead, target, reduction="sum", log_target=True)
    return found if kind == "kl" else found + kl_div(target, ahead, reduction="sum", log_target=True)


@dataclass
class _Hook:
    """What stands before the norm of the embeddings while a model trains."""

    clean: Tensor | None = None
    push: Tensor | None = None

    def __call__(self, module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.push is not None and self.clean is not None:
            return (self.clean.detach() + self.push.to(self.clean.dtype), *given[1:])
        self.clean = layer_norm(given[0], given[0].shape[-1:], eps=EPSILON)
        return (self.clean, *given[1:])


@dataclass
class _Sums:
    total: float = 0.0
    count: int = 0


class SiFT(TrainerCallback):
    """Scale-invariant fine-tuning as a callback of transformers' `Trainer`, for any encoder with a norm of embeddings.

    While the model trains, its loss has ``weight * consistency`` added. It works inside the model's forward, so mixed
    precision, accumulation and any `Trainer` are as without it; the model is as it was when training ends.

    Args:
        weight: of the consistency; MNLI was trained with 5, v3-xsmall with 3. 0 is plain fine-tuning.
        start: standard deviation of the first, random perturbation, cut at twice that.
        step: length of an ascent step, relative to the largest entry of each token's gradient.
        steps: ascent steps; the paper takes one.
        push: what is ascended: "symmetric-kl", "kl" or "mse".
        where: names of the modules before which vectors are normalised and perturbed, as a pattern.
        seed: of the perturbations.

    Attributes:
        losses_: mean consistency between two log entries, newest last; also logged as ``consistency``.
    """

    def __init__(
        self, weight: float = 5.0, start: float = 1e-2, step: float = 1e-4, steps: int = 1,
        push: Push = "symmetric-kl", where: str = "*embeddings.LayerNorm", seed: int = 0,
    ) -> None:  # fmt: skip
        self.weight, self.start, self.step, self.steps = weight, start, step, steps
        self.push, self.where, self.seed = push, where, seed
        self.losses_: list[float] = []
        self._sums = _Sums()
        self._undo: Callable[[], None] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put it in place."""
        self.attach(kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take it out."""
        self.detach()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add the mean consistency since the last entry."""
        if self._sums.count and logs is not None and "loss" in logs:
            mean = self._sums.total / self._sums.count
            self.losses_.append(mean)
            logs["consistency"] = mean
            if state.log_history:
                state.log_history[-1]["consistency"] = mean
            self._sums = _Sums()

    def attach(self, model: nn.Module) -> None:
        """Without a `Trainer`: the model's loss has the term from now on, while it is in training mode.

        Raises:
            UnbraidError: no module has such a name, or a setting cannot be.
        """
        if self.push not in get_args(Push) or self.weight < 0 or self.steps < 1 or self.start < 0:
            raise UnbraidError(
                f"push {self.push!r}, weight {self.weight}, start {self.start} and steps {self.steps}: give one of "
                f"{', '.join(get_args(Push))}, a weight and start of 0 or more, and at least one step."
            )
        found = [module for name, module in model.named_modules() if fnmatch(name, self.where)]
        if len(found) != 1:
            raise UnbraidError(
                f"{len(found)} modules of {type(model).__name__} match {self.where!r}; give a pattern for `where` that "
                "fits the one norm after the word embeddings."
            )
        self.detach()
        hook, forward = _Hook(), model.forward
        generator: dict[torch.device, torch.Generator] = {}
        parameters = inspect.signature(forward).parameters

        def noise(like: Tensor) -> Tensor:
            if like.device not in generator:
                generator[like.device] = torch.Generator(like.device).manual_seed(self.seed)
            drawn = torch.randn(like.shape, generator=generator[like.device], device=like.device)
            return (drawn * self.start).clamp(-2 * self.start, 2 * self.start)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if not (model.training and torch.is_grad_enabled()):
                return forward(*args, **kwargs)
            with _hooked(found[0], hook):
                out = forward(*args, **kwargs)
                loss = _loss_of(out)
                if loss is None:
                    return out
                again = {k: v for k, v in kwargs.items() if k != "labels" and k in parameters}
                term = self._term(lambda: forward(*args, **again), out, hook, kwargs, noise)
            return _with_loss(out, loss + self.weight * term)

        wrapped.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
        own = vars(model).get("forward")
        model.forward = wrapped

        def undo() -> None:
            if own is None:
                vars(model).pop("forward", None)
            else:
                model.forward = own

        self._undo = undo

    def detach(self) -> None:
        """The model as it was."""
        if self._undo is not None:
            self._undo()
            self._undo = None

    def _term(
        self,
        forward: Callable[[], Any],
        out: Any,
        hook: _Hook,
        given: dict[str, Any],
        noise: Callable[[Tensor], Tensor],
    ) -> Tensor:
        clean, rows = _answers(out), _rows(given, out)
        assert hook.clean is not None
        push = noise(hook.clean)
        try:
            for _ in range(self.steps):
                hook.push = push.requires_grad_(True)
                pushed = _answers(forward())
                climbed = sum(_push_loss(rows(p), rows(c), self.push) for p, c in zip(pushed, clean, strict=True))
                (slope,) = torch.autograd.grad(climbed, hook.push)  # type: ignore[arg-type]
                if bool(torch.isfinite(slope.norm())):
                    push = push.detach() + self.step * slope / (1e-6 + slope.abs().amax(-1, keepdim=True))
                push = push.detach()
            hook.push = push
            pushed = _answers(forward())
        finally:
            hook.push = None
        terms = [consistency(rows(p), rows(c)) for p, c in zip(pushed, clean, strict=True)]
        term = torch.stack(terms).mean()
        self._sums.total += float(term.detach())
        self._sums.count += 1
        # where the loss is a sum over a step's tokens, the term takes the batch's share of them
        items, labels = given.get("num_items_in_batch"), given.get("labels")
        if items is not None and labels is not None:
            term = term * ((labels != -100).sum() / items)
        return term


@contextmanager
def _hooked(norm: nn.Module, hook: _Hook) -> Iterator[None]:
    handle = norm.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
        hook.clean = hook.push = None


def _loss_of(out: Any) -> Tensor | None:
    found = out.get("loss") if hasattr(out, "get") else None
    return found if isinstance(found, Tensor) else None


def _with_loss(out: Any, loss: Tensor) -> Any:
    out["loss"] = loss
    return out


def _answers(out: Any) -> list[Tensor]:
    found = [value for name, value in out.items() if name.endswith("logits") and isinstance(value, Tensor)]
    if not found:
        raise UnbraidError("the model returns no logits to compare; SiFT needs a model with a head.")
    return found


def _rows(given: dict[str, Any], out: Any) -> Callable[[Tensor], Tensor]:
    """Logits [B, ..., classes] -> [rows, classes], without padding where there is a row for each token."""
    mask = given.get("attention_mask")

    def rows(x: Tensor) -> Tensor:
        if x.dim() == 3 and mask is not None and mask.shape == x.shape[:2]:
            return x[mask.bool()]
        if mask is not None and x.dim() == 2 and x.shape == mask.shape and "start_logits" in out:
            return x.masked_fill(~mask.bool(), torch.finfo(x.dtype).min)  # places of an answer
        return x.flatten(0, -2)

    return rows
