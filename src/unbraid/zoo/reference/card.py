"""Model cards: what is the same for all, what was counted, and scores that a file has, never typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TITLES = {
    "tiny-sd": "a StableDiffusionPipeline of scenes, 64 x 64 pixels",
    "tiny-sd3": "a StableDiffusion3Pipeline of scenes, 64 x 64 pixels",
    "tiny-clip": "a CLIPModel of scenes, 64 x 64 pixels",
}
STAGES = {"tiny-sd": ("vae", "sd"), "tiny-sd3": ("vae", "clip", "sd3"), "tiny-clip": ("clip",)}
PARTS = {
    "tiny-sd": "Text encoder (trained along), UNet with cross-attention at 16, 8 and 4, autoencoder to 4 x 16 x 16, "
    "v-prediction with Stable Diffusion's noise, DDIM.",
    "tiny-sd3": "Joint attention over words and patches of 2 x 2 latents, flow matching with logit-normal times, two "
    "text encoders (the first trained along, the second that of tiny-clip), in T5's place one that says nothing, "
    "autoencoder to 4 x 16 x 16.",
    "tiny-clip": "Three layers for words, four for patches of 8 x 8 pixels, symmetric contrast.",
}
USE = {
    "tiny-sd": "from diffusers import StableDiffusionPipeline\nfrom unbraid import zoo\n\n"
    'pipe = StableDiffusionPipeline.from_pretrained(zoo.fetch("tiny-sd"))\n'
    'pipe("a yellow star above a blue ring, in the snow").images[0]',
    "tiny-sd3": "from diffusers import StableDiffusion3Pipeline\nfrom unbraid import zoo\n\n"
    'pipe = StableDiffusion3Pipeline.from_pretrained(zoo.fetch("tiny-sd3"))\n'
    'pipe("a yellow star above a blue ring, in the snow").images[0]',
    "tiny-clip": "from transformers import CLIPModel, CLIPTokenizer\nfrom unbraid import zoo\n\n"
    'folder = zoo.fetch("tiny-clip")\n'
    "model, words = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)",
}


def card(
    name: str,
    folder: Path,
    steps: int | None,
    preview: bool,
    scores: dict[str, Any] | None,
    began: str | None = None,
) -> str:
    """The README.md of a packed model.

    Args:
        name: of the model.
        folder: its files, which are counted.
        steps: of its training.
        preview: whether the training was not over.
        scores: what was measured of these very weights; None: nothing was.
        began: steps of the weights that it went on with, which a commit before this one holds.
    """
    tag = "zero-shot-image-classification" if name == "tiny-clip" else "text-to-image"
    head = ["---", "license: apache-2.0", f"pipeline_tag: {tag}", f"library_name: {_library(name)}", "---", ""]
    note = ["**A preview: its training was not over.**", ""] if preview else []
    commands = [f"    python -m unbraid.zoo.reference {stage} --keep runs/reference" for stage in STAGES[name]]
    if steps:
        commands[-1] += f" --steps {steps}"
    if name == "tiny-sd3":
        commands[-1] += " --compiled"
    if began:
        commands[-1] += " --start EARLIER"
    files = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    lines = [
        *head, f"# {name}: {TITLES[name]}", "", *note, PARTS[name], "", "```python", USE[name], "```", "",
        "| | |", "| --- | --- |",
        f"| weights | {_count(folder):,} numbers in half precision, {files / 1e6:.1f} MB |",
        "| data | 60,000 drawn scenes of the split `train` of `unbraid.data.scenes` (seed 0), captions worded anew at "
        "each step; the autoencoder: new scenes at each step |",
        f"| steps | {f'{began}, then ' if began else ''}{f'{steps:,}' if steps else 'not known'} |",
        "| seed | 0 |",
        "| weights kept | the running mean, decay 0.9995 |",
        "| licence | Apache-2.0, as Unbraid; nobody's data or weights are in it |",
        "", "Trained on two CPU cores by", "", *commands, f"    python -m unbraid.zoo.reference pack {name}", "",
        "It knows the 64 words of `unbraid.data.scenes.vocabulary()` and nothing of the world. It stands in for a "
        "large model of its kind in tests, tutorials and studies with known truth.", "", "## Scores", "",
        *_scored(scores),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _scored(scores: dict[str, Any] | None) -> list[str]:
    if not scores:
        return ["None were measured of these weights."]
    lines: list[str] = []
    for title, rows in scores["tables"].items():
        lines += [f"{title}:", "", *table(rows), ""]
    return [*lines, f"`{scores['command']}`"]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return [*lines, *("| " + " | ".join(cell(row.get(key)) for key in names) + " |" for row in rows)]


def cell(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _count(folder: Path) -> int:
    from math import prod

    from safetensors import safe_open

    total = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "np") as file:
            total += sum(prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return total


def _library(name: str) -> str:
    return "transformers" if name == "tiny-clip" else "diffusers"
