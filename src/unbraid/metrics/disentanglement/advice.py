"""What a reader should know before believing the numbers, in plain words and with a code for programs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unbraid.metrics.disentanglement.inputs import Observed, Score

COLLAPSED = 0.05
SAME = 0.999
FEW = 1_000


def warnings_of(codes: np.ndarray, seen: Observed, scores: Mapping[str, Score]) -> list[dict[str, str]]:
    """Rows {"code", "warning"}.

    Args:
        codes: [N, J] all codes as given.
        seen: the checked active codes and factors.
        scores: by metric.
    """
    told = [*_of_codes(codes, seen), *_of_factors(seen), *_of_noise(seen, scores), *_of_scores(scores)]
    return [{"code": code, "warning": words} for code, words in told]


def _of_codes(codes: np.ndarray, seen: Observed) -> list[tuple[str, str]]:
    out = []
    spread = codes.std(axis=0)
    flat = [f"z{j}" for j in np.flatnonzero((spread < COLLAPSED) & seen.active)]
    if flat:
        out.append((
            "collapsed",
            f"{_list(flat)}: standard deviation below {COLLAPSED}. In a VAE's means such latents have collapsed: leave "
            "them out with active_mask, as scores that rescale codes (R², SVM, information) still read them.",
        ))  # fmt: skip
    moving = np.flatnonzero((spread > 0) & seen.active)
    if len(moving) > 1:
        r = np.abs(np.corrcoef(codes[:, moving], rowvar=False))
        pairs = [(moving[a], moving[b]) for a, b in np.argwhere(np.triu(r > SAME, 1))]
        if pairs:
            out.append((
                "duplicated",
                f"{_list([f'z{a} and z{b}' for a, b in pairs])} say the same (|r| > {SAME}): MIG and SAP fall to 0 for "
                "what they carry, completeness and InfoC drop, total correlation is infinite or nearly so.",
            ))  # fmt: skip
    return out


def _of_factors(seen: Observed) -> list[tuple[str, str]]:
    out = []
    still = [name for name, varies in zip(seen.names, seen.varying, strict=True) if not varies]
    if still:
        out.append(("constant_factor", f"{_list(still)}: one value only; left out of every mean."))
    smooth = [name for name, c in zip(seen.names, seen.continuous, strict=True) if c]
    if smooth:
        out.append((
            "continuous",
            f"{_list(smooth)}: continuous, so metrics that need classes see bins of equal count; DCI and SAP regress.",
        ))  # fmt: skip
    bound = np.array([int(n) for n in seen.sizes])
    bias = 19 * (bound - 1) / (2 * len(seen.z))
    strong = [f"{name} ({b:.2f} nats)" for name, b in zip(seen.names, bias, strict=True) if b > 0.05]
    if strong:
        out.append((
            "biased_information",
            f"Plug-in information of independent noise with {_list(strong)} is that large at {len(seen.z):,} rows; the "
            "gap in MIG cancels most of it, modularity and MIG-sup do not: use correction='miller-madow'.",
        ))  # fmt: skip
    if len(seen.z) < FEW:
        out.append(("few_rows", f"{len(seen.z):,} rows: the literature takes 10,000; mind the intervals."))
    dependent = _dependent(seen)
    if dependent:
        out.append((
            "correlated_factors",
            f"{_list(dependent)} depend on one another in these data: a code of one carries the other too, and even a "
            "perfect model is scored lower.",
        ))  # fmt: skip
    return out


def _dependent(seen: Observed) -> list[str]:
    used = np.flatnonzero(seen.varying)
    if len(used) < 2:
        return []
    r = np.corrcoef(seen.values[:, used], rowvar=False)
    level = max(0.1, 4 / np.sqrt(len(seen.z)))
    return [f"{seen.names[used[a]]} and {seen.names[used[b]]}" for a, b in np.argwhere(np.triu(np.abs(r) > level, 1))]


def _of_noise(seen: Observed, scores: Mapping[str, Score]) -> list[tuple[str, str]]:
    if "modularity_floor" not in scores:  # a single factor
        return []
    kept = scores["modularity_floor"]["kept"]
    noise = [label for label, k in zip(seen.labels, kept, strict=True) if not k]
    if not noise:
        return []
    raw, clean = float(scores["modularity"]), float(scores["modularity_floor"])
    with_floor = "NaN (no code is left)" if np.isnan(clean) else f"{clean:.2f}"
    return [(
        "noise_codes",
        f"{_list(noise)}: no information on any factor beyond chance. They still count in modularity "
        f"({raw:.2f}; without them {with_floor}), and they pull IRS and InfoM down.",
    )]  # fmt: skip


def _of_scores(scores: Mapping[str, Score]) -> list[tuple[str, str]]:
    out = []
    votes = scores.get("factor_vae")
    if votes is not None and "buckets" in votes["estimator"]:
        out.append((
            "buckets",
            "The rows are no complete grid and no encoder was given, so beta-VAE and FactorVAE scores were drawn from "
            "rows that share a value. That is another estimator: other factors are as dependent as in the data.",
        ))  # fmt: skip
    if votes is not None and len(votes["codes"]) > 40:
        out.append((
            "many_codes",
            f"{len(votes['codes'])} codes: one code that answers to a factor is enough for the FactorVAE score; it "
            "does not see the others. Read the vote matrix.",
        ))  # fmt: skip
    svm = scores.get("sap_svm")
    if svm is not None:
        out.append((
            "sap_level",
            "SAP with an SVM does not reach 1 on factors of more than two classes, not even for a perfect code "
            "(0.36 to 0.5): compare models, not levels; SAP by R² has no such ceiling.",
        ))  # fmt: skip
    return out


def _list(items: list[str], most: int = 8) -> str:
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
