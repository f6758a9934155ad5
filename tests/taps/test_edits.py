"""Edits: the identity at strength 0, in the order given, equal to their definition, and never a pattern."""

from __future__ import annotations

import pytest
import torch

from tests.parity.families import FAMILIES, logits_of
from unbraid import taps
from unbraid.core.attach import attach
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadSet

SITES = ["model.layers.0.self_attn", "model.layers.1.self_attn"]
HEADS = HeadSet([(SITES[0], 1), (SITES[1], 0), (SITES[1], 3)])
ALL = HeadSet((s, h) for s in SITES for h in range(4))


@pytest.fixture(scope="module")
def llama():
    return FAMILIES["llama-gqa"]()


def run(f, *edits, **options) -> torch.Tensor:
    with torch.no_grad(), attach(f.model, *edits, **options):
        return logits_of(f.run())


def outputs_of(f) -> dict[str, torch.Tensor]:
    keep = taps.Outputs(keep="last")
    run(f, keep)
    return {s: v[0] for s, v in keep.values.items()}


def identities(f) -> dict[str, taps.Observer]:
    n = f.inputs["input_ids"].shape[1]
    keep = taps.Outputs(keep="last")
    run(f, keep)
    given = {s: v[0] for s, v in keep.values.items()}
    mean = keep.mean
    key = {s: torch.randn(1, 2, 3, 16) for s in SITES}
    return {
        "ablate": taps.ablate(HEADS, amount=0.0),
        "ablate-mean": taps.ablate(HEADS, to="mean", mean=mean, amount=0.0),
        "ablate-uniform": taps.ablate(HEADS, to="uniform", amount=0.0),
        "ablate-first": taps.ablate(HEADS, to="first", amount=0.0),
        "scale": taps.scale(HEADS, 1.0),
        "to_identity": taps.to_identity(HEADS, 0.0),
        "bias": taps.bias([0], 0.0, HEADS),
        "allow": taps.allow([0, 1], HEADS, 0.0),
        "allow-map": taps.allow(torch.ones(n, n).tril(-3).bool(), HEADS, 0.0),
        "patch": taps.patch({s: torch.randn_like(v) for s, v in given.items()}, HEADS, amount=0.0),
        "extra": taps.extra(key, key, 0.0, HEADS),
        "replace": taps.replace(lambda c: torch.zeros_like(c.query), HEADS, 0.0),
    }


@pytest.mark.parametrize("name", list(identities(FAMILIES["llama-gqa"]())))
def test_strength_zero_is_the_identity_bit_for_bit(llama, name: str) -> None:
    with torch.no_grad():
        plain = logits_of(llama.run())
    assert torch.equal(run(llama, identities(llama)[name]), plain)


def test_ablating_all_heads_equals_removing_the_layers_attention_output(llama) -> None:
    got = run(llama, taps.ablate(ALL))
    handles = [
        layer.self_attn.o_proj.register_forward_hook(lambda m, a, out: torch.zeros_like(out))
        for layer in llama.model.model.layers
    ]
    with torch.no_grad():
        want = logits_of(llama.run())
    for h in handles:
        h.remove()
    torch.testing.assert_close(got, want)


def test_ablating_one_head_equals_zeroing_its_slice_of_the_projections_input(llama) -> None:
    site, head, width = SITES[1], 2, 16

    def cut(module, args):
        x = args[0].clone()
        x[..., head * width : (head + 1) * width] = 0
        return (x,)

    handle = llama.model.get_submodule(site).o_proj.register_forward_pre_hook(cut)
    with torch.no_grad():
        want = logits_of(llama.run())
    handle.remove()
    torch.testing.assert_close(run(llama, taps.ablate(HeadSet([(site, head)]))), want)


@pytest.mark.parametrize("name", ["llama-nopad", "llama-gqa", "mistral-window", "bert", "gpt-oss"])
@pytest.mark.parametrize("to", ["uniform", "first", "identity"])
def test_closed_forms_equal_the_edited_rows(name: str, to: str) -> None:
    """The edit said on outputs (no pattern) against the same edit said on every row of P."""
    f = FAMILIES[name]()
    sites = list(f.kinds)
    heads = HeadSet([(sites[0], 1), (sites[1], 0)])

    class ByRows(taps.Observer):
        edits_rows = True

        def rows(self, c, p, start):
            pick = heads.by_site().get(c.site, [])
            seen = (p > 0).float()
            if to == "uniform":
                new = seen / seen.sum(-1, keepdim=True).clamp(min=1)
            elif to == "first":
                new = torch.nn.functional.one_hot(seen.argmax(-1), p.shape[-1]).float() * seen.amax(-1, keepdim=True)
            else:
                r = torch.arange(p.shape[2])
                new = torch.zeros_like(p)
                new[:, :, r, start + r] = 1
            out = p.clone()
            out[:, pick] = 0.3 * p[:, pick] + 0.7 * new[:, pick]
            return out

    edit = taps.to_identity(heads, 0.7) if to == "identity" else taps.ablate(heads, to=to, amount=0.7)
    with torch.no_grad():
        with attach(f.model, ByRows()):
            want = logits_of(f.run())
        with attach(f.model, edit) as session:
            got = logits_of(f.run())
    error = (got - want).abs()
    if f.rows is not None:
        error = error[f.rows]
    assert float(error.max()) < 2e-5
    assert session.log.patterns == session.log.sweeps == 0


def test_output_edits_never_compute_a_pattern(llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """No probability is made: neither rows, nor a sweep, nor an n x n tensor in the edits themselves."""
    from unbraid.core.engine import logits, rows, through_rows
    from unbraid.core.engine import run as engine

    for module in (engine, through_rows, rows, logits):
        for name in ("sweep", "dense", "through_rows"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("a pattern was computed"))
    keep = taps.Outputs(keep="last")
    run(llama, keep)
    given = {s: v[0] for s, v in keep.values.items()}
    key = {s: torch.randn(1, 2, 3, 16) for s in SITES}
    for edit in (
        taps.ablate(HEADS), taps.ablate(HEADS, to="uniform"), taps.ablate(HEADS, to="first"),
        taps.ablate(HEADS, to="mean", mean=keep.mean), taps.scale(HEADS, 0.3), taps.to_identity(HEADS, 0.5),
        taps.patch(given, HEADS), taps.extra(key, key, 0.5, HEADS), taps.replace(lambda c: c.query * 0, HEADS),
        taps.bias([0], 1.0, HEADS), taps.allow([0, 3, 4], HEADS),
    ):  # fmt: skip
        run(llama, edit)


def test_edits_compose_in_the_order_given(llama) -> None:
    ones = {s: torch.ones_like(v) for s, v in outputs_of(llama).items()}
    head = HeadSet([(SITES[1], 0)])
    first, second = taps.Outputs(keep="last"), taps.Outputs(keep="last")
    run(llama, taps.patch(ones, head), taps.scale(head, 3.0), first)
    run(llama, taps.scale(head, 3.0), taps.patch(ones, head), second)
    assert float((first.values[SITES[1]][0][:, 0] - 3).abs().max()) == 0
    assert float((second.values[SITES[1]][0][:, 0] - 1).abs().max()) == 0


def test_an_observer_sees_what_the_edits_before_it_left(llama) -> None:
    before, after = taps.Mass({"first": [7]}), taps.Mass({"first": [7]})
    run(llama, before, taps.bias([7], 4.0), after, sites=SITES[0])
    maps = taps.Maps()
    run(llama, maps, sites=SITES[0])
    p = maps.values[SITES[0]][0]
    torch.testing.assert_close(before.values[SITES[0]][0][..., 0], p[..., 7], atol=1e-5, rtol=0)
    weight = p.clone()
    weight[..., 7] *= torch.tensor(4.0).exp()
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-30)
    rows = llama.rows[:, None, :].expand(p.shape[:3])
    assert float((after.values[SITES[0]][0][..., 0] - weight[..., 7])[rows].abs().max()) < 1e-5


@pytest.mark.parametrize(
    "name", ["llama-nopad", "llama-gqa", "gpt2", "gemma2-softcap", "gpt-oss", "t5", "unet", "deberta-v2"]
)
@pytest.mark.parametrize("which", ["bias", "bias-heads", "allow", "allow-map", "allow-soft"])
def test_call_edits_equal_the_same_edit_on_rows(name: str, which: str) -> None:
    f = FAMILIES[name]()
    site = next(iter(f.kinds))
    heads = HeadSet([(site, 1)])
    keep = torch.tensor([0, 1, 2, 4])

    def weights(p: torch.Tensor) -> torch.Tensor:
        w = torch.ones_like(p)
        if which.startswith("bias"):
            w[..., 2] = torch.tensor(1.5).exp()
        else:
            hidden = torch.ones(p.shape[-1], dtype=torch.bool)
            hidden[keep] = False
            w[..., hidden] = 0.0 if which != "allow-soft" else 0.25
        if which in ("bias-heads", "allow-soft"):
            w[:, [h for h in range(p.shape[1]) if h != 1]] = 1.0
        return w

    class ByRows(taps.Observer):
        edits_rows = True

        def rows(self, c, p, start):
            new = p * weights(p)
            if c.sinks is None:
                return new / new.sum(-1, keepdim=True).clamp(min=1e-30)
            rest = 1 - p.sum(-1, keepdim=True)
            return new / (new.sum(-1, keepdim=True) + rest)

    class Sizes(taps.Observer):
        def call(self, c):
            self.n, self.probabilities_only = (c.queries, c.keys), c.value is None

    sizes = Sizes()
    with torch.no_grad(), attach(f.model, sizes, sites=site):
        f.run()
    full = torch.zeros(sizes.n, dtype=torch.bool)
    full[:, keep] = True
    edit = {
        "bias": lambda: taps.bias([2], 1.5),
        "bias-heads": lambda: taps.bias(slice(2, 3), 1.5, heads),
        "allow": lambda: taps.allow(keep),
        "allow-map": lambda: taps.allow(full),
        "allow-soft": lambda: taps.allow(keep, heads, 0.75),
    }[which]()
    got, want = taps.Outputs(keep="last"), taps.Outputs(keep="last")
    maps = taps.Maps()
    with torch.no_grad():
        if sizes.probabilities_only:  # DeBERTa, and T5 before it joined the registry of transformers
            with attach(f.model, edit, maps, sites=site):
                f.run()
            plain = taps.Maps()
            with attach(f.model, plain, sites=site):
                f.run()
            p = plain.values[site][0]
            new = p * weights(p)
            new = new / new.sum(-1, keepdim=True).clamp(min=1e-30)
            error = (maps.values[site][0] - new).abs()
        else:
            with attach(f.model, edit, got, sites=site):
                f.run()
            with attach(f.model, ByRows(), want, sites=site):
                f.run()
            error = (got.values[site][0] - want.values[site][0]).abs()
    if f.rows is not None:
        error = error[f.rows[:, None, :].expand(error.shape[:3])]
    assert float(error.max()) < 1e-5


def test_softmax_seam_edits_and_what_it_refuses() -> None:
    f = FAMILIES["deberta-v2"]()
    site = next(iter(f.kinds))
    heads = HeadSet([(site, 0)])
    with torch.no_grad():
        plain = logits_of(f.run())
    maps = taps.Maps()
    for edit in (taps.ablate(heads), taps.scale(heads, 0.0)):
        zeroed = run(f, edit, maps, sites=site)
        assert float((zeroed - plain).abs().max()) > 1e-4
    for edit in (taps.ablate(heads, to="uniform"), taps.ablate(heads, to="first"), taps.to_identity(heads)):
        run(f, edit)
    with pytest.raises(UnbraidError, match="softmax seam"):
        run(f, taps.patch({site: torch.zeros(1)}, heads))


def test_phases_of_generation(llama) -> None:
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    seen: dict[str, list[int]] = {}
    for phase in ("all", "prefill", "decode"):
        lengths: list[int] = []

        def note(c, lengths=lengths):
            lengths.append(c.queries)
            return torch.zeros_like(c.query)

        with torch.no_grad(), attach(llama.model, taps.replace(note, phase=phase), sites=SITES[0]):
            llama.model.generate(**llama.inputs, **options)
        seen[phase] = lengths
    assert seen["prefill"] == [21]
    assert seen["decode"] == [1, 1, 1]
    assert seen["all"] == [21, 1, 1, 1]


def test_patch_of_positions_and_half_strength(llama) -> None:
    given = {s: torch.ones_like(v) for s, v in outputs_of(llama).items()}
    got = taps.Outputs(keep="last")
    run(llama, taps.patch(given, HeadSet([(SITES[0], 2)]), positions=[3, 4], amount=0.5), got, sites=SITES[0])
    plain = outputs_of(llama)[SITES[0]]
    torch.testing.assert_close(got.values[SITES[0]][0][:, 2, 3:5], 0.5 + 0.5 * plain[:, 2, 3:5])
    torch.testing.assert_close(got.values[SITES[0]][0][:, 2, 5:], plain[:, 2, 5:])


def test_extra_adds_the_attention_to_further_tokens(llama) -> None:
    key, value = torch.randn(1, 2, 3, 16), torch.randn(1, 2, 3, 16)
    got, calls = taps.Outputs(keep="last"), []

    class Note(taps.Observer):
        def call(self, c):
            calls.append(c)

    run(llama, taps.extra({SITES[0]: key}, {SITES[0]: value}, 0.5), got, Note(), sites=SITES[0])
    c = calls[0]
    p = torch.softmax(c.query @ key.repeat_interleave(2, 1).transpose(-1, -2) * c.scale, -1)
    want = outputs_of(llama)[SITES[0]] + 0.5 * p @ value.repeat_interleave(2, 1)
    torch.testing.assert_close(got.values[SITES[0]][0], want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: taps.ablate(HEADS, to="median"), "choose 'zero', 'mean'"),
        (lambda: taps.ablate(HEADS, to="mean"), "needs mean="),
        (lambda: taps.ablate(HEADS, phase="middle"), "choose 'all'"),
        (lambda: taps.ablate(HEADS, amount=float("nan")), "finite"),
        (lambda: taps.allow([0], amount=2), "between 0 and 1"),
        (lambda: taps.Mass({}), "at least one group"),
        (lambda: taps.TopK(0), "k >= 1"),
        (lambda: taps.by_name("sinks"), "choose from"),
        (lambda: taps.Entropy(keep="some"), "choose 'last'"),
        (lambda: taps.Entropy().scores(), "run the model inside"),
    ],
)
def test_bad_arguments(make, message: str) -> None:
    with pytest.raises(UnbraidError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: taps.bias([99], 1.0), "Key 99 does not exist"),
        (lambda: taps.allow(torch.ones(3, dtype=torch.bool)), "has 3 entries"),
        (lambda: taps.allow(torch.ones(3, 3, dtype=torch.bool)), "3 x 3"),
        (lambda: taps.patch({SITES[0]: torch.zeros(1, 1, 1, 1)}), "batch, heads, queries, width"),
        (
            lambda: taps.extra({SITES[0]: torch.zeros(1, 2, 3, 5)}, {SITES[0]: torch.zeros(1, 2, 3, 5)}, 1.0),
            "do not fit",
        ),
        (lambda: taps.replace(lambda c: torch.zeros(1)), "returned"),
        (lambda: taps.Mass({"far": [77]}), "names key 77"),
        (lambda: taps.Mass({"w": torch.ones(4)}), "4 weights"),
        (lambda: taps.Entries([(0, 50)]), "outside"),
        (lambda: taps.Maps(limit=10), "raise limit="),
        (lambda: taps.ablate(None, to="mean", mean={}), "no entry"),
    ],
)
def test_bad_arguments_that_only_the_model_shows(llama, make, message: str) -> None:
    with pytest.raises(UnbraidError, match=message):
        run(llama, make())


def test_to_identity_refuses_cross_attention() -> None:
    f = FAMILIES["t5"]()
    with pytest.raises(UnbraidError, match="needs self-attention"):
        run(f, taps.to_identity(), sites="*EncDecAttention")
