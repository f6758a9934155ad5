"""DeBERTa: its attention faster and exact on transformers' own classes, its decoder, its objective, its fine-tuning."""

from importlib import import_module

from unbraid.core.system import Card, ClaimSpec

CARD = Card(
    slug="deberta",
    title="DeBERTa: Decoding-enhanced BERT with Disentangled Attention",
    arxiv="2006.03654",
    year=2020,
    field="language",
    verbs=("see", "swap"),
    code="https://github.com/microsoft/DeBERTa",
    claims=(
        ClaimSpec(
            "exact", "Attention without an index or a copy per pair gives transformers' outputs and gradients.",
            "a check of this project's: method sheet, exactness",
        ),
        ClaimSpec(
            "content-to-position", "Where a word asks for a distance, content-to-position is what finds it.",
            "Section 3.1; two-task check of the method sheet", "without it SQuAD 2.0 F1 81.3 against 82.5 (base)",
        ),
        ClaimSpec(
            "position-to-content", "Where a word says for which distance it is meant, position-to-content finds it.",
            "Section 3.1; two-task check of the method sheet", "without it SQuAD 2.0 F1 80.8 against 82.5 (base)",
        ),
        ClaimSpec(
            "decoder", "Relative positions alone do not tell where in a text a word is; the mask decoder does.",
            "Section 3.2; parity check of the method sheet", "without it SQuAD 2.0 F1 81.3 against 82.5 (base)",
        ),
        ClaimSpec(
            "absolute", "Disentangled attention learns more from the same text than absolute positions.",
            "Section 5.2, ablation", "MNLI-m 86.3 against 84.9, RoBERTa trained alike (base)",
        ),
        ClaimSpec(
            "relative bias", "Disentangled attention learns more from the same text than a bias for each distance.",
            "Section 2 and appendix, the terms that others leave out", "",
        ),
    ),
)  # fmt: skip

SYSTEM = "unbraid.systems.deberta.system:Deberta"
RUN = "unbraid.systems.deberta.study.study:run"

_HOME = {
    "Deberta": "system",
    "accelerate": "swapping",
    "restore": "swapping",
    "accelerated": "swapping",
    "shares": "terms",
    "DebertaV2ForEnhancedMaskedLM": "decoding",
    "DebertaForEnhancedMaskedLM": "decoding",
    "DebertaV2ForReplacedTokens": "decoding",
    "DebertaForReplacedTokens": "decoding",
    "fill_mask": "decoding",
    "mask_spans": "masking",
    "ReplacedTokenDetection": "replacing",
    "DisentangledEmbedding": "replacing",
    "SiFT": "adversarial",
    "consistency": "adversarial",
    "run": "study.study",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
