"""docs/attach.md does what it says, with nothing downloaded; docs/numerics.md shows what was measured."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import torch
from tests.parity.families import FAMILIES

from support.dummy import code_blocks
from unbraid import taps
from unbraid.core.attach import attach
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadSet
from unbraid.core.seams import live

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "attach.md").read_text(encoding="utf-8")
EXAMPLES = [code for language, _, code in code_blocks(PAGE) if language == "python"]
SITE, SECOND = "model.layers.0.self_attn", "model.layers.1.self_attn"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self, address):
        raise OSError(f"an example of the page wants the network: {address}")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def llama():
    return FAMILIES["llama-gqa"]()


@pytest.mark.parametrize("number", range(1, 11))
def test_example_runs_by_itself(number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    code = EXAMPLES[number - 1]
    exec(compile(code, f"docs/attach.md, example {number}", "exec"), {"__name__": "__main__"})
    assert live.left_behind() == []
    assert not live.anyone()
    assert list(tmp_path.iterdir()) == []
    assert "nan" not in capsys.readouterr().out
    assert "assert" in code, "an example that claims nothing shows nothing"


def test_there_are_ten_and_each_says_what_it_costs() -> None:
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    numbered = [s for s in sections if re.match(r"\d+\. ", s)]
    assert [int(s.split(".")[0]) for s in numbered] == list(range(1, 11))
    assert len(EXAMPLES) == 10
    for section in numbered:
        assert section.count("```python") == 1
        assert re.search(r"\bcosts?\b", section.split("```python")[0]), section[:60]


def run(f, *what, **options):
    with torch.no_grad(), attach(f.model, *what, **options) as session:
        f.run()
    return session


def flash(f):
    f.model.set_attn_implementation("flex_attention")
    try:
        run(f, taps.Entropy())
    finally:
        f.model.set_attn_implementation("sdpa")


def dropped(f):
    f.model.train()
    for layer in f.model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    try:
        run(f, taps.bias([0], 1.0))
    finally:
        f.model.eval()
        for layer in f.model.model.layers:
            layer.self_attn.attention_dropout = 0.0


def compiled(f):
    attach(torch.compile(f.model), taps.Entropy())


REFUSALS = {
    "matches no module of": lambda f: attach(f.model, sites="model.layers.0.self_atn"),
    "which this model does not have": lambda f: attach(f.model, taps.ablate(HeadSet([("h.0.attn", 0)]))),
    "is compiled": compiled,
    "needs a torch.nn.Module": lambda f: attach(object(), taps.Entropy()),
    "whose masks and numbers cannot be read": flash,
    "which has heads 0 to": lambda f: run(f, taps.ablate(HeadSet([(SITE, 4)]))),
    "does not exist at": lambda f: run(f, taps.bias([99], 1.0)),
    "MiB allowed": lambda f: run(f, taps.Rows(range(21)), memory=1000),
    "raise limit=": lambda f: run(f, taps.Maps(limit=10)),
    "needs self-attention": lambda f: run(FAMILIES["t5"](), taps.to_identity(), sites="*EncDecAttention"),
    "cannot be joined with attention dropout": dropped,
    "shows its probabilities only": lambda f: run(FAMILIES["deberta-v2"](), taps.patch({})),
    "attach met no attention": lambda f: attach(f.model, taps.Entropy()).__enter__().__exit__(None, None, None),
}


def test_the_table_of_refusals_is_the_one_that_is_tested() -> None:
    rows = [line.split("|") for line in PAGE.split("## What raises, and why")[1].splitlines() if line.startswith("|")]
    assert [row[2].strip().strip("`") for row in rows[2:]] == list(REFUSALS)


@pytest.mark.parametrize("message", list(REFUSALS))
def test_refused_as_the_page_says(llama, message: str) -> None:
    with pytest.raises(UnbraidError, match=re.escape(message)):
        REFUSALS[message](llama)
    assert live.left_behind() == []


def test_nested_sessions_are_answered_together_under_joined_options(llama) -> None:
    outer, inner = taps.Entropy(), taps.Mass({"first": [0]})
    with torch.no_grad(), attach(llama.model, outer, check=3, recipe="rows") as first, attach(llama.model, inner):
        llama.run()
    assert first.report()["sweeps"] == 2  # one per site for both taps
    assert first.report()["spot_check"]["rows"] > 0
    assert set(outer.values) == set(inner.values) == {SITE, SECOND}


def test_output_edits_do_not_change_what_observers_of_the_pattern_see(llama) -> None:
    plain, beside = taps.Mass({"first": [7]}), taps.Mass({"first": [7]})
    run(llama, plain, sites=SITE)
    run(llama, taps.to_identity(), taps.ablate(HeadSet([(SITE, 0)])), beside, sites=SITE)
    assert torch.equal(plain.values[SITE][0], beside.values[SITE][0])


@pytest.mark.filterwarnings("ignore")
def test_checkpointed_layers_are_seen_twice_and_need_backward_inside(llama) -> None:
    model = llama.model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        with attach(model, taps.Entropy()) as session:
            model(**llama.inputs, use_cache=False).logits.square().mean().backward()
        assert session.sites[SITE].calls == 2
        with attach(model, taps.scale(HeadSet([(SITE, 0)]), 0.5)):
            loss = model(**llama.inputs, use_cache=False).logits.square().mean()
        with pytest.raises(torch.utils.checkpoint.CheckpointError):
            loss.backward()
    finally:
        model.gradient_checkpointing_disable()
        model.zero_grad()
        model.eval()


def test_statistics_are_those_of_p_before_dropout(llama) -> None:
    quiet, dropping = taps.Maps(), taps.Maps()
    run(llama, quiet, sites=SITE)
    attention = llama.model.get_submodule(SITE)
    attention.attention_dropout = 0.5
    llama.model.train()
    try:
        torch.manual_seed(0)
        run(llama, dropping, sites=SITE)
    finally:
        attention.attention_dropout = 0.0
        llama.model.eval()
    assert torch.equal(quiet.values[SITE][0], dropping.values[SITE][0])


def test_the_bar_holds_in_what_was_measured() -> None:
    tables = json.loads((ROOT / "results" / "benchmarks" / "numerics.json").read_text(encoding="utf-8"))["tables"]
    largest = tables["families"][-1]
    assert largest["family"] == "largest"
    assert len(tables["families"]) == len(FAMILIES) + 1
    assert max(v for k, v in largest.items() if k != "family") < 1e-5
    assert max(row["largest error"] for row in tables["real_weights"]) < 1e-5


def test_the_numerics_page_shows_what_was_measured() -> None:
    from benchmarks.numerics_page import fill

    page = (ROOT / "docs" / "numerics.md").read_text(encoding="utf-8")
    measured = json.loads((ROOT / "results" / "benchmarks" / "numerics.json").read_text(encoding="utf-8"))
    assert fill(page, measured) == page, "run: python -m benchmarks.numerics_page"
