"""XFactors: a VAE whose code has one block per labelled factor and a block for the rest, made by contrast."""

from importlib import import_module

from unbraid.core.system import Card, ClaimSpec

CARD = Card(
    slug="xfactors",
    title="XFactors: Disentangled Information Bottleneck via Contrastive Supervision",
    arxiv="2601.21688",
    year=2026,
    field="factors",
    verbs=("separate", "swap", "see"),
    code="https://github.com/nicoboou/xfactors",
    claims=(
        ClaimSpec(
            "contrast", "The contrastive term makes a labelled factor change when its block is swapped.",
            "method; swaps", "consistent swaps",
        ),
        ClaimSpec(
            "keep", "A swap leaves the other factors as they were.", "swaps", "consistent swaps",
        ),
        ClaimSpec(
            "blocks", "Each labelled factor sits in its own block.", "result files, Shapes3D, all factors",
            "DCI 1.00 / .89 / 1.00 on Shapes3D, .91 / .74 / .93 on dSprites",
        ),
        ClaimSpec(
            "constant", "The same hyper-parameters serve several data sets.", "abstract", "constant hyper-parameters",
        ),
        ClaimSpec(
            "better", "Swaps are better than those of weakly supervised and unsupervised models.", "abstract",
            "state of the art",
        ),
        ClaimSpec(
            "leakage", "At the default strength labelled factors still sit in the residual block too.",
            "a check of this project's: probe of S", "shape from S at .76, chance .33 (method sheet)",
        ),
        ClaimSpec(
            "control", "Driving the residual's rate to the entropy of the unlabelled factors makes swaps better.",
            "a check of this project's: beyond the paper",
        ),
        ClaimSpec(
            "exchange", "Decoding blocks from other images of the same label, with that rate, makes swaps better.",
            "a check of this project's: beyond the paper",
        ),
    ),
)  # fmt: skip

SYSTEM = "unbraid.systems.xfactors.system:XFactors"
RUN = "unbraid.systems.xfactors.study:run"

_HOME = {
    "XFactors": "system",
    "TwoEncoders": "encoders",
    "Frozen": "encoders",
    "Quality": "measuring",
    "quality": "measuring",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
