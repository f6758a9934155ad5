"""The model and the text of a job: the same for every variant and every environment. Needs torch and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# SmolLM2-135M's shape, for machines that cannot fetch the weights (--random-weights)
SHAPE = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "rope_theta": 100000.0,
}  # fmt: skip


def load(job: dict[str, Any], implementation: str) -> Any:
    """The model of a job, in evaluation mode, on its device.

    Args:
        job: "model" (a folder, or None for random weights of the same shape), "dtype", "device", "seed", "threads".
        implementation: "sdpa" or "eager".
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[job["dtype"]]
    if job["model"] is None:
        torch.manual_seed(job["seed"])
        config = transformers.LlamaConfig(**SHAPE, attn_implementation=implementation)
        model = transformers.LlamaForCausalLM(config).to(dtype)
    else:
        options = {"dtype": dtype, "attn_implementation": implementation, "local_files_only": True}
        model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], use_safetensors=True, **options)
    return model.eval().to(job["device"])


def text(job: dict[str, Any]) -> Tensor:
    """Token ids [1, length] of a job: its text, over and over."""
    tokens = json.loads(Path(job["tokens"]).read_text(encoding="utf-8"))
    times = -(-job["length"] // len(tokens))
    return torch.tensor([(tokens * times)[: job["length"]]], device=job["device"])


def plain(model: Any, ids: Tensor, **more: Any) -> Any:
    """The forward pass that all variants share: logits of the last token only, no cache."""
    return model(input_ids=ids, logits_to_keep=1, use_cache=False, **more)
