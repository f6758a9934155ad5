"""The survey's taxonomy (sections 3 to 5) and what stands here for each branch: the toolkit's table of contents."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Branch:
    """One branch of the survey.

    Attributes:
        section: of the survey.
        name: of the branch.
        methods: published methods that this toolkit has.
        names: what to import for them.
        missing: methods of this branch that are not here.
    """

    section: str
    name: str
    methods: str
    names: tuple[str, ...]
    missing: str = ""


TAXONOMY = (
    Branch(
        "2", "Detection", "ten metrics in one pass, in linear memory", ("report", "AttentionSinks"),
    ),
    Branch(
        "3.1", "Sink token preservation",
        "StreamingLLM, H2O, A2SF, SnapKV, DuoAttention; quantised keys and values with exact sinks (IntactKV, KVSink)",
        ("StreamingCache", "H2OCache", "A2SFCache", "SnapKVCache", "DuoCache", "ProtectedQuantizedCache"),
        "PyramidKV, MInference, SKVQ, RotateKV, video rollouts",
    ),
    Branch(
        "3.2", "Attention redistribution",
        "fixed and proportional redistribution, VAR, ACT, ZeroTuning (test-time registers: 3.3)",
        ("redistribute", "scale_sinks", "visual_redistribution", "calibrate_sinks", "zero_tune"),
        "AttnReal, GasEraser, VASparse, EVAS, Pos2Distill, T-SAM",
    ),
    Branch(
        "3.3", "Learnable prefix tokens", "registers without training",
        ("find_register_neurons", "registers_at_test_time"),
        "CushionCache, CTR-Sink, EARN, UniGist (learned registers: 5)",
    ),
    Branch("3.4", "Sink token repurposing", "KeyDiff", ("KeyDiffCache",), "OmniSparse; attacks and defences"),
    Branch("4.1", "No-op", "with and without the sinks' write and attention", ("noop_probe",)),
    Branch("4.2", "Outlier circuits", "neurons, channel, keys; the channel held at zero", ("outlier_circuit",)),
    Branch("4.3", "Implicit attention bias", "the mean write put back; constancy", ("bias_probe",)),
    Branch("4.4", "Geometric anchoring", "angles to the sink by block", ("geometry",)),
    Branch(
        "4.5", "Others", "anti-overmixing", ("mixing",),
        "structural bias, spectral, active-dormant, mix-compress-refine, rescaling",
    ),
    Branch(
        "5", "Mitigation by training",
        "clipped softmax, softmax-1, sink logits, KV and key bias, softpick, elastic, sigmoid, three gates, a scaling "
        "factor, learned registers; losses against sinks (`variants.losses`)",
        ("convert", "describe_variants", "load_converted"),
        "integral attention, OrthoAdam, OSP, massive-emergence-layer mask, GatedNorm, V-scale, EDIT",
    ),
)  # fmt: skip


def rows() -> list[dict[str, str]]:
    """The taxonomy as rows of a table."""
    return [
        {key: ", ".join(value) if isinstance(value, tuple) else value for key, value in asdict(branch).items()}
        for branch in TAXONOMY
    ]
