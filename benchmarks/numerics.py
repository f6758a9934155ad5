"""How far the statistics are from their definition: every figure of docs/numerics.md, in one run of about a minute.

    python -m benchmarks.numerics                     # prints tables, writes results/benchmarks/numerics.json
    python -m benchmarks.numerics --without-weights   # leaves out SmolLM2 (nothing is fetched)

The families are the tiny random models of tests/parity; "eager" is each model's own `output_attentions=True`, and where
a model has none (diffusers, torch) what it hands to the fused kernel, computed densely in float64. No time is measured.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.parity.families import FAMILIES, Family, logits_of
from torch import Tensor

from benchmarks.attention.report import provenance, show, write_json
from unbraid import taps
from unbraid.core.attach import attach
from unbraid.core.calls import Ask, AttentionCall
from unbraid.core.engine.answers import Log, Options, Question, ask_together
from unbraid.core.engine.fused import SDPA, attend
from unbraid.core.engine.logits import dense

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
RECIPES = ("rows", "fused")


def entr(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)


def far(got: Tensor, want: Tensor, rows: Tensor | None = None) -> float:
    """Largest difference, over the query rows [B, Q] that are defined."""
    error = (got.double() - want.double()).abs()
    if rows is not None and error.dim() >= 3 and error.shape[2] == rows.shape[1]:
        error = error[rows[:, None, :].expand(error.shape[:3])]
    return float(error.max())


class Same(taps.Observer):
    """An edit of rows that changes nothing: the output is made from P."""

    edits_rows = True

    def rows(self, c: AttentionCall, p: Tensor, start: int) -> Tensor:
        return p * 1.0


def watch(f: Family, recipe: str | None = None, **options: Any) -> tuple[dict[str, taps.Observer], Tensor, Any]:
    """One run with every statistic that the recipe can answer: the taps, the model's output, the session."""
    groups = {"first": [0], "two": slice(1, 3)}
    seen = {"entropy": taps.Entropy(), "mass": taps.Mass(groups), "received": taps.Received()}
    if recipe != "fused":  # an arg-max has no fused recipe, and one sweep then answers everything
        seen |= {"P": taps.Maps(), "largest P": taps.ArgMax()}
    with torch.no_grad(), attach(f.model, *seen.values(), recipe=recipe, check=8, **options) as session:
        return seen, logits_of(f.run()), session


def errors(seen: dict[str, Any], want: dict[str, Tensor], rows: Tensor | None) -> Row:
    """Largest error of each statistic over the sites of a family."""
    out: Row = {}
    rows = None if rows is None or bool(rows.all()) else rows
    for site, p in want.items():
        pairs = {
            "mass": (seen["mass"].values[site][0], torch.stack([p[..., 0], p[..., 1:3].sum(-1)], -1)),
            "entropy": (seen["entropy"].values[site][0], entr(p)),
        }
        if "P" in seen:
            pairs["P"] = (seen["P"].values[site][0], p)
            pairs["largest P"] = (seen["largest P"].probabilities[site][0][..., 0], p.amax(-1))
        if rows is None:  # what padded queries give is undefined in eager, and would be part of the sum
            pairs["received"] = (seen["received"].values[site][0], p.sum(2))
        for name, (got, right) in pairs.items():
            out[name] = max(out.get(name, 0.0), far(got, right, None if name == "received" else rows))
    return out


def families() -> list[Row]:
    """Every family against eager, fp32, by both recipes; and what tapping does to the model's own output."""
    table = []
    for name, make in FAMILIES.items():
        f = make()
        want = f.reference()
        with torch.no_grad():
            plain = logits_of(f.run())
            with attach(f.model, Same()):
                made = logits_of(f.run())
        row: Row = {"family": name}
        both = {}
        for recipe in RECIPES:
            seen, out, session = watch(f, recipe)
            both[recipe] = seen
            for key, value in errors(seen, want, f.rows).items():
                row[f"{key}, {recipe}"] = value
            row["spot check"] = max(row.get("spot check", 0.0), session.log.largest_error)
            row["output, tapped"] = max(row.get("output, tapped", 0.0), far(out, plain))
        one, two = both["rows"], both["fused"]
        row["rows - fused"] = max(
            far(one[k].values[s][0], two[k].values[s][0]) for k in ("entropy", "mass", "received") for s in want
        )
        full = f.rows is not None and made.shape[1] == f.rows.shape[1]
        error = (made - plain).abs()[f.rows] if full else (made - plain).abs()
        row["output from rows / largest output"] = float(error.max()) / max(1.0, float(plain.abs().max()))
        table.append(row)
    names = dict.fromkeys(k for r in table for k in r if k != "family")
    worst = {k: max(r[k] for r in table if k in r) for k in names}
    return [*table, {"family": "largest", **worst}]


def half() -> list[Row]:
    """bfloat16 and float16 weights, and autocast: against the same model in fp32, and against its own operands."""
    table = []
    for name in ("llama-gqa", "gpt2", "bert", "t5", "unet"):
        for dtype, how in (
            (torch.bfloat16, "weights"),
            (torch.bfloat16, "autocast"),
            (torch.float16, "weights"),
        ):
            f = FAMILIES[name]()
            full = f.reference()
            if how == "weights":
                f.model.to(dtype)
                for key, x in f.inputs.items():
                    f.inputs[key] = x.to(dtype) if x.is_floating_point() else x
            with torch.autocast("cpu", dtype=dtype, enabled=how == "autocast"):
                with torch.no_grad():
                    plain = logits_of(f.run())
                seen, out, session = watch(f)
            own = f.reference() if how == "weights" and name != "unet" else None
            row: Row = {"family": name, "dtype": str(dtype).removeprefix("torch."), "how": how}
            row |= {f"{k}, to fp32": v for k, v in errors(seen, full, f.rows).items() if k != "received"}
            row["P, to its eager"] = None if own is None else errors(seen, own, f.rows)["P"]
            row["to float64 of the same operands"] = session.log.largest_error
            row["output unchanged"] = bool(torch.equal(out, plain))
            table.append(row)
    return table


def synthetic(n: int, spread: float, seed: int = 0, heads: int = 4, d: int = 64) -> AttentionCall:
    """A causal call whose logits have the standard deviation `spread`."""
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, heads, n, d, generator=g) for _ in range(3))
    return AttentionCall("site", 0, "self", q * spread, k, v, causal=True, scale=d**-0.5)


class Keep:
    """Stands for a tap: only hears."""

    def take(self, c: AttentionCall, answer: Any) -> None:
        self.answer = answer


def answer_of(c: AttentionCall, ask: Ask, recipe: str) -> Any:
    tap = Keep()
    with torch.no_grad():
        ask_together(c, [Question(tap, c, ask)], Options(recipe=recipe), Log(), want_output=False)  # type: ignore[arg-type]
    return tap.answer


def cancellation() -> list[Row]:
    """Entropy at growing logits: the fused recipe subtracts two numbers of the size of the logits."""
    table = []
    for spread in (1.0, 3.0, 10.0, 30.0, 100.0):
        c = synthetic(512, spread)
        p = dense(c, torch.float64)
        logits = float((c.query.double() @ c.key.double().transpose(-1, -2) * c.scale).abs().max())
        row: Row = {"std of logits": spread, "largest logit": logits, "mean entropy": float(entr(p).mean())}
        dense32 = dense(c)
        row["P, dense fp32"] = far(dense32, p)
        row["entropy, dense fp32"] = far(entr(dense32), entr(p))
        for recipe in RECIPES:
            got = answer_of(c, Ask(entropy=True, moments=torch.eye(512)[:, :2]), recipe)
            row[f"entropy, {recipe}"] = far(got.entropy, entr(p))
            row[f"mass, {recipe}"] = far(got.moments, p[..., :2])
        table.append(row)
    return table


def long_sums() -> list[Row]:
    """Sums over many rows and positions at 4,096 tokens, against float64."""
    n = 4096
    c = synthetic(n, 2.0, heads=2)
    p = dense(c, torch.float64)
    x = torch.arange(n, dtype=torch.float64)
    received, back = p.sum(2), x - p @ x
    rms = (((x[:, None] - x) ** 2) * p).sum(-1).sqrt()
    wide = rms > 64
    centred = (x / n - 0.5).float()
    table = []
    for recipe in RECIPES:
        ask = Ask(weights=torch.ones(n, 1), moments=torch.stack([centred, centred**2, x.float()], -1), entropy=True)
        got = answer_of(c, ask, recipe)
        i = centred
        mean = (i - got.moments[..., 0]) * n
        spread = (i * i - 2 * i * got.moments[..., 0] + got.moments[..., 1]).clamp(min=0).sqrt() * n
        table.append(
            {
                "recipe": recipe,
                "received, largest": float(received.max()),
                "received": far(got.weights[..., 0], received),
                "received, relative": float(((got.weights[..., 0] - received).abs() / received).max()),
                "mean distance, centred (tokens)": far(mean, back),
                "mean distance, plain positions (tokens)": far(x - got.moments[..., 2].double(), back),
                "rms distance (tokens)": far(spread, rms),
                "rms distance where > 64": far(spread[wide], rms[wide]),
                "entropy": far(got.entropy, entr(p)),
            }
        )
    return table


def indicator_masses() -> list[Row]:
    """Masses of a bfloat16 call: made in float32 as here, and by the kernel in bfloat16 as it would round them."""
    c = synthetic(1024, 2.0)
    low = c.replace(query=c.query.bfloat16(), key=c.key.bfloat16(), value=c.value.bfloat16())
    e = torch.zeros(1024, 64)
    e[0, 0] = e[:4, 1] = e[512:, 2] = 1.0
    right = dense(low, torch.float64) @ e[:, :3].double()
    ours = answer_of(low, Ask(moments=e[:, :3]), "fused").moments
    kernel = SDPA(low.query, low.key, e.bfloat16().expand(1, 4, -1, -1), is_causal=True, scale=c.scale)[..., :3]
    return [{"float32 statistics": far(ours, right), "bfloat16 kernel": far(kernel, right)}]


def peak(f: Callable[[], object]) -> int:
    """Bytes that torch had alive at once beyond what it had before."""
    f()
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        f()
    alive = top = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            top = max(top, alive)
    return top


@torch.no_grad()
def width_trap() -> list[Row]:
    """Memory of torch's kernel by the width of the values: only the head width stays linear on a CPU."""
    c = synthetic(2048, 1.0)
    table = []
    for width in (1, 8, 32, 64, 65, 128):
        values = torch.randn(1, 4, 2048, width)
        raw = peak(lambda v=values: SDPA(c.query, c.key, v, is_causal=True))
        ours = peak(lambda v=values: attend(c, v))
        table.append({"value width": width, "kernel, MiB": raw / 2**20, "engine, MiB": ours / 2**20})
    return table


@torch.no_grad()
def key_bias() -> list[Row]:
    """A bias on keys by eight more columns of the product, against the same bias as a float64 mask."""
    c = synthetic(1024, 2.0)
    table = []
    for size in (1.0, 10.0, 50.0, -50.0, -math.inf):
        bias = torch.zeros(1, 1, 1024)
        bias[..., 3:700:5] = size
        b = c.replace(key_bias=bias)
        right = dense(b, torch.float64) @ c.value.double()
        mask = torch.zeros(1024, 1024).masked_fill_(torch.ones(1024, 1024, dtype=torch.bool).triu_(1), -torch.inf)
        row: Row = {"bias": str(size), "output": far(attend(b, c.value), right)}
        row["as a mask"] = far(SDPA(c.query, c.key, c.value, mask + bias, scale=c.scale), right)
        row["widened product, MiB"] = peak(lambda b=b: attend(b, c.value)) / 2**20
        table.append(row)
    return table


@torch.no_grad()
def hidden_rows() -> list[Row]:
    """Rows of left padding, which may see no key: what eager says and what is said here."""
    f = FAMILIES["llama-gqa"]()
    site = next(iter(f.kinds))
    rows = {"eager": f.reference()[site][0, :, 0]}
    seen, _, _ = watch(f)
    rows["unbraid"] = seen["P"].values[site][0][0, :, 0]
    table: list[Row] = [
        {"who": who, "row sum": float(p.sum(-1).mean()), "largest P": float(p.max()), "keys": p.shape[-1]}
        for who, p in rows.items()
    ]
    for how in ("sdpa", "eager"):
        f.model.set_attn_implementation(how)
        out = taps.Outputs(keep="last")
        with attach(f.model, out):
            f.run()
        table.append(
            {
                "who": f"output of the {how} kernel",
                "largest output": far(out.values[site][0][0, :, 0], torch.zeros(())),
            }
        )
    return table


@torch.no_grad()
def torch_fast_path() -> list[Row]:
    """`nn.TransformerEncoderLayer` by torch's fused evaluation path, and tapped."""
    f = FAMILIES["torch-mha"]()
    plain = f.run()
    with attach(f.model):
        empty = f.run()
    _, tapped, _ = watch(f)
    torch.backends.mha.set_fastpath_enabled(False)
    slow = f.run()
    torch.backends.mha.set_fastpath_enabled(True)
    return [
        {"empty attach": far(empty, plain), "tapped": far(tapped, plain), "fast path off, no tap": far(slow, plain)}
    ]


@torch.no_grad()
def real_weights(length: int = 512) -> list[Row]:
    """SmolLM2 on a licence text: the spot check over all 30 layers, `bitwise=False`, and the model's own eager run."""
    from unbraid import zoo

    loaded = zoo.load("smollm2")
    ids = loaded.tokenizer((ROOT / "LICENSE").read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, :length]
    f = Family(loaded.model, {"input_ids": ids, "use_cache": False}, dict, {})
    plain = logits_of(f.run())
    table: list[Row] = []
    entropies: dict[str, dict[str, list[Tensor]]] = {}
    for recipe, bitwise, how in (
        ("rows", True, "sdpa"),
        ("fused", True, "sdpa"),
        ("rows", False, "sdpa"),
        ("rows", True, "eager"),
    ):
        loaded.model.set_attn_implementation(how)
        want = [taps.Entropy(), taps.Mass({"first": [0]}), taps.Received()]
        want += [taps.ArgMax()] if recipe == "rows" else []
        with attach(f.model, *want, recipe=recipe, bitwise=bitwise, check=64) as session:
            out = logits_of(f.run())
        name = f"{how}, {recipe}{'' if bitwise else ', bitwise=False'}"
        entropies[name] = want[0].values
        table.append(
            {
                "run": name,
                "rows checked": session.log.checked_rows,
                "largest error": session.log.largest_error,
                "logits moved": far(out, plain),
                "largest logit": float(plain.abs().max()),
                "next tokens that differ": int((out.argmax(-1) != plain.argmax(-1)).sum()),
            }
        )
    first = entropies["sdpa, rows"]
    for row in table:
        row["entropy moved"] = max(far(entropies[row["run"]][site][0], first[site][0]) for site in first)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "numerics.json")
    parser.add_argument("--without-weights", action="store_true", help="leave out SmolLM2")
    given = parser.parse_args()
    torch.manual_seed(0)
    parts = [
        families,
        half,
        cancellation,
        long_sums,
        indicator_masses,
        width_trap,
        key_bias,
        hidden_rows,
        torch_fast_path,
    ]
    tables = {}
    for part in [*parts, *([] if given.without_weights else [real_weights])]:
        print(f"{part.__name__} ...", file=sys.stderr, flush=True)
        tables[part.__name__] = part()
        show(part.__doc__.splitlines()[0], tables[part.__name__])
    write_json(given.out, {**provenance(), "seed": 0, "tables": tables})
    print(f"written: {given.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
