"""`attach(model, *taps)`: taps see every attention of the model inside a `with` block, and nothing is left behind."""

from __future__ import annotations

import difflib
import fnmatch
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from unbraid.core.calls import AttentionCall, Kind, Tap
from unbraid.core.engine.answers import Log, Options
from unbraid.core.engine.cost import rates
from unbraid.core.engine.plan import Plan, plan
from unbraid.core.engine.rows import budget
from unbraid.core.engine.run import run_call
from unbraid.core.errors import AttachError, UnbraidError
from unbraid.core.seams import live, softmax
from unbraid.core.seams import torch as torch_seam
from unbraid.core.seams import transformers as transformers_seam

Sites = str | Iterable[str] | Callable[[str], bool]
SEAMS = ("transformers", "torch", "softmax")


@dataclass
class Site:
    """A tapped attention: what is known of it after its first call."""

    name: str
    index: int
    kind: Kind
    heads: int
    calls: int = 0


@dataclass
class Prediction:
    """What a run will cost beyond the plain model: see `Session.predict`."""

    fused_calls: int
    blocks: int
    bytes: int
    seconds: float
    plans: dict[str, list[Plan]]

    def __str__(self) -> str:
        return (
            f"{len(self.plans)} sites: {self.fused_calls} extra fused calls, {self.blocks} row blocks, about "
            f"{self.bytes / 2**20:.0f} MiB and {self.seconds:.2g} s beyond the plain model"
        )


class Session:
    """An open `attach`. Use it as a context manager; afterwards it reports what happened.

    Attributes:
        sites: the attentions that ran, by qualified name in the order of first execution.
        log: calls, fused calls, sweeps, blocks, full-row passes, and the largest error of the spot check.
        tokens: [B, n] bool, which query tokens observers average over (None: all that see a key).
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Sequence[Tap],
        sites: Sites,
        seams: Sequence[str] | None,
        options: Options,
        tokens: Tensor | None,
        strict: bool,
    ) -> None:
        self.model, self.taps, self.options, self.strict = model, tuple(taps), options, strict
        self.tokens = tokens
        self.log = Log()
        self.sites: dict[str, Site] = {}
        self.thread = 0
        self.names = {id(m): name for name, m in model.named_modules()}
        self.seams = tuple(seams) if seams is not None else find_seams(model)
        self._wanted = site_filter(sites, self.names.values(), model)
        self._order: dict[str, int] = {}
        self._open = False
        check_heads(self.taps, self.names.values())

    def __enter__(self) -> Session:
        if self._open:
            raise UnbraidError("This attach is open already; make a new one with attach(model, ...) to nest.")
        self._open, self.thread = True, threading.get_ident()
        if "transformers" in self.seams:
            transformers_seam.install()
        if "torch" in self.seams:
            torch_seam.install(self.model, bool(self.taps))
        if "softmax" in self.seams:
            softmax.install()
        live.opened(self)
        for tap in self.taps:
            tap.opened(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        live.closed(self)
        if "transformers" in self.seams:
            transformers_seam.uninstall()
        if "torch" in self.seams:
            torch_seam.uninstall(self.model, bool(self.taps))
        if "softmax" in self.seams:
            softmax.uninstall()
        self._open = False
        for tap in self.taps:
            tap.closed(self)
        if kind is None and self.strict and self.taps and not self.sites:
            raise AttachError(why_nothing(self.model, self.seams))

    def taps_at(self, site: str) -> list[tuple[Tap, str, Session]]:
        """The taps of this session for a site, as the engine wants them."""
        if not self.taps or not self._wanted(site):
            return []
        return [(tap, site, self) for tap in self.taps]

    def run(
        self,
        call: AttentionCall,
        found: Sequence[tuple[Session, str]],
        taps: Sequence[tuple[Tap, str, Session]],
    ) -> Tensor:
        """Runs one call for all sessions it concerns, with their options joined; each of them gets what happened."""
        kind = call.kind
        for session, site in found:
            if not session._wanted(site):
                continue
            known = session.sites.get(site)
            if known is None:
                if kind == "self":
                    kind = find_kind(call)
                known = session.sites[site] = Site(site, len(session.sites), kind, call.heads)
            known.calls += 1
            call = call.replace(index=known.index, kind=known.kind)
        busy = [s for s, site in found if s.taps_at(site)]
        log = Log()
        y = run_call(call, [(tap, site) for tap, site, _ in taps], joined([s.options for s in busy]), log)
        for session in busy:
            session.log.add(log)
        return y

    def predict(self, forward: Callable[[], Any] | Mapping[str, Any], length: int | None = None) -> Prediction:
        """Says what the taps will cost before they run: one plain forward, in which questions are planned only.

        Args:
            forward: keyword arguments for the model, or a function that runs it.
            length: scale the plan of self-attention to this many tokens (run the forward on a short input).

        Returns:
            Fused calls, row blocks, seconds in all, and the bytes alive at once at the hungriest site.
        """
        options = replace(self.options, dry=True)
        dry = Session(self.model, [Asking(t) for t in self.taps], lambda _: True, self.seams, options, None, False)
        dry._wanted = self._wanted
        with dry, torch.no_grad():
            forward() if callable(forward) else self.model(**forward)
        plans: dict[str, list[Plan]] = {}
        for site, shape, wanted, chosen in dry.log.plans:
            if length is not None and shape.queries == shape.keys:
                shape = replace(shape, queries=length, keys=length)
                device = next(self.model.parameters()).device
                elements = self.options.block or budget(device)
                chosen = plan(
                    shape, wanted, rates(device), elements, memory=self.options.memory, force=self.options.recipe
                )
            plans.setdefault(site, []).append(chosen)
        every = [p for of_site in plans.values() for p in of_site]
        return Prediction(
            fused_calls=sum(p.fused_calls for p in every),
            blocks=sum(p.blocks for p in every),
            bytes=max((p.bytes for p in every), default=0),
            seconds=sum(p.seconds for p in every),
            plans=plans,
        )

    def report(self) -> dict[str, Any]:
        """What happened, as plain data: sites, calls, extra fused calls, blocks, and the spot check."""
        log = self.log
        return {
            "sites": len(self.sites),
            "calls": log.calls,
            "fused_calls": log.fused_calls,
            "sweeps": log.sweeps,
            "blocks": log.blocks,
            "row_passes": log.patterns,
            "spot_check": {"rows": log.checked_rows, "largest_error": log.largest_error},
        }


def joined(options: Sequence[Options]) -> Options:
    """The options of nested sessions together: most checks, least memory, bitwise if one wants it, innermost recipe."""
    memory = [o.memory for o in options if o.memory is not None]
    recipes = [o.recipe for o in options if o.recipe is not None]
    return Options(
        bitwise=any(o.bitwise for o in options),
        memory=min(memory) if memory else None,
        block=options[0].block,
        recipe=recipes[-1] if recipes else None,
        check=max(o.check for o in options),
        dry=any(o.dry for o in options),
    )


class Asking(Tap):
    """Stands for a tap in a dry run: changes calls and asks like it, and hears nothing."""

    def __init__(self, tap: Tap) -> None:
        self.heads, self.call, self.ask = tap.heads, tap.call, tap.ask
        self.wants, self.heads_at = tap.wants, tap.heads_at  # type: ignore[method-assign]

    def take(self, c: AttentionCall, answer: object) -> None:
        """Never called in a dry run."""


def attach(
    model: nn.Module,
    *taps: Tap,
    sites: Sites = "*",
    seams: str | Sequence[str] | None = None,
    bitwise: bool = True,
    memory: int | None = None,
    check: int = 0,
    recipe: str | None = None,
    tokens: Tensor | None = None,
    strict: bool = True,
) -> Session:
    """Attaches taps to every attention of a model, for the length of a `with` block.

    Args:
        model: any module: a transformers or diffusers model, a part of one, or your own.
        taps: observers and edits from `unbraid.taps`, or your own `Tap`; edits act in the order given, and an
            observer sees a call as the edits before it left it.
        sites: which attentions: a glob on qualified module names ("model.layers.[0-3].*"), several of them, or a
            function of the name.
        seams: "transformers", "torch", "softmax", or several; None finds out from the model's classes.
        bitwise: observers leave the model's output exactly as it is, bit for bit; False lets the engine make the
            output from its own blocks where that is cheaper (equal within float32 rounding).
        memory: bytes that statistics may use at one site; blocks shrink to fit, and what cannot fit raises.
        check: recompute this many random query rows per call densely in float64; see `report()["spot_check"]`.
        recipe: "rows" or "fused" to overrule the cost model.
        tokens: [B, n] bool, the tokens that averages are taken over (give the attention mask of a padded batch).
        strict: raise on leaving when no attention was met.

    Returns:
        A `Session`: the context manager, which afterwards knows `sites` and `report()`.

    Raises:
        AttachError: the pattern or a head names no site, the model is compiled, its attention never reaches a seam
            or runs on a backend whose numbers cannot be read; the message names the setting to change.

    Example:
        >>> entropy = taps.Entropy()
        >>> with attach(model, entropy, taps.Mass({"first": [0]})) as session:
        ...     model(**tokenizer("Attention is all you need", return_tensors="pt"))
        >>> entropy.scores().top(5)
    """
    if not isinstance(model, nn.Module):
        raise UnbraidError(
            f"attach needs a torch.nn.Module, not {type(model).__name__}; of a pipeline, attach to a part of it, e.g. "
            "pipe.unet or pipe.transformer."
        )
    wrong = [t for t in taps if not isinstance(t, Tap)]
    if wrong:
        raise UnbraidError(f"attach takes taps after the model; {wrong[0]!r} is none (see unbraid.taps).")
    refuse_compiled(model)
    chosen = [seams] if isinstance(seams, str) else seams
    unknown = [s for s in chosen or () if s not in SEAMS]
    if unknown:
        raise UnbraidError(f"seams={unknown[0]!r} is unknown; choose from {', '.join(SEAMS)}.")
    if recipe not in (None, "rows", "fused"):
        raise UnbraidError(f"recipe={recipe!r} is unknown; choose 'rows', 'fused' or None.")
    options = Options(bitwise=bitwise, memory=memory, check=check, recipe=recipe)
    return Session(model, taps, sites, chosen, options, tokens, strict)


def refuse_compiled(model: nn.Module) -> None:
    """Raises when the model, or a part of it, is compiled: its attention is no Python call any more."""
    for name, module in model.named_modules():
        compiled = vars(module).get("_compiled_call_impl") is not None
        if compiled or type(module).__name__ == "OptimizedModule" or isinstance(module, torch.jit.ScriptModule):
            where = f"its part {name!r}" if name else "it"
            raise AttachError(
                f"{type(model).__name__} cannot be tapped because {where} is compiled; attach to the model as it was "
                "before torch.compile (model._orig_mod) or torch.jit, and compile again afterwards."
            )


def find_seams(model: nn.Module) -> tuple[str, ...]:
    """Which seams the model's classes can reach: read from the files that define them, not from names of models."""
    found: dict[str, None] = {}
    for cls in {type(m): None for m in model.modules()}:
        file = sys.modules.get(cls.__module__)
        known = vars(file) if file is not None else {}
        if "ALL_ATTENTION_FUNCTIONS" in known:
            found["transformers"] = None
        elif cls.__module__.startswith("transformers.models."):
            if "Attention" in cls.__name__:
                found["torch"] = None
                found["softmax"] = None
        elif not cls.__module__.startswith("torch.nn.") or issubclass(cls, nn.MultiheadAttention):
            found["torch"] = None
    return tuple(found)


def site_filter(sites: Sites, names: Iterable[str], model: nn.Module) -> Callable[[str], bool]:
    """A test on site names, checked against the model's module names so that a typing error is found at once."""
    if callable(sites):
        return sites
    patterns = [sites] if isinstance(sites, str) else list(sites)
    known = list(names)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            close = difflib.get_close_matches(pattern, [n for n in known if "att" in n.lower()] or known, 3, 0.3)
            hint = f" Close names: {', '.join(repr(c) for c in close)}." if close else ""
            raise AttachError(f"sites={pattern!r} matches no module of {type(model).__name__}.{hint}")
    return lambda name: any(fnmatch.fnmatchcase(name, p) for p in patterns)


def check_heads(taps: Sequence[Tap], names: Iterable[str]) -> None:
    """Raises when a tap names a site that the model does not have."""
    known = set(names)
    for tap in taps:
        for site in sorted(tap.heads.sites if tap.heads is not None else ()):
            if site not in known:
                close = difflib.get_close_matches(site, known, 1, 0.3)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise AttachError(
                    f"{type(tap).__name__} names heads of {site!r}, which this model does not have.{hint}"
                )


def find_kind(call: AttentionCall) -> Kind:
    """Self or cross, by whether the module was given other states to look at."""
    if call.causal or call.module is None:
        return "self"
    arguments = live.call_arguments(call.module)
    if any(arguments.get(name) is not None for name in live.CROSS_ARGUMENTS):
        return "cross"
    query, key = arguments.get("query"), arguments.get("key")
    return "cross" if isinstance(query, Tensor) and isinstance(key, Tensor) and query is not key else "self"


def why_nothing(model: nn.Module, seams: Sequence[str]) -> str:
    """One sentence on why no attention was met, and what to do."""
    name = type(model).__name__
    if not any("att" in n.lower() or "att" in type(m).__name__.lower() for n, m in model.named_modules()):
        return f"attach met no attention: {name} has no module with attention in its name, or was not run in the block."
    hint = 'pass seams="softmax" if it computes softmax itself' if "softmax" not in seams else "see docs/gotchas"
    return (
        f"attach met no attention in {name}: it was not run inside the block, or its attention reaches none of the "
        f'seams ({", ".join(seams) or "none found"}); for transformers call model.set_attn_implementation("sdpa"), '
        f"for diffusers model.set_default_attn_processor(), otherwise {hint}."
    )
