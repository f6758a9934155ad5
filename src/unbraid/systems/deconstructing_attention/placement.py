"""Which layers get a variant: uniform, hybrid, and the paper's nine ablations."""

from __future__ import annotations

from unbraid.core.errors import UnbraidError

VARIANTS = ("standard", "mlp", "approximate", "non_approximate", "random", "sequence", "static")
PLACEMENTS = (
    "uniform", "hybrid", "even", "odd", "top", "middle", "bottom", "quarter", "first", "last", "bilateral",
)  # fmt: skip


def place(variant: str, placement: str, layers: int) -> list[str]:
    """One name of a variant for each layer.

    Layers count from 1, as in the paper. What a placement names is where attention stays *standard*: hybrid and even
    {2, 4, ...}, odd {1, 3, ...}, top (the first half), bottom (the second), middle (the outer quarters), quarter
    {4, 8, ...}, first, last, bilateral (both); uniform: nowhere.

    Args:
        variant: one of `VARIANTS`.
        placement: one of `PLACEMENTS`.
        layers: of the model.

    Raises:
        UnbraidError: a name is unknown, or there are too few layers for the placement to hold both kinds.

    Reference:
        arXiv 2510.11602, placement tables (the table where it and the text differ).
    """
    if variant not in VARIANTS:
        raise UnbraidError(f"variant is {variant!r}; choose one of {', '.join(VARIANTS)}.")
    if placement not in PLACEMENTS:
        raise UnbraidError(f"placement is {placement!r}; choose one of {', '.join(PLACEMENTS)}.")
    if layers < 1:
        raise UnbraidError(f"layers is {layers}; a model has at least 1.")
    n, every = layers, range(1, layers + 1)
    kept = {
        "uniform": set(), "hybrid": {i for i in every if i % 2 == 0}, "even": {i for i in every if i % 2 == 0},
        "odd": {i for i in every if i % 2}, "top": {i for i in every if i <= n // 2},
        "bottom": {i for i in every if i > n // 2}, "quarter": {i for i in every if i % 4 == 0},
        "middle": {i for i in every if i <= n // 4 or i > n - n // 4}, "first": {1}, "last": {n},
        "bilateral": {1, n},
    }[placement]  # fmt: skip
    if placement != "uniform" and (not kept or len(kept) == n):
        raise UnbraidError(f"placement {placement!r} of {layers} layers leaves one kind only; give more layers.")
    return ["standard" if i in kept else variant for i in every]
