"""Outcomes of trials as finished pieces."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from unbraid.core.pieces import Pieces
from unbraid.systems.retrieval_heads.detect import Outcome
from unbraid.systems.retrieval_heads.trial import Trial

ARRAYS = ("flags", "one_pass", "mass", "soft", "sink", "question_mass", "blank_mass")


def load_outcome(store: Pieces | None, trial: Trial) -> Outcome | None:
    """The outcome of exactly this prompt, if it was finished."""
    found = None if store is None else store.load_arrays("trial", asdict(trial))
    if found is None:
        return None
    meta = json.loads(found["meta"].tobytes())
    tables: dict[str, Any] = {name: found[name] for name in ARRAYS}
    return Outcome(trial, meta["answer"], meta["recall"], steps=meta["steps"], **tables)


def save_outcome(store: Pieces | None, outcome: Outcome) -> None:
    """Keeps an outcome."""
    if store is not None:
        meta = {"answer": outcome.answer, "recall": outcome.recall, "steps": outcome.steps}
        tables = {name: vars(outcome)[name] for name in ARRAYS}
        packed = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        store.save_arrays("trial", asdict(outcome.trial), {**tables, "meta": packed})
