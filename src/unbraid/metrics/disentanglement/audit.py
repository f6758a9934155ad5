"""All metrics in one call, as a page and as data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from unbraid.core.errors import UnbraidError
from unbraid.core.progress import bar
from unbraid.core.result import Result, Table
from unbraid.metrics.disentanglement import (
    advice,
    gaps,
    infomec,
    informativeness,
    intervention,
    pictures,
    posterior,
    predictive,
    robustness,
    unsupervised,
)
from unbraid.metrics.disentanglement.cyclic import cyclic_view
from unbraid.metrics.disentanglement.inputs import Observed, Representation, Score, as_codes, observe, one_of
from unbraid.metrics.disentanglement.learners import LEARNERS, Learner
from unbraid.metrics.disentanglement.pictures import Decode
from unbraid.metrics.disentanglement.presets import PRESETS, SIZES
from unbraid.metrics.disentanglement.sampling import Encode

# metric -> (what it asks, best value where there is one)
ASKS: dict[str, tuple[str, float | None]] = {
    "beta_vae": ("can a linear rule name the fixed factor?", 1),
    "factor_vae": ("does the least varying code name the fixed factor?", 1),
    "z_max_var": ("does the most varying code name the factor that varies?", 1),
    "mig": ("is each factor's information in one code?", 1),
    "mig_posterior": ("the same on samples of the posterior, as first published", 1),
    "mig_sup": ("is each code about one factor?", 1),
    "dcimig": ("both, by information", 1),
    "jemmig": ("both, with the codes' own entropy", 1),
    "dci_d": ("is each code about one factor?", 1),
    "dci_c": ("is each factor in one code?", 1),
    "dci_i": ("can the factors be predicted?", 1),
    "sap_svm": ("is one code better than all others for each factor?", 1),
    "sap_r2": ("the same by linear correlation", 1),
    "modularity": ("is each code about one factor?", 1),
    "modularity_floor": ("the same without codes of noise", 1),
    "explicitness": ("can a linear rule read the factors? (AUC)", 1),
    "irs": ("do codes stay put while their factor does?", 1),
    "infom": ("is each code about one factor?", 1),
    "infoe": ("can a linear rule read the factors?", 1),
    "infoc": ("is each factor in one code?", 1),
    "downstream": ("accuracy with a few labels", 1),
    "tc": ("linear dependence among codes, nats", 0),
    "wasserstein": ("linear dependence among codes, by transport, over the total variance", 0),
    "mi_score": ("mean information between codes, nats", 0),
}


def audit(
    z: Any,
    factors: Any,
    names: Sequence[str] | None = None,
    blocks: Sequence[Any] | None = None,
    decode: Decode | None = None,
    *,
    preset: Literal["fast", "standard", "full"] = "standard",
    learner: Learner = "gbt",
    encode: Encode | None = None,
    sizes: Sequence[int] | None = None,
    logvar: Any = None,
    representation: Representation = "mean",
    active_mask: Any = None,
    continuous: Sequence[str | int] | None = None,
    cycles: Mapping[str, float] | None = None,
    title: str = "Disentanglement audit",
    seed: int = 0,
    progress: bool | None = None,
) -> Result:
    """Score a representation by every metric, with intervals, maps of codes by factors, and warnings in words.

    Args:
        z: [N, J] codes; 10,000 rows are usual.
        factors: [N, K] their true factors.
        names: [K] names of the factors.
        blocks: codes that belong together, as (start, stop) or lists of columns; metrics that know single codes only
            (posterior MIG, JEMMIG and information between codes) are left out then.
        decode: [n, J] float32 codes -> images (numpy or torch) from 0 to 1: adds a grid of traversals.
        preset: "fast" (seconds, wide intervals), "standard" (a minute or two) or "full" (the literature's sizes).
        learner: of DCI, see `dci`.
        encode: [n, K] factors -> codes, with ``sizes``: scores from interventions choose factors then, instead of
            taking rows that share a value.
        sizes: [K] numbers of values, for ``encode``.
        logvar: [N, J] logarithms of posterior variances: adds MIG on the posterior; total and Wasserstein correlation
            are of sampled codes then.
        representation: whether z are "mean" or "sampled" codes; recorded.
        active_mask: [J] True for codes that count.
        continuous: names or columns of continuous factors.
        cycles: name -> cycle of factors that come back, see `cyclic_view`; not with ``encode``.
        title: of the page.
        seed: of everything random.
        progress: a bar on stderr; None: on a terminal.

    Returns:
        Tables "scores", "warnings", "factors" and "codes"; arrays of the maps; figures. ``result.save(folder)`` writes
        a page and ``result.json``.

    Raises:
        UnbraidError: an argument has another form.
    """
    one_of(preset, tuple(PRESETS), "preset")
    one_of(learner, LEARNERS, "learner")
    codes = as_codes(z)
    if cycles:
        factors, names, made = cyclic_view(factors, cycles, names)
        continuous = [*(continuous or ()), *made]
    shared: dict[str, Any] = {"names": names, "blocks": blocks, "active_mask": active_mask, "continuous": continuous}
    shared |= {"representation": representation, "seed": seed}
    whole = observe(codes, factors, shared)
    if not (np.ptp(whole.z, axis=0) > 0).any():
        raise UnbraidError("all codes are constant, so there is nothing to audit; the model has collapsed.")
    single = ~whole.continuous & (2 * whole.sizes > len(codes))
    own = [name for name, alone in zip(whole.names, single, strict=True) if alone]
    if own:
        raise UnbraidError(f"factor {own[0]!r} has a value of its own in most rows; if it is continuous, say so.")
    began = time.perf_counter()
    run = _Run(whole, codes, shared, preset, learner, encode, sizes, logvar)
    steps = run.steps()
    with bar(progress, "audit", len(steps)) as tick:
        for name, step in steps.items():
            clock = time.perf_counter()
            run.scores[name] = step()
            run.seconds[name] = time.perf_counter() - clock
            tick()
    params: dict[str, Any] = {
        "preset": preset,
        "learner": learner,
        "representation": representation,
        "seed": seed,
        "names": names,
    }
    params |= {"blocks": None if blocks is None else [list(map(int, b)) for b in blocks], "cycles": dict(cycles or {})}
    params |= {"names": whole.names, "rows": len(codes), "codes": codes.shape[1], "active_mask": active_mask}
    return _result(run, decode, title, params, time.perf_counter() - began)


class _Run:
    """The metrics of one audit, to be called one after the other."""

    def __init__(
        self,
        whole: Observed,
        codes: np.ndarray,
        shared: dict[str, Any],
        preset: str,
        learner: Learner,
        encode: Encode | None,
        sizes: Sequence[int] | None,
        logvar: Any,
    ) -> None:
        self.codes, self.shared, self.preset, self.learner, self.logvar = codes, shared, preset, learner, logvar
        self.size = SIZES[preset]
        rows = self.size["rows"]
        order = np.random.default_rng([whole.seed, 0xA0D1]).permutation(len(codes))
        few = np.sort(order[:rows]) if rows is not None else np.arange(len(codes))
        self.few, self.fewer = few, np.sort(order[: self.size["learner_rows"]])
        self.whole = whole
        shared["names"] = whole.names
        shared["continuous"] = list(np.flatnonzero(whole.continuous))
        self.seen = observe(codes[few], whole.values[few], shared)
        self.source: dict[str, Any] = {"z": codes, "factors": whole.values}
        if encode is not None:
            self.source = {"encode": encode, "sizes": sizes}
        self.scores: dict[str, Score] = {}
        self.seconds: dict[str, float] = {}

    def options(self, metric: str, resamples: str = "resamples", most: int = 10**9) -> dict[str, Any]:
        """Arguments of a metric: shared ones, the preset's, and how often to resample."""
        own = dict(PRESETS[self.preset].get(metric, {}))
        if metric == "dci" and self.learner not in ("gbt", "rf"):
            own.pop("options", None)
        return {**self.shared, **own, "bootstrap": min(most, self.size[resamples])}

    def steps(self) -> dict[str, Callable[[], Score]]:
        """Name -> what to call, in the order of the table."""
        z, v = self.codes[self.few], self.whole.values[self.few]
        small = self.codes[self.fewer], self.whole.values[self.fewer]
        source, get = self.source, self.options
        steps: dict[str, Callable[[], Score]] = {}
        steps["beta_vae"] = lambda: intervention.beta_vae(**source, **get("beta_vae"))
        steps["factor_vae"] = lambda: intervention.factor_vae(**source, **get("factor_vae"))
        if "encode" in source:
            steps["z_max_var"] = lambda: intervention.z_max_var(**source, **get("z_max_var"))
        steps |= self._gaps(z, v)
        steps["dci"] = lambda: informativeness.dci(*small, learner=self.learner, **get("dci", "refits"))
        if not self.whole.continuous.all():
            steps["sap_svm"] = lambda: predictive.sap(*small, **get("sap", "refits"))
        steps["sap_r2"] = lambda: predictive.sap(z, v, kind="r2", **get("sap"))
        steps["explicitness"] = lambda: predictive.explicitness(*small, **get("explicitness", most=50))
        steps["irs"] = lambda: robustness.irs(z, v, **get("irs", most=200))
        steps["infomec"] = lambda: infomec.infomec(*small, **get("infomec", "refits"))
        steps["downstream"] = lambda: predictive.downstream(z, v, **get("downstream"))
        return steps | self._unsupervised(z)

    def _gaps(self, z: np.ndarray, v: np.ndarray) -> dict[str, Callable[[], Score]]:
        """Scores that are formulas of information; blocks take nearest neighbours, which cost more."""
        single = self.seen.single
        kind, most = ("resamples", 10**9) if single else ("refits", 10)

        def formula(metric: Any, name: str, **more: Any) -> Callable[[], Score]:
            return lambda: metric(z, v, **self.options(name, kind, most), **more)

        steps = {"mig": formula(gaps.mig, "mig")}
        if self.logvar is not None and single and not self.whole.continuous.all():
            steps["mig_posterior"] = self._posterior
        steps |= {"mig_sup": formula(gaps.mig_sup, "mig_sup"), "dcimig": formula(gaps.dcimig, "dcimig")}
        if single:
            steps["jemmig"] = formula(gaps.jemmig, "jemmig")
        if self.whole.varying.sum() > 1:
            steps["modularity"] = formula(gaps.modularity, "modularity")
            steps["modularity_floor"] = formula(gaps.modularity, "modularity", floor=20)
        return steps

    def _posterior(self) -> Score:
        spread = as_codes(self.logvar, "logvar")[self.few]
        given = {k: v for k, v in self.options("mig_posterior").items() if k != "representation"}
        return posterior.mig_posterior(self.codes[self.few], spread, self.whole.values[self.few], **given)

    def _unsupervised(self, z: np.ndarray) -> dict[str, Callable[[], Score]]:
        given: dict[str, Any] = {name: self.shared[name] for name in ("representation", "active_mask", "seed")}
        given["bootstrap"] = min(200, self.size["resamples"])
        noise: dict[str, Any] = {}
        if self.logvar is not None:
            noise = {"variance": np.exp(as_codes(self.logvar, "logvar")[self.few])}
        blocks = self.shared["blocks"]
        steps: dict[str, Callable[[], Score]] = {
            "tc": lambda: unsupervised.total_correlation(z, blocks=blocks, **noise, **given),
            "wasserstein": lambda: unsupervised.wasserstein_correlation(z, normalised=True, **noise, **given),
        }
        if blocks is None:
            steps["mi_score"] = lambda: unsupervised.mi_score(z, **given)
        return steps


def _rows(run: _Run) -> list[dict[str, Any]]:
    """The table of scores: DCI, InfoMEC and downstream accuracy have several rows."""
    rows = []
    for name, score in run.scores.items():
        if name == "dci":
            tag = score["keys"][0].removeprefix("dci_d")
            parts = [(k, f"{k}{tag}", score[f"{k}{tag}"], score["intervals"]) for k in ("dci_d", "dci_c", "dci_i")]
            rows += [_row(k, full, value, found.get(full)) for k, full, value, found in parts]
        elif name == "infomec":
            for part in ("infom", "infoe", "infoc"):
                full = score["estimator"].replace("infom", part)
                rows.append(_row(part, full, score[part], score["intervals"].get(part)))
        elif name == "downstream":
            for count, value in score["accuracy"].items():
                full = f"downstream_{count}[logistic]"
                rows.append(_row("downstream", full, value, score["intervals"].get(count)))
        else:
            rows.append(_row(name, score["estimator"], score["score"], score["interval"]))
    return rows


def _row(name: str, estimator: str, value: float, interval: Any) -> dict[str, Any]:
    low, high = interval or (None, None)
    asks, best = ASKS[name]
    if name == "downstream":
        name = estimator.partition("[")[0]
    shown: Any = None if np.isnan(value) else "infinite" if np.isinf(value) else float(value)
    return {
        "metric": name,
        "value": shown,
        "low": low,
        "high": high,
        "best": best,
        "estimator": estimator,
        "asks": asks,
    }


def _result(run: _Run, decode: Decode | None, title: str, params: dict[str, Any], seconds: float) -> Result:
    seen, scores = run.seen, run.scores
    entropy = scores["mig"]["entropy"]
    share = scores["mig"]["matrix"] / np.where(entropy > 0, entropy, 1.0)
    arrays = {"information": share, "importance": scores["dci"]["matrix"], "correlation": pictures.correlation(seen)}
    votes = scores["factor_vae"]["matrix"]
    arrays["votes"] = votes / np.maximum(1, votes.sum(axis=0))
    rows = _rows(run)
    figures = pictures.figures(seen, scores, arrays, rows)
    if decode is not None:
        figures.insert(0, pictures.traversal(decode, seen, run.codes, share))
    warned = advice.warnings_of(run.codes, seen, scores)
    tables = {
        "scores": Table.from_records(rows, "Estimates with 95 % intervals; the estimator's name says which form."),
        "warnings": Table(["code", "warning"], [list(w.values()) for w in warned], "Read these before the scores."),
        "factors": _factors(seen, share, scores),
        "codes": _codes(seen, share),
    }
    note = (
        f"{params['rows']:,} rows; {len(run.few):,} of them for scores that are formulas, {len(run.fewer):,} for those "
        "that fit learners. Intervals resample rows, votes or halves of the rows and are laid around the estimate; "
        "they say how it would vary with other rows, not how biased it is."
    )
    meta = {"seed": params["seed"], "seconds": round(seconds, 2)}
    meta["seconds_per_metric"] = {k: round(v, 3) for k, v in run.seconds.items()}
    return Result(
        "audit",
        title,
        params=params,
        tables=tables,
        figures=figures,
        arrays=arrays,
        notes=[note],
        lead="figures",
        meta=meta,
    )


def _factors(seen: Observed, share: np.ndarray, scores: Mapping[str, Score]) -> Table:
    rows = []
    for k, name in enumerate(seen.names):
        order = np.argsort(-share[:, k], kind="stable")
        first, second = int(order[0]), int(order[1]) if len(order) > 1 else None
        row: dict[str, Any] = {
            "factor": name,
            "values": int(seen.sizes[k]),
            "best code": seen.labels[first],
            "share": share[first, k],
        }
        row |= {"next code": None if second is None else seen.labels[second]}
        row |= {"its share": None if second is None else share[second, k]}
        rows.append(row | {"predicted": scores["dci"]["per_factor"][k], "auc": scores["explicitness"]["per_factor"][k]})
    return Table.from_records(
        rows, "Shares of the factor's entropy that a code tells; accuracy or R² by DCI's learner."
    )


def _codes(seen: Observed, share: np.ndarray) -> Table:
    rows = []
    for u, label in enumerate(seen.labels):
        best = int(share[u].argmax())
        row: dict[str, Any] = {"code": label, "deviation": float(np.sqrt(seen.z[:, seen.blocks[u]].var(axis=0).sum()))}
        rows.append(row | {"best factor": seen.names[best], "share": float(share[u, best])})
    return Table.from_records(rows, "A code's standard deviation and the factor that it tells most about.")


__all__ = ["audit"]
