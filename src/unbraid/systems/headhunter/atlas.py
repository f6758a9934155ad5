"""What each head does alone: numbers and pictures, as a page of its own that can be sorted by any of them."""

from __future__ import annotations

import base64
import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unbraid.core.encoding import write_bytes
from unbraid.core.heads import HeadSet
from unbraid.core.mosaic import mosaic
from unbraid.core.pieces import Pieces
from unbraid.core.png import encode_png
from unbraid.core.progress import bar
from unbraid.data.scenes import STYLES
from unbraid.systems.headhunter.evaluating import Evaluator
from unbraid.systems.headhunter.measuring import Found, Items, Plan, World, painted, table_of
from unbraid.systems.headhunter.objectives import Score, objective, scored

COLUMNS = 4  # pictures of each head


@dataclass(eq=False)
class Atlas:
    """Effects and pictures of single heads.

    Attributes:
        objective: what the search was for.
        rows: one a head: label, site, head, change of every score, and how far structure and colour moved.
        plain: [columns, C, H, W] without guidance.
        pictures: [heads, columns, C, H, W], in the order of the rows.
    """

    objective: str
    rows: list[dict[str, Any]]
    plain: np.ndarray
    pictures: np.ndarray


def make_atlas(world: World, plan: Plan, found: Found, store: Pieces, progress: bool | None) -> Atlas:
    """Paints a few pictures with each head alone.

    Args:
        world: the model.
        plan: strength and batch.
        found: the search whose single effects on all of its pictures stand beside.
        store: keeps pictures.
        progress: show a bar.
    """
    given = world.items(found.objective, found.repeat, "search")
    some = Items(given.prompts[:COLUMNS], given.seeds[:COLUMNS])
    scores: dict[str, Score] = {found.objective: world.objectives[found.objective], **world.others}
    if "clarity" in scores:  # pictures of scenes: the oracle tells styles apart
        scores |= dict(objective(f"style:{name}") for name in STYLES)
    paint = world.paint(plan.strength)
    judge = Evaluator(paint, given.prompts, given.seeds, {found.objective: scores[found.objective]}, store,
                      [world.key, plan.strength], plan.batch)  # fmt: skip
    table = table_of(found.single)
    key = [world.key, plan.strength, some.prompts, some.seeds, sorted(world.heads)]
    arrays = store.load_arrays("atlas", key)
    if arrays is None:
        made = []
        with bar(progress, "Painting the atlas", (len(world.heads) + 1) * COLUMNS) as tick:
            sets = [HeadSet(), *(HeadSet([h]) for h in world.heads)]
            made += [painted(paint, one, some, plan.batch, tick) for one in sets]
        arrays = {"images": np.stack(made).astype(np.float32)}
        store.save_arrays("atlas", key, arrays)
    plain, pictures = arrays["images"][0], arrays["images"][1:]
    base = {k: scored(k, f, plain, some.prompts) for k, f in scores.items()}
    everything = range(len(given.prompts))
    known = judge([HeadSet()], everything).mean()
    rows = []
    for head, images in zip(world.heads, pictures, strict=True):
        effect = float(judge([HeadSet([head])], everything).mean() - known)
        row: dict[str, Any] = {"head": table.label(head), "site": head[0], "number": head[1], found.objective: effect}
        for name, f in scores.items():
            if name != found.objective:
                row[name] = float((scored(name, f, images, some.prompts) - base[name]).mean())
        rows.append(row | moved(plain, images))
    return Atlas(found.objective, rows, plain, pictures)


def moved(plain: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """How far colour (means of channels), brightness and structure (brightness less its mean) went."""
    colour = np.abs(images.mean((2, 3)) - plain.mean((2, 3))).mean()
    one, other = (x.mean(1) - x.mean((1, 2, 3))[:, None, None] for x in (plain, images))
    norm = np.sqrt((one**2).sum((1, 2)) * (other**2).sum((1, 2))) + 1e-9
    return {
        "brightness": float((images.mean((1, 2, 3)) - plain.mean((1, 2, 3))).mean()), "colour moved": float(colour),
        "structure kept": float(((one * other).sum((1, 2)) / norm).mean()),
    }  # fmt: skip


def levels(images: np.ndarray) -> np.ndarray:
    """Pictures as 256 levels; those with negative values run from -1.5 to 1.5."""
    shown = images / 3 + 0.5 if images.min() < -0.01 else images
    return np.asarray((shown.clip(0, 1) * 255).round().astype(np.uint8))


def strip(images: np.ndarray) -> str:
    """A row of pictures as a data address."""
    tall = mosaic(levels(images)[None])
    return "data:image/png;base64," + base64.b64encode(encode_png(tall)).decode("ascii")


def write_atlas(atlas: Atlas, path: Path) -> Path:
    """The page; one file, no network, sorted by a menu.

    Args:
        atlas: what to show.
        path: of the file.
    """
    metrics = [k for k, v in atlas.rows[0].items() if isinstance(v, float)]
    cards = []
    for row, images in zip(atlas.rows, atlas.pictures, strict=True):
        said = f"{row['head']}: {row['site']}, head {row['number']}"
        numbers = "".join(f"<tr><td>{html.escape(m)}</td><td>{row[m]:+.3f}</td></tr>" for m in metrics)
        values = html.escape(json.dumps([row[m] for m in metrics]), quote=True)
        cards.append(
            f'<figure data-v="{values}"><img alt="{html.escape(said)}" src="{strip(images)}"><figcaption><b>'
            f"{row['head']}</b> <small>{html.escape(row['site'])}</small><table>{numbers}</table></figcaption></figure>"
        )
    options = "".join(f'<option value="{i}">{html.escape(m)}</option>' for i, m in enumerate(metrics))
    page = PAGE.format(
        objective=html.escape(atlas.objective), options=options, plain=strip(atlas.plain), cards="".join(cards)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, page.encode("utf-8"))
    return path


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Atlas of heads</title><style>
:root{{color-scheme:light dark}}body{{font:15px/1.4 system-ui,sans-serif;margin:1.5rem auto;max-width:90rem;
padding:0 1rem}}
#grid{{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:1rem}}
figure{{margin:0;padding:.6rem;border:1px solid #8884;border-radius:.5rem}}img{{width:100%;image-rendering:pixelated}}
table{{font-size:12px;width:100%}}td+td{{text-align:right;
font-variant-numeric:tabular-nums}}small{{opacity:.7;word-break:break-all}}
</style><h1>Atlas of heads</h1><p>Each card is one head, damaged alone and guided away from; the pictures start from the
same noise as those without guidance below. Numbers are changes against no guidance: {objective} over all pictures of
the search, the others over those shown; structure kept is a correlation of brightness.</p>
<p><label>Sort by <select id="by">{options}</select></label>
<label><input type="checkbox" id="up"> least first</label></p>
<figure style="max-width:18rem"><img alt="without guidance" src="{plain}">
<figcaption>without guidance</figcaption></figure>
<p></p><div id="grid">{cards}</div><script>
const grid=document.getElementById("grid"),by=document.getElementById("by"),up=document.getElementById("up");
function sort(){{const i=+by.value,s=up.checked?1:-1;[...grid.children].map(e=>[JSON.parse(e.dataset.v)[i],e])
.sort((a,b)=>s*(a[0]-b[0])).forEach(p=>grid.append(p[1]))}}by.onchange=up.onchange=sort;sort()</script></html>
"""
