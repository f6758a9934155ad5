"""From cells to tables: medians, ratios, agreement, the distance from the arithmetic, and the bars that were set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.attention.cells import HEADS, LAYERS, VARIANTS

MIB = 2**20
WIDTH, KEY_HEADS, HIDDEN, MIDDLE, VOCABULARY = 64, 3, 576, 1536, 49152  # SmolLM2
Row = dict[str, Any]
Where = tuple[str, int]  # (variant, length)


@dataclass
class Seen:
    """What was measured.

    Attributes:
        times: (variant, length) -> what each timed process reported.
        memory: (variant, length) -> what the process for its memory reported.
        machine: what the machine can do, once per repeat.
        paths: (variant, length) -> file of its statistics.
        skipped: (variant, length) -> why it was left out.
    """

    times: dict[Where, list[Row]] = field(default_factory=dict)
    memory: dict[Where, Row] = field(default_factory=dict)
    machine: list[Row] = field(default_factory=list)
    paths: dict[Where, Path] = field(default_factory=dict)
    skipped: dict[Where, str] = field(default_factory=dict)

    def seconds(self, variant: str, length: int) -> float | None:
        """Median over fresh processes of the median within each."""
        runs = self.times.get((variant, length))
        return None if runs is None else median(median(run["seconds"]) for run in runs)

    def mib(self, variant: str, length: int) -> float | None:
        """MiB beyond the loaded model."""
        run = self.memory.get((variant, length))
        return None if run is None else run["extra_bytes"] / MIB


def table(seen: Seen, lengths: list[int]) -> list[Row]:
    """A line per length and variant; ratios are to the plain forward of the same length."""
    rows = []
    for length in lengths:
        base, least = seen.seconds("plain", length), seen.mib("plain", length)
        for variant in VARIANTS:
            where = (variant.name, length)
            took, more = seen.seconds(*where), seen.mib(*where)
            row: Row = {"tokens": length, "variant": variant.label}
            if took is None:
                rows.append({**row, "note": seen.skipped.get(where, "not run")})
                continue
            each = [median(run["seconds"]) for run in seen.times[where]]
            row |= {"s": took, "fastest": min(each), "slowest": max(each)}
            row["x plain"] = took / base if base else None
            row["MiB"] = more
            row["MiB beyond plain"] = more - least if more is not None and least is not None else None
            rows.append(row)
    return rows


def agreement(paths: dict[Where, Path], lengths: list[int]) -> list[Row]:
    """Largest differences of statistics to eager's (else to the default attach), and of logits to the plain model's."""
    import numpy as np
    from safetensors.numpy import load_file

    rows = []
    for length in lengths:
        known = {name: path for (name, n), path in paths.items() if n == length and path.exists()}
        order = ("eager-layers", "eager-maps", "attach")
        reference = next((name for name in order if name in known), None)
        right = load_file(known[reference]) if reference else {}
        logits = load_file(known["plain"])["logits"] if "plain" in known else None
        for variant in VARIANTS:
            if variant.name not in known or variant.name == "plain":
                continue
            got = load_file(known[variant.name])
            row: Row = {"tokens": length, "variant": variant.label, "reference": reference}
            names = {"entropy": "entropy", "mass": "mass", "received": "received, mean over queries"}
            row |= dict.fromkeys((*names.values(), "rows whose arg-max differs", "of rows"))
            for name, label in names.items():
                if name in got and name in right and variant.name != reference:
                    error = float(np.abs(got[name].astype(np.float64) - right[name]).max())
                    row[label] = error / length if name == "received" else error
            if "argmax" in got and variant.name != reference:
                row["rows whose arg-max differs"] = int((got["argmax"] != right["argmax"]).sum())
                row["of rows"] = int(right["argmax"].size)
            if logits is not None:
                row["logits"] = float(np.abs(got["logits"] - logits).max())
            rows.append(row)
    return rows


def flops(length: int) -> dict[str, float]:
    """Floating-point operations of SmolLM2's forward on one text, and of the statistics' own product.

    Half of the pattern is hidden by causality; a kernel that skips that half, as torch's does, does half the work.
    """
    projections = 2 * HIDDEN * WIDTH * HEADS + 2 * HIDDEN * WIDTH * KEY_HEADS  # q and output, k and v
    linear = 2.0 * length * LAYERS * (projections + 3 * HIDDEN * MIDDLE) + 2.0 * HIDDEN * VOCABULARY
    logits = LAYERS * HEADS * length * (length + 1) / 2
    return {"linear": linear, "attention": logits * 4 * WIDTH, "second_product": logits * 2 * WIDTH, "logits": logits}


def arithmetic(seen: Seen, lengths: list[int]) -> list[Row]:
    """Measured times over the time that the products alone would take at the measured rate of a large product.

    The statistics need at least a second product of queries and keys, and one pass that turns logits to probabilities.
    """
    if not seen.machine:
        return []
    rate = median(m["product_gflops"] for m in seen.machine) * 1e9
    softmax = median(m["softmax_ns_per_logit"] for m in seen.machine) * 1e-9
    rows = []
    for length in lengths:
        work = flops(length)
        whole = work["linear"] + work["attention"]
        least = work["second_product"] / rate + work["logits"] * softmax
        plain = seen.seconds("plain", length)
        row: Row = {"tokens": length, "plain, TFLOP": whole / 1e12, "products alone, s": whole / rate}
        row["plain / products"] = plain * rate / whole if plain else None
        row |= {"statistics, TFLOP": work["second_product"] / 1e12, "product and softmax, s": least}
        for name, label in (("attach", "default"), ("attach-free", "bitwise=False")):
            took = seen.seconds(name, length)
            more = took - plain if plain and took else None
            row[f"statistics, {label}, s"] = more
            row[f"{label} / arithmetic"] = None if more is None else more / least
        rows.append(row)
    return rows


def bars(seen: Seen, lengths: list[int]) -> list[Row]:
    """What issue 2 wanted of (b), what was measured, and whether it is met; only what was measured."""
    rows: list[Row] = []

    def bar(what: str, length: int, sign: str, limit: float, measured: float | None) -> None:
        if measured is not None:
            met = measured <= limit if sign == "<=" else measured >= limit
            rows.append(
                {"bar": what, "tokens": length, "wanted": f"{sign} {limit:g}", "measured": measured, "met": met}
            )

    def ratio(x: float | None, y: float | None) -> float | None:
        return None if x is None or y is None else x / y

    def beyond(name: str, length: int) -> float | None:
        more, least = seen.mib(name, length), seen.mib("plain", length)
        return None if more is None or least is None else more - least

    for name, label in (("attach", "(b) default"), ("attach-free", "(b) bitwise=False")):
        for length in lengths:
            b = seen.seconds(name, length)
            limit = {2048: 1.4, 4096: 1.8}.get(length)
            if limit is not None:
                bar(f"{label}: time / (a)", length, "<=", limit, ratio(b, seen.seconds("plain", length)))
            if length < 2048:
                continue
            more = beyond(name, length)
            for slow, what in (("eager-maps", "(c)"), ("eager-layers", "(c) layer by layer")):
                bar(f"{what} / {label}: time", length, ">=", 3.3, ratio(seen.seconds(slow, length), b))
                least = None if more is None else max(1.0, more)  # MiB; the engine may even need less than the model
                bar(f"{what} / {label}: memory beyond (a)", length, ">=", 10, ratio(beyond(slow, length), least))
            if length == 8192 and more is not None:
                bar(f"{label}: GB beyond (a)", length, "<=", 0.5, more * MIB / 1e9)
    for length in lengths:
        base = seen.seconds("plain", length)
        bar("(b0) empty attach: time / (a)", length, "<=", 1.03, ratio(seen.seconds("empty", length), base))
    return rows
