"""Cross-attention of speech models: maps against the models' own, estimators against definitions, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.core.attach import attach
from unbraid.core.calls import Tap
from unbraid.core.errors import UnbraidError
from unbraid.core.pieces import Pieces
from unbraid.core.system import System
from unbraid.data import speech
from unbraid.data.speech.shipped import from_mu_law, to_mu_law
from unbraid.systems.s2t_cross_attention import SpeechCrossAttention, align, faithful, flags, maps, perturb, segments
from unbraid.systems.s2t_cross_attention.estimate import (
    mean_map,
    occluded,
    regression_map,
    relative_error,
    reliability,
    token_map,
)
from unbraid.systems.s2t_cross_attention.explanation import Explanation
from unbraid.systems.s2t_cross_attention.listener import Listener, check_model
from unbraid.systems.s2t_cross_attention.segments import Masks
from unbraid.systems.s2t_cross_attention.tap import CrossAttention, capture
from unbraid.systems.s2t_cross_attention.toy import (
    auroc,
    check_world,
    linear_expectation,
    linear_runs,
    world_model,
)
from unbraid.systems.s2t_cross_attention.weights import fit_head_weights, held_out

IDS = [3, 7, 5, 9, 2]
SMALL = {
    "masks": 24,
    "encoder_masks": 24,
    "granularities": (40, 80),
    "widths": (1, 2),
    "segments": "grid",
    "batch_size": 8,
}


def whisper(**changes):
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    options = {
        "vocab_size": 20, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_mel_bins": 8,
        "max_source_positions": 30, "max_target_positions": 24, "decoder_start_token_id": 0, "bos_token_id": 0,
        "eos_token_id": 2, "pad_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None,
    }  # fmt: skip
    model = WhisperForConditionalGeneration(WhisperConfig(**options | changes)).eval()
    model.generation_config.suppress_tokens = model.generation_config.begin_suppress_tokens = None
    return model, torch.randn(8, 60, generator=torch.Generator().manual_seed(1))


def speech2text():
    from transformers import Speech2TextConfig, Speech2TextForConditionalGeneration

    torch.manual_seed(0)
    config = Speech2TextConfig(
        vocab_size=20, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, input_feat_per_channel=8, conv_channels=16,
        max_source_positions=80, max_target_positions=24, decoder_start_token_id=0, bos_token_id=0, eos_token_id=2,
        pad_token_id=1,
    )  # fmt: skip
    return Speech2TextForConditionalGeneration(config).eval(), torch.randn(
        60, 8, generator=torch.Generator().manual_seed(1)
    )


def moonshine():
    from transformers import MoonshineConfig, MoonshineForConditionalGeneration

    torch.manual_seed(0)
    config = MoonshineConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, encoder_num_hidden_layers=2, decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2, decoder_num_attention_heads=2, decoder_start_token_id=0, bos_token_id=0,
        eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    wave = torch.randn(9600, generator=torch.Generator().manual_seed(1)) * 0.1
    return MoonshineForConditionalGeneration(config).eval(), wave


FAMILIES = {"whisper": whisper, "speech2text": speech2text, "moonshine": moonshine}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]()


def heard_of(model, features, context="full"):
    listener = Listener(model, None, context)
    heard = listener.take(features)
    return listener, heard, listener.encode(heard.raw, heard.valid)


# --- attention ---------------------------------------------------------------------------------------------------


def test_maps_are_the_models_own_and_it_stays_on_fused_attention(family):
    model, features = family
    listener, _, states = heard_of(model, features)
    before = model.config._attn_implementation
    found = capture(listener, states, IDS)
    assert model.config._attn_implementation == before
    if "Speech2Text" not in type(model).__name__:  # which transformers offers as eager only
        assert before == "sdpa"
    model.set_attn_implementation("eager")
    inputs, rows, _ = listener.forced(IDS)
    with torch.no_grad():
        out = model(encoder_outputs=listener.wrapped(states), decoder_input_ids=inputs, output_attentions=True)
    want = torch.stack([a[0, :, rows.start : rows.stop] for a in out.cross_attentions])
    torch.testing.assert_close(found.maps, want, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.maps.sum(-1), torch.ones(2, 2, len(IDS)), atol=1e-5, rtol=0)


def test_rows_are_those_that_predict_the_tokens(family):
    """Row i predicts token i: its log-probability is that of teacher forcing, and it never sees token i itself."""
    model, features = family
    listener, _, states = heard_of(model, features)
    found = capture(listener, states, IDS)
    other = capture(listener, states, [*IDS[:-1], 11])
    torch.testing.assert_close(found.maps, other.maps)
    with torch.no_grad():
        logits = model(
            encoder_outputs=listener.wrapped(states), decoder_input_ids=torch.tensor([[0, *IDS[:-1]]])
        ).logits
    want = logits[0].log_softmax(-1)[torch.arange(len(IDS)), torch.tensor(IDS)]
    torch.testing.assert_close(found.log_probs, want, atol=1e-5, rtol=1e-4)


def test_norm_weighted_attention_by_brute_force():
    model, features = whisper()
    listener, _, states = heard_of(model, features)
    found = capture(listener, states, IDS, norms=True)
    for layer, block in enumerate(model.model.decoder.layers):
        module = block.encoder_attn
        v = module.v_proj(states)[0].view(-1, 2, 8)
        for i in range(len(IDS)):
            parts = torch.stack([
                torch.stack([found.maps[layer, h, i, j] * (module.out_proj.weight[:, 8 * h : 8 * h + 8] @ v[j, h])
                             for j in range(v.shape[0])]) for h in range(2)
            ])  # fmt: skip
            torch.testing.assert_close(found.head_norms[layer, :, i], parts.norm(dim=-1), atol=1e-5, rtol=1e-3)
            torch.testing.assert_close(found.layer_norms[layer, i], parts.sum(0).norm(dim=-1), atol=1e-5, rtol=1e-3)


class Nudge(Tap):
    """Makes one probability larger by a factor, without normalising again."""

    edits_rows = True

    def __init__(self, layer: int, head: int, row: int, key: int, factor: float) -> None:
        self.place, self.factor = (layer, head, row, key), factor

    def wants(self, c):
        return c.kind == "cross" and f"layers.{self.place[0]}." in c.site

    def rows(self, c, p, start):
        _, head, row, key = self.place
        p = p.clone()
        p[0, head, row - start, key] *= self.factor
        return p


def test_attention_times_gradient_by_finite_differences():
    model, features = whisper()
    model = model.double()
    listener, heard, _ = heard_of(model, features)
    states = listener.encode(heard.raw)
    found = capture(listener, states, IDS, gradients=True)
    inputs, rows, tokens = listener.forced(IDS)
    checked = 0
    for layer, head, row, key in [
        (0, 0, 1, 3),
        (0, 1, 2, 20),
        (1, 0, 0, 7),
        (1, 1, 4, 11),
        (0, 0, 4, 29),
        (1, 0, 3, 2),
    ]:
        sums = []
        for factor in (1 + 1e-2, 1 - 1e-2):
            with torch.no_grad(), attach(model, Nudge(layer, head, row, key, factor)):
                z = listener.logits(states, inputs)[0, rows.start : rows.stop].log_softmax(-1)
            sums.append(float(z[torch.arange(len(IDS)), tokens].sum()))
        want = (sums[0] - sums[1]) / 2e-2  # d / d log alpha = alpha * d / d alpha
        got = float(found.gradients[layer, head, row, key])
        assert got == pytest.approx(max(want, 0.0), abs=2e-5, rel=2e-2)
        checked += want > 1e-5
    assert checked
    with torch.no_grad():
        again = capture(listener, states, IDS, gradients=True)
    torch.testing.assert_close(again.gradients, found.gradients)


def test_rows_can_be_streamed_while_generating():
    model, features = whisper()
    listener, _, states = heard_of(model, features)
    tap = CrossAttention()
    with attach(model, tap):
        ids = listener.transcribe(states, beams=1, longest=6)[0]
    forced = capture(listener, states, ids)
    streamed = torch.stack([m[0] for m in tap.maps.values()])
    torch.testing.assert_close(streamed[:, :, : len(ids)], forced.maps, atol=1e-5, rtol=0)


def test_a_fitted_context_shares_weights_and_changes_only_what_is_heard():
    model, features = whisper()
    listener = Listener(model, None, "fit")
    heard = listener.take(features, valid=4)
    states = listener.encode(heard.raw, heard.valid)
    assert states.shape[1] == min(30, 2 + 25)
    full = Listener(model, None).encode(heard.raw)
    assert full.shape[1] == 30
    short = listener._fitted(27)
    assert short.conv1.weight is model.model.encoder.conv1.weight
    assert model.model.encoder.embed_positions.num_embeddings == 30
    whole = listener.take(features)
    torch.testing.assert_close(listener.encode(whole.raw, whole.valid), full)


# --- perturbation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scorer", ["kl", "probability"])
def test_batched_runs_equal_one_mask_at_a_time(family, scorer):
    model, features = family
    listener, heard, states = heard_of(model, features)
    masks = Masks([segments.rectangles(*heard.shape, n) for n in (12, 30)], batch=5, seed=3)
    plan = perturb.Plan(masks=20, scorer=scorer, fill="mean")
    runs = perturb.perturb_input(listener, heard, IDS, masks, plan)
    inputs, rows, tokens = listener.forced(IDS)
    before = perturb.reference(listener, states, inputs, rows)
    fill = perturb.fill_values(heard.grid, heard.valid, "mean")
    at = torch.arange(len(IDS))
    for number in range(20):
        keep = masks.draw(number // 5)[number % 5][masks.labels[masks.granularity(number // 5)]]
        with torch.no_grad():
            x = listener.batch(heard, keep[None], fill)
            now = listener.logits(listener.encode(x), inputs)[0, rows.start : rows.stop].log_softmax(-1)
        want = torch.nn.functional.kl_div(now, before, log_target=True, reduction="none").sum(-1)
        if scorer == "probability":
            want = before[at, tokens].exp() - now[at, tokens].exp()
        np.testing.assert_allclose(runs.scores[number], want.numpy(), atol=2e-6, rtol=1e-3)


def test_encoder_runs_zero_windows_of_states(family):
    model, features = family
    listener, _, states = heard_of(model, features)
    valid = states.shape[1] - 1
    masks = Masks([segments.windows(valid, w) for w in (1, 3)], batch=4)
    runs = perturb.perturb_encoder(listener, states, valid, IDS, masks, perturb.Plan(masks=8))
    inputs, rows, _ = listener.forced(IDS)
    before = perturb.reference(listener, states, inputs, rows)
    for number in range(8):
        keep = masks.draw(number // 4)[number % 4][masks.labels[masks.granularity(number // 4)]]
        changed = states.clone()
        changed[0, :valid][~torch.from_numpy(keep)] = 0
        now = perturb.reference(listener, changed, inputs, rows)
        want = torch.nn.functional.kl_div(now, before, log_target=True, reduction="none").sum(-1)
        np.testing.assert_allclose(runs.scores[number], want.numpy(), atol=2e-6, rtol=1e-3)


def test_what_occlusion_does_to_the_input():
    model, features = whisper()
    listener, heard, _ = heard_of(model, features)
    heard.valid = 40
    keep = np.ones((1, 40, 8), bool)
    keep[0, 10:20, 2] = False
    x = listener.batch(heard, keep, torch.tensor([-5.0]))
    changed = (x != heard.raw)[0]
    assert changed.sum() == 10
    assert (x[0, 2, 10:20] == -5).all()
    s2t, frames = speech2text()
    listener, heard, _ = heard_of(s2t, frames)
    keep = np.ones((1, 60, 8), bool)
    keep[0, 3, 5] = False
    fill = perturb.fill_values(heard.grid, 60, "mean")
    assert listener.batch(heard, keep, fill)[0, 3, 5] == pytest.approx(float(frames[:, 5].mean()), abs=1e-6)


def test_a_waveform_is_occluded_in_its_spectrum():
    model, _ = moonshine()
    t = torch.arange(16_000) / 16_000
    wave = torch.sin(2 * np.pi * 400 * t) + torch.sin(2 * np.pi * 3000 * t)
    listener = Listener(model)
    heard = listener.take(wave)
    keep = np.ones((1, *heard.shape), bool)
    torch.testing.assert_close(listener.batch(heard, keep)[0, 800:-800], wave[800:-800], atol=1e-4, rtol=0)
    keep[0, :, 50:] = False  # 40 Hz a bin: from 2 kHz
    low = listener.batch(heard, keep)[0]
    assert float((low - torch.sin(2 * np.pi * 400 * t))[800:-800].abs().max()) < 0.02


def test_filling_is_zero_for_normalised_features_and_silence_for_log_mel():
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(50, 8)).astype(np.float32)
    assert float(perturb.fill_values(grid, 50, "auto")) == 0
    loud = (grid + 3)[:40]
    assert float(perturb.fill_values(np.concatenate([loud, -9 * np.ones((10, 8))]), 40, "auto")) == loud.min()
    np.testing.assert_allclose(perturb.fill_values(grid, 50, "mean"), grid.mean(0), rtol=1e-5)


def test_zeroed_tokens_are_causal_and_the_start_stays():
    model, features = whisper()
    listener, heard, _ = heard_of(model, features)
    masks = Masks([segments.rectangles(*heard.shape, 12)], batch=8)
    plan = perturb.Plan(masks=64, decoder_probability=0.5)
    runs = perturb.perturb_input(listener, heard, IDS, masks, plan)
    assert runs.tokens.shape == (64, len(IDS))
    assert runs.tokens[:, 0].all()
    assert 0.3 < (~runs.tokens[:, 1:]).mean() < 0.7
    found = token_map(runs, 1)
    assert (found[np.triu_indices(len(IDS), 1)] == 0).all()
    assert (found[np.tril_indices(len(IDS))].reshape(-1)[2:] > 0).any()
    plain = perturb.perturb_input(listener, heard, IDS, masks, perturb.Plan(masks=64))
    assert plain.tokens is None
    assert np.allclose(plain.scores[:, 0], runs.scores[:, 0], atol=1e-6)  # the first row sees only the start token
    assert not np.allclose(plain.scores[:, -1], runs.scores[:, -1], atol=1e-6)


# --- masks and estimators ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"antithetic": True}, {"sizes": "shapley"}, {"sizes": "shapley", "antithetic": True}]
)
def test_masks_are_the_same_again_and_as_announced(options):
    masks = Masks([segments.rectangles(40, 16, n) for n in (30, 60)], probability=0.3, batch=10, seed=4, **options)
    assert (masks.draw(3) == masks.draw(3)).all()
    assert (masks.draw(1) != masks.draw(3)).any()
    many = np.concatenate([masks.draw(n) for n in range(0, 400, 2)])
    if options.get("antithetic"):
        first, second = masks.draw(0)[0::2], masks.draw(0)[1::2]
        if options.get("sizes"):
            assert (first != second).all()
        else:  # partners: u and 1 - u never occlude the same segment when p < .5
            assert not (~first & ~second).any()
    if options.get("sizes") != "shapley":
        assert (~many).mean() == pytest.approx(0.3, abs=0.02)
    else:
        counts = (~many).sum(1)
        sizes = np.arange(1, 30)
        weight = 1 / (sizes * (30 - sizes))
        expected = (weight / weight.sum())[0]
        share = (counts == 1).mean()
        if not options.get("antithetic"):
            assert share == pytest.approx(expected, abs=0.03)
        assert counts.min() > 0
        assert counts.max() < 30


def test_mean_map_is_its_definition():
    rng = np.random.default_rng(0)
    masks = Masks([segments.rectangles(12, 6, n) for n in (5, 11)], batch=7, seed=1)
    scores = rng.random((42, 3)).astype(np.float32)
    runs = perturb.Runs(masks, scores, np.ones(3))
    num, den = np.zeros((3, 12, 6)), np.zeros((12, 6))
    seen = [[[] for _ in range(6)] for _ in range(12)]
    for number in range(42):
        batch = number // 7
        hidden = ~masks.draw(batch)[number % 7][masks.labels[masks.granularity(batch)]]
        num += scores[number][:, None, None] * hidden
        den += hidden
        for t, f in zip(*np.nonzero(hidden), strict=True):
            seen[t][f].append(scores[number, 0])
    values, error = mean_map(runs)
    np.testing.assert_allclose(values, num / den, rtol=1e-6)
    want = [[np.std(s, ddof=1) / np.sqrt(len(s)) for s in row] for row in seen]
    np.testing.assert_allclose(error[0], want, rtol=1e-5)
    assert sum(len(occluded(runs, g)[0]) for g in (0, 1)) == 42


def test_a_bin_that_was_never_occluded_is_zero():
    masks = Masks([np.array([0, 0, 1, 1])], batch=4)
    runs = perturb.Runs(masks, np.ones((0, 2), np.float32), np.ones(2))
    assert (mean_map(runs)[0] == 0).all()
    assert relative_error(runs) == np.inf


@pytest.mark.parametrize("seed", range(3))
def test_estimators_find_the_bins_of_a_linear_model(seed):
    runs, own = linear_runs(seed, 3000, batch=50)
    found = mean_map(runs)[0]
    for i in range(4):
        assert auroc(found[i], own[i]) > 0.95
    few, _ = linear_runs(seed, 600, batch=50, sizes="shapley", antithetic=True)
    regressed = regression_map(few)
    for i in range(4):
        assert auroc(regressed[i], own[i]) > 0.95


def test_the_error_falls_with_the_root_of_the_runs():
    sizes, errors, said = [600, 2400, 9600], [], []
    for count in sizes:
        deviations, spread = [], []
        for seed in range(3):
            runs, own = linear_runs(seed, count, batch=50)
            values, error = mean_map(runs)
            deviations.append(values - linear_expectation(runs, own))
            spread.append(error)
        errors.append(np.sqrt(np.mean(np.square(deviations))))
        said.append(np.sqrt(np.mean(np.square(spread))))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.12)
    np.testing.assert_allclose(said, errors, rtol=0.25)  # the standard error is the error


def test_regression_needs_fewer_runs_than_the_mean():
    def agreement(values: np.ndarray, own: np.ndarray) -> float:
        return float(np.mean([np.corrcoef(values[i].ravel(), own[i].ravel())[0, 1] for i in range(4)]))

    mean, regression = [], []
    for seed in range(3):
        many, own = linear_runs(seed, 2000, batch=50)
        few, _ = linear_runs(seed, 400, batch=50, sizes="shapley")
        mean.append(agreement(mean_map(many)[0], own))
        regression.append(agreement(regression_map(few), own))
    assert np.mean(regression) > np.mean(mean)  # with a fifth of the runs


def test_reliability_is_the_correlation_of_two_maps_made_alike():
    a, _ = linear_runs(0, 600, batch=50)
    runs = perturb.Runs(Masks(a.masks.labels, batch=50, seed=99), a.scores, a.anchor)
    other, own = linear_runs(0, 600, batch=50)
    masks = Masks(other.masks.labels, batch=50, seed=99)
    scores = []
    for n in range(12):
        hidden = ~masks.draw(n)[:, masks.labels[masks.granularity(n)]]
        scores.append((hidden[:, None] & own[None]).sum((2, 3)) / own.sum((1, 2)))
    runs.scores = np.concatenate(scores).astype(np.float32)
    x, y = mean_map(a)[0].reshape(4, -1), mean_map(runs)[0].reshape(4, -1)
    both = np.mean([np.corrcoef(x[i], y[i])[0, 1] for i in range(4)])
    assert reliability(a) == pytest.approx(both, abs=0.1)


def test_early_stopping_and_going_on(tmp_path):
    model, features = whisper()
    listener, heard, _ = heard_of(model, features)
    masks = Masks([segments.rectangles(*heard.shape, n) for n in (6, 12)], batch=8)
    whole = perturb.perturb_input(listener, heard, IDS, masks, perturb.Plan(masks=96))
    made = []
    stopped = perturb.perturb_input(
        listener, heard, IDS, masks, perturb.Plan(masks=96, tolerance=5.0, check_every=16), on_runs=made.append
    )
    assert stopped.stopped
    assert sum(made) == len(stopped.scores) < 96
    np.testing.assert_array_equal(stopped.scores, whole.scores[: len(stopped.scores)])
    store = Pieces(tmp_path, {"model": "tiny"})

    def fail(count: int) -> None:
        made.append(count)
        if sum(made) >= 48:
            raise KeyboardInterrupt

    made.clear()
    with pytest.raises(KeyboardInterrupt):
        perturb.perturb_input(listener, heard, IDS, masks, perturb.Plan(masks=96, check_every=16), store, fail)
    again = Pieces(tmp_path, {"model": "tiny"})
    resumed = perturb.perturb_input(listener, heard, IDS, masks, perturb.Plan(masks=96, check_every=16), again)
    assert 0 < again.read_back < 96
    np.testing.assert_array_equal(resumed.scores, whole.scores)
    elsewhere = Pieces(tmp_path, {"model": "another"})
    assert elsewhere.load_arrays("runs", {}) is None
    assert not list(tmp_path.glob("*.tmp"))


def test_segments_cover_everything_and_are_about_as_many_as_asked():
    for frames, bins, count in [(100, 16, 40), (37, 80, 200), (5, 3, 100), (9, 9, 1)]:
        labels = segments.rectangles(frames, bins, count)
        assert labels.shape == (frames, bins)
        n = labels.max() + 1
        assert set(np.unique(labels)) == set(range(n))
        assert n <= frames * bins
        assert 0.5 * min(count, frames * bins) <= n <= 2 * count
    assert segments.segment_count(2000, 500) == 2000
    assert segments.segment_count(2000, 1000) == 3000
    assert segments.segment_count(1, 3) == 1
    assert segments.windows(7, 3).tolist() == [0, 0, 0, 1, 1, 1, 2]


def test_superpixels_or_the_sentence_that_names_the_library():
    grid = np.random.default_rng(0).normal(size=(60, 16))
    if segments.has_slic():
        labels = segments.segment(grid, 40, "slic")
        assert labels.min() == 0
        assert set(np.unique(labels)) == set(range(labels.max() + 1))
    else:
        with pytest.raises(UnbraidError, match="pip install scikit-image"):
            segments.segment(grid, 40, "slic")
    assert segments.segment(grid, 40, "auto").shape == grid.shape


# --- maps --------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(1, 5), states=st.integers(2, 20), seed=st.integers(0, 1000))
def test_normalised_rows(tokens, states, seed):
    x = np.random.default_rng(seed).normal(size=(tokens, states)) * 3 + 5
    z = maps.normalise(x)
    np.testing.assert_allclose(z.mean(1), 0, atol=1e-9)
    np.testing.assert_allclose(z.std(1, ddof=1), 1, atol=1e-9)
    np.testing.assert_allclose(maps.normalise(x, "sum").sum(1), 1)
    scaled = maps.normalise(x, "minmax")
    assert scaled.min() == 0
    assert scaled.max() == pytest.approx(1)
    if states > 3:
        assert maps.correlation(x, 2 * x + 1) == pytest.approx(1)
        assert maps.correlation(x, -x) == pytest.approx(-1)
        assert maps.correlation(x, np.exp(x - x.max()), "spearman", "none") == pytest.approx(1)
    assert maps.overlap(x, x) == pytest.approx(1)


def test_pooling_and_spreading():
    x = np.arange(24.0).reshape(1, 6, 4)
    assert maps.pool(x, 3, "max").tolist() == [[7, 15, 23]]
    assert maps.pool(x, 3, "mean").tolist() == [[3.5, 11.5, 19.5]]
    assert maps.pool(x[:, :, 0], 6, "max").tolist() == [[0, 4, 8, 12, 16, 20]]
    assert maps.pool(x, 4, "max").shape == (1, 4)
    assert maps.spread_out(np.array([1, 2, 3]), 6).tolist() == [1, 1, 2, 2, 3, 3]


def test_levels_are_correlations_of_means():
    rng = np.random.default_rng(0)
    a, s = rng.random((2, 3, 4, 10)), rng.random((4, 10))
    found = maps.levels(a, s)
    assert found["head"].shape == (2, 3)
    assert found["head"][1, 2] == pytest.approx(maps.correlation(a[1, 2], s))
    assert found["layer"][0] == pytest.approx(maps.correlation(a[0].mean(0), s))
    assert found["column"][1] == pytest.approx(maps.correlation(a[:, 1].mean(0), s))
    assert found["all"] == pytest.approx(maps.correlation(a.mean((0, 1)), s))
    a[1, 2] = np.nan  # a layer with fewer heads
    assert np.isnan(maps.levels(a, s)["head"][1, 2])
    np.testing.assert_allclose(maps.aggregate(a), np.delete(a.reshape(6, 4, 10), 5, 0).mean(0))


def test_averages_of_correlations():
    assert maps.fisher_mean([0.5, 0.5]) == pytest.approx(0.5)
    assert maps.fisher_mean([0.0, 0.9]) == pytest.approx(np.tanh(np.arctanh(0.9) / 2))
    mean, low, high = maps.bootstrap([0.4, 0.5, 0.6, np.nan])
    assert low <= mean <= high
    assert maps.bootstrap([0.5])[0] == pytest.approx(0.5)
    assert np.isnan(maps.bootstrap([])[0])


def test_sinks_are_columns_that_every_token_looks_at():
    a = np.full((6, 40), 0.01)
    a[:, 0] = 0.4
    a[np.arange(6), 6 + np.arange(6)] = 0.5
    a /= a.sum(1, keepdims=True)
    assert np.flatnonzero(maps.sink_columns(a)).tolist() == [0]


def test_paired_scaling_is_joint():
    x, t = maps.paired_min_max(np.array([[[1.0, 3.0]]]), np.array([[5.0, 2.0]]))
    assert x.tolist() == [[[0.0, 0.5]]]
    assert t.tolist() == [[1.0, 0.25]]


def test_weights_of_heads_find_the_ones_that_follow():
    rng = np.random.default_rng(0)
    utterances, targets = [], []
    for _ in range(4):
        a = rng.random((2, 3, 5, 30))
        s = 0.7 * maps.normalise(a[1, 0]) + 0.3 * maps.normalise(a[0, 2]) + 0.05 * rng.normal(size=(5, 30))
        utterances.append(a / a.sum(-1, keepdims=True))
        targets.append(s)
    w = fit_head_weights(utterances, targets)
    assert w.sum() == pytest.approx(1)
    assert np.argsort(w.ravel())[::-1][:2].tolist() == [3, 2]
    assert w[1, 0] / w[0, 2] == pytest.approx(7 / 3, rel=0.1)
    best = max(maps.correlation(utterances[0][i, j], targets[0]) for i in range(2) for j in range(3))
    assert held_out(utterances, targets)[0] > best + 0.03


# --- alignment ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 9), (5, 40), (1, 6), (7, 7)])
def test_warping_and_filtering_are_those_of_transformers(shape):
    from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

    rng = np.random.default_rng(sum(shape))
    for _ in range(5):
        cost = rng.normal(size=shape)
        tokens, states = align.warp(cost)
        their_tokens, their_states = _dynamic_time_warping(cost)
        np.testing.assert_array_equal(tokens, their_tokens)
        np.testing.assert_array_equal(states, their_states)
    x = rng.normal(size=(2, 3, *shape)).astype(np.float32)
    np.testing.assert_allclose(align.median_filter(x, 7), _median_filter(torch.from_numpy(x), 7).numpy())


def test_word_times_of_a_staircase_are_exact():
    a = np.full((4, 40), 0.001)
    for i, (start, stop) in enumerate([(2, 10), (10, 18), (18, 30), (30, 40)]):
        a[i, start:stop] = 1
    words = align.group_words([" good", " morn", "ing", "<end>"], [False, False, False, True])
    assert [w.text for w in words] == ["good", "morning"]
    found = align.word_times(a, words, 0.02)
    assert found[0].end == pytest.approx(0.2)
    assert found[1].start == pytest.approx(0.2)
    assert found[1].end == pytest.approx(0.6)


def test_words_of_pieces():
    group = align.group_words
    assert [w.text for w in group(["▁he", "llo", "▁you", "."])] == ["hello", "you."]
    assert [w.text for w in group(["Hi", ",", " you"])] == ["Hi,", "you"]
    assert [w[1:] for w in group(["3", "7"])] == [(0, 1), (1, 2)]
    word = group(["Hi", ",", " you"])
    stairs = np.kron(np.eye(3), np.ones((1, 10)))
    assert align.word_times(stairs, word, 0.1, ["Hi", ",", " you"])[0].end == pytest.approx(1.0, abs=0.21)


def test_errors_of_times_compare_equal_words_only():
    said = [speech.Word("The", 0.1, 0.2), speech.Word("cat,", 0.3, 0.5), speech.Word("sat", 0.6, 0.8)]
    true = [speech.Word("the", 0.0, 0.2), speech.Word("bat", 0.3, 0.5), speech.Word("sat", 0.5, 0.9)]
    found = align.time_errors(said, true)
    np.testing.assert_allclose(found["start"], [0.1, 0.1])
    np.testing.assert_allclose(found["end"], [0.0, 0.1])


# --- faithfulness, warnings --------------------------------------------------------------------------------------


def test_deletion_takes_the_largest_first():
    ranking = np.array([[3.0, 1.0], [2.0, 0.0]])
    keep = faithful.deletion_masks(ranking, [0, 0.25, 0.5, 1])
    assert keep.sum((1, 2)).tolist() == [4, 3, 2, 0]
    assert not keep[1][0, 0]
    assert not keep[2][1, 0]
    assert faithful.area(np.array([0, 0.5, 1]), np.array([0, 1, 1])) == pytest.approx(75)
    assert faithful.size_curve(np.array([[0.0, 1.0]]), [0, 0.5, 1]).tolist() == [0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [("a b c", "a b c", 0), ("a b c", "a x c", 1 / 3), ("a b c", "", 1), ("a", "b c d", 1), ("a b", "a b c", 0.5)],
)
def test_word_errors(a, b, error):
    assert faithful.word_errors(a.split(), b.split()) == pytest.approx(error)


def test_deletion_of_everything_and_of_nothing():
    model, features = whisper()
    listener, heard, states = heard_of(model, features)
    reference = listener.transcribe(states, 1)[0]
    ranking = np.random.default_rng(0).random(heard.shape)
    shares, errors = faithful.deletion_curve(listener, heard, ranking, reference, lambda i: i, 0.25, beams=2)
    assert shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert ((errors >= 0) & (errors <= 1)).all()
    greedy = faithful.deletion_curve(listener, heard, ranking, reference, lambda i: i, 0.5, beams=1)[1]
    assert greedy[0] == 0


def explanation(a: np.ndarray, valid: int | None = None) -> Explanation:
    n = a.shape[0]
    pieces = [f" w{i}" for i in range(n - 1)] + ["<end>"]
    special = np.arange(n) == n - 1
    return Explanation(
        "x", "", list(range(n)), pieces, special, align.group_words(pieces, special.tolist()),
        valid or a.shape[1], 0.02, a.shape[1] * 0.02, np.zeros((a.shape[1] * 2, 4)), ["a"], a[None, None],
        np.zeros(n),
    )  # fmt: skip


def test_flags_tell_a_path_from_none():
    stairs = np.kron(np.eye(8), np.ones((1, 20))) + 1e-3
    stairs /= stairs.sum(1, keepdims=True)
    good = flags(explanation(stairs))
    assert good.risk < 0.15
    assert good.progress == pytest.approx(1)
    assert good.messages == ()
    bad = flags(explanation(np.random.default_rng(0).dirichlet(np.ones(160), 8)))
    assert bad.risk > 0.6
    assert "do not trust" in bad.messages[0]
    lost = stairs.copy()
    lost[3] = 1 / 160
    one = flags(explanation(lost))
    assert one.token_risk[3] > 0.7
    assert "w3" in " ".join(one.messages)
    padded = np.concatenate([stairs * 0.2, np.full((8, 40), 0.02)], 1)
    assert flags(explanation(padded, 160)).padding == pytest.approx(0.8)


# --- the whole, on tiny models -----------------------------------------------------------------------------------


def test_explain_fit_save(family, tmp_path):
    model, features = family
    system = SpeechCrossAttention(**SMALL, norms=True, gradient=True)
    e = system.explain(model, None, features, ids=IDS, name="tiny")
    assert e.attention.shape[:3] == (2, 2, len(IDS))
    assert e.saliency_x.shape == (len(IDS), *e.grid.shape)
    assert e.saliency_h.shape == (len(IDS), e.valid)
    assert np.isfinite(e.saliency_x).all()
    assert e.special.tolist() == [False] * 4 + [True]
    assert e.cost["input"]["runs"] == 24
    for source in ("attention", "norms", "gradient", "saliency_x", "saliency_h"):
        assert len(e.word_times(source)) == 4
    for source in ("attention", "saliency_x", "saliency_x_pooled", "saliency_h"):
        assert e.ranking(source).shape == e.grid.shape
    system.summarise([e, system.explain(model, None, features.flip(-1), ids=IDS)])
    assert system.scores_.array.shape == (2, 2)
    assert set(system.levels_) == {"x", "h"}
    assert system.head_weights_.sum() == pytest.approx(1)
    again = System.from_pretrained(system.save_pretrained(tmp_path))
    assert again.scores_.sites == system.scores_.sites
    np.testing.assert_allclose(again.head_weights_, system.head_weights_)


def test_the_regression_estimator_and_its_stopping():
    model, features = whisper()
    system = SpeechCrossAttention(**{**SMALL, "masks": 64}, estimator="regression", antithetic=True, tolerance=50.0)
    e = system.explain(model, None, features, ids=IDS)
    assert e.error_x is None
    assert np.isfinite(e.saliency_x).all()
    assert e.cost["input"]["runs"] <= 64


def test_the_same_seed_gives_the_same_maps():
    model, features = whisper()
    one, two, other = (SpeechCrossAttention(**SMALL, seed=s).explain(model, None, features, ids=IDS) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.saliency_x, two.saliency_x)
    assert not np.array_equal(one.saliency_x, other.saliency_x)


def processor_of(model):
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=model.config.num_mel_bins, chunk_length=1, n_fft=400, hop_length=160)


@pytest.fixture(scope="module")
def second():
    """A tiny Whisper that hears one second of real audio, without a tokenizer."""
    model, _ = whisper(max_source_positions=50)
    return model, processor_of(model)


def test_audio_of_any_length_is_heard_and_cropped(second):
    model, processor = second
    wave = 0.1 * np.random.default_rng(0).standard_normal(8000)
    e = SpeechCrossAttention(**SMALL).explain(model, processor, wave, 16_000, ids=IDS)
    assert e.seconds == 0.5
    assert (e.valid, e.attention.shape[-1]) == (25, 50)
    assert e.grid.shape == (50, 8)
    assert e.state_seconds == pytest.approx(0.02)
    clip = speech.Clip("c", np.repeat(wave[::2], 1).astype(np.float32), 8000)
    other = SpeechCrossAttention(**SMALL).explain(model, processor, clip, ids=IDS)  # a clip is converted
    assert other.valid == 25


def test_silence_is_said(second):
    model, processor = second
    with pytest.warns(UserWarning, match="silent"):
        e = SpeechCrossAttention(masks=0, encoder_masks=0).explain(model, processor, np.zeros(8000), 16_000, ids=IDS)
    assert "silent" in flags(e).messages[0]


def test_bad_audio_is_refused(second, tmp_path):
    model, processor = second
    system = SpeechCrossAttention(masks=0, encoder_masks=0)
    text = tmp_path / "notes.wav"
    text.write_text("no sound at all")
    cases = [
        (np.zeros(0), 16_000, "length zero"),
        (np.zeros(100), 16_000, "only 100 samples"),
        (np.ones(8000) * np.nan, 16_000, "not finite"),
        (np.ones(8000), 8000, "resample"),
        (np.ones(32_000), 16_000, "hears 1 s at once"),
        (np.ones((2, 2, 2, 2)), 16_000, "shape"),
        (text, None, "no sound file"),
        (tmp_path / "missing.wav", None, "no file"),
    ]
    for audio, rate, says in cases:
        with pytest.raises(UnbraidError, match=says) as error:
            system.explain(model, processor, audio, rate, ids=IDS)
        assert "\n" not in str(error.value)
    with pytest.raises(UnbraidError, match="feature extractor"):
        Listener(model).hear(np.ones(8000))
    with pytest.raises(UnbraidError, match="tokenizer"):
        system.explain(model, processor, np.ones(8000), 16_000, text="hello")
    with pytest.raises(UnbraidError, match="no token"):
        system.explain(model, processor, np.ones(8000), 16_000, ids=[])


def test_models_without_cross_attention_are_refused():
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        LlamaConfig,
        LlamaForCausalLM,
        Wav2Vec2Config,
        Wav2Vec2Model,
        WhisperForAudioClassification,
        WhisperModel,
    )

    size = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    bart = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 9}  # fmt: skip
    wav2vec = Wav2Vec2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                             num_conv_pos_embedding_groups=2, conv_dim=(8,) * 7)  # fmt: skip
    config = whisper()[0].config
    cases = [
        (LlamaForCausalLM(LlamaConfig(**size)), "no encoder and decoder"),
        (Wav2Vec2Model(wav2vec), "no encoder and decoder"),
        (BartForConditionalGeneration(BartConfig(**bart)), "no audio"),
        (WhisperModel(config), "no language-model head"),
        (WhisperForAudioClassification(config), "no language-model head"),
        (torch.nn.Linear(2, 2), "no model of transformers"),
    ]
    for model, says in cases:
        with pytest.raises(UnbraidError, match=says) as error:
            check_model(model)
        assert "WhisperForConditionalGeneration" in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"masks": -1}, "masks"),
        ({"granularities": ()}, "granularities"),
        ({"widths": (0,)}, "widths"),
        ({"probability": 1.0}, "probability"),
        ({"scorer": "mse"}, "scorer"),
        ({"estimator": "median"}, "estimator"),
        ({"fill": "noise"}, "fill"),
        ({"pool": "sum"}, "pool"),
        ({"segments": "voronoi"}, "segments"),
        ({"batch_size": 0}, "batch_size"),
        ({"beams": 0}, "beams"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"decoder_probability": 1.0}, "decoder_probability"),
        ({"context": "short"}, "context"),
    ],
)
def test_bad_options_are_refused_before_any_work(options, says):
    model, features = whisper()
    with pytest.raises(UnbraidError, match=says):
        SpeechCrossAttention(**options).explain(model, None, features, ids=IDS)


def test_fit_refuses_nothing_to_do():
    model, _ = whisper()
    with pytest.raises(UnbraidError, match="at least one clip"):
        SpeechCrossAttention().fit(model, None, [])
    with pytest.raises(UnbraidError, match="saliency to compare"):
        SpeechCrossAttention(masks=0, encoder_masks=0).fit(model, None, [1])


# --- data --------------------------------------------------------------------------------------------------------


def test_the_made_up_world_knows_its_alignment():
    world = speech.SpeechWorld(seed=0, noise=0.0)
    drawn = world.draw(3, seed=1)
    assert drawn.features.shape == (3, 16, 100)
    truth = drawn.truth(50)
    assert truth.shape == (3, 5, 50)
    for n in range(3):
        for w in range(5):
            start, stop = drawn.spans[n, w]
            assert 10 <= stop - start <= 16
            np.testing.assert_allclose(drawn.features[n, :, start], world.templates[drawn.ids[n, w], 0])
            np.testing.assert_allclose(drawn.features[n, :, stop - 1], world.templates[drawn.ids[n, w], 1])
            assert abs(truth[n, w].sum() * 2 - (stop - start)) <= 2
    assert (truth.sum(1) <= 1).all()
    np.testing.assert_array_equal(world.draw(3, seed=1).ids, drawn.ids)
    with pytest.raises(UnbraidError, match="frames"):
        speech.SpeechWorld(frames=50)


def test_clips_that_ship_have_sound_where_their_words_are():
    clips = speech.spoken()
    assert len(clips) >= 6
    for clip in clips:
        assert clip.rate == 16_000
        assert 2 < clip.seconds < 8
        said = [w.text.lower().strip(".,") for w in clip.words]
        whole = clip.text.lower().replace(",", "").replace(".", "").split()
        rest = iter(whole)  # in order; what is said in one breath ("on the") has no times of its own
        assert all(word in rest for word in said)
        assert len(said) >= 0.6 * len(whole)
        edges = [x for w in clip.words for x in (w.start, w.end)]
        assert edges == sorted(edges)
        assert edges[-1] <= clip.seconds
        for word in clip.words:
            part = clip.audio[int(word.start * 16_000) : int(word.end * 16_000)]
            assert np.abs(part).max() > 0.01
        assert np.abs(clip.audio[: int(clip.words[0].start * 16_000) - 80]).max(initial=0) < 0.02
    with pytest.raises(UnbraidError, match="not 99"):
        speech.spoken(99)


def test_mu_law_round_trip():
    x = np.linspace(-1, 1, 4001).astype(np.float32)
    assert np.abs(from_mu_law(to_mu_law(x)) - x).max() < 0.025
    assert (from_mu_law(to_mu_law(np.zeros(4))) == 0).all()


def test_sound_files(tmp_path, monkeypatch):
    import sys

    from unbraid.core.wav import encode_wav

    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    path = tmp_path / "tone.wav"
    path.write_bytes(encode_wav(tone, 8000))
    x = speech.read_audio(path)
    assert len(x) == 16_000
    want = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(x - want)[200:-200].max() < 0.02
    assert speech.load_clip(path).name == "tone"
    monkeypatch.setitem(sys.modules, "soundfile", None)
    np.testing.assert_allclose(speech.read_audio(path), x, atol=1e-3)
    (tmp_path / "a.flac").write_bytes(b"fLaC")
    with pytest.raises(UnbraidError, match="audio"):
        speech.read_audio(tmp_path / "a.flac")
    (tmp_path / "empty.wav").write_bytes(encode_wav(np.zeros(0), 8000))
    with pytest.raises(UnbraidError, match="has length zero"):
        speech.read_audio(tmp_path / "empty.wav")
    assert speech.check_audio(np.full((2, 2000), 16384, np.int16)).tolist() == [0.5] * 2000
    with pytest.raises(UnbraidError, match="positive number"):
        speech.resample(x, 0)


def test_synthesis_says_what_is_missing(monkeypatch):
    from unbraid.data.speech import espeak

    monkeypatch.setattr(espeak, "_engine", lambda: None)
    assert not espeak.available()
    with pytest.raises(UnbraidError, match="espeak-ng"):
        speech.synthesise("Hello there.")
    with pytest.raises(UnbraidError, match="no word"):
        speech.synthesise("...")


# --- the study ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"masks": 0}, "--masks"),
        ({"recordings": ("nobody",)}, "no recording 'nobody'"),
        ({"spoken": -1}, "--spoken"),
        ({"deletion_step": 0.0}, "--deletion-step"),
        ({"dtype": "int8"}, "--dtype"),
        ({"recordings": ("none",), "spoken": 0}, "no clip"),
    ],
)
def test_the_study_refuses(options, says):
    from unbraid.systems.s2t_cross_attention.study import run

    with pytest.raises(UnbraidError, match=says):
        run(**options)


def test_the_study_runs_and_goes_on(tmp_path):
    """Everything but real hearing: a tiny random Whisper with the real tokenizer."""
    from unbraid import zoo
    from unbraid.core.result import Result
    from unbraid.systems.s2t_cross_attention.study import run

    processor = zoo.load("whisper-tiny.en").processor
    model, _ = whisper(
        vocab_size=51864, num_mel_bins=80, max_source_positions=1500, decoder_start_token_id=50257, bos_token_id=50257,
        eos_token_id=50256, pad_token_id=50256,
    )  # fmt: skip
    model.generation_config.is_multilingual = False
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    options = {
        "model": str(tmp_path / "model"), "recordings": ("none",), "spoken": 3, "masks": 16, "encoder_masks": 16,
        "granularities": (20, 40), "widths": (4, 8), "beams": 1, "deletion_clips": 1, "deletion_step": 0.5,
        "compare": False,
        "context_masks": 4, "world_seeds": 0, "pictures": 1, "batch_size": 8, "keep": tmp_path / "kept",
    }  # fmt: skip
    first = run(**options)
    assert [c.name for c in first.claims][:3] == ["half", "encoder-output", "aggregation"]
    assert {"correlations", "clips", "cost", "word times", "deletion", "warnings"} <= set(first.tables)
    page = first.to_html()
    assert "<audio" in page
    folder = first.save(tmp_path / "out")
    assert Result.load(folder) == first
    second = run(**options)
    assert second.meta["pieces_read_back"] >= 3
    assert json.dumps(second.tables["correlations"].to_dict()) == json.dumps(first.tables["correlations"].to_dict())


@pytest.mark.study
@pytest.mark.parametrize("seed", range(3))
def test_the_known_world(seed):
    found = check_world(seed)
    assert found["accuracy"] > 0.98
    assert found["x_head"] < found["x_layer"] < found["x_all"]
    assert min(found["truth_attention"], found["truth_x"]) >= 0.6
    assert found["truth_shifted"] <= 0.2
    assert min(found["deletion_saliency"], found["deletion_attention"]) > found["deletion_random"] + 0.2


def test_the_world_model_is_small():
    model = world_model(0)
    assert sum(p.numel() for p in model.parameters()) < 300_000
