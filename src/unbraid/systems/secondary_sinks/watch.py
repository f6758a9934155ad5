"""Watching the residual stream: a few floats per token and block, for a whole text, a chunked one or a generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from unbraid.core.blocks import Block, blocks, is_norm, listening, residual
from unbraid.core.errors import UnbraidError

MEDIAN_ELEMENTS = 1 << 20  # medians of |h| over more numbers than this are taken over every k-th token


@dataclass
class Profile:
    """What `Watch` kept. L blocks, B texts, C candidate positions of the primary sink, T tokens.

    Attributes:
        norm: [L, B, T] norm of the residual stream after each block.
        cosine: [L, B, C, T] of each token with each candidate.
        centred: [L, B, C, T] the same after the mean over ordinary tokens of the block is taken off.
        along: [L, B, C, T] component of the residual stream after the block along the candidate's direction there.
        before: [L, B, C, T] component of the block's input along the same direction.
        write_norm: [L, B, T] norm of what the MLP adds to the stream.
        write_cosine: [L, B, C, T] of that with what it adds at the candidate.
        write_along: [L, B, C, T] component of what the MLP adds along the candidate's direction.
        peak: [L, B, T] largest |h|; `channel` [L, B, T] where; `middle` [L, B] median of |h|.
        real: [B, T] false for padding.
        first: [B] position of the first real token.
    """

    norm: np.ndarray
    cosine: np.ndarray
    centred: np.ndarray
    along: np.ndarray
    before: np.ndarray
    write_norm: np.ndarray
    write_cosine: np.ndarray
    write_along: np.ndarray
    peak: np.ndarray
    channel: np.ndarray
    middle: np.ndarray
    real: np.ndarray
    first: np.ndarray

    @property
    def layers(self) -> int:
        """Number of blocks L."""
        return int(self.norm.shape[0])

    def text(self, b: int) -> Profile:
        """One text of the batch, padding cut off; positions then count from its first token."""
        keep = np.flatnonzero(self.real[b])
        cut: dict[str, Any] = {}
        for f in fields(self):
            x = vars(self)[f.name]
            if f.name in ("real", "first"):
                continue
            cut[f.name] = x[:, b : b + 1] if f.name == "middle" else x[:, b : b + 1][..., keep]
        return Profile(**cut, real=np.ones((1, len(keep)), bool), first=np.zeros(1, int))


class Watch:
    """Follows the residual stream while a model runs; nothing of it is kept but a few floats per token and block.

    Use it as a context manager around one forward pass, several (a text in chunks with a cache) or `generate()`. The
    directions of the candidates are those of the first pass.

    Args:
        model: a transformer with a stack of blocks.
        candidates: how many first tokens may be the primary sink.
        attention_mask: [batch, tokens] of the first pass, for padded batches.
        on_tokens: called after every pass with the number of tokens seen so far.
    """

    def __init__(
        self,
        model: nn.Module,
        candidates: int = 2,
        attention_mask: Tensor | None = None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> None:
        if candidates < 1:
            raise UnbraidError(f"candidates={candidates}: at least the first token must be looked at.")
        self.blocks = blocks(model)
        self.candidates, self.mask, self.on_tokens = candidates, attention_mask, on_tokens
        self.adders: dict[int, nn.Module] = {}
        self._h: dict[int, Tensor] = {}
        self._y: dict[int, Tensor] = {}
        self._parts: dict[str, list[list[Tensor]]] = {}
        self._input: Tensor | None = None
        self._written: tuple[nn.Module, Tensor] | None = None
        self._seen = 0
        self._hooks: Any = None

    def __enter__(self) -> Self:
        after: dict[nn.Module, Any] = {}
        before: dict[nn.Module, Any] = {}
        for b in self.blocks:
            before[b.module] = self._enter_block
            if b.writer is not None:
                after[b.writer] = self._on_write
                after |= {m: self._on_norm for _, m in b.norms if is_norm(m)}
            after[b.module] = self._on_block(b)
        self._hooks = listening(after, before)
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _enter_block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._input = args[0] if args else kwargs["hidden_states"]
        self._written = None

    def _on_write(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._written = (module, residual(output))

    def _on_norm(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # a norm that takes what the MLP wrote stands between it and the stream (Gemma, OLMo 2)
        if self._written is not None and args and args[0] is self._written[1]:
            self._written = (module, output)

    def _on_block(self, block: Block) -> Callable[..., None]:
        def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            with torch.no_grad():
                self._take(block, residual(output).detach())

        return take

    def _take(self, block: Block, h: Tensor) -> None:
        assert self._input is not None
        layer, before = block.index, self._input.detach()
        if h.dim() != 3 or before.shape != h.shape:
            raise UnbraidError(f"{block.name} returned {tuple(h.shape)}; blocks must return [batch, tokens, width].")
        y = torch.zeros_like(h)
        if self._written is not None:
            self.adders[layer] = self._written[0]
            y = self._written[1].detach().reshape(h.shape)
        if layer == 0:
            self._note_tokens(h)
        h, before, y = h.float(), before.float(), y.float()
        if layer not in self._h:
            at = self._first[:, None] + torch.arange(min(self.candidates, h.shape[1]), device=h.device)
            at = at.clamp(max=h.shape[1] - 1)[..., None].expand(-1, -1, h.shape[2])
            self._h[layer], self._y[layer] = h.gather(1, at), y.gather(1, at)  # [B, C, d]
        unit = torch.nn.functional.normalize(self._h[layer], dim=-1)
        write = torch.nn.functional.normalize(self._y[layer], dim=-1)
        norm, write_norm = h.norm(dim=-1), y.norm(dim=-1)
        along = unit @ h.transpose(1, 2)
        peak, channel = h.abs().max(-1)
        self._keep(
            layer,
            norm=norm,
            cosine=along / norm.clamp(min=1e-12)[:, None],
            centred=_centred(h, norm, self._h[layer], self._real_now),
            along=along,
            before=unit @ before.transpose(1, 2),
            write_norm=write_norm,
            write_cosine=write @ y.transpose(1, 2) / write_norm.clamp(min=1e-12)[:, None],
            write_along=unit @ y.transpose(1, 2),
            peak=peak,
            channel=channel,
            middle=_median(h)[:, None],
        )
        if layer == len(self.blocks) - 1 and self.on_tokens is not None:
            self.on_tokens(self._seen)

    def _note_tokens(self, h: Tensor) -> None:
        n = h.shape[1]
        if self._seen == 0:
            mask = torch.ones(h.shape[:2], device=h.device) if self.mask is None else self.mask.to(h.device)
            if mask.shape != h.shape[:2]:
                raise UnbraidError(
                    f"attention_mask is {tuple(mask.shape)}, but the model ran on {tuple(h.shape[:2])} tokens."
                )
            self._first = mask.long().argmax(-1)
            self._real_now = mask.bool()
            self._real = [self._real_now]
        else:
            self._real_now = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
            self._real.append(self._real_now)
        self._seen += n

    def _keep(self, layer: int, **parts: Tensor) -> None:
        for name, x in parts.items():
            rows = self._parts.setdefault(name, [[] for _ in self.blocks])
            rows[layer].append(x.cpu())

    def profile(self) -> Profile:
        """What was seen so far.

        Raises:
            UnbraidError: the model has not run inside the block.
        """
        if not self._parts:
            raise UnbraidError("Watch has seen no token yet; run the model inside `with Watch(model) as watch:`.")
        made: dict[str, np.ndarray] = {}
        for name, rows in self._parts.items():
            if name == "middle":
                made[name] = np.stack([torch.cat(r, -1).float().mean(-1).numpy() for r in rows])
            else:
                made[name] = np.stack([torch.cat(r, -1).numpy() for r in rows])
        return Profile(**made, real=torch.cat(self._real, -1).cpu().numpy(), first=self._first.cpu().numpy())


def _centred(h: Tensor, norm: Tensor, anchors: Tensor, real: Tensor) -> Tensor:
    """[B, C, T] cosine with the candidates, both less the mean of the ordinary tokens (norm up to 3 x the median)."""
    middle = torch.nanmedian(norm.masked_fill(~real, torch.nan), -1, keepdim=True).values
    plain = ((norm <= 3 * middle) & real).float()
    mean = torch.einsum("bt,btd->bd", plain, h) / plain.sum(-1, keepdim=True).clamp(min=1)
    rest, target = h - mean[:, None], torch.nn.functional.normalize(anchors - mean[:, None], dim=-1)
    return target @ rest.transpose(1, 2) / rest.norm(dim=-1).clamp(min=1e-12)[:, None]


def _median(h: Tensor) -> Tensor:
    """[B] median of |h|."""
    step = max(1, h[0].numel() // MEDIAN_ELEMENTS)
    return h[:, ::step].abs().flatten(1).median(-1).values


def texts_of(inputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Texts as a list of [1, tokens].

    Raises:
        UnbraidError: there is none, one has fewer than four tokens, or a tensor has another shape.
    """
    if isinstance(inputs, Tensor):
        inputs = list(inputs.split(1)) if inputs.dim() == 2 else [inputs]
    rows = [x if x.dim() == 2 else x[None] for x in inputs]
    if not rows:
        raise UnbraidError("There is no text; give token ids [batch, tokens] or a list of them.")
    for x in rows:
        if x.dim() != 2 or x.shape[0] != 1 or x.shape[1] < 4:
            raise UnbraidError(
                f"A text must be token ids [tokens] or [1, tokens] with 4 tokens or more, not {tuple(x.shape)}."
            )
    return rows
