"""HeadHunter and SoftPAG: guidance of diffusion models by damaging chosen attention heads, and the search for them."""

from importlib import import_module

from unbraid.core.system import Card, ClaimSpec

CARD = Card(
    slug="headhunter",
    title="Fine-Grained Perturbation Guidance via Attention Head Selection",
    arxiv="2506.10978",
    year=2025,
    field="diffusion",
    verbs=("steer", "see"),
    extras=("diffusion",),
    code="https://github.com/cvlab-kaist/HeadHunter",
    claims=(
        ClaimSpec(
            "heads", "Chosen heads steer an objective further than the best whole layer of as many heads.",
            "quantitative comparison, COCO-1K", "6 of 24 heads match the best layer, more are better",
        ),
        ClaimSpec(
            "search", "The search finds better sets than chance.", "Section on HeadHunter", "Figure of heads per round",
        ),
        ClaimSpec(
            "iterate", "Adding heads round by round is no worse than taking the best of the first round.",
            "Section on HeadHunter", "iterate rather than one-shot",
        ),
        ClaimSpec(
            "smooth", "The strength u moves the objective smoothly between no guidance and full replacement.",
            "Section on SoftPAG", "continuous control",
        ),
        ClaimSpec(
            "relief", "Moderate strength keeps what full replacement of attention loses.", "Section on SoftPAG",
            "best u below 1 for most metrics; FID about 50 at u=.5, k=9",
        ),
        ClaimSpec(
            "style", "Heads found for a style raise that style on prompts that the search has not seen.",
            "Table of styles, 50 unseen prompts", "PickScore 19.66 to 20.70, .591 lower ImageReward to .470",
        ),
        ClaimSpec(
            "adherence", "They do so without lowering how well pictures follow their prompts.",
            "Table of styles, 50 unseen prompts", "ImageReward -.591 to .470",
        ),
        ClaimSpec(
            "quality", "Heads found for quality give better pictures than no guidance.", "Table of general quality",
            "PickScore above none",
        ),
        ClaimSpec(
            "planted", "Where only three heads do anything, the ranking returns them first.",
            "a check of this project's", "",
        ),
    ),
)  # fmt: skip

SYSTEM = "unbraid.systems.headhunter.system:HeadHunter"
RUN = "unbraid.systems.headhunter.study:run"

_HOME = {
    "HeadHunter": "system",
    "Recipe": "recipe",
    "Guidance": "guiding",
    "guide": "guiding",
    "candidates": "guiding",
    "hunt": "search",
    "objective": "objectives",
    "SoftPAGGuider": "guider",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
