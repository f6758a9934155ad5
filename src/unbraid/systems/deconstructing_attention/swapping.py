"""Attention of a language model in and out: by layer, in place, reversible; and hybrids without variants."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.core.system import System
from unbraid.systems.deconstructing_attention import CARD
from unbraid.systems.deconstructing_attention.decoding import Memory
from unbraid.systems.deconstructing_attention.modules import Mixer, NoMixing, initialise
from unbraid.systems.deconstructing_attention.placement import VARIANTS, place
from unbraid.systems.deconstructing_attention.streams import Streams

KINDS = ("llama", "qwen2", "qwen3", "mistral")
LONGEST = 2048


def deconstruct(
    model: nn.Module, variants: Sequence[str], *, seed: int = 0, tokens: Tensor | None = None,
    longest: int | None = None, joint: bool = True,
) -> nn.Module:  # fmt: skip
    """Put variants in the place of attention, in place: one name for each layer.

    Weights keep their values and names; those of "mlp" are new, drawn with the model's own spread. Afterwards
    `generate` computes the whole text for each token, unless it is given `memory(model)`.

    Args:
        model: a causal language model of transformers: Llama, Qwen2, Qwen3 or Mistral, without sliding windows.
        variants: one of "standard", "mlp", "approximate", "non_approximate", "random", "sequence" and "static" per
            layer; `place` makes such lists.
        seed: of the frozen text of "random" and the weights of "mlp".
        tokens: [at most `longest`] tokens of the fixed text of "sequence"; needed for that alone.
        longest: tokens of the longest text that "random" maps are there for; None: the model's, at most 2,048.
        joint: see `taylor`.

    Returns:
        The model.

    Raises:
        UnbraidError: the model is of another kind or already deconstructed, or an argument does not fit.
    """
    config, base = checked(model)
    listed = _names(variants, len(base.layers))
    width = int(config.hidden_size)
    most = longest if longest is not None else min(LONGEST, int(config.max_position_embeddings))
    if most < 1:
        raise UnbraidError(f"longest is {most}; it must be at least 1.")
    fixed = _fixed(tokens, int(config.vocab_size), most) if "sequence" in listed else None
    noise = None
    weight = base.embed_tokens.weight
    std = float(config.initializer_range)
    if "random" in listed:
        drawn = torch.randn(most, width, generator=torch.Generator().manual_seed(seed)) * std
        noise = drawn.to(weight.device, weight.dtype)
    streams = Streams(noise, None if fixed is None else fixed.to(weight.device))
    base.deconstruction = streams
    for number, (layer, name) in enumerate(zip(base.layers, listed, strict=True)):
        if name == "mlp":
            layer.self_attn = NoMixing(layer.self_attn, width)
            initialise(layer.self_attn, std, seed + number)
        elif name != "standard":
            layer.self_attn = Mixer(layer.self_attn, layer.input_layernorm, streams, name, joint)
    hooks = [
        base.register_forward_pre_hook(streams.before, with_kwargs=True),
        base.register_forward_hook(streams.after, with_kwargs=True),
    ]
    streams.__dict__["undo"] = (hooks, config.use_cache)
    config.use_cache = False
    cast("Any", model).generation_config.use_cache = False
    config.deconstruction = {"variants": listed, "longest": most, "joint": joint}
    if fixed is not None:
        config.deconstruction["tokens"] = len(fixed)
    return model


def checked(model: nn.Module) -> tuple[Any, Any]:
    """Config and decoder of a model that can be deconstructed."""
    config: Any = vars(model).get("config")
    kind = None if config is None else config.model_type
    if kind not in KINDS or "model" not in dict(model.named_children()):
        raise UnbraidError(
            f"{type(model).__name__} (model_type {kind!r}) cannot be deconstructed: give a causal language model of "
            f"transformers of one of these kinds: {', '.join(KINDS)}."
        )
    base: Any = model.get_submodule("model")
    if "deconstruction" in dict(base.named_children()):
        raise UnbraidError("this model is deconstructed already: restore(model) first, or give a fresh one.")
    options = config.to_dict()
    if options.get("sliding_window") and options.get("use_sliding_window", True):
        raise UnbraidError(f"the model has a sliding window of {options['sliding_window']}; give one without.")
    if config._attn_implementation not in ("sdpa", "eager"):
        raise UnbraidError(
            f"attn_implementation is {config._attn_implementation!r}; load the model with 'sdpa' or 'eager'."
        )
    return config, base


def _names(variants: Sequence[str], layers: int) -> list[str]:
    if isinstance(variants, str):
        raise UnbraidError(f"variants is the text {variants!r}; give a list with a name per layer, or use place().")
    unknown = [v for v in variants if v not in VARIANTS]
    if unknown or len(variants) != layers:
        raise UnbraidError(
            f"variants has {len(variants)} names{f', {unknown[0]!r} among them' if unknown else ''}; the model has "
            f"{layers} layers: give one of {', '.join(VARIANTS)} for each."
        )
    return list(variants)


def _fixed(tokens: Tensor | None, vocabulary: int, most: int) -> Tensor:
    if tokens is None:
        raise UnbraidError(
            "the variant 'sequence' needs tokens=, a [length] tensor: the text whose maps all texts use."
        )
    tokens = torch.as_tensor(tokens)
    if tokens.ndim != 1 or not len(tokens) or tokens.is_floating_point():
        raise UnbraidError(
            f"tokens has shape {list(tokens.shape)} and type {tokens.dtype}; give [length] whole numbers."
        )
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
        raise UnbraidError(f"tokens go from {int(tokens.min())} to {int(tokens.max())}; the model has {vocabulary}.")
    return tokens[:most].clone()


def restore(model: nn.Module) -> nn.Module:
    """Put the model's own attention back; what variants learned stays in the weights they share with it.

    Raises:
        UnbraidError: the model is not deconstructed.
    """
    base, streams = _streams(model)
    hooks, use_cache = streams.__dict__["undo"]
    for hook in hooks:
        hook.remove()
    for layer in base.layers:
        if isinstance(layer.self_attn, Mixer | NoMixing):
            layer.self_attn = layer.self_attn.__dict__["replaced"][0]
    del base.deconstruction
    config = cast("Any", model).config
    config.use_cache = use_cache
    cast("Any", model).generation_config.use_cache = use_cache
    del config.deconstruction
    return model


def variants_of(model: nn.Module) -> list[str]:
    """The variant of each layer; "standard" for all of a model that is not deconstructed."""
    layers: Any = model.get_submodule("model").get_submodule("layers")
    found = []
    for layer in layers:
        own = layer.self_attn
        found.append("mlp" if isinstance(own, NoMixing) else own.variant if isinstance(own, Mixer) else "standard")
    return found


@contextmanager
def looking(model: nn.Module) -> Iterator[None]:
    """Evaluation without gradients; afterwards each part in the mode in which it was."""
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def memory(model: nn.Module, longest: int | None = None) -> Memory:
    """A new cache for `generate` or for calls of the model: past_key_values=memory(model), use_cache=True.

    Layers of "approximate" and "non_approximate" keep sums, whose size does not depend on the tokens; "mlp" keeps
    nothing; "standard" and "static" keep keys and values; "random" and "sequence" keep values alone, as their maps are
    computed here, once. It is of the weights as they are now, and can be used again after `reset()`.

    Args:
        model: deconstructed.
        longest: tokens of the longest text that fixed maps are computed for; None: as many as the model has.

    Raises:
        UnbraidError: the model is not deconstructed, or `longest` is below 1 or beyond its fixed maps.
    """
    base, streams = _streams(model)
    listed, most = variants_of(model), streams.longest
    if longest is not None and longest < 1:
        raise UnbraidError(f"longest is {longest}; it must be at least 1.")
    if most is None:
        return Memory(listed)
    if longest is not None and longest > most:
        raise UnbraidError(f"longest is {longest}; the fixed maps of this model end at {most}.")
    streams.record = {}
    try:
        with looking(base):
            # the rows beside the batch are what is wanted: of the text itself nothing is looked at
            blank = torch.zeros(1, longest or most, dtype=torch.long, device=base.embed_tokens.weight.device)
            base(input_ids=blank, use_cache=False)
        return Memory(listed, streams.record)
    finally:
        streams.record = None


def skip(model: nn.Module) -> nn.Module:
    """A copy without the layers that have a variant, blocks and all; what is left is a standard model.

    Raises:
        UnbraidError: the model is not deconstructed, or no layer would be left.
    """
    _streams(model)
    kept = [i for i, name in enumerate(variants_of(model)) if name == "standard"]
    if not kept:
        raise UnbraidError("all layers have a variant; skipping needs a hybrid.")
    # hooks hold the model's own streams: a model of the same class and new weights is simpler than a copy without them
    config = copy.deepcopy(cast("Any", model).config)
    config.num_hidden_layers = len(kept)
    del config.deconstruction
    config.use_cache = model.get_submodule("model.deconstruction").__dict__["undo"][1]
    if config.to_dict().get("layer_types"):
        config.layer_types = [config.layer_types[i] for i in kept]
    left: Any = type(model)(config)
    first = next(model.parameters())
    left.to(first.device, first.dtype)
    state = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            if int(parts[2]) not in kept:
                continue
            parts[2] = str(kept.index(int(parts[2])))
        elif parts[:2] == ["model", "deconstruction"]:
            continue
        state[".".join(parts)] = value
    left.load_state_dict(state)
    return cast("nn.Module", left.train(model.training))


def _streams(model: nn.Module) -> tuple[Any, Streams]:
    children = dict(model.named_modules())
    if not isinstance(children.get("model.deconstruction"), Streams):
        raise UnbraidError("this model is not deconstructed; call deconstruct(model, ...) first.")
    return children["model"], cast("Streams", children["model.deconstruction"])


def load(folder: str | Path) -> nn.Module:
    """Read a deconstructed model that `save_pretrained` wrote; from_pretrained would leave its variants out.

    Args:
        folder: with config.json and model.safetensors.

    Raises:
        UnbraidError: there is no such model.
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    place_ = Path(folder)
    if not (place_ / "config.json").is_file() or not (place_ / "model.safetensors").is_file():
        raise UnbraidError(f"{folder} has no config.json and model.safetensors; give a folder of save_pretrained.")
    config = AutoConfig.from_pretrained(place_)
    plan = config.to_dict().get("deconstruction")
    if not plan:
        raise UnbraidError(f"the model in {folder} is not deconstructed; load it with from_pretrained.")
    del config.deconstruction
    state = load_file(place_ / "model.safetensors")
    model: Any = AutoModelForCausalLM.from_config(config).to(state["model.embed_tokens.weight"].dtype)
    tokens = torch.zeros(plan["tokens"], dtype=torch.long) if "tokens" in plan else None
    deconstruct(model, plan["variants"], longest=plan["longest"], tokens=tokens, joint=plan["joint"])
    missing = set(model.load_state_dict(state, strict=False).missing_keys) - {"lm_head.weight"}
    if missing:
        raise UnbraidError(f"{folder} lacks the weights {', '.join(sorted(missing)[:3])}; save the model again.")
    model.tie_weights()
    return cast("nn.Module", model.eval())


class DeconstructedAttention(System):
    """Attention of a language model by another mechanism, in chosen layers.

    Args:
        variant: "mlp" (no mixing), "approximate" (polynomial weights), "non_approximate" (pooling by keys alone),
            "random" or "sequence" (the same maps for all texts), "static" (queries and keys of the words alone).
        placement: where attention stays standard; see `place`.
        joint: of "approximate": one normaliser, or one per order as printed.
        seed: of the frozen text of "random" and the weights of "mlp".
    """

    card = CARD

    def __init__(self, variant: str = "static", placement: str = "hybrid", joint: bool = True, seed: int = 0) -> None:
        self.variant = variant
        self.placement = placement
        self.joint = joint
        self.seed = seed

    def swap(self, model: nn.Module, tokens: Tensor | None = None) -> nn.Module:
        """Deconstruct a model in place.

        Args:
            model: see `deconstruct`.
            tokens: [length] the fixed text of "sequence".

        Returns:
            The model.
        """
        _, base = checked(model)
        names = place(self.variant, self.placement, len(base.layers))
        return deconstruct(model, names, seed=self.seed, tokens=tokens, joint=self.joint)
