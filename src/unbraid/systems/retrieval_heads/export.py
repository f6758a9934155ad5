"""Retrieval heads for other tools: `HeadSet` JSON, and the attention pattern that DuoAttention and kvpress read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadScores


def group_scores(scores: HeadScores, key_heads: int) -> np.ndarray:
    """[layers, key heads]: the best score of the query heads that share a key/value head.

    Raises:
        UnbraidError: the heads cannot be divided into that many groups.
    """
    x = scores.array
    if key_heads < 1 or x.shape[1] % key_heads:
        raise UnbraidError(f"{x.shape[1]} heads per layer cannot be divided into {key_heads} key/value heads.")
    return x.reshape(x.shape[0], key_heads, -1).max(-1)


def export_kvpress(
    scores: HeadScores, folder: str | Path, key_heads: int, *, sink_size: int = 128, recent_size: int = 256
) -> Path:
    """Writes `full_attention_heads.tsv` ([layers, key/value heads] in [0, 1]) and `config.json`.

    This is the folder layout of DuoAttention's attention patterns, from which kvpress' `DuoAttentionPress` takes the
    heads that keep the full cache; `load_kvpress` reads it back.

    Args:
        scores: retrieval scores; each key/value head gets the best of its query heads.
        folder: where to write; made if needed.
        key_heads: key/value heads per layer (`config.num_key_value_heads`).
        sink_size: first tokens that streaming heads keep.
        recent_size: last tokens that streaming heads keep.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = np.clip(group_scores(scores, key_heads), 0, 1)
    text = "\n".join("\t".join(f"{v:.6f}" for v in row) for row in table) + "\n"
    _write(folder / "full_attention_heads.tsv", text)
    _write(folder / "config.json", json.dumps({"sink_size": sink_size, "recent_size": recent_size}) + "\n")
    return folder


def load_kvpress(folder: str | Path) -> tuple[int, int, np.ndarray]:
    """(sink_size, recent_size, scores [layers, key heads]) as kvpress' `load_attention_pattern` returns them.

    Example:
        >>> press = DuoAttentionPress(head_compression_ratio=0.5)
        >>> press.load_attention_pattern = lambda model: load_kvpress("heads/")
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    table = np.loadtxt(folder / "full_attention_heads.tsv", dtype=float, delimiter="\t", ndmin=2)
    return int(config["sink_size"]), int(config["recent_size"]), np.clip(table, 0, 1)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
