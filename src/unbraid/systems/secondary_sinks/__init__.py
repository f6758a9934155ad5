"""Secondary sinks: tokens other than the first that become attention sinks in the middle of a network."""

from importlib import import_module

from unbraid.core.system import Card, ClaimSpec

CARD = Card(
    slug="secondary_sinks",
    title="On the Existence and Behaviour of Secondary Attention Sinks",
    arxiv="2512.22213",
    year=2025,
    field="language",
    verbs=("see", "steer"),
    code="https://github.com/JeffreyWong20/Secondary-Attention-Sinks",
    claims=(
        ClaimSpec(
            "exist", "Tokens other than the first become sinks at a middle block, along the first token's direction.",
            "abstract; published detection files, recomputed",
            "0.10 per 1,000 tokens (R1-Distill-Qwen-14B), 0.31 (Qwen3-4B-Base)",
        ),
        ClaimSpec(
            "mlp-origin", "The MLP of the block where a secondary sink appears writes the first token's direction.",
            "notebooks 03 and 04", "its input is not aligned, its output is",
        ),
        ClaimSpec(
            "norm-orders", "The norm of the write orders sink score and lifetime.", "abstract", "rises with the norm"
        ),
        ClaimSpec(
            "primary-dips", "The first token's share of attention dips where secondary sinks appear.", "abstract", ""
        ),
        ClaimSpec(
            "levels", "Pairs of first layer and lifetime are few.", "abstract; published detection files, recomputed",
            "three in QwQ-32B, six in Qwen3-14B; one in Qwen3-4B-Base (21 of 21 sinks)",
        ),
        ClaimSpec(
            "earlier-phase",
            "Tokens become sinks in the same way while the first token stands out before or after its main window "
            "(beyond the paper, whose script looks between the largest rise and the largest fall only).",
            "methods sheet, step 1", "",
        ),
        ClaimSpec(
            "planted", "The detector recovers sinks that were planted in a real architecture (beyond the paper).",
            "methods sheet", "3 of 3 exactly; attention alone finds 9 of 13 layers",
        ),
    ),
)  # fmt: skip

SYSTEM = "unbraid.systems.secondary_sinks.system:SecondarySinks"
RUN = "unbraid.systems.secondary_sinks.study:run"

_HOME = {
    "SecondarySinks": "system",
    "Watch": "watch",
    "Profile": "watch",
    "Monitor": "monitor",
    "own_traces": "traces",
    "Sink": "detect",
    "Primary": "detect",
    "primary_sink": "detect",
    "find_sinks": "detect",
    "sink_levels": "levels",
    "ColumnScores": "columns",
    "mlp_stages": "origin",
    "decompose": "detect",
    "top_neurons": "origin",
    "push_directions": "push",
    "rescale": "handle",
    "window_entropy": "spectrum",
    "plant": "planted",
    "run": "study",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
