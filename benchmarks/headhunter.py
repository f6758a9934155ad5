"""What SoftPAG costs: a guided step next to plain rows and to diffusers' own PAG pipelines on the same model.

    python -m benchmarks.headhunter                    # writes results/benchmarks/headhunter.json

All variants compute the same three rows a picture (unconditional, conditional, damaged). *plain rows* is the denoiser
on as many rows with nothing damaged: what an extra guidance branch costs by itself. *diffusers PAG* is its pipeline,
*unbraid* is `guide`. Passes run back to back in changing order on one thread; times are the processor's, ratios are
taken within rounds, low and high are their quartiles. The last column says how far the latents of both pipelines are
apart in the end. With u = 1 in all heads diffusers leaves out the attention of the damaged rows, whose output nobody
needs; `guide` computes it, because any smaller u needs it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.attention.report import markdown, provenance, show, write_json, write_text
from unbraid.systems.headhunter.guiding import candidates, guide
from unbraid.zoo.reference import parts
from unbraid.zoo.reference.words import tokenizer

OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "headhunter.json"
BAR = 1.03
SCALE, CFG = 3.0, 5.0


def sd(side: int) -> dict[str, Any]:
    """Parts of a Stable Diffusion pipeline, 24 M weights, and what PAG calls all its layers."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=side, in_channels=4, out_channels=4, down_block_types=("CrossAttnDownBlock2D",) * 3,
        mid_block_type="UNetMidBlock2DCrossAttn", up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(96, 192, 256), layers_per_block=1, norm_num_groups=32, cross_attention_dim=128,
        attention_head_dim=8,
    )  # fmt: skip
    words = tokenizer()
    return {
        "unet": unet, "vae": parts.vae(), "scheduler": parts.scheduler(), "tokenizer": words,
        "text_encoder": parts.text_encoder(len(words), words.eos_token_id), "safety_checker": None,
        "feature_extractor": None,
    }  # fmt: skip


def sd3(side: int) -> dict[str, Any]:
    """Parts of a Stable Diffusion 3 pipeline, 17 M weights, without qk-norm."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    words = tokenizer()
    plain = parts.text_encoder(len(words), words.eos_token_id).config.to_dict()
    text = CLIPTextModelWithProjection(CLIPTextConfig(**{**plain, "projection_dim": 128}))
    transformer = SD3Transformer2DModel(
        sample_size=side, patch_size=2, in_channels=4, out_channels=4, num_layers=6, attention_head_dim=32,
        num_attention_heads=8, joint_attention_dim=256, caption_projection_dim=256, pooled_projection_dim=256,
        pos_embed_max_size=side,
    )  # fmt: skip
    return {
        "transformer": transformer, "vae": parts.vae(), "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": text, "tokenizer": words, "text_encoder_2": text, "tokenizer_2": words,
        "text_encoder_3": None, "tokenizer_3": None,
    }  # fmt: skip


def pipelines(kind: str, side: int) -> tuple[Any, Any, dict[str, Any]]:
    """(plain pipeline, PAG pipeline, scope) that share all parts."""
    import diffusers

    torch.manual_seed(0)
    made = sd(side) if kind == "sd" else sd3(side)
    for part in made.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    if kind == "sd":
        plain = diffusers.StableDiffusionPipeline(**made, requires_safety_checker=False)
        other = diffusers.StableDiffusionPAGPipeline(
            **made, requires_safety_checker=False, pag_applied_layers=["down", "mid", "up"]
        )
        return plain, other, {}
    layers = [f"transformer_blocks.{i}" for i in range(6)]
    return diffusers.StableDiffusion3Pipeline(**made), diffusers.StableDiffusion3PAGPipeline(
        **made, pag_applied_layers=layers
    ), {"scope": "image"}  # fmt: skip


def timed(run: Callable[[], Any]) -> float:
    """Seconds of processor time of a call: on a machine that others use too, the clock on the wall says little."""
    start = time.process_time()
    run()
    return time.process_time() - start


def rounds(variants: dict[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Seconds of each, round after round in changing order, after one that loads everything."""
    names = list(variants)
    for name in names:
        variants[name]()
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(count):
        order = names[number % len(names) :] + names[: number % len(names)]
        for name in order if number % 2 else reversed(order):
            found[name].append(variants[name]())
    return found


def ratio(found: dict[str, list[float]], one: str, other: str) -> dict[str, float]:
    """Median of the ratios within rounds, and their quartiles."""
    each = [a / b for a, b in zip(found[one], found[other], strict=True)]
    low, middle, high = statistics.quantiles(each, n=4)
    return {"ratio": middle, "low": low, "high": high}


def forwards(kind: str, side: int, pictures: int, count: int) -> list[dict[str, Any]]:
    """One step's forward: plain rows against damaged rows, by all heads and by three."""
    plain, _, scope = pipelines(kind, side)
    denoiser = plain.unet if kind == "sd" else plain.transformer
    every = candidates(plain)
    width = 128 if kind == "sd" else 256

    def given(rows: int) -> dict[str, Any]:
        g = torch.Generator().manual_seed(1)
        x, words = torch.randn(rows, 4, side, side, generator=g), torch.randn(rows, 40, width, generator=g)
        if kind == "sd":
            return {"sample": x, "timestep": torch.tensor(500), "encoder_hidden_states": words}
        return {
            "hidden_states": x, "timestep": torch.full((rows,), 500.0), "encoder_hidden_states": words,
            "pooled_projections": torch.randn(rows, 256, generator=g),
        }  # fmt: skip

    plain._guidance_scale = CFG  # as inside its call: the rows are unconditional ones, then conditional ones
    three, two, rows = given(3 * pictures), given(2 * pictures), []
    cases: list[tuple[str, Any, float, dict[str, Any]]] = [
        ("all heads, u = 1", every, 1.0, {}), ("three heads, u = 1", type(every)(list(every)[1:40:13]), 1.0, {}),
        ("all heads, u = .5", every, 0.5, {}),
    ]  # fmt: skip
    cases += [("all heads, u = 1, as diffusers: image only", every, 1.0, scope)] if scope else []
    for name, heads, u, more in cases:
        guidance = guide(plain, heads, u, SCALE, **more)

        def ours(guidance: Any = guidance) -> float:
            with guidance:  # opened once a picture, not once a step
                return timed(lambda: denoiser(**two))

        with torch.no_grad():
            found = rounds({"plain rows": lambda: timed(lambda: denoiser(**three)), "unbraid": ours}, count)
        ratios = ratio(found, "unbraid", "plain rows")
        rows.append(
            {"model": kind, "what": f"forward, {name}", "against": "plain rows", "rounds": count,
             "seconds": statistics.median(found["unbraid"]), **ratios, "bar": BAR, "met": ratios["ratio"] <= BAR}
        )  # fmt: skip
    return rows


def steps(kind: str, side: int, pictures: int, count: int, length: int = 3) -> list[dict[str, Any]]:
    """A step of the pipelines: diffusers' PAG against `guide`, all layers and u = 1; and how far the latents differ."""
    plain, other, scope = pipelines(kind, side)
    said = {"prompt": ["a red star"] * pictures, "num_inference_steps": length, "guidance_scale": CFG}
    said |= {"output_type": "latent", "height": side * 4, "width": side * 4}
    for pipe in (plain, other):
        pipe.set_progress_bar_config(disable=True)

    def chance() -> Any:
        return [torch.Generator().manual_seed(i) for i in range(pictures)]

    def theirs() -> Any:
        return other(**said, generator=chance(), pag_scale=SCALE).images

    def ours() -> Any:
        with guide(plain, candidates(plain), 1.0, SCALE, **scope):
            return plain(**said, generator=chance()).images

    apart = float((theirs() - ours()).abs().max())
    found = rounds({"diffusers PAG": lambda: timed(theirs), "unbraid": lambda: timed(ours)}, count)
    ratios = ratio(found, "unbraid", "diffusers PAG")
    return [
        {"model": kind, "what": "step of a pipeline, all heads", "against": "diffusers PAG", "rounds": count,
         "seconds": statistics.median(found["unbraid"]) / length, **ratios, "latents differ by": apart}
    ]  # fmt: skip


def main() -> int:
    """Runs both models and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32, help="of the latents (32)")
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows: list[dict[str, Any]] = []
    for kind in ("sd", "sd3"):
        rows += forwards(kind, given.side, given.pictures, given.rounds)
        rows += steps(kind, given.side, given.pictures, given.rounds)
        show("SoftPAG", rows)
    write_json(given.out, {**provenance(), "rows": rows})
    command = f"`python -m benchmarks.headhunter --side {given.side} --rounds {given.rounds} --threads {given.threads}`"
    write_text(given.out.with_suffix(".md"), command + "\n\n" + markdown(rows) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
