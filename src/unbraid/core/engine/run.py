"""Runs the taps of one attention call: edits in the order given, questions merged, the output made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unbraid.core.calls import Ask, AttentionCall, Tap
from unbraid.core.engine import fused
from unbraid.core.engine.answers import Log, Options, Question, ask_together, give, with_graph
from unbraid.core.engine.rows import budget, sweep
from unbraid.core.engine.through_rows import through_rows
from unbraid.core.errors import UnbraidError


@dataclass
class Shown:
    """One tap's view of the rows, with the call as that tap sees it."""

    tap: Tap
    call: AttentionCall
    show: Callable[[AttentionCall, Tensor, int], Tensor | None]
    edits: bool


def run_call(c: AttentionCall, taps: Sequence[tuple[Tap, str]], options: Options, log: Log) -> Tensor:
    """Runs the taps of one call and returns its output.

    Args:
        c: the call as the model made it; its kernel makes the output.
        taps: taps in the order of entry, each with the name of this site in its own session.
        options: how the engine may work.
        log: gets what happened.

    Returns:
        [B, H, Q, V]; bit for bit the model's own output when no tap edits (and `options.bitwise`).
    """
    log.calls += 1
    stages: list[tuple[AttentionCall, list[Question | Shown]]] = [(c, [])]
    edited = False
    for tap, site in taps:
        here = stages[-1][0]
        view = here if here.site == site else here.replace(site=site)
        if not tap.wants(view):
            continue
        tap.heads_at(view)
        if tap.call is not None:
            changed = tap.call(view)
            if changed is not None and changed is not view:
                edited = True
                stages.append((changed.replace(site=c.site), []))
        here = stages[-1][0]
        view = here if here.site == site else here.replace(site=site)
        if tap.ask is not None:
            ask = tap.ask(view)
            if ask is not None:
                stages[-1][1].append(Question(tap, view, ask))
        if tap.rows is not None:
            stages[-1][1].append(Shown(tap, view, tap.rows, tap.edits_rows))
        if tap.out is not None and c.value is None:
            stages[-1][1].append(Shown(tap, view, _as_rows(tap, view), True))
    y: Tensor | None = None
    for number, (call, work) in enumerate(stages):
        last = number == len(stages) - 1
        made = answer_stage(call, work, options, log, want_output=last)
        y = made if last else y
    final = stages[-1][0]
    if y is None:
        y = kernel_output(final, c, edited, log)
    for tap, site in taps:
        if tap.out is None or c.value is None:
            continue
        view = final if final.site == site else final.replace(site=site)
        if tap.wants(view):
            changed_y = tap.out(view, y)
            y = y if changed_y is None else changed_y.to(y.dtype)
    return y


def _as_rows(tap: Tap, c: AttentionCall) -> Callable[[AttentionCall, Tensor, int], Tensor | None]:
    if tap.out_as_rows is None:
        raise UnbraidError(
            f"{type(tap).__name__} works on head outputs, but {c.site!r} shows its probabilities only (softmax seam); "
            "use ablate, scale, to_identity, bias or allow there."
        )
    return tap.out_as_rows


def kernel_output(final: AttentionCall, c: AttentionCall, edited: bool, log: Log) -> Tensor:
    """The output by the model's own kernel, or by ours where an edit added what that kernel does not know."""
    if c.kernel is None:
        raise UnbraidError(
            f"{c.site!r}: this seam sees probabilities only, so it needs a tap that reads or edits rows."
        )
    if final.logits is not None or not edited:
        return c.kernel(final)
    if final.key_bias is None:
        y = c.kernel(final)
        return y if final.mask is c.mask else fused.only_seeing(final, y)
    if final.softcap is not None or final.sinks is not None:
        log.sweeps += 1
        _, made, n = sweep(final, Ask(), [], budget(final.device), output=True)
        log.blocks += n
        assert made is not None
        return made.to(final.query.dtype)
    if final.dropout:
        raise UnbraidError(f"{c.site!r}: a key bias cannot be joined with attention dropout; call model.eval() first.")
    return fused.attend(final, final.value)


def answer_stage(
    c: AttentionCall, work: list[Question | Shown], options: Options, log: Log, *, want_output: bool
) -> Tensor | None:
    """Answers all questions about one version of a call; returns the output when rows had to be made anyway."""
    first_edit = next((i for i, w in enumerate(work) if isinstance(w, Shown) and w.edits), len(work))
    edits = first_edit < len(work)
    plain = [w for w in work[:first_edit] if isinstance(w, Question) and not w.ask.grad]
    y = None
    for w in work[:first_edit]:
        if isinstance(w, Question) and w.ask.grad and not options.dry:
            give(w, with_graph(c, w.ask, log))
    if plain:
        with torch.no_grad(), torch.autocast(c.device.type, enabled=False):
            y = ask_together(c, plain, options, log, want_output=want_output and not edits)
    rest = [w for i, w in enumerate(work) if isinstance(w, Shown) or i > first_edit]
    if rest and not options.dry:
        log.patterns += 1
        elements = options.block or budget(c.device, options.memory)
        made, n = through_rows(c, rest, elements, want_output=want_output and edits)
        y = made if made is not None else y
        log.blocks += n
        log.sweeps += 1
    return y
