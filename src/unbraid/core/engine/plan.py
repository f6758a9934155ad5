"""Chooses a recipe for every statistic of a call before it runs, and says what it will cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from unbraid.core.calls import Ask, AttentionCall
from unbraid.core.engine.cost import Rates
from unbraid.core.engine.fused import can_fuse
from unbraid.core.engine.rows import block_shape, pad
from unbraid.core.errors import UnbraidError

BYTES_PER_LOGIT = 9.0  # two float32 buffers, the chunk maxima, and what masks and moments hold for a moment


@dataclass
class Plan:
    """How one call will be answered.

    Attributes:
        recipe: statistic -> "rows" (swept in blocks), "fused" (attention calls) or "dense" (the asked-for rows only).
        fused_calls: attention calls beyond the model's own.
        blocks: row blocks of the sweep, 0 without one.
        bytes: float32 bytes alive at once beyond the model's own, answers included.
        seconds: predicted time beyond the model's own.
        elements: logits that may be alive in one block, within the memory allowed.
    """

    recipe: dict[str, str] = field(default_factory=dict)
    fused_calls: int = 0
    blocks: int = 0
    bytes: int = 0
    seconds: float = 0.0
    elements: int = 0


@dataclass
class Shape:
    """The sizes a plan depends on; can be scaled to another length before anything runs."""

    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
    width: int
    values: int
    causal: bool
    fusable: bool
    additive_mask: bool = False
    converts: bool = False

    @classmethod
    def of(cls, c: AttentionCall) -> Shape:
        """Reads the sizes of a call."""
        made = c.logits is not None
        return cls(
            batch=c.batch,
            heads=c.heads,
            groups=c.heads if made else int(c.key.shape[1]),
            queries=c.queries,
            keys=c.keys,
            width=64 if made else int(c.query.shape[-1]),
            values=64 if made else int(c.value.shape[-1]),
            causal=c.causal,
            fusable=can_fuse(c),
            additive_mask=c.mask is not None and not str(c.mask.dtype).endswith("bool"),
            converts=not made and str(c.query.dtype) != "torch.float32",
        )

    @property
    def seen(self) -> float:
        """Logits that are computed, in units of a thousand million."""
        full = self.batch * self.heads * self.queries * self.keys
        return (full / 2 if self.causal else full) / 1e9


@dataclass
class Wanted:
    """The part of a merged ask that a plan depends on."""

    moments: int = 0
    weights: int = 0
    entries: int = 0
    entry_rows: int = 0
    entropy: bool = False
    top: int = 0
    lse: bool = False
    rows: int = 0

    @classmethod
    def of(cls, ask: Ask, moments: int) -> Wanted:
        """Counts what is asked for; `moments` is the number of columns of all asks together."""
        entries = ask.entries
        return cls(
            moments=moments,
            weights=0 if ask.weights is None else int(ask.weights.shape[-1]),
            entries=0 if entries is None else len(entries[0]),
            entry_rows=0 if entries is None else len(entries[0].unique()),
            entropy=ask.entropy,
            top=ask.top,
            lse=ask.lse,
            rows=0 if ask.rows is None else len(ask.rows),
        )


def plan(
    shape: Shape, wanted: Wanted, rates: Rates, elements: int, *, memory: int | None = None, force: str | None = None
) -> Plan:
    """Chooses the cheapest recipe per statistic.

    Args:
        shape: sizes of the call.
        wanted: what all taps of the site ask for together.
        rates: measured costs of the device.
        elements: logits that may be alive in a block, if memory allows.
        memory: bytes that must not be exceeded.
        force: "rows" or "fused" where the caller wants one recipe (as far as it can answer).

    Raises:
        UnbraidError: the answers alone would need more than `memory`.
    """
    out = Plan()
    scale = shape.width / 64
    fused, rows = _prices(shape, wanted, rates, scale)
    sweep_needed = wanted.top > 0
    if sweep_needed or force == "rows":
        choice = dict.fromkeys(rows, "rows")
    elif force == "fused":
        choice = {k: "fused" if k in fused else "rows" for k in rows}
    else:
        all_rows = rates.base * scale + sum(rows.values())
        best_mixed = sum(min(rows[k], fused.get(k, float("inf"))) for k in rows) + rates.base * scale
        all_fused = sum(fused.values()) if set(fused) == set(rows) else float("inf")
        if rows and all_fused <= min(all_rows, best_mixed):
            choice = dict.fromkeys(rows, "fused")
        else:
            choice = {k: "fused" if fused.get(k, float("inf")) < v else "rows" for k, v in rows.items()}
    out.recipe = choice
    _entries(out, shape, wanted)
    if wanted.rows:
        out.recipe["rows_dense"] = "dense"
    _totals(out, shape, wanted, rates, fused, rows, scale)
    _blocks(out, shape, rates, elements, memory)
    if memory is not None and out.bytes > memory:
        if force is None and "fused" in out.recipe.values():  # row blocks can shrink, fused calls cannot
            return plan(shape, wanted, rates, elements, memory=memory, force="rows")
        raise UnbraidError(
            f"The statistics asked for at one site need {out.bytes / 2**20:,.0f} MiB, more than the "
            f"{memory / 2**20:,.0f} MiB allowed; ask for fewer moments or rows, or raise memory=."
        )
    return out


def _prices(shape: Shape, wanted: Wanted, rates: Rates, scale: float) -> tuple[dict[str, float], dict[str, float]]:
    """(fused, rows): price per visible logit of each statistic by each recipe that can answer it."""
    rows: dict[str, float] = {}
    fused: dict[str, float] = {}
    head_widths = -(-wanted.moments // max(1, shape.width))
    if wanted.moments:
        rows["moments"] = min(rates.moment * wanted.moments, rates.product * head_widths)
        fused["moments"] = rates.fused * scale * head_widths
    if wanted.weights:
        rows["weights"] = rates.weight * wanted.weights
        fused["weights"] = (rates.fused_back + rates.fused) * scale * -(-wanted.weights // shape.width)
    if wanted.entropy:
        rows["entropy"] = rates.entropy + rates.maximum
        if not shape.additive_mask:
            fused["entropy"] = 2 * rates.fused * scale
    if wanted.lse:
        rows["lse"] = rates.maximum
        fused["lse"] = rates.fused * scale
    if wanted.top:
        rows["top"] = rates.maximum * (1 + 0.2 * wanted.top)
    if not shape.fusable:
        fused = {}
    return fused, rows


def _entries(out: Plan, shape: Shape, wanted: Wanted) -> None:
    """Entries: dense rows where few rows are touched or nothing else can, else exp(logit - LSE)."""
    if not wanted.entries:
        return
    few = wanted.entry_rows * 4 <= shape.queries
    out.recipe["entries"] = "dense" if few or not shape.fusable else "fused"


def _totals(
    out: Plan,
    shape: Shape,
    wanted: Wanted,
    rates: Rates,
    fused: dict[str, float],
    rows: dict[str, float],
    scale: float,
) -> None:
    """Fills in calls, bytes and seconds of the chosen recipes, blocks excepted."""
    per_row = shape.batch * shape.heads * shape.queries
    operand = 4 * shape.batch * shape.keys * shape.width
    swept = [k for k, v in out.recipe.items() if v == "rows"]
    price = sum(rows[k] for k in swept) + (rates.base * scale if swept else 0.0)
    if swept:
        out.bytes += 4 * per_row * shape.width
        if shape.converts:
            out.bytes += operand * shape.groups
    needs_lse = (
        out.recipe.get("entropy") == "fused"
        or out.recipe.get("entries") == "fused"
        or (out.recipe.get("lse") == "fused")
    )
    widths = -(-wanted.moments // max(1, shape.width))
    calls = {"moments": widths, "weights": -(-wanted.weights // max(1, shape.width)), "entropy": 1}
    largest = 0
    for name, count in calls.items():
        if out.recipe.get(name) == "fused":
            out.fused_calls += count
            price += fused[name] - (rates.fused * scale if name == "entropy" else 0.0)
            copies = 6 if name == "weights" else 2
            largest = max(largest, copies * (operand * shape.heads + 4 * per_row * shape.width))
    if needs_lse:
        out.fused_calls += 1
        price += rates.fused * scale
        largest = max(largest, operand * shape.heads * 2 + 4 * per_row * (shape.width + 1))
    out.bytes += largest  # fused calls follow one another
    dense_rows = wanted.rows + (wanted.entry_rows if out.recipe.get("entries") == "dense" else 0)
    out.bytes += 3 * 4 * shape.batch * shape.heads * dense_rows * shape.keys
    out.bytes += 4 * per_row * (wanted.moments + wanted.entropy + wanted.lse + 3 * wanted.top)
    out.bytes += 4 * shape.batch * shape.heads * pad(shape.keys) * wanted.weights
    out.seconds = price * shape.seen


def _blocks(out: Plan, shape: Shape, rates: Rates, elements: int, memory: int | None) -> None:
    """Sizes the row blocks by what memory is left, one row of one key head at least; adds their bytes and overhead."""
    if "rows" not in out.recipe.values():
        out.elements = elements
        return
    rep = shape.heads // shape.groups
    if memory is not None:
        elements = min(elements, int((memory - out.bytes) / BYTES_PER_LOGIT))
    out.elements = max(elements, rep * pad(shape.keys))
    b, g, q = block_shape(shape.batch, shape.groups, rep, shape.queries, shape.keys, out.elements)
    out.blocks = -(-shape.batch // b) * -(-shape.groups // g) * -(-shape.queries // q)
    out.bytes += int(BYTES_PER_LOGIT * b * g * q * rep * pad(shape.keys))
    out.seconds += out.blocks * rates.block * 1e-6
