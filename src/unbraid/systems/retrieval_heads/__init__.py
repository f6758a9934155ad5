"""Retrieval heads: which attention heads copy facts out of a long context, and what happens without them."""

from importlib import import_module

from unbraid.core.system import Card, ClaimSpec

CARD = Card(
    slug="retrieval_heads",
    title="Retrieval Head Mechanistically Explains Long-Context Factuality",
    arxiv="2404.15574",
    year=2024,
    field="language",
    verbs=("see", "steer"),
    code="https://github.com/nightdessert/Retrieval_Head",
    claims=(
        ClaimSpec(
            "few-heads",
            "Only a few heads of a model copy: the share with a retrieval score of 0.1 or more is small.",
            "table of head shares; recomputed from the published score files",
            "3-6 % of heads (2.1-6.2 % over seven models)",
        ),
        ClaimSpec(
            "many-zero", "About half of all heads or more never copy at all.",
            "recomputed from the published score files", "49-73 % of heads have score 0",
        ),
        ClaimSpec(
            "causal", "Masking the top heads hurts finding a needle more than masking as many random heads.",
            "needle-in-a-haystack masking curves",
            "below 50 % for all tested models at 50 masked heads; random heads cost little",
        ),
        ClaimSpec(
            "sample-efficient", "A few trials already find the top heads.", "recomputed from the published score files",
            "10 trials correlate .993 with the full mean",
        ),
        ClaimSpec(
            "dynamic", "Some heads copy in every context, others only in some.", "score against activation frequency",
            "12 of 1,024 heads of Llama-2-7B-80K always active",
        ),
        ClaimSpec(
            "one-pass", "One pass with the gold answer finds the heads that decoding finds (beyond the paper).",
            "methods sheet", "",
        ),
    ),
)  # fmt: skip

SYSTEM = "unbraid.systems.retrieval_heads.system:RetrievalHeads"
RUN = "unbraid.systems.retrieval_heads.study:run"

_HOME = {
    "RetrievalHeads": "system",
    "Trial": "trial",
    "build_trial": "trial",
    "Needle": "prose",
    "needle": "prose",
    "haystack": "prose",
    "Monitor": "monitor",
    "export_kvpress": "export",
    "mask_curve": "masking",
    "train_copy_model": "copy_model",
    "run": "study",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
