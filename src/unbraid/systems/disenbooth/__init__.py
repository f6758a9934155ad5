"""DisenBooth: a subject learnt from a few photos, apart from what else these photos show."""

from importlib import import_module

from unbraid.core.system import Card, ClaimSpec

CARD = Card(
    slug="disenbooth",
    title="DisenBooth: Identity-Preserving Disentangled Tuning for Subject-Driven Text-to-Image Generation",
    arxiv="2305.03374",
    year=2024,
    field="diffusion",
    verbs=("separate", "swap", "steer"),
    code="https://github.com/forchchch/DisenBooth",
    extras=("diffusion",),
    claims=(
        ClaimSpec(
            "background", "A new scene is followed better than after tuning without the image branch, "
            "at the end of long tuning.", "Sections 4.2 and 4.3; miniature of the method sheet",
            "higher CLIP-T than DreamBooth-LoRA",
        ),
        ClaimSpec(
            "weak", "Weak denoising keeps the subject in the text: the more of it, the smaller the identity error.",
            "Section 3.2, ablation", "identity suffers without it",
        ),
        ClaimSpec(
            "matched", "At equal identity, less of the photos' backgrounds comes back than after DreamBooth-LoRA.",
            "a check of this project's, on photos with known backgrounds",
        ),
        ClaimSpec(
            "irrelevant", "With the image branch alone the reference's background comes back without the subject.",
            "Section 4.4, weights (0, 1)", "backgrounds without the subject",
        ),
        ClaimSpec(
            "contrast", "The contrastive term keeps the image branch from repeating the text.", "Section 3.2, ablation",
            "worse without it",
        ),
        ClaimSpec("mask", "The learnt mask on image features helps.", "Section 3.1, ablation", "worse without it"),
        ClaimSpec(
            "one background", "Photos that all share one background cannot be separated from it.",
            "a check of this project's: method sheet, pitfalls",
        ),
    ),
)  # fmt: skip

SYSTEM = "unbraid.systems.disenbooth.system:DisenBooth"
RUN = "unbraid.systems.disenbooth.study:run"

_HOME = {"DisenBooth": "system", "ImageBranch": "branch", "disen_embeds": "branch"}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
