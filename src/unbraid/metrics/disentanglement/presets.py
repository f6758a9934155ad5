"""How much work each metric does: keyword arguments per metric, under three names."""

from __future__ import annotations

from typing import Any

# rows: of the table that the sample metrics see; None: all. `refits` are resamples that fit learners anew.
SIZES: dict[str, dict[str, Any]] = {
    "fast": {"rows": 2_000, "learner_rows": 1_200, "resamples": 40, "refits": 3},
    "standard": {"rows": 10_000, "learner_rows": 3_000, "resamples": 200, "refits": 5},
    "full": {"rows": None, "learner_rows": 15_000, "resamples": 1_000, "refits": 20},
}
_VOTES = {"votes": 1_000, "test_votes": 500, "variance_points": 2_000}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "fast": {
        "factor_vae": _VOTES,
        "z_max_var": _VOTES,
        "beta_vae": {"train": 1_500, "test": 500, "batch": 32},
        "dci": {"options": {"n_estimators": 20}},
        "downstream": {"labels": (10, 100), "test": 500},
        "mig_posterior": {"samples": 1_000},
    },
    "standard": {"downstream": {"labels": (10, 100, 1_000)}, "mig_posterior": {"samples": 2_000}},
    "full": {"downstream": {"labels": (10, 100, 1_000, 10_000), "folds": 10}},
}
