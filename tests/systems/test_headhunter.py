"""The search: what it finds where the truth is known, what it costs, that nothing is lost; recipes and objectives."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import unbraid
from tests.support.pipelines import small
from unbraid import HeadSet, attach, taps
from unbraid.core.errors import UnbraidError
from unbraid.core.pieces import Pieces
from unbraid.data.scenes import STYLES, render, sample
from unbraid.diffusion import Parts, paint
from unbraid.systems.headhunter import stripes
from unbraid.systems.headhunter.evaluating import Evaluator, painter
from unbraid.systems.headhunter.guiding import candidates
from unbraid.systems.headhunter.objectives import diversity, objective
from unbraid.systems.headhunter.recipe import Recipe
from unbraid.systems.headhunter.search import budget, draws, hunt, layers
from unbraid.systems.headhunter.study import run

HEADS = HeadSet((f"block.{layer}", h) for layer in range(3) for h in range(4))
WORTH = dict(zip(HEADS, [0.0, 0.3, -0.2, 0.1, 0.5, -0.4, 0.2, 0.0, 0.4, -0.1, 0.6, -0.3], strict=True))


class Additive:
    """A score that is a sum of what heads are worth, and of what pairs add."""

    def __init__(self, pairs: dict | None = None) -> None:
        self.pairs, self.asked, self.painted = pairs or {}, 0, set()

    def __call__(self, sets, items) -> np.ndarray:
        self.asked += len(sets) * len(items)
        self.painted |= {(one, i) for one in sets for i in items}
        values = [sum(WORTH[h] for h in s) + sum(v for p, v in self.pairs.items() if set(p) <= set(s)) for s in sets]
        return np.array(values)[:, None] + np.zeros(len(items))


def test_heads_are_added_round_by_round_in_the_order_of_their_worth() -> None:
    judge = Additive()
    found = hunt(judge, HEADS, 4, k=2, rounds=3)
    best = sorted(HEADS, key=lambda h: -WORTH[h])[:6]
    assert list(found.heads) == best
    assert found.score == pytest.approx(sum(WORTH[h] for h in best))
    assert [row["candidates"] for row in found.trace] == [12, 10, 8]
    assert found.single is not None
    assert {h: pytest.approx(found.single[h]) for h in HEADS} == WORTH
    assert judge.asked == budget(12, 4, 2, 3)


def test_rounds_see_what_heads_do_together_and_one_shot_does_not() -> None:
    poor, best = ("block.2", 3), max(HEADS, key=WORTH.__getitem__)
    judge = Additive({(poor, best): 2.0})
    assert poor in hunt(judge, HEADS, 2, k=1, rounds=2).heads
    assert poor not in hunt(judge, HEADS, 2, k=2, rounds=1).heads


def test_a_search_that_gains_nothing_stops() -> None:
    on = hunt(Additive(), HEADS, 2, k=3, rounds=4, stop=True)
    off = hunt(Additive(), HEADS, 2, k=3, rounds=4)
    assert on.stopped
    assert set(on.heads) == {h for h in HEADS if WORTH[h] > 0}
    assert len(off.heads) == 12
    assert not off.stopped
    assert on.score > off.score


def test_halving_finds_the_same_for_less() -> None:
    full, half = Additive(), Additive()
    one, other = hunt(full, HEADS, 8, k=2, rounds=1), hunt(half, HEADS, 8, k=2, rounds=1, halving=3)
    assert one.heads == other.heads
    assert len(half.painted) < 0.6 * len(full.painted)
    assert half.asked == budget(12, 8, 2, 1, 3)
    assert other.single is not None
    assert int(np.isnan(other.single.array).sum()) == 9


def test_sets_to_compare_with() -> None:
    assert [len(s) for s in layers(HEADS)] == [4, 4, 4]
    drawn = draws(HEADS, 5, 3, seed=1)
    assert [len(s) for s in drawn] == [5, 5, 5]
    assert drawn == draws(HEADS, 5, 3, seed=1) != draws(HEADS, 5, 3, seed=2)


@pytest.fixture(scope="module")
def toy():
    return stripes.train(seed=100, steps=15)


def test_planted_heads_are_found_first_and_others_do_nothing(toy) -> None:
    model = stripes.transformer(0)
    model.load_state_dict(toy.state_dict())
    three = HeadSet(
        [("transformer_blocks.0.attn", 2), ("transformer_blocks.2.attn", 0), ("transformer_blocks.3.attn", 1)]
    )
    stripes.plant(model.eval(), three)
    found = hunt(stripes.change(model, list(range(4))), candidates(model), 4, k=3, rounds=1)
    assert found.heads == three
    assert found.single is not None
    assert all((found.single[h] > 0) == (h in three) for h in candidates(model))


def test_candidates_painted_together_are_those_painted_alone_and_nothing_is_painted_twice(toy, tmp_path) -> None:
    paint, heads = stripes.painter(toy, 0.5, 1.0), list(candidates(toy))
    sets = [HeadSet(heads[:2]), HeadSet(), HeadSet(heads[7:8])]
    scores = {"contrast": stripes.contrast}

    def judge(batch: int, folder=None) -> Evaluator:
        return Evaluator(paint, ["x"] * 4, range(4), scores, Pieces(folder), "toy", batch)

    together, alone = judge(16)(sets, range(4)), judge(1)(sets, range(4))
    np.testing.assert_allclose(together, alone, atol=1e-5)
    first = judge(5, tmp_path)
    first(sets[:2], range(2))
    second = judge(5, tmp_path)
    np.testing.assert_allclose(second(sets, range(4)), together, atol=1e-5)
    assert (first.painted, second.painted, second.read_back) == (4, 8, 4)


def test_image_scope_of_all_heads_is_the_pag_of_diffusers_for_sd3() -> None:
    from diffusers.models.attention_processor import PAGJointAttnProcessor2_0

    model = Parts.of(small("sd3")).denoiser.double()
    torch.manual_seed(1)
    x, words, pooled = torch.randn(2, 4, 16, 16), torch.randn(2, 9, 256), torch.randn(2, 256)
    given = {"hidden_states": x, "encoder_hidden_states": words, "pooled_projections": pooled}
    given = {k: v.double() for k, v in given.items()}
    t = torch.tensor([500.0, 500.0], dtype=torch.float64)
    with torch.no_grad():
        with attach(model, taps.perturb(scope="image")):
            ours = model(**given, timestep=t).sample
        model.set_attn_processor(PAGJointAttnProcessor2_0())
        twice = {k: torch.cat([v, v]) for k, v in given.items()}
        theirs = model(**twice, timestep=torch.cat([t, t])).sample[2:]
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_a_search_on_a_pipeline_is_kept_goes_on_and_travels_as_json(tmp_path) -> None:
    pipe = small("sd")
    said = ["a red star", "a blue moon"]
    asked: list[int] = []

    def redness(images: np.ndarray, prompts) -> np.ndarray:
        asked.append(len(images))
        return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))

    options = {"k": 1, "rounds": 1, "steps": 2, "sites": "mid_block*", "batch": 5}
    hunter = unbraid.create("headhunter", objective=redness, **options).fit(pipe, said, keep=tmp_path, progress=False)
    assert len(hunter.heads_) == 1
    assert sum(asked) == 2 * (1 + 4)
    again = unbraid.create("headhunter", objective=redness, **options).fit(pipe, said, keep=tmp_path, progress=False)
    assert sum(asked) == 10
    assert again.heads_ == hunter.heads_
    path = hunter.recipe(strength=0.5).save(tmp_path / "red.json")
    recipe = Recipe.load(path)
    assert recipe == Recipe.load(path)
    assert (recipe.objective, recipe.strength, recipe.head_set) == ("redness", 0.5, hunter.heads_)
    with recipe.guide(pipe, strength=1.0, weight=3.0):
        one = paint(pipe, said, [0, 1], steps=2, guidance=0.0, progress=False)
    make = painter(pipe, 1.0, 3.0, steps=2)
    np.testing.assert_allclose(one, make([hunter.heads_] * 2, said, [0, 1]), atol=1e-4)
    assert float(redness(one, said).mean()) == pytest.approx(hunter.score_, abs=1e-4)


def test_objectives_see_what_they_are_named_after() -> None:
    scenes = sample(24, 5)
    images = render(scenes, 64)
    for style in STYLES:
        found = objective(f"style:{style}")[1](images, [""] * 24)
        assert np.all((found > 0.5) == [s.style == style for s in scenes])
    plain, grey = images[:2], np.full((2, 3, 64, 64), 0.4)
    for name in ("contrast", "saturation", "detail"):
        assert (objective(name)[1](plain, ["", ""]) > objective(name)[1](grey, ["", ""])).all()
    said = ["a sketch of a red star on a blue background"] * 24
    whole, rest = (objective(name)[1](images, said) for name in ("prompt", "content"))
    assert whole.shape == rest.shape == (24,)
    assert diversity(images) > diversity(images[:1].repeat(5, 0)) == pytest.approx(0, abs=1e-5)


def test_clip_compares_pictures_with_their_words() -> None:
    from unbraid.zoo.reference import parts
    from unbraid.zoo.reference.words import tokenizer

    words = tokenizer()
    model = parts.clip(len(words), words.eos_token_id).eval()
    score = objective_of_clip(model, words)
    images = render(sample(3, 0), 64)
    found = score(images, ["a red star", "a blue moon", "a red star"])
    ids = words(["a red star"], padding="max_length", max_length=40, return_tensors="pt").input_ids
    with torch.no_grad():
        made = model(pixel_values=torch.from_numpy(images[:1]) * 2 - 1, input_ids=ids)
    assert found[0] == pytest.approx(float((made.image_embeds * made.text_embeds).sum()), abs=1e-5)


def objective_of_clip(model, words):
    from unbraid.systems.headhunter.objectives import clip

    return clip((model, words, ((0.5,) * 3, (0.5,) * 3)))


def test_the_study_reports_every_claim_and_writes_what_travels(tmp_path) -> None:
    options = {"size": "tiny", "steps": 10, "search": 2, "fresh": 3, "progress": False}
    result = run(objectives=["contrast"], seeds=1, out=tmp_path, **options)
    names = {c.name for c in result.claims}
    assert {"heads", "search", "iterate", "smooth", "relief", "planted"} <= names
    assert {row["method"] for row in result.tables["methods"].records} >= {"none", "HeadHunter", "best layer", "random"}
    assert next(c for c in result.claims if c.name == "planted").holds
    assert Recipe.load(tmp_path / "heads-contrast-0.json").objective == "contrast"
    page = (tmp_path / "atlas.html").read_text()
    assert page.count("<figure data-v") == 16
    assert json.loads(json.dumps(result.to_dict()))


def test_the_study_runs_on_a_pipeline(tmp_path) -> None:
    small("sd").save_pretrained(tmp_path / "pipe")
    result = run(
        str(tmp_path / "pipe"), ["style:sketch"], seeds=1, size="tiny", steps=1, fresh=2, sites=["mid_block*"],
        out=tmp_path / "page", progress=False,
    )  # fmt: skip
    row = result.tables["methods"].records[0]
    assert {"content", "clarity", "diversity"} <= set(row)
    assert next(c for c in result.claims if c.name == "adherence").measured is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "tiny-sdd"}, "did you mean .tiny-sd"),
        ({"model": "x/y", "objectives": ["styl:sketch"]}, "Did you mean 'style'"),
        ({"model": "x/y", "objectives": ["style:scetch"]}, "Did you mean 'sketch'"),
        ({"model": "x/y", "prompts": ["a moon", " "]}, "prompt 1 is ' '"),
        ({"model": "x/y", "unseen": ["a moon"]}, "--prompts too"),
        ({"objectives": ["style:sketch"]}, "the stripes know"),
        ({"prompts": ["a moon"]}, "take no prompts"),
        ({"strength": 1.2}, "strength is 1.2"),
        ({"weight": 0.0}, "weight is 0"),
        ({"seeds": 0}, "seeds is 0"),
        ({"kind": "uniform"}, "kind identity"),
    ],
)
def test_wrong_input_is_told_before_any_work(options, said) -> None:
    with pytest.raises(UnbraidError, match=said):
        run(**options)


def test_wrong_input_of_the_classes_is_told(tmp_path) -> None:
    pipe = small("sd")
    hunter = unbraid.create("headhunter")
    for made, said in (
        (lambda: hunter.fit(pipe, []), "at least one prompt"),
        (lambda: hunter.fit(pipe, ["a moon", ""]), "prompt 1 is ''"),
        (lambda: hunter.fit(pipe, ["a moon"], seeds=[1, 2]), "2 seeds"),
        (lambda: hunter.fit(torch.nn.Linear(1, 1), ["a moon"]), "no attention"),
        (lambda: hunter.guide(pipe), "call fit"),
        (lambda: unbraid.create("headhunter", strength=2.0).fit(pipe, ["a moon"]), "between 0"),
        (lambda: unbraid.create("headhunter", sites="mid_blok*").fit(pipe, ["a moon"]), "Close names"),
        (lambda: unbraid.create("headhunter", objective=lambda i, p: np.ones(99), sites="mid*", steps=1)
         .fit(pipe, ["a moon"], progress=False), "must give a number each"),
        (lambda: hunt(Additive(), HeadSet(), 1), "no heads"),
        (lambda: hunt(Additive(), HEADS, 1, k=0), "k is 0"),
        (lambda: Recipe.load(tmp_path / "none.json"), "cannot be read"),
        (lambda: Recipe((("mid_block.x", 0),)).guide(pipe), "has no attention"),
    ):  # fmt: skip
        with pytest.raises(UnbraidError, match=said):
            made()
    other = tmp_path / "other.json"
    other.write_text('{"a": 1}')
    with pytest.raises(UnbraidError, match="holds no set of heads"):
        Recipe.load(other)
