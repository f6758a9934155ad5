"""Attention sinks: a toolkit in the order of the survey, to measure them, use them, change them and ask why."""

from importlib import import_module

from unbraid.core.system import Card, ClaimSpec

CARD = Card(
    slug="attention_sinks",
    title="Attention Sink in Transformers: A Survey on Utilization, Interpretation, and Mitigation",
    arxiv="2604.10098",
    year=2026,
    field="language",
    verbs=("see", "steer", "swap"),
    code="https://github.com/ZunhaiSu/Awesome-Attention-Sink",
    claims=(
        ClaimSpec(
            "window-explodes", "Without the first tokens a sliding window loses the text; four sinks bring it back.",
            "survey 3.1; StreamingLLM, arXiv 2309.17453, Table 1",
            "perplexity 5158 with a plain window of 1,024 tokens, 5.4 with 4 sinks and 1,020 (Llama-2-13B)",
        ),
        ClaimSpec(
            "first-token", "A large part of all attention goes to the first token.",
            "survey 5.1; gated attention, arXiv 2505.06708", "46.7 % of attention (baseline model of that paper)",
        ),
        ClaimSpec(
            "no-op", "Sinks get attention and write next to nothing: the write can go, the attention cannot.",
            "survey 4.1", "",
        ),
        ClaimSpec(
            "bias", "What sinks write acts as a constant bias: its mean over other texts can stand in for it.",
            "survey 4.3", "",
        ),
        ClaimSpec(
            "circuit", "Sinks hang on a massive channel: held at zero, the sinks are gone.", "survey 4.2", "",
        ),
        ClaimSpec(
            "key-geometry", "Keys unlike the others are the ones that are attended to.",
            "KeyDiff, arXiv 2504.15364", "Spearman's rank correlation about .94",
        ),
        ClaimSpec(
            "overmixing", "Sinks keep tokens from mixing: without BOS a change of one token spreads further.",
            "survey 4.5", "",
        ),
        ClaimSpec(
            "protected-quantisation", "Keys and values in few bits lose less when sinks stay in full precision.",
            "survey 3.1; IntactKV, arXiv 2403.01241", "",
        ),
    ),
)  # fmt: skip

SYSTEM = "unbraid.systems.attention_sinks.system:AttentionSinks"
RUN = "unbraid.systems.attention_sinks.experiments.study:run"

_HOME = {
    "AttentionSinks": "system",
    "TAXONOMY": "taxonomy",
    "SinkReport": "detection.findings",
    "report": "detection.findings",
    "channel_sinks": "detection.metrics",
    "key_distinctiveness": "detection.metrics",
    "StreamingCache": "caches.streaming",
    "H2OCache": "caches.scored",
    "A2SFCache": "caches.scored",
    "SnapKVCache": "caches.scored",
    "KeyDiffCache": "caches.scored",
    "DuoCache": "caches.duo",
    "ProtectedQuantizedCache": "caches.quantised",
    "AffineQuantizedLayer": "caches.quantised",
    "stream_losses": "caches.exact",
    "cache_losses": "caches.exact",
    "cache_bytes": "caches.kept",
    "first_tokens": "steering.parts",
    "scale_sinks": "steering.mass_edits",
    "redistribute": "steering.mass_edits",
    "visual_redistribution": "steering.mass_edits",
    "var_sites": "steering.mass_edits",
    "calibrate_sinks": "steering.mass_edits",
    "head_groups": "steering.tuning",
    "zero_tune": "steering.tuning",
    "find_register_neurons": "steering.registers",
    "registers_at_test_time": "steering.registers",
    "noop_probe": "probes.causes",
    "bias_probe": "probes.causes",
    "outlier_circuit": "probes.circuit",
    "geometry": "probes.shape",
    "mixing": "probes.shape",
    "convert": "variants.convert",
    "load_converted": "variants.convert",
    "describe_variants": "variants.catalogue",
    "run": "experiments.study",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
