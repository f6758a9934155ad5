"""The five explanations put to a real model, on texts of its own language."""

from __future__ import annotations

from typing import Any

import torch

from unbraid.core.errors import UnbraidError
from unbraid.data import text
from unbraid.systems.attention_sinks.experiments.detecting import short_texts
from unbraid.systems.attention_sinks.probes.causes import bias_probe, noop_probe
from unbraid.systems.attention_sinks.probes.circuit import outlier_circuit
from unbraid.systems.attention_sinks.probes.shape import geometry, mixing


def probe(model: Any, tokenizer: Any, *, length: int, texts: int, seed: int, controls: int = 5) -> dict[str, Any]:
    """All probes on `texts` windows of `length` tokens; calibration and test never share a draw.

    Args:
        model: a decoder language model.
        tokenizer: its tokenizer.
        length: tokens of a text.
        texts: how many.
        seed: of the texts.
        controls: channels zeroed for comparison.

    Returns:
        Plain data: rows of each probe, or under "why" the reason why one was left out.
    """
    device = next(model.parameters()).device
    inputs = {"input_ids": short_texts(tokenizer, length, texts, seed).to(device)}
    others = {"input_ids": short_texts(tokenizer, length, texts, seed + 1_000).to(device)}
    few = {"input_ids": inputs["input_ids"][:8]}
    found: dict[str, Any] = {
        "no-op": noop_probe(model, inputs), "bias": bias_probe(model, inputs, others), "why": {},
        "geometry": geometry(model, few),
    }  # fmt: skip
    try:
        circuit = outlier_circuit(model, few, controls=controls, seed=seed)
        found["circuit"] = {
            "token": circuit.token, "channel": circuit.channel, "value": circuit.value, "block": circuit.block,
            "neurons": [list(n) for n in circuit.neurons], "zeroed": circuit.zeroed,
            "alignment": circuit.alignment.to_dict(),
        }  # fmt: skip
    except UnbraidError as error:
        found["why"]["circuit"] = str(error)
    try:
        body = text.windows(tokenizer, length, texts, seed).to(device)
        found["mixing"] = mixing(model, body, tokenizer.bos_token_id, seed)
    except UnbraidError as error:
        found["why"]["mixing"] = str(error)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found
