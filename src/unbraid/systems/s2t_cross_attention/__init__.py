"""How far the cross-attention of a speech-to-text model explains it: saliency, alignment, timestamps, warnings."""

from importlib import import_module

from unbraid.core.system import Card, ClaimSpec

CARD = Card(
    slug="s2t_cross_attention",
    title="Cross-Attention is Half Explanation in Speech-to-Text Models",
    arxiv="2509.18010",
    year=2025,
    field="speech",
    verbs=("see",),
    code="https://github.com/hlt-mt/FBK-fairseq",
    claims=(
        ClaimSpec(
            "half",
            "Cross-attention, averaged over heads and layers, reproduces about half of the relevance of the input.",
            "correlation of cross-attention with input saliency",
            "about .45-.55, best .58",
        ),
        ClaimSpec(
            "encoder-output",
            "It agrees better with the saliency of the encoder's output; the gap is read as context mixing.",
            "correlation with encoder-output saliency",
            "higher by .03-.18; best case .52-.75 depending on model and task",
        ),
        ClaimSpec(
            "aggregation", "Averaging over heads and layers agrees better than single heads.",
            "correlations by head, layer and aggregate", "single heads much lower",
        ),
        ClaimSpec(
            "last-layers", "The last decoder layers agree best.", "correlations by layer", "",
        ),
        ClaimSpec(
            "pooling", "Max pooling over time and frequency keeps more of the agreement than averaging.",
            "ablation of aggregation functions", ".582 with max pooling",
        ),
        ClaimSpec(
            "deletion", "Removing what saliency ranks first hurts more than removing what cross-attention ranks first.",
            "deletion AUC of WER",
            "91.3 full saliency, 52.9 reduced to the resolution of attention (57.0 with max pooling), 41.2 attention",
        ),
        ClaimSpec(
            "timestamps",
            "Word times from attention need no eager model: as near to the true times as transformers' own (ours).",
            "methods sheet: streaming capture under fused attention", "",
        ),
        ClaimSpec(
            "warning", "Cross-attention warns of text that the audio does not support (beyond the paper).",
            "methods sheet: local diagnostics", "",
        ),
        ClaimSpec(
            "world-order", "Where the alignment is known: mean head < mean layer < all heads averaged, on every seed.",
            "methods sheet: synthetic speech",
            ".49-.73 < .60-.80 < .78-.85 over five seeds (sheet)",
        ),
        ClaimSpec(
            "world-truth", "Where the alignment is known: attention and saliency find it, shifted maps do not.",
            "methods sheet: synthetic speech", "both >= .6; shifted <= .2 (sheet)",
        ),
        ClaimSpec(
            "world-deletion", "Where the alignment is known: deletion ranks saliency above attention above chance.",
            "methods sheet: synthetic speech", ".46, .38, .10 (sheet)",
        ),
    ),
)  # fmt: skip

SYSTEM = "unbraid.systems.s2t_cross_attention.system:SpeechCrossAttention"
RUN = "unbraid.systems.s2t_cross_attention.study:run"

_HOME = {
    "SpeechCrossAttention": "system",
    "Explanation": "explanation",
    "Listener": "listener",
    "capture": "tap",
    "CrossAttention": "tap",
    "Plan": "perturb",
    "perturb_input": "perturb",
    "perturb_encoder": "perturb",
    "mean_map": "estimate",
    "regression_map": "estimate",
    "word_times": "align",
    "deletion_curve": "faithful",
    "size_curve": "faithful",
    "flags": "warn",
    "fit_head_weights": "weights",
    "run": "study",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
