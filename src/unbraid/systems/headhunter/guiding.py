"""Guidance away from a damaged copy of the prediction, in any pipeline: `guide`.

At each step the denoiser's prediction v becomes v + w (v_cond - v_S), where v_S comes from the same network, latent,
time and words with the attention of chosen heads damaged. The rows of v_S travel in the same forward as all others.
With classifier-free guidance by c, the pipeline makes v_u + c (v_c - v_u) of what it gets; the term is added to both
halves, so it comes out once whatever c is.

Reference: arXiv 2506.10978.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.attach import Session, attach
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores, HeadSet
from unbraid.diffusion.parts import FAMILIES, Parts
from unbraid.taps import perturb
from unbraid.taps.perturb import Damage, Path, Scope, Strengths

SHARED = ("img_ids", "txt_ids", "ip_adapter_masks", "image_rotary_emb")  # no row of these belongs to a picture
ORDER = ("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "single_transformer_blocks")


def guide(
    pipe: Any,
    heads: Strengths | Sequence[Strengths],
    strength: float = 0.5,
    weight: float | Sequence[float] = 3.0,
    *,
    kind: Damage = "identity",
    scope: Scope = "joint",
    path: Path = "linear",
    temperature: float = 4.0,
    interval: tuple[float, float] = (0.0, 1.0),
    together: bool = True,
) -> Guidance:
    """Guides a pipeline by damaged heads for the length of a `with` block.

    Args:
        pipe: a pipeline of Stable Diffusion 1.x, 2.x, XL, 3, 3.5 or FLUX.1, or its denoiser alone, whose rows are then
            all taken as conditional.
        heads: which heads: a `HeadSet`, strengths per head (site -> [heads], 0 leaves one untouched), or a list with
            one of these for each picture of a call.
        strength: u from 0 to 1: how far the heads' attention is moved; a factor where heads have strengths.
        weight: w, one number or one for each picture; the paper's is 3 for SD3 and 8 for FLUX.1.
        kind: of damage, see `taps.perturb`.
        scope: "joint" damages text and image tokens (the paper), "image" is PAG as diffusers has it for SD3.
        path: from attention to the identity, see `taps.perturb`.
        temperature: for kind="temperature".
        interval: part of the way from noise (0) to image (1) in which guidance acts, by the model's own time.
        together: damaged rows travel with the others in one forward; False makes a second one, which needs less memory.

    Returns:
        A context manager. Without heads, or with a strength or weight of 0, nothing is touched and no row is added.

    Raises:
        UnbraidError: another kind of pipeline, heads that the model does not have, numbers out of range.

    Example:
        >>> with guide(pipe, HeadSet([("mid_block.attentions.0.transformer_blocks.0.attn1", 2)]), 0.5, 3.0):
        ...     pipe("a red star", guidance_scale=5.0)
    """
    denoiser = denoiser_of(pipe)
    lone = isinstance(heads, HeadSet | HeadScores | Mapping)
    each: list[Any] = [heads] if lone else list(heads)
    for one in each:
        check_heads(denoiser, one, kind)
    weights = [weight] if isinstance(weight, int | float) else list(weight)
    if not weights or not all(isinstance(w, int | float) and abs(w) < 1e6 for w in weights):
        raise UnbraidError(f"The weight of guidance is {weight!r}; give a finite number, or one for each picture.")
    start, stop = interval
    if not 0 <= start <= stop <= 1:
        raise UnbraidError(f"interval={interval!r} must be two rising numbers from 0 (noise) to 1 (image).")
    tap = perturb(heads, kind, strength, scope=scope, path=path, temperature=temperature)
    pictures = {1, len(weights), len(each)}
    if len(pictures) > 2:
        raise UnbraidError(f"There are heads for {len(each)} pictures and weights for {len(weights)}; give one each.")
    idle = strength == 0 or not any(weights) or start == stop or not any(tap.picked.values())
    return Guidance(pipe, denoiser, tap, torch.tensor(weights), max(pictures), interval, together, idle)


class Guidance:
    """What `guide` returns.

    Attributes:
        forwards: calls of the denoiser so far that were guided.
        rows: damaged rows that were computed.
    """

    def __init__(
        self, pipe: Any, denoiser: nn.Module, tap: Any, weight: Tensor, pictures: int, interval: tuple[float, float],
        together: bool, idle: bool,
    ) -> None:  # fmt: skip
        self.pipe, self.denoiser, self.tap, self.weight, self.pictures = pipe, denoiser, tap, weight, pictures
        self.interval, self.together, self.idle = interval, together, idle
        self.family = FAMILIES.get(type(denoiser).__name__)
        self.forwards = self.rows = 0
        self.session: Session | None = None
        self._inner: Callable[..., Any] | None = None
        self._last: tuple[Any, Tensor] | None = None
        self._checked = False

    def __enter__(self) -> Guidance:
        if self.idle:
            return self
        before = vars(self.denoiser).get("forward")
        if self.session is not None or isinstance(before, Forward):
            raise UnbraidError("This model is guided already; join the heads into one guide instead of nesting two.")
        self._inner = self.denoiser.forward
        self._had, self._before = "forward" in vars(self.denoiser), before
        chosen = {site for site, heads in self.tap.picked.items() if heads}
        self.session = attach(self.denoiser, self.tap, sites=chosen.__contains__, strict=False)
        self.session.__enter__()
        self.denoiser.forward = Forward(self, self._inner)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.session is None:
            return
        if self._had:
            self.denoiser.forward = self._before  # type: ignore[assignment]
        else:
            del self.denoiser.forward
        session, self.session, self._last, self._inner = self.session, None, None, None
        session.__exit__(kind, error, trace)

    def predict(self, given: dict[str, Any]) -> Any:
        """One call of the denoiser, guided; `given` are its arguments by name."""
        assert self._inner is not None
        name = next(iter(given))
        latents: Tensor = given[name]
        self.tap.edited = slice(0, 0)
        if given.get("skip_layers") is not None or self._is_negative(latents):
            made = self._inner(**given)
            if self._last is None:
                return made
            _, delta = self._last
            return mapped(made, lambda y: y + delta.to(y.dtype))
        self._last = None
        if not self._acts(given):
            return self._inner(**given)
        rows = latents.shape[0]
        first = rows // 2 if self._doubled() else 0
        count = rows - first
        if self.pictures not in (1, count):
            raise UnbraidError(
                f"guide was given heads or weights for {self.pictures} pictures, but the pipeline paints {count}."
            )
        made, y, damaged = self._both(given, rows, first)
        weight = self.weight.to(y).reshape(-1, *[1] * (y.dim() - 1))
        delta = weight * (y[first:] - damaged)
        self.forwards, self.rows = self.forwards + 1, self.rows + count
        self._check()
        if self.family == "flux" and not isinstance(self.pipe, nn.Module):
            self._last = (latents, delta)
        elif first:
            self._last = (None, delta)
        guided = y + (torch.cat([delta, delta]) if first else delta)
        return mapped(made, lambda _: guided)

    def _both(self, given: dict[str, Any], rows: int, first: int) -> tuple[Any, Tensor, Tensor]:
        """(output, its prediction of the given rows, the damaged prediction of the conditional ones)."""
        assert self._inner is not None
        device = next(iter(given.values())).device
        own = torch.arange(first, rows, device=device)
        if self.together:
            self.tap.edited = slice(rows, 2 * rows - first)
            index = torch.cat([torch.arange(rows, device=device), own])
            made = self._inner(**{k: pick_rows(v, k, rows, index) for k, v in given.items()})
            y = prediction(made)
            return made, y[:rows], y[rows:]
        made = self._inner(**given)
        self.tap.edited = slice(0, rows - first)
        damaged = self._inner(**{k: pick_rows(v, k, rows, own) for k, v in given.items()})
        return made, prediction(made), prediction(damaged)

    def _doubled(self) -> bool:
        """Whether the batch holds unconditional rows first."""
        if isinstance(self.pipe, nn.Module) or self.family == "flux":
            return False
        try:
            return bool(self.pipe.do_classifier_free_guidance)
        except AttributeError:  # the pipeline has not been called yet: somebody calls its denoiser
            return False

    def _is_negative(self, latents: Tensor) -> bool:
        """FLUX with a true guidance scale: a second call for the very same latents, with the negative prompt."""
        return self._last is not None and self._last[0] is latents

    def _acts(self, given: Mapping[str, Any]) -> bool:
        """Whether this step lies in the interval."""
        start, stop = self.interval
        if (start, stop) == (0.0, 1.0):
            return True
        if self.family is None:
            raise UnbraidError(f"interval= needs a known model; {type(self.denoiser).__name__} is none.")
        time = float(torch.as_tensor(given["timestep"]).flatten()[0])
        way = 1 - (time if self.family == "flux" else time / 1000)
        return start <= way < stop or way == stop == 1

    def _check(self) -> None:
        """After the first guided call: every chosen site must have been met."""
        if self._checked or self.session is None:
            return
        self._checked = True
        unseen = sorted({site for site, hs in self.tap.picked.items() if hs} - set(self.session.sites))
        if unseen:
            raise UnbraidError(
                f"The attention of {unseen[0]!r} did not reach torch's scaled_dot_product_attention, so its heads "
                'cannot be damaged; use the native backend: set_attention_backend("native") and no attention slicing.'
            )


class Forward:
    """Stands in for the forward of a denoiser while it is guided."""

    def __init__(self, guidance: Guidance, inner: Callable[..., Any]) -> None:
        self.guidance, self.inner = guidance, inner
        self.signature = inspect.signature(inner)
        functools.update_wrapper(self, inner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The prediction with guidance."""
        bound = self.signature.bind(*args, **kwargs)
        return self.guidance.predict(dict(bound.arguments))


def prediction(made: Any) -> Tensor:
    """The tensor of what a denoiser returned."""
    found: Tensor = made[0] if isinstance(made, tuple) else made if isinstance(made, Tensor) else made.sample
    return found


def mapped(made: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same kind of output with its prediction changed."""
    if isinstance(made, tuple):
        return (change(made[0]), *made[1:])
    if isinstance(made, Tensor):
        return change(made)
    return replace(made, sample=change(made.sample))


def pick_rows(value: Any, name: str, rows: int, index: Tensor) -> Any:
    """Some rows, in any order, of every tensor that has one per row of the batch."""
    if name in SHARED:
        return value
    if isinstance(value, Tensor):
        return value.index_select(0, index) if value.dim() and value.shape[0] == rows else value
    if isinstance(value, Mapping):
        return {k: pick_rows(v, str(k), rows, index) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(pick_rows(v, name, rows, index) for v in value)
    return value


def denoiser_of(pipe: Any) -> nn.Module:
    """The UNet or transformer of a pipeline, or the module itself.

    Raises:
        UnbraidError: an unsupported pipeline, one that damages attention itself, or a model with a step cache.
    """
    found: nn.Module
    if isinstance(pipe, nn.Module):
        found = pipe
    else:
        found = Parts.of(pipe).denoiser
        if "do_perturbed_attention_guidance" in dir(type(pipe)):
            raise UnbraidError(
                f"{type(pipe).__name__} damages attention itself; load the model as a plain pipeline "
                "(DiffusionPipeline.from_pretrained) and guide that."
            )
    if "is_cache_enabled" in dir(type(found)) and found.is_cache_enabled:
        raise UnbraidError(
            f"{type(found).__name__} reuses results of earlier steps, which the damaged rows must not get; switch that "
            "off with disable_cache()."
        )
    return found


def candidates(pipe: Any, sites: str | Sequence[str] = "*", kind: Damage = "identity") -> HeadSet:
    """All heads of a model that can be damaged, in the order in which they run.

    Args:
        pipe: a pipeline, or its denoiser.
        sites: globs on the names of attention modules.
        kind: of damage; the identity needs self-attention, the others go with cross-attention too.

    Raises:
        UnbraidError: no site matches.
    """
    from fnmatch import fnmatchcase

    denoiser, patterns = denoiser_of(pipe), [sites] if isinstance(sites, str) else list(sites)
    every = [name for name, module in denoiser.named_modules() if heads_of(module)]
    every.sort(key=lambda name: next((i for i, o in enumerate(ORDER) if name.startswith(o)), len(ORDER)))
    modules = dict(denoiser.named_modules())
    fit = [n for n in every if kind != "identity" or not vars(modules[n]).get("is_cross_attention")]
    chosen = [n for n in fit if any(fnmatchcase(n, p) for p in patterns)]
    if not chosen:
        close = difflib.get_close_matches(patterns[0], fit, 3, 0.3) if patterns else []
        hint = f" Close names: {', '.join(map(repr, close or fit[:3]))}."
        raise UnbraidError(f"sites={sites!r} matches no attention that {kind} can damage.{hint}")
    return HeadSet((name, h) for name in chosen for h in range(heads_of(modules[name])))


def heads_of(module: nn.Module) -> int:
    """Heads of an attention module of diffusers, else 0."""
    count = vars(module).get("heads")
    return count if isinstance(count, int) and "Attention" in type(module).__name__ else 0


def check_heads(denoiser: nn.Module, heads: Strengths, kind: str) -> None:
    """Raises where a site or a head is not in the model, or cannot be damaged in this way."""
    modules = dict(denoiser.named_modules())
    if isinstance(heads, HeadSet):
        named = {site: max(numbers) for site, numbers in heads.by_site().items()}
    elif isinstance(heads, HeadScores | Mapping):
        table = heads.scores if isinstance(heads, HeadScores) else heads
        named = {site: int(torch.as_tensor(u).shape[-1]) - 1 for site, u in table.items()}
    else:
        raise UnbraidError(f"heads must be a HeadSet, or strengths by site, not {heads!r}.")
    known = [name for name, module in modules.items() if heads_of(module)]
    for site, highest in named.items():
        if site not in modules:
            close = difflib.get_close_matches(site, known, 3, 0.3)
            hint = f" Close names: {', '.join(map(repr, close))}." if close else ""
            raise UnbraidError(f"{type(denoiser).__name__} has no attention {site!r}.{hint}")
        count = heads_of(modules[site])
        if count and highest >= count:
            raise UnbraidError(f"{site!r} has heads 0 to {count - 1}; head {highest} was asked for.")
        if kind == "identity" and vars(modules[site]).get("is_cross_attention"):
            raise UnbraidError(
                f"{site!r} is cross-attention, which has no identity; choose heads of self-attention, or "
                "kind='uniform', 'query_mean', 'argmax' or 'temperature'."
            )
