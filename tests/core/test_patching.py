"""Path patching: the fast passes against the definition run to the letter, the identities, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from unbraid.core.blocks import listening
from unbraid.core.errors import UnbraidError
from unbraid.core.patching import LOGITS, Mlp, PathPatcher, PlainPatcher, Receiver, receive
from unbraid.core.patching.norms import probe

SIZE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 60,
    "initializer_range": 0.3, "max_position_embeddings": 64, "eos_token_id": None, "bos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip


def config(kind: str):
    t = transformers
    eager = {"attn_implementation": "eager"}
    made = {
        "gpt2": lambda: t.GPT2Config(
            n_embd=32, n_layer=3, n_head=4, n_inner=48, vocab_size=60, n_positions=64, initializer_range=0.3,
            bos_token_id=None, eos_token_id=None,
        ),
        "llama-gqa": lambda: t.LlamaConfig(**SIZE, num_key_value_heads=2),
        "llama-eager": lambda: t.LlamaConfig(**SIZE, num_key_value_heads=1, **eager),
        "qwen3": lambda: t.Qwen3Config(**SIZE, num_key_value_heads=2, head_dim=8),
        "mistral-window": lambda: t.MistralConfig(**SIZE, num_key_value_heads=2, head_dim=8, sliding_window=4),
        "neox-parallel": lambda: t.GPTNeoXConfig(**SIZE, use_parallel_residual=True),
        "neox-serial": lambda: t.GPTNeoXConfig(**SIZE, use_parallel_residual=False),
        "gemma2-softcap": lambda: t.Gemma2Config(
            **SIZE, num_key_value_heads=2, head_dim=8, sliding_window=4, attn_logit_softcapping=2.0, **eager
        ),
        "gemma3": lambda: t.Gemma3TextConfig(**SIZE, num_key_value_heads=1, head_dim=8, sliding_window=4),
        "gpt-oss": lambda: t.GptOssConfig(
            **SIZE, num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=4,
            **eager,
        ),
        "olmo2-postnorm": lambda: t.Olmo2Config(**SIZE, num_key_value_heads=2),
        "granite-scaled": lambda: t.GraniteConfig(
            **SIZE, num_key_value_heads=2, residual_multiplier=0.5, logits_scaling=2.0, attention_multiplier=0.2
        ),
    }  # fmt: skip
    return made[kind]()


FAMILIES = [
    "gpt2", "llama-gqa", "llama-eager", "qwen3", "mistral-window", "neox-parallel", "neox-serial", "gemma2-softcap",
    "gemma3", "gpt-oss", "olmo2-postnorm", "granite-scaled",
]  # fmt: skip


def build(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    cfg = config(kind)
    model = transformers.AutoModelForCausalLM.from_config(cfg).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name or "ln_" in name:  # weights that are not all one, biases that are not all zero
                p.add_(0.3 * torch.randn(p.shape))
            p.requires_grad_(False)
    return model


def prompts(batch: int = 3, length: int = 9, seed: int = 1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, 60, (batch, length), generator=g)
    corrupt = clean.clone()
    corrupt[:, 3:6] = torch.randint(0, 60, (batch, 3), generator=g)
    answers = torch.randint(0, 30, (batch,), generator=g)
    return {"clean": clean, "corrupt": corrupt, "answers": answers, "distractors": answers + 20}


def receivers(p: PathPatcher, channel: str):
    last, middle = p.anatomy.sites[2], p.anatomy.sites[1]
    return {
        "logits": LOGITS, "mlp": Receiver("mlp", layer=2), "q": receive([(last, 1), (last, 3)], "q"),
        "k": receive([(last, 0)], "k"), "kv": receive([(last, 1), (middle, 2)], "kv"),
        "all": [*receive([(last, 2)], "qkv"), LOGITS],
    }[channel]  # fmt: skip


def close(fast: np.ndarray, plain: np.ndarray, scale: float) -> None:
    assert np.abs(fast - plain).max() <= 3e-5 * max(scale, 1.0), np.abs(fast - plain).max()


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(("norm", "mlps"), [("clean", False), ("none", False), ("clean", True)])
def test_fast_passes_equal_the_definition(kind: str, norm: str, mlps: bool) -> None:
    model, data = build(kind), prompts()
    # sets in which one receiver feeds another: the definition puts := what the sender pass found, which is "cut"
    fast = PathPatcher(model, **data, freeze_norm=norm, freeze_mlps=mlps, nested="cut")
    plain = PlainPatcher(model, **data, freeze_norm=norm, freeze_mlps=mlps)
    senders = [(fast.anatomy.sites[0], 1), (fast.anatomy.sites[0], 3), (fast.anatomy.sites[1], 0)]
    for channel in ("logits", "q", "kv", "all"):
        ends = receivers(fast, channel)
        got = fast.effects(ends, senders)
        want = np.stack([plain.effect(s, ends) for s in senders])
        scale = float(np.abs(got.clean).max())
        close(got.patched, want, scale)
        close(got.clean, plain.baselines[0], scale)
        close(got.corrupt, plain.baselines[1], scale)
        assert np.abs(want - plain.baselines[0]).max() > 1e-3  # something happened at all
    assert fast.scene(-1).short


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa", "neox-parallel", "gemma3"])
def test_mlps_send_and_receive(kind: str) -> None:
    model, data = build(kind), prompts()
    for mlps in (False, True):
        fast = PathPatcher(model, **data, freeze_mlps=mlps, nested="cut")
        plain = PlainPatcher(model, **data, freeze_mlps=mlps)
        for sender in (
            Mlp(0),
            [(fast.anatomy.sites[1], 2), Mlp(0)],
            [(fast.anatomy.sites[0], 2), (fast.anatomy.sites[1], 2)],
        ):
            for channel in ("logits", "mlp", "k"):
                ends = receivers(fast, channel)
                got = fast.effects(ends, [sender])
                close(got.patched[0], plain.effect(sender, ends), float(np.abs(got.clean).max()))


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa", "gemma2-softcap", "mistral-window"])
def test_short_runs_equal_whole_runs_at_any_positions(kind: str) -> None:
    model, data = build(kind), prompts()
    where = [[4, 8], [5, 5], [7, 6]]  # per prompt, unordered, one repeated
    short, whole = (PathPatcher(model, **data, whole=w) for w in (False, True))
    for channel in ("logits", "q", "kv"):
        ends = receivers(short, channel)
        a, b = short.effects(ends, positions=where), whole.effects(ends, positions=where)
        assert a.labels == b.labels
        close(a.patched, b.patched, float(np.abs(a.clean).max()))
    assert short.scene(where).short
    assert not whole.scene(where).short
    assert short.scene(where).clean.start == 4


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_matrix_product_equals_the_run(kind: str) -> None:
    model, data = build(kind), prompts()
    fast, slow = (PathPatcher(model, **data, freeze_mlps=True) for _ in range(2))
    slow._linear = False
    ends = receivers(fast, "all")
    a, b = fast.effects(ends), slow.effects(ends)
    close(a.patched, b.patched, float(np.abs(a.clean).max()))
    assert fast._linear is (kind != "granite-scaled")  # it scales what attention adds: found out, and run instead


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa", "qwen3"])
def test_batches_and_joint_sets(kind: str) -> None:
    model, data = build(kind), prompts()
    one, many = PathPatcher(model, **data, rows=1), PathPatcher(model, **data, rows=10_000)
    ends = receivers(one, "kv")
    close(one.effects(ends).patched, many.effects(ends).patched, 1.0)
    edges = many.edges(logits=True)
    layers, heads = 3, 4
    assert len(edges) == 3 * heads * heads * layers * (layers - 1) // 2 + heads * layers
    for i in range(0, len(edges), 7):  # every edge alone is what `effects` says of it
        alone = many.effects(edges.receivers[i], [edges.senders[i]])
        close(edges.patched[i], alone.patched[0], 1.0)


def freeze(model: nn.Module, data: dict, zero_mlps: bool) -> None:
    if zero_mlps:
        for name, p in model.named_parameters():
            if "mlp.c_proj" in name or "mlp.down_proj" in name:
                p.zero_()


def activation_patching(p: PathPatcher, layer: int, head: int, position: int) -> np.ndarray:
    """z of one head from the corrupt run in a clean run, norms frozen; by hand."""
    scene = p.scene(list(range(p.batch.clean.shape[1])))  # so that snapshots hold every token
    out = p.anatomy.blocks[layer].out
    width = scene.clean.z[layer].shape[-1] // p.anatomy.heads[layer]
    at = slice(head * width, (head + 1) * width)

    def put(module, args, kwargs):
        z = args[0].clone()
        z[:, position, at] = scene.corrupt.z[layer][:, position, at]
        return (z,), kwargs

    def frozen(module, args, kwargs, output):
        n = scene.frozen[module]
        return n.y + (args[0] - n.x) * n.gain

    with listening(dict.fromkeys(scene.frozen, frozen), {out: put}), torch.no_grad():
        logits = p.anatomy.model(input_ids=p.batch.clean).logits[:, -1]
    return p._metric(logits.gather(1, p.batch.tokens))


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa"])
@pytest.mark.parametrize("mlps", [False, True])
@pytest.mark.parametrize("position", [-1, 4])
def test_a_all_paths_together_are_activation_patching(kind: str, mlps: bool, position: int) -> None:
    """Receivers = everything downstream: without MLPs q, k, v and logits; with MLPs these too, direct paths only."""
    model, data = build(kind), prompts()
    freeze(model, data, zero_mlps=not mlps)
    p = PathPatcher(model, **data, freeze_mlps=mlps)
    for layer, head in ((0, 1), (1, 2)):
        later = [h for h in p.heads if p.anatomy.names.layer[h[0]] > layer]
        ends = [*receive(later, "qkv"), LOGITS]
        if mlps:
            ends += [Receiver("mlp", layer=i) for i in range(layer, 3)]
        got = p.effects(ends, [(p.anatomy.sites[layer], head)], position)
        want = activation_patching(p, layer, head, position)
        assert np.abs(want - got.clean).max() > 1e-2
        close(got.patched[0], want, float(np.abs(got.clean).max()))


@pytest.mark.parametrize("kind", FAMILIES)
def test_b_nothing_comes_of_equal_prompts(kind: str) -> None:
    data = prompts()
    data["corrupt"] = data["clean"].clone()
    p = PathPatcher(build(kind), **data)
    for channel in ("logits", "kv"):
        e = p.effects(receivers(p, channel))
        assert np.abs(e.patched - e.clean).max() < 1e-4 * max(1.0, np.abs(e.clean).max())
    with pytest.raises(UnbraidError, match="cannot be normalised"):
        e.importance()


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa", "gemma3"])
def test_c_direct_effects_in_closed_form(kind: str) -> None:
    """(z_K - z_C) W_O . scale . (W_U[a] - W_U[b]), exactly, in a model whose MLPs pass on nothing."""
    model, data = build(kind), prompts()
    p = PathPatcher(model, **data, freeze_mlps=True)
    e = p.effects(LOGITS)
    scene = p.scene(-1)
    u = p.anatomy.weight[data["answers"]] - p.anatomy.weight[data["distractors"]]
    final = scene.frozen[p.anatomy.exit].gain[:, 0]
    for row, nodes in enumerate(e.senders):
        ((layer, head),) = nodes
        change = scene.corrupt.z[layer][:, 0] - scene.clean.z[layer][:, 0]
        width = change.shape[-1] // 4
        block = p.anatomy.blocks[layer]
        w = block.out.weight if kind == "gpt2" else block.out.weight.T  # Conv1D is [in, out]
        at = slice(head * width, (head + 1) * width)
        write = change[:, at] @ w[at]
        if scene.clean.post[layer] is not None:
            write = write * scene.frozen[scene.clean.post[layer]].gain[:, 0]
        want = (write * final * u).sum(-1).numpy()
        close(e.patched[row] - e.clean, want, float(np.abs(e.clean).max()))


def test_attribution_adds_up() -> None:
    """Heads, embeddings and MLPs together are the logit difference; here heads alone, in a model with nothing else."""
    model, data = build("llama-gqa"), prompts()
    freeze(model, data, zero_mlps=True)
    p = PathPatcher(model, **data)
    pairs = torch.stack([data["answers"], data["distractors"]], 1)
    heads = p.attribution(pairs)
    scene = p.scene(-1)
    rest = scene.clean.entered[0][:, 0] * scene.frozen[p.anatomy.exit].gain[:, 0]
    embedded = torch.einsum("bd,bad->ba", rest, p.anatomy.weight[pairs]).numpy()
    close(heads.sum(0) + embedded, scene.clean.logits.numpy(), 10.0)


def test_norms_are_read_by_probing() -> None:
    for kind in ("gpt2", "llama-gqa", "gemma3"):
        model = build(kind)
        p = PathPatcher(model, **prompts())
        norm, x = p.anatomy.exit, 5 * torch.randn(2, 3, 32) + 1
        gain, y = probe(norm, x), norm(x)
        r = gain.scale(x, y)
        centre = x.mean(-1, keepdim=True) if gain.centred else 0.0
        torch.testing.assert_close(r * gain.weight * (x - centre) + gain.bias, y, atol=1e-4, rtol=1e-4)
        assert gain.centred is (kind == "gpt2")


def test_scales_of_the_corrupt_run_and_flow() -> None:
    model, data = build("llama-gqa"), prompts()
    made = {n: PathPatcher(model, **data, freeze_norm=n).effects(LOGITS) for n in ("none", "clean", "corrupt")}
    assert np.abs(made["clean"].patched - made["corrupt"].patched).max() > 1e-3
    assert np.abs(made["clean"].patched - made["none"].patched).max() > 1e-3
    flow, cut = (PathPatcher(model, **data, nested=n) for n in ("flow", "cut"))
    sender = [(flow.anatomy.sites[0], 1)]
    chain = receive([(flow.anatomy.sites[1], 1), (flow.anatomy.sites[2], 1)], "qv")
    a, b = flow.effects(chain, sender), cut.effects(chain, sender)
    assert np.abs(a.patched - b.patched).max() > 1e-4  # one receiver feeds the other
    single = receive([(flow.anatomy.sites[2], 1), (flow.anatomy.sites[2], 3)], "qv")
    close(flow.effects(single, sender).patched, cut.effects(single, sender).patched, 1.0)


def test_the_model_is_left_as_it_was() -> None:
    model, data = build("gpt2"), prompts()
    with torch.no_grad():
        before = model(data["clean"]).logits
    p = PathPatcher(model, **data)
    p.effects(receivers(p, "kv"))
    with pytest.raises(UnbraidError):
        p.effects(LOGITS, positions=99)
    assert not any("forward" in vars(m) for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with torch.no_grad():
        assert torch.equal(before, model(data["clean"]).logits)


def test_sets_of_answers_are_log_odds_and_half_precision_runs() -> None:
    model, data = build("llama-gqa"), prompts()
    data["answers"] = torch.tensor([[1, 2], [3, -1], [4, 5]])
    data["distractors"] = torch.tensor([[7], [8], [9]])
    p = PathPatcher(model, **data)
    e = p.effects(LOGITS)
    with torch.no_grad():
        row = model(data["clean"]).logits[0, -1]
    assert e.clean[0] == pytest.approx(float(row[[1, 2]].logsumexp(0) - row[7]), abs=1e-4)
    half = PathPatcher(model.to(torch.bfloat16), **data).effects(receivers(p, "q"))
    assert np.isfinite(half.patched).all()
    assert np.abs(half.clean - e.clean).max() < 0.2 * np.abs(e.clean).max() + 0.2


def test_bootstraps_average_numerators_and_denominators_apart() -> None:
    p = PathPatcher(build("gpt2"), **prompts())
    e = p.effects(LOGITS)
    at = [0, 0, 2]
    want = (e.patched[:, at].mean(1) - e.clean[at].mean()) / (e.corrupt[at].mean() - e.clean[at].mean())
    np.testing.assert_allclose(e.importance(at), want)
    assert (e + e).importance() == pytest.approx(e.importance())
    assert e.scores().array.shape == (3, 4)


REFUSED = {
    "alike": lambda m, d: PathPatcher(m, **{**d, "corrupt": d["corrupt"][:, :-1]}),
    "no answers": lambda m, d: PathPatcher(m, **{**d, "answers": torch.full((3,), -1)}),
    "vocabulary": lambda m, d: PathPatcher(m, **{**d, "answers": torch.full((3,), 60)}),
    "floats": lambda m, d: PathPatcher(m, **{**d, "clean": d["clean"].float()}),
    "norm": lambda m, d: PathPatcher(m, **d, freeze_norm="both"),
    "nested": lambda m, d: PathPatcher(m, **d, nested="yes"),
    "position": lambda m, d: PathPatcher(m, **d).effects(LOGITS, positions=9),
    "rows of positions": lambda m, d: PathPatcher(m, **d).effects(LOGITS, positions=[[1], [2]]),
    "ragged positions": lambda m, d: PathPatcher(m, **d).effects(LOGITS, positions=[[1], [2, 3], [1]]),
    "receiver": lambda m, d: PathPatcher(m, **d).effects("logits"),
    "no receiver": lambda m, d: PathPatcher(m, **d).effects([]),
    "channel": lambda m, d: receive([("x", 0)], "z"),
    "site": lambda m, d: PathPatcher(m, **d).effects(LOGITS, [("nowhere", 0)]),
    "head": lambda m, d: PathPatcher(m, **d).effects(LOGITS, [("transformer.h.0.attn", 4)]),
    "first layer": lambda m, d: PathPatcher(m, **d).effects(receive([("transformer.h.0.attn", 0)], "q")),
    "no model": lambda m, d: PathPatcher("gpt2", **d),
    "training": lambda m, d: PathPatcher(m.train(), **d),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_input_is_refused_in_one_sentence(what: str) -> None:
    with pytest.raises(UnbraidError) as caught:
        REFUSED[what](build("gpt2"), prompts())
    assert len(str(caught.value)) > 30


def test_models_that_are_no_decoders_are_refused() -> None:
    size = {k: v for k, v in SIZE.items() if k not in ("eos_token_id", "bos_token_id", "pad_token_id")}
    encoder = transformers.BertModel(transformers.BertConfig(**size)).eval()
    with pytest.raises(UnbraidError, match="output embedding"):
        PathPatcher(encoder, **prompts())
