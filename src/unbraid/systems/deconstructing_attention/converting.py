"""A trained model's attention turned into a variant: each layer learns to give what its own attention gave.

Variants that take over the weights of trained attention do not give its outputs; nor need they be trained from the
start. Every layer sees what it would see in the model as it was, so layers learn apart from one another and at once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.core.train import fit_loop
from unbraid.systems.deconstructing_attention.modules import Mixer, NoMixing
from unbraid.systems.deconstructing_attention.placement import place
from unbraid.systems.deconstructing_attention.pretraining import loss as language_loss
from unbraid.systems.deconstructing_attention.swapping import checked, deconstruct, looking, restore

if TYPE_CHECKING:
    from unbraid.core.pieces import Pieces

HELD_OUT = 0.1
WARM = 0.1


@dataclass(frozen=True)
class Conversion:
    """What came of `convert`, on texts that were held out.

    Attributes:
        layers: for each layer with a variant, its number from 1, the variant, and the squared error of its output over
            the mean square of what attention gave, before training and after.
        losses: nats per token of the model as it was, with the variants put in, and after training.
    """

    layers: list[dict[str, Any]]
    losses: dict[str, float]


def convert(
    model: nn.Module, variants: Sequence[str], texts: Tensor, *, steps: int = 300, batch: int = 8, lr: float = 1e-3,
    seed: int = 0, tokens: Tensor | None = None, longest: int | None = None, joint: bool = True,
    precision: str = "no", device: str | None = None, checkpoint_dir: str | Path | None = None,
    progress: bool | None = None,
) -> Conversion:  # fmt: skip
    """Deconstruct a trained model in place, and train each variant to give what the attention before it gave.

    Only the variants' weights are trained, copies of attention's (of "mlp", new ones); `restore` gives the model back
    as it was, and `save_pretrained` with `load` keeps the converted one.

    Args:
        model: see `deconstruct`.
        variants: see `deconstruct`.
        texts: [count, N] tokens, at least ten rows without padding; the last tenth is held out.
        steps: of the optimizer.
        batch: texts a step.
        lr: greatest learning rate of AdamW: a tenth of the steps up, then a line to zero.
        seed: of batches, of the frozen text of "random" and of the weights of "mlp".
        tokens: see `deconstruct`.
        longest: see `deconstruct`.
        joint: see `deconstruct`.
        precision: of training, as `fit_loop`'s `mixed_precision`.
        device: where to train; None: where the model is, or where accelerate says.
        checkpoint_dir: folder for checkpoints that an interrupted training goes on from.
        progress: show a bar on stderr.

    Returns:
        Errors of the layers and losses of the model on held-out texts.

    Raises:
        UnbraidError: the model, the variants or the texts do not fit; the model is then as it was.

    Reference:
        arXiv 2510.11602 trains its variants from the start; this is a use of them of our own.
    """
    train, held = parted(texts, model)
    before = loss_of(model, held, batch)
    deconstruct(model, variants, seed=seed, tokens=tokens, longest=longest, joint=joint)
    try:
        students = students_of(model, own=True)
        put_in, errors = loss_of(model, held, batch), _errors(model, students, held, batch)

        def drawn(number: int, generator: torch.Generator) -> Tensor:
            return train[torch.randint(len(train), (batch,), generator=generator)]

        def loss(module: Any, ids: Tensor) -> Tensor:
            with _beside(students) as found:
                module.model(input_ids=ids.to(module.model.embed_tokens.weight.device), use_cache=False)
            return torch.stack(list(found.values())).sum()

        with _only(model, students):
            fit_loop(
                model, loss, drawn, steps=steps, lr=lr, seed=seed, grad_clip=1.0, mixed_precision=precision,
                device=device, checkpoint_dir=checkpoint_dir, progress=progress,
                scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: _rate(s, steps)),
            )  # fmt: skip
        after = _errors(model, students, held, batch)
        losses = {"as it was": before, "variants put in": put_in, "converted": loss_of(model, held, batch)}
    except BaseException:
        restore(model)
        raise
    rows = [
        {"layer": number + 1, "variant": variants[number], "before": errors[number], "after": after[number]}
        for number in students
    ]
    return Conversion(rows, losses)


def _rate(step: int, steps: int) -> float:
    warm = max(1, round(steps * WARM))
    return (step + 1) / warm if step < warm else max(0.0, (steps - step) / max(1, steps - warm))


def parted(texts: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Texts to train on and texts held out.

    Args:
        texts: [count, N] tokens.
        model: whose tokens they must be.

    Raises:
        UnbraidError: they are not, or too few.
    """
    config: Any = vars(model).get("config")
    vocabulary = 0 if config is None else getattr(config, "vocab_size", 0)
    if not isinstance(texts, Tensor) or texts.ndim != 2 or texts.is_floating_point() or texts.shape[1] < 2:
        said = f"{list(texts.shape)} of {texts.dtype}" if isinstance(texts, Tensor) else type(texts).__name__
        raise UnbraidError(f"texts is {said}; give a tensor of tokens, [texts, at least 2].")
    if len(texts) < 10:
        raise UnbraidError(f"there are {len(texts)} texts; give ten at least, a tenth of which is held out.")
    if vocabulary and (int(texts.min()) < 0 or int(texts.max()) >= vocabulary):
        raise UnbraidError(f"texts have tokens {int(texts.min())} to {int(texts.max())}; the model has {vocabulary}.")
    cut = len(texts) - round(len(texts) * HELD_OUT)
    return texts[:cut], texts[cut:]


def students_of(model: nn.Module, own: bool = False) -> dict[int, nn.Module]:
    """The variants by number of their layer, from 0.

    Args:
        model: deconstructed.
        own: give them weights of their own, copies of those they share with attention.

    Raises:
        UnbraidError: all layers are standard.
    """
    found: dict[int, nn.Module] = {}
    layers: Any = model.get_submodule("model.layers")
    for number, layer in enumerate(layers):
        module = layer.self_attn
        if own and isinstance(module, Mixer):
            for name, child in list(module.named_children()):
                module.add_module(name, copy.deepcopy(child))
        if isinstance(module, Mixer | NoMixing):
            found[number] = module
    if not found:
        raise UnbraidError("all layers are standard; name a variant for at least one.")
    return found


@contextmanager
def _only(model: nn.Module, students: dict[int, nn.Module]) -> Iterator[None]:
    """Gradients for the variants alone; afterwards for what asked for them before."""
    asked = {p: p.requires_grad for p in model.parameters()}
    model.requires_grad_(False)
    for student in students.values():
        student.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, had in asked.items():
            parameter.requires_grad_(had)


@contextmanager
def _beside(students: dict[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Within, each variant's relative error is noted, and the model goes on with what attention gives."""
    found: dict[int, Tensor] = {}

    def look(number: int) -> Any:
        def after(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
            with torch.no_grad():
                truth = module.__dict__["replaced"][0](*args, **kwargs)[0]
            wrong = (output[0].float() - truth.float()).square().mean()
            found[number] = wrong / truth.float().square().mean().clamp(min=1e-12)
            return truth, None

        return after

    hooks = [s.register_forward_hook(look(number), with_kwargs=True) for number, s in students.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def loss_of(model: nn.Module, texts: Tensor, batch: int) -> float:
    """Loss in nats per token.

    Args:
        model: a causal language model.
        texts: [count, N] tokens.
        batch: texts at once.
    """
    with looking(model):
        parts = texts.split(batch)
        return sum(float(language_loss(model, part)) * len(part) for part in parts) / len(texts)


def _errors(model: Any, students: dict[int, nn.Module], texts: Tensor, batch: int) -> dict[int, float]:
    """Relative errors of the variants' outputs."""
    total = dict.fromkeys(students, 0.0)
    with looking(model):
        for part in texts.split(batch):
            with _beside(students) as found:
                model.model(input_ids=part.to(model.model.embed_tokens.weight.device), use_cache=False)
            for number, error in found.items():
                total[number] += float(error) * len(part) / len(texts)
    return total


def read(name: str, length: int, count: int, device: str | None, progress: bool | None) -> tuple[Any, Tensor, Tensor]:
    """A model of the zoo, [count, length] tokens of the book that ships with Python, and [length] more of it.

    Args:
        name: as for `zoo.load`.
        length: tokens of a text.
        count: texts.
        device: of the model.
        progress: show bars.

    Raises:
        UnbraidError: it is no causal language model that can be deconstructed.
    """
    from unbraid import zoo
    from unbraid.data.text import stream

    loaded: Any = zoo.load(name, device=device, progress=progress)
    checked(loaded.model)
    if loaded.tokenizer is None:
        raise UnbraidError(f"{name} has no tokenizer; give a causal language model.")
    texts = stream(loaded.tokenizer, length * count)[0].reshape(count, length)
    return loaded.model, texts, stream(loaded.tokenizer, length, length * count)[0]


def converted(
    name: str, kinds: Sequence[tuple[str, str]], numbers: Sequence[int], steps: int, length: int, count: int,
    device: str | None, store: Pieces, progress: bool | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Conversions of one model of the zoo, each from the model as it is.

    Args:
        name: of the model, as for `zoo.load`.
        kinds: variants and their placements.
        numbers: seeds.
        steps: of each.
        length: tokens of a text.
        count: texts, of the book that ships with Python.
        device: where to train.
        store: where finished ones are kept.
        progress: show bars.

    Returns:
        For each its variant, placement, seed, layers and losses.
    """
    from unbraid.core.progress import bar

    model, texts, fixed = read(name, length, count, device, progress)
    rows = []
    with bar(progress, "Conversions", len(kinds) * len(numbers)) as tick:
        for seed, (variant, placement) in product(numbers, kinds):

            def make(variant: str = variant, placement: str = placement, seed: int = seed) -> dict[str, Any]:
                names = place(variant, placement, len(model.model.layers))
                found = convert(
                    model, names, texts, steps=steps, batch=4, seed=seed, tokens=fixed, longest=length, device=device,
                    progress=False,
                )  # fmt: skip
                restore(model)
                return {"variant": variant, "placement": placement, "seed": seed, **asdict(found)}

            key = {"model": name, "variant": variant, "placement": placement, "seed": seed, "steps": steps}
            rows.append(store.get("conversion", {**key, "length": length, "count": count}, make))
            tick()
    return rows
