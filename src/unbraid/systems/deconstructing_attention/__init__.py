"""Attention taken apart: what is left of a language model when mixing, form, dependence or queries are relaxed."""

from importlib import import_module

from unbraid.core.system import Card, ClaimSpec

CARD = Card(
    slug="deconstructing_attention",
    title="Deconstructing Attention: Investigating Design Principles for Effective Language Modeling",
    arxiv="2510.11602",
    year=2025,
    field="language",
    verbs=("see", "swap"),
    code="https://github.com/HUIYINXUE/DeconAttn",
    claims=(
        ClaimSpec(
            "mixing", "Without mixing of tokens in any layer a model is far worse than with attention.",
            "Table 1, 500M", "WikiText perplexity 993.5 against 38.1",
        ),
        ClaimSpec(
            "form", "A polynomial in place of the exponential costs little, less than fixed or static maps.",
            "Table 1, 500M", "WikiText perplexity 47.9 against 79.1 (the best of the three others)",
        ),
        ClaimSpec(
            "sequence", "Maps that are the same for all texts are enough when every second layer is standard.",
            "Table 1, 500M", "WikiText perplexity 39.3 against 38.1",
        ),
        ClaimSpec(
            "cooperation", "Every variant is better interleaved with standard attention than alone.",
            "Table 1, 500M", "for each of six variants",
        ),
        ClaimSpec(
            "mixing in a part", "Interleaved, no mixing is the worst of the variants.",
            "Table 1, 500M", "WikiText perplexity 45.8 against at most 39.4",
        ),
        ClaimSpec(
            "training", "A trained hybrid collapses when its variant layers are left out.",
            "Table 1, 500M", "WikiText perplexity of at least 2e4",
        ),
        ClaimSpec(
            "logits", "Pooling by keys alone drives logits out of bounds when alone, and not when interleaved.",
            "Analysis of logits, 500M", "beyond 1,000 in the last layers of uniform, below 10 in the hybrid",
        ),
        ClaimSpec(
            "abilities", "What a variant can move and bind follows from its definition, alone and interleaved.",
            "Definitions of the variants; the probes are ours", "no figure: solved, or the level of a known guess",
        ),
    ),
)  # fmt: skip

SYSTEM = "unbraid.systems.deconstructing_attention.swapping:DeconstructedAttention"
RUN = "unbraid.systems.deconstructing_attention.study:run"

_HOME = {
    "DeconstructedAttention": "swapping",
    "deconstruct": "swapping",
    "convert": "converting",
    "search": "searching",
    "restore": "swapping",
    "skip": "swapping",
    "load": "swapping",
    "memory": "swapping",
    "variants_of": "swapping",
    "place": "placement",
    "taylor": "mixing",
    "pooled": "mixing",
    "indicators": "indicating",
    "maps": "indicating",
    "logits": "indicating",
    "run": "study",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
