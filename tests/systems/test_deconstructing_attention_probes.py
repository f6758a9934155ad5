"""Probes of what a variant can do by its definition: their answers, their levels, their page."""

from itertools import product

import pytest
import torch

from unbraid.systems.deconstructing_attention import capabilities, run
from unbraid.systems.deconstructing_attention.matrix import ability, matrix, picture
from unbraid.systems.deconstructing_attention.placement import VARIANTS


def test_probes_ask_for_what_they_say():
    made = torch.Generator().manual_seed(0)
    ids, answers = capabilities.draw("copy", 3, made)
    assert torch.equal(answers[:, 3:], ids[:, :-3])
    for probe, first in (("value first", 0), ("key first", 1)):
        ids, answers = capabilities.draw(probe, 50, made)
        for row, wanted in zip(ids.tolist(), answers.tolist(), strict=True):
            values, keys = row[first:10:2], row[1 - first : 10 : 2]
            known = dict(zip(keys, values, strict=True))
            assert sorted(row[10:]) == sorted(known)
            assert [known[key] for key in row[10:]] == wanted[10:]
            assert min(values) >= capabilities.KEYS > max(keys)


def test_the_best_guess_from_a_bag():
    assert capabilities.bag() == pytest.approx(0.3865, abs=1e-4)


def test_a_probe_is_learnt_by_who_can():
    """The exact copy is what mixing is for; a token alone says nothing of the one three back."""
    assert capabilities.train(capabilities.Cell("random", "uniform", "copy", "solved", steps=60), 0)["accuracy"] > 0.9
    found = capabilities.train(capabilities.Cell("mlp", "uniform", "copy", "chance", steps=20), 0)
    assert capabilities.as_predicted(found["accuracy"], "chance")
    assert found["skipped"] is None


def test_a_hybrid_is_also_tested_without_its_layers():
    found = capabilities.train(capabilities.Cell("random", "hybrid", "key first", "solved", steps=2), 0)
    assert 0 <= found["skipped"] <= 0.35
    assert found["skipped"] != found["accuracy"]


@pytest.mark.parametrize(
    ("predicted", "inside", "outside"),
    [
        ("solved", [0.97, 1.0], [0.96]), ("bag", [0.36, 0.41], [0.35, 0.42, 1.0]),
        ("chance", [0.08, 0.2], [0.21, 0.39]), ("below", [0.1, 0.89], [0.9]), ("left", [0.1, 0.3], [0.31]),
    ],
)  # fmt: skip
def test_levels_are_those_of_the_sheet(predicted, inside, outside):
    assert all(capabilities.as_predicted(x, predicted) for x in inside)
    assert not any(capabilities.as_predicted(x, predicted) for x in outside)


def made(accuracy=1.0, skipped=0.2, steps=800):
    """All cells of two seeds, as predicted but for one hybrid's figures in the second."""
    level = {"solved": 1.0, "bag": 0.39, "chance": 0.1, "below": 0.5}
    rows = []
    for seed in (0, 1):
        for cell in capabilities.CELLS:
            odd = seed == 1 and (cell.placement, cell.probe) == ("hybrid", "key first")
            rows.append(
                {**cell._replace(steps=steps)._asdict(), "seed": seed,
                 "accuracy": accuracy if odd else level[cell.predicted],
                 "skipped": None if cell.placement == "uniform" else skipped if odd else 0.2}
            )  # fmt: skip
    return rows


def test_the_claim_counts_every_seed_and_names_what_is_not_as_predicted():
    whole = ability(made())
    assert whole.holds
    assert (whole.measured, whole.n, whole.interval) == (1.0, 2, (1.0, 1.0))
    assert ability(made()[:11]).holds is None
    assert "24 accuracies" in whole.note
    failed = ability(made(accuracy=0.5))
    assert failed.holds is False
    assert failed.measured == pytest.approx(22 / 23)  # of an unsolved hybrid nothing is predicted without its layers
    assert "random, hybrid, key first (1 of 2)" in failed.note
    kept = ability(made(skipped=0.6))
    assert kept.holds is False
    assert "random, hybrid, skipped, key first (1 of 2)" in kept.note
    assert ability(made(steps=3)).holds is None
    assert ability([]).holds is None


def test_the_grid_shows_the_table():
    table, (figure,) = matrix(made()), picture(made())
    assert len(table) == 12
    assert {row["texts"] for row in table} == {800 * 64}
    assert figure.columns == capabilities.PROBES
    at = figure.rows.index("static, uniform")
    assert figure.values[at] == (1.0, 1.0, 0.5)
    assert figure.array[figure.rows.index("mlp, uniform"), 1] != 0
    assert picture([]) == []


def test_the_whole_matrix_asks_every_variant_every_probe():
    cells = capabilities.chosen(VARIANTS, ["uniform", "hybrid"], whole=True)
    assert len({c._replace(predicted="") for c in cells}) == len(cells)
    assert {(c.variant, c.probe) for c in cells if c.placement == "uniform"} == set(
        product(VARIANTS, capabilities.PROBES)
    )
    others = set(VARIANTS) - {"standard", "approximate"}
    assert {(c.variant, c.probe) for c in cells if c.placement == "hybrid"} == set(product(others, capabilities.PROBES))
    assert capabilities.chosen(VARIANTS, ["uniform", "hybrid"]) == list(capabilities.CELLS)
    assert capabilities.chosen(["sequence"], ["uniform"]) == []


def test_models_of_more_layers_have_rows_of_their_own():
    cells = [c for c in capabilities.MORE if (c.variant, c.placement, c.probe) == ("mlp", "hybrid", "key first")]
    rows = [
        {**c._asdict(), "seed": 0, "accuracy": {"bag": 0.39, "solved": 1.0}[c.predicted], "skipped": 0.2} for c in cells
    ]
    assert [(r["placement"], r["as predicted"]) for r in matrix(rows)] == [
        ("hybrid", 1), ("hybrid, 4 layers", 1), ("hybrid, 4 layers, skipped", 1),
    ]  # fmt: skip


def test_who_rests_on_the_plateau_is_trained_longer_once():
    cell = capabilities.Cell("static", "hybrid", "value first", "solved", *capabilities.LONG)
    more = capabilities.longer(cell, 0.38)
    assert more == cell._replace(steps=2_500, batch=128)
    assert capabilities.longer(more, 0.38) is None
    assert capabilities.longer(cell, 0.99) is None
    assert capabilities.longer(cell, 0.6) is None
    assert capabilities.longer(cell._replace(predicted="bag"), 0.38) is None


def test_the_probes_run_alone_and_resume(tmp_path):
    given = {"size": "tiny", "seeds": 1, "keep": tmp_path, "progress": False, "parts": ["abilities"]}
    first = run(**given, variants=["mlp", "random"])
    assert {row["variant"] for row in first.tables["abilities"].records} == {"mlp", "random"}
    assert [c.name for c in first.claims if c.measured is not None] == ["abilities"]
    assert [f.kind for f in first.figures] == ["heat_map"]
    assert "<html" in first.to_html()
    again = run(**given, variants=["random"])
    assert again.meta["pieces_read_back"] == 4
