"""What variants need besides their layer's input: embedded words, and texts of their own beside the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.errors import UnbraidError
from unbraid.systems.deconstructing_attention.decoding import Memory


class Now:
    """What is known of the forward pass under way; never copied with the model."""

    def __init__(self) -> None:
        self.embedded: Tensor | None = None
        self.keys: Tensor | None = None
        self.positions: Tensor | None = None
        self.rows: dict[str, int] = {}
        self.cache: Memory | None = None
        self.places: Tensor | None = None  # of the tokens, [batch, tokens], where `cache` has fixed maps

    def __deepcopy__(self, memo: Any) -> Now:
        return Now()


class Streams(nn.Module):
    """Hooks of a decoder: rows that run beside the batch, for maps that are the same for all texts.

    The rows pass through the same layers as texts do, are causal, get gradients, and are cut off again at the end.

    Args:
        noise: [longest, width] frozen input of the stream "random", or None.
        tokens: [longest] tokens of the stream "sequence", or None; their embeddings are the model's and learn.
    """

    def __init__(self, noise: Tensor | None, tokens: Tensor | None) -> None:
        super().__init__()
        self.noise: Tensor | None
        self.tokens: Tensor | None
        self.register_buffer("noise", noise)
        self.register_buffer("tokens", tokens)
        self.now = Now()
        self.record: dict[int, tuple[Tensor, Tensor]] | None = None  # queries and keys of fixed maps, by layer

    @property
    def longest(self) -> int | None:
        """Tokens that fixed maps go to; None without any."""
        return min((len(x) for x in (self.noise, self.tokens) if x is not None), default=None)

    def before(
        self, base: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Forward pre-hook of the decoder."""
        given = {**kwargs, **({"input_ids": args[0]} if args else {})}
        if len(args) > 1:
            raise UnbraidError(
                "give a deconstructed model its inputs by name: model(input_ids=..., attention_mask=...)."
            )
        cache = self._cache(base, given)
        mask = given.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise UnbraidError(
                "attention_mask of a deconstructed model must be [batch, tokens]; causality is built in."
            )
        embedded = given.pop("inputs_embeds", None)
        ids = given.pop("input_ids", None)
        if (ids is None) == (embedded is None):
            raise UnbraidError("give either input_ids or inputs_embeds.")
        if embedded is None:
            embedded = base.embed_tokens(ids)
        count, length = embedded.shape[:2]
        if mask is not None and bool(mask.all()):
            mask = None
        self.now = now = Now()
        if cache is not None and cache.maps:
            extra: dict[str, Tensor] = {}
            now.places = self._places(given.get("position_ids"), count, length, cache, embedded)
        else:
            extra = self._extra(base, length, embedded)
        if extra:
            now.rows = {name: count + i for i, name in enumerate(extra)}
            embedded = torch.cat([embedded, *(row[None] for row in extra.values())])
            mask = None if mask is None else torch.cat([mask, mask.new_ones(len(extra), length)])
            given["position_ids"] = self._positions(given.get("position_ids"), count, len(extra), length)
        now.embedded, now.keys = embedded, None if mask is None else mask.bool()[:, -length:]
        now.cache = cache
        given |= {"inputs_embeds": embedded, "attention_mask": mask, "use_cache": cache is not None}
        return (), given

    def _cache(self, base: Any, given: dict[str, Any]) -> Memory | None:
        cache = given.get("past_key_values")
        if cache is None and not given.get("use_cache"):
            return None
        if not isinstance(cache, Memory):
            raise UnbraidError(
                "a deconstructed model takes no such cache of earlier tokens: call it, or generate, with "
                "past_key_values=memory(model), or with use_cache=False, which gives the same text."
            )
        if cache.variants != base.config.deconstruction["variants"]:
            raise UnbraidError("this memory is of a model with other variants; make one with memory(model).")
        return cache

    def _extra(self, base: Any, length: int, like: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, source in (("random", self.noise), ("sequence", self.tokens)):
            if source is None:
                continue
            if length > len(source):
                raise UnbraidError(
                    f"a text of {length} tokens is longer than the fixed maps of the variant {name!r}, which end at "
                    f"{len(source)}: cut it, or deconstruct with a greater `longest` (more `tokens`)."
                )
            found[name] = source[:length].to(like.dtype) if name == "random" else base.embed_tokens(source[:length])
        return found

    def _places(self, given: Tensor | None, count: int, length: int, cache: Memory, like: Tensor) -> Tensor:
        """Where new tokens [count, length] lie in fixed maps."""
        first, most = cache.get_seq_length(), cache.longest
        places = torch.arange(first, first + length, device=like.device) if given is None else given
        if int(places.max()) >= (most or 0):
            raise UnbraidError(
                f"the text has grown to {int(places.max()) + 1} tokens; the fixed maps of this memory end at {most}: "
                "make it with a greater `longest`, or deconstruct with one."
            )
        return places.expand(count, -1)

    def _positions(self, given: Tensor | None, count: int, extra: int, length: int) -> Tensor | None:
        """Positions of all rows; None where they simply count."""
        if given is None:
            return None
        given = given.expand(count, -1)
        plain = torch.arange(length, device=given.device)
        if bool((given == plain).all()):
            return None
        if int(given.min()) < 0 or int(given.max()) >= length:
            raise UnbraidError(
                f"position_ids go from {int(given.min())} to {int(given.max())}; with fixed maps "
                f"they must lie in a text of {length} tokens, 0 to {length - 1}."
            )
        self.now.positions = torch.cat([given, plain.expand(extra, -1)])
        return self.now.positions

    def after(self, base: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook of the decoder: the rows beside the batch go."""
        now = self.now
        extra = len(now.rows)
        if now.cache is not None and now.embedded is not None:
            now.cache.seen(now.embedded.shape[1])
        if not torch.is_grad_enabled():  # with gradients, checkpointed layers run again later and read it
            self.now = Now()
        if not extra:
            return output
        if isinstance(output, tuple):
            return (output[0][:-extra], *output[1:])
        output.last_hidden_state = output.last_hidden_state[:-extra]
        if output.hidden_states is not None:
            output.hidden_states = tuple(h[:-extra] for h in output.hidden_states)
        return output
