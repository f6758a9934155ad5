"""Training a VAE on anything that holds observations, through the one training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.core.train import History, fit_loop
from unbraid.data.observations import Observations
from unbraid.losses.objectives import Objective, ObjectiveName, Trained, make_objective


class Schedule(NamedTuple):
    """Steps, batch size and learning rate of a training."""

    steps: int
    batch: int
    lr: float


# "paper" is disentanglement_lib's (arXiv 1811.12359); "small" takes about a minute of one core at 16 x 16 with an MLP
SCHEDULES: dict[str, Schedule] = {
    "tiny": Schedule(60, 64, 1e-3),
    "small": Schedule(5_000, 128, 1e-3),
    "medium": Schedule(30_000, 64, 5e-4),
    "paper": Schedule(300_000, 64, 1e-4),
}
Callback = Callable[[int, Any, Mapping[str, float]], Any]


def draws(source: Observations, batch: int) -> Callable[[int, torch.Generator], tuple[int, Tensor]]:
    """A function (number, generator) -> (number, x [batch, ...]) for `fit_loop`: observations drawn evenly.

    Args:
        source: the observations.
        batch: how many at a time.
    """

    def draw(number: int, generator: torch.Generator) -> tuple[int, Tensor]:
        at = torch.randint(len(source), (batch,), generator=generator)
        return number, torch.from_numpy(source.take(at.numpy()))

    return draw


def train_vae(
    vae: nn.Module,
    data: Any,
    objective: ObjectiveName | Objective = "beta",
    strength: float | None = None,
    *,
    size: Literal["tiny", "small", "medium", "paper"] = "small",
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    callbacks: Callback | Iterable[Callback] = (),
    keep: str | Path | None = None,
    progress: bool | None = None,
    **loop: Any,
) -> History:
    """Train a VAE in place; afterwards it is in evaluation mode.

    Args:
        vae: a `GaussianVAE`, for example of `unbraid.layers.vae.vae_for(data)`.
        data: `FactorData`, an array or a tensor of observations [n, ...].
        objective: a name (see `unbraid.losses.objectives.make_objective`), or an `Objective`.
        strength: the named objective's own hyper-parameter.
        size: what ``steps``, ``batch`` and ``lr`` are unless said: "tiny" (seconds) to "paper".
        steps: optimizer steps.
        batch: observations per step.
        lr: learning rate of Adam.
        seed: of the order of data and of all draws (not of the initial weights: those are the builder's).
        options: further arguments of the named objective.
        callbacks: functions (step, vae, numbers) called after each step; one that returns True ends the training.
        keep: folder for checkpoints, from which an interrupted training goes on; None: none.
        progress: whether to show a bar on stderr; None: if that is a terminal.
        loop: further arguments of `unbraid.core.train.fit_loop`.

    Returns:
        The history, with "reconstruction" and "kl" in nats and the objective's own numbers.

    Raises:
        UnbraidError: the data do not fit the model, an unknown size or objective, or whatever `fit_loop` refuses.

    Example:
        >>> from unbraid.layers.vae import image_vae
        >>> x = torch.rand(100, 1, 16, 16)
        >>> vae = image_vae(1, 16, latents=4, width=16, seed=0)
        >>> train_vae(vae, x, "beta", 4, size="tiny", steps=3, progress=False).steps
        [1, 2, 3]
    """
    if size not in SCHEDULES:
        raise UnbraidError(f"size is {size!r}; it must be one of {', '.join(SCHEDULES)}.")
    plan = SCHEDULES[size]
    steps = plan.steps if steps is None else steps
    batch = plan.batch if batch is None else batch
    lr = plan.lr if lr is None else lr
    for name, value in (("steps", steps), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UnbraidError(f"{name} is {value!r}; it must be a whole number of at least 1.")
    model: Any = vae
    if not all(hasattr(vae, name) for name in ("encode", "logits", "latents", "likelihood", "shape")):
        raise UnbraidError(f"a {type(vae).__name__} is no VAE; build one with unbraid.layers.vae.vae_for(data).")
    source = Observations(data, model.shape, unit=model.likelihood == "bernoulli")
    if isinstance(objective, str):
        with torch.random.fork_rng(devices=[]):  # a discriminator begins as the seed says
            torch.default_generator.manual_seed(seed)
            objective = make_objective(
                objective, strength, latents=model.latents, data_size=len(source), steps=max(1, steps // 3),
                options=options,
            )  # fmt: skip
    elif strength is not None or options:
        raise UnbraidError("strength and options belong to an objective given by name; build your Objective with them.")
    trained = Trained(vae, objective.to(next(vae.parameters()).device))
    listed = [callbacks] if callable(callbacks) else list(callbacks)

    def wrapped(callback: Callback) -> Callable[..., Any]:
        return lambda step, module, numbers: callback(step, module.vae, numbers)

    history = fit_loop(
        trained, lambda module, made: module.objective(module.vae, made[1], made[0]), draws(source, batch), steps=steps,
        optimizer=trained.optimizer(lr), seed=seed, checkpoint_dir=keep, progress=progress,
        callbacks=[wrapped(c) for c in listed], **loop,
    )  # fmt: skip
    vae.eval()
    return history
