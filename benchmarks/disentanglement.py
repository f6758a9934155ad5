"""Disentanglement metrics next to straightforward implementations of the same definitions, same numbers, one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.disentanglement            # 10,000 rows; writes results/benchmarks/
    OMP_NUM_THREADS=1 python -m benchmarks.disentanglement --rows 1000 --repeat 1 --out /tmp/try.json

The straightforward form is what one writes with numpy and scikit-learn: a loop over codes, factors, values or votes,
one library call inside. Both run in turn in one process, on one thread; times are of the processor, so that other work
on the machine counts less, and the figure is the ratio of their medians. Where a learner of scikit-learn takes the time
(DCI, SAP with SVMs, explicitness, InfoE) there is nothing to gain, and the table says so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logsumexp
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score, roc_auc_score
from sklearn.svm import LinearSVC

from benchmarks.attention.report import markdown, provenance, show, write_json, write_text
from unbraid.metrics import disentanglement as dis
from unbraid.metrics.disentanglement.informativeness import parts

OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "disentanglement.json"
SIZES, CODES, BATCH, TARGET = (3, 6, 8, 8, 4), 10, 64, 5.0


class Data:
    """Ten codes that mix five factors, as a table and as a grid."""

    def __init__(self, rows: int, votes: int) -> None:
        rng = np.random.default_rng(0)
        self.mix = rng.standard_normal((len(SIZES), CODES))
        self.v = np.stack([rng.integers(n, size=rows) for n in SIZES], axis=1)
        self.z = self.v @ self.mix + 0.5 * rng.standard_normal((rows, CODES))
        whole = np.stack(np.meshgrid(*map(range, SIZES), indexing="ij"), -1).reshape(-1, len(SIZES))
        self.grid = whole @ self.mix + 0.5 * rng.standard_normal((len(whole), CODES))
        self.logvar = rng.normal(-2, 0.3, self.z.shape)
        self.votes, self.test_votes = votes, votes // 2


def matrix(d: Data) -> np.ndarray:
    m = np.zeros((CODES, len(SIZES)))
    for j in range(CODES):
        bins = np.digitize(d.z[:, j], np.histogram(d.z[:, j], 20)[1][:-1])
        for k in range(len(SIZES)):
            m[j, k] = mutual_info_score(bins, d.v[:, k])
    return m


def entropies(d: Data) -> np.ndarray:
    return np.array([mutual_info_score(column, column) for column in d.v.T])


def mig(d: Data) -> float:
    ranked = np.sort(matrix(d), axis=0)[::-1]
    return float(np.mean((ranked[0] - ranked[1]) / entropies(d)))


def mig_sup(d: Data) -> float:
    ranked = np.sort(matrix(d) / entropies(d), axis=1)[:, ::-1]
    return float(np.mean(ranked[:, 0] - ranked[:, 1]))


def dcimig(d: Data) -> float:
    m = matrix(d)
    best = np.zeros(len(SIZES))
    for row in m:
        top, second = np.sort(row)[::-1][:2]
        best[row.argmax()] = max(best[row.argmax()], top - second)
    return float(best.sum() / entropies(d).sum())


def jemmig(d: Data) -> float:
    m, scores = matrix(d), []
    for k, h in enumerate(entropies(d)):
        order = np.argsort(m[:, k])[::-1]
        bins = np.digitize(d.z[:, order[0]], np.histogram(d.z[:, order[0]], 20)[1][:-1])
        joint = mutual_info_score(bins * 100 + d.v[:, k], bins * 100 + d.v[:, k])
        scores.append(1 - (joint - m[order[0], k] + m[order[1], k]) / (h + np.log(20)))
    return float(np.mean(scores))


def modularity(d: Data) -> float:
    scores = []
    for row in matrix(d):
        rest = np.delete(row, row.argmax())
        scores.append(1 - np.sum(rest**2) / (row.max() ** 2 * (len(row) - 1)))
    return float(np.mean(scores))


def mi_score(d: Data) -> float:
    bins = [np.digitize(c, np.histogram(c, 20)[1][:-1]) for c in d.z.T]
    return float(np.mean([mutual_info_score(a, b) for i, a in enumerate(bins) for j, b in enumerate(bins) if i != j]))


def sap_r2(d: Data) -> float:
    s = np.zeros((CODES, len(SIZES)))
    for j in range(CODES):
        for k in range(len(SIZES)):
            c = np.cov(d.z[:, j], d.v[:, k], ddof=1)
            s[j, k] = c[0, 1] ** 2 / (c[0, 0] * c[1, 1])
    ranked = np.sort(s, axis=0)[::-1]
    return float(np.mean(ranked[0] - ranked[1]))


def irs(d: Data) -> float:
    reach = np.array([np.abs(c - c.mean()).max() for c in d.z.T])
    table = np.zeros((CODES, len(SIZES)))
    for j in range(CODES):
        for k in range(len(SIZES)):
            moved = []
            for a in np.unique(d.v[:, k]):
                group = d.z[d.v[:, k] == a, j]
                moved.append(np.quantile(np.abs(group - group.mean()), 0.99))
            table[j, k] = 1 - np.mean(moved) / reach[j]
    return float(np.sum(reach * table.max(axis=1)) / reach.sum())


def draw(d: Data, rng: np.random.Generator, k: int, how: str) -> np.ndarray:
    one = [int(rng.integers(n)) for n in SIZES]
    if how == "fixed":
        chosen = [rng.integers(n, size=BATCH) if i != k else np.full(BATCH, one[i]) for i, n in enumerate(SIZES)]
    else:
        chosen = [rng.integers(n, size=BATCH) if i == k else np.full(BATCH, one[i]) for i, n in enumerate(SIZES)]
    return d.grid[np.ravel_multi_index(chosen, SIZES)]


def by_votes(d: Data, how: str) -> float:
    rng = np.random.default_rng(1)
    scale = np.var(d.grid, axis=0, ddof=1)
    counts = [np.zeros((CODES, len(SIZES))), np.zeros((CODES, len(SIZES)))]
    for table, total in zip(counts, (d.votes, d.test_votes), strict=True):
        for _ in range(total):
            k = int(rng.integers(len(SIZES)))
            share = np.var(draw(d, rng, k, how), axis=0, ddof=1) / scale
            table[share.argmin() if how == "fixed" else share.argmax(), k] += 1
    return float(counts[1][np.arange(CODES), counts[0].argmax(axis=1)].sum() / counts[1].sum())


def beta_vae(d: Data) -> float:
    rng = np.random.default_rng(1)

    def points(total: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = np.zeros((total, CODES)), np.zeros(total, dtype=int)
        for i in range(total):
            k = int(rng.integers(len(SIZES)))
            one = [rng.integers(n, size=BATCH) for n in SIZES]
            two = [rng.integers(n, size=BATCH) if f != k else one[f] for f, n in enumerate(SIZES)]
            a, b = (d.grid[np.ravel_multi_index(t, SIZES)] for t in (one, two))
            x[i], y[i] = np.mean(np.abs(a - b), axis=0), k
        return x, y

    model = LogisticRegression().fit(*points(d.votes))
    return float(model.score(*points(d.test_votes)))


def neighbours(d: Data) -> float:
    return float(max(mutual_info_classif(d.z, column, n_neighbors=10, random_state=0).max() for column in d.v.T))


def posterior(d: Data) -> float:
    """The same draws as ours; log-densities with scipy's logsumexp, 500 samples at a time."""
    rng = np.random.default_rng([0, 0x316])
    rows = rng.integers(len(d.z), size=d.votes // 10)
    z = d.z[rows] + np.exp(0.5 * d.logvar[rows]) * rng.standard_normal((len(rows), CODES))

    def log_q(x: np.ndarray, j: int, members: np.ndarray) -> np.ndarray:
        mean, logvar = d.z[members, j], d.logvar[members, j]
        out = []
        for part in np.array_split(x, max(1, len(x) * len(mean) // 5_000_000)):
            t = -0.5 * (np.log(2 * np.pi) + logvar + (part[:, None] - mean) ** 2 * np.exp(-logvar))
            out.append(logsumexp(t, axis=1) - np.log(len(mean)))
        return np.concatenate(out)

    m = np.zeros((CODES, len(SIZES)))
    for j in range(CODES):
        whole = -log_q(z[:, j], j, np.arange(len(d.z))).mean()
        for k in range(len(SIZES)):
            inner = 0.0
            for a in range(SIZES[k]):
                mine = d.v[rows, k] == a
                if mine.any():
                    inner -= log_q(z[mine, j], j, np.flatnonzero(d.v[:, k] == a)).sum()
            m[j, k] = max(0.0, whole - inner / len(z))
    ranked = np.sort(m, axis=0)[::-1]
    return float(np.mean((ranked[0] - ranked[1]) / np.log(SIZES)))


def total_correlation(d: Data) -> float:
    s = np.cov(d.z, rowvar=False)
    return float(0.5 * (np.log(np.diag(s)).sum() - np.linalg.slogdet(s)[1]))


def sap_svm(d: Data) -> float:
    train, test = parts(len(d.z), 1 / 3, 0)
    s = np.zeros((CODES, len(SIZES)))
    for j in range(CODES):
        for k in range(len(SIZES)):
            model = LinearSVC(C=0.01, class_weight="balanced", random_state=0).fit(d.z[train][:, [j]], d.v[train, k])
            s[j, k] = np.mean(model.predict(d.z[test][:, [j]]) == d.v[test, k])
    ranked = np.sort(s, axis=0)[::-1]
    return float(np.mean(ranked[0] - ranked[1]))


def explicitness(d: Data) -> float:
    train, test = parts(len(d.z), 1 / 3, 0)
    x = (d.z - d.z[train].mean(0)) / d.z[train].std(0)
    scores = []
    for column in d.v.T:
        model = LogisticRegression(max_iter=1_000).fit(x[train], column[train])
        chance = model.predict_proba(x[test])
        scores.append(np.mean([roc_auc_score(column[test] == c, chance[:, i]) for i, c in enumerate(model.classes_)]))
    return float(np.mean(scores))


def dci(d: Data) -> float:
    from sklearn.ensemble import GradientBoostingClassifier

    train, test = parts(1_500, 1 / 3, 0)
    table = []
    for k in range(len(SIZES)):
        model = GradientBoostingClassifier(n_estimators=20, random_state=0).fit(d.z[train], d.v[train, k])
        model.score(d.z[test], d.v[test, k])
        table.append(model.feature_importances_)
    r = np.array(table).T + 1e-11
    p = r / r.sum(axis=1, keepdims=True)
    h = -(p * np.log(p)).sum(axis=1) / np.log(len(SIZES))
    return float(((1 - h) * r.sum(axis=1)).sum() / r.sum())


LEARNER = "the learner takes the time"
Case = tuple[str, Callable[[Data], float], Callable[[Data], Any], float, str]


def cases() -> list[Case]:
    """(metric, straightforward, ours, tolerance, note)."""

    def votes(d: Data) -> dict[str, Any]:
        return {"grid": d.grid, "sizes": SIZES, "votes": d.votes, "test_votes": d.test_votes}

    def betas(d: Data) -> dict[str, Any]:
        return {"grid": d.grid, "sizes": SIZES, "train": d.votes, "test": d.test_votes}

    def nearest(d: Data) -> Any:
        return dis.mutual_information(d.z, d.v, estimator="knn")

    def of_posterior(d: Data) -> Any:
        return dis.mig_posterior(d.z, d.logvar, d.v, samples=d.votes // 10)

    small = {"options": {"n_estimators": 20}}
    return [
        ("MIG", mig, lambda d: dis.mig(d.z, d.v), 1e-9, ""),
        ("MIG-sup", mig_sup, lambda d: dis.mig_sup(d.z, d.v), 1e-9, ""),
        ("DCIMIG", dcimig, lambda d: dis.dcimig(d.z, d.v), 1e-9, ""),
        ("JEMMIG", jemmig, lambda d: dis.jemmig(d.z, d.v), 1e-9, ""),
        ("modularity", modularity, lambda d: dis.modularity(d.z, d.v), 1e-9, ""),
        ("MI score", mi_score, lambda d: dis.mi_score(d.z), 1e-9, ""),
        ("SAP, R2", sap_r2, lambda d: dis.sap(d.z, d.v, kind="r2"), 1e-9, ""),
        ("IRS", irs, lambda d: dis.irs(d.z, d.v), 1e-9, ""),
        ("FactorVAE", lambda d: by_votes(d, "fixed"), lambda d: dis.factor_vae(**votes(d)), 0.03, "other draws"),
        ("Z-max-var", lambda d: by_votes(d, "varied"), lambda d: dis.z_max_var(**votes(d)), 0.03, "other draws"),
        ("beta-VAE", beta_vae, lambda d: dis.beta_vae(**betas(d)), 0.03, "other draws; fits one regression"),
        ("information, 10-NN", neighbours, nearest, 1e-6, "what InfoM and InfoC are made of"),
        ("MIG, posterior", posterior, of_posterior, 1e-9, "1,000 draws"),
        ("total correlation", total_correlation, lambda d: dis.total_correlation(d.z), 1e-9, "one covariance in both"),
        ("SAP, SVM", sap_svm, lambda d: dis.sap(d.z, d.v), 1e-9, LEARNER),
        ("explicitness", explicitness, lambda d: dis.explicitness(d.z, d.v), 1e-9, LEARNER),
        ("DCI, boosting", dci, lambda d: dis.dci(d.z[:1_500], d.v[:1_500], **small), 1e-6, f"{LEARNER}; 20 trees"),
    ]  # fmt: skip


def measure(case: Case, d: Data, repeat: int) -> dict[str, Any]:
    """Both in turn, after a first run of each that gives the numbers."""
    name, plain, ours, tolerance, note = case
    learned = LEARNER in note
    expected, found = plain(d), float(ours(d))
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    began = time.process_time()
    plain(d)
    quick = time.process_time() - began < 0.05  # of these, a few runs say little
    for _ in range(min(repeat, 2) if learned else 10 * repeat if quick else repeat):
        for key, call in (("plain", plain), ("ours", ours)):
            began = time.process_time()
            call(d)
            seconds[key].append(time.process_time() - began)
    times = {key: statistics.median(values) for key, values in seconds.items()}
    ratio = times["plain"] / times["ours"]
    bound = learned or "one covariance" in note
    return {
        "metric": name, "straightforward s": times["plain"], "ours s": times["ours"], "ratio": ratio,
        ">= 5": None if bound else ratio >= TARGET, "straightforward": expected, "ours": found,
        "same number": abs(expected - found) <= tolerance, "note": note,
    }  # fmt: skip


def main() -> int:
    """The table of all metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--votes", type=int, default=10_000, help="votes to learn from; half as many to test")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    data, rows = Data(given.rows, given.votes), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in cases():
            rows.append(measure(case, data, given.repeat))
            print(f"{case[0]}: {rows[-1]['ratio']:.1f} x", file=sys.stderr)
    show("Disentanglement metrics", rows)
    command = f"python -m benchmarks.disentanglement --rows {given.rows} --votes {given.votes} --repeat {given.repeat}"
    write_json(given.out, {"command": command, "rows": rows, "provenance": provenance()})
    write_text(given.out.with_suffix(".md"), f"`{command}`, one thread\n\n{markdown(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
