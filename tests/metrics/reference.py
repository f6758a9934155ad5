"""The definitions written out as plainly as can be: loops, one number at a time. Shares no code with the package."""

from __future__ import annotations

import math

import numpy as np


def bins_of(column, bins=20):
    edges = np.histogram(column, bins)[1]
    return [int(b) - 1 for b in np.digitize(column, edges[:-1])]


def entropy(labels):
    counts = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    return -sum(c / len(labels) * math.log(c / len(labels)) for c in counts.values())


def information(a, b):
    a, b = list(a), list(b)
    return entropy(a) + entropy(b) - entropy(list(zip(a, b, strict=True)))


def table(z, v, bins=20):
    return np.array(
        [[information(bins_of(z[:, j], bins), v[:, k].tolist()) for k in range(v.shape[1])] for j in range(z.shape[1])]
    )


def mig(z, v, bins=20):
    m, total = table(z, v, bins), 0.0
    for k in range(v.shape[1]):
        ranked = sorted(m[:, k], reverse=True)
        total += (ranked[0] - ranked[1]) / entropy(v[:, k].tolist())
    return total / v.shape[1]


def mig_sup(z, v):
    m, total = table(z, v), 0.0
    for j in range(z.shape[1]):
        ranked = sorted((m[j, k] / entropy(v[:, k].tolist()) for k in range(v.shape[1])), reverse=True)
        total += ranked[0] - ranked[1]
    return total / z.shape[1]


def dcimig(z, v):
    m = table(z, v)
    best = [0.0] * v.shape[1]
    for j in range(z.shape[1]):
        ranked = sorted(range(v.shape[1]), key=lambda k: -m[j, k])
        best[ranked[0]] = max(best[ranked[0]], m[j, ranked[0]] - m[j, ranked[1]])
    return sum(best) / sum(entropy(v[:, k].tolist()) for k in range(v.shape[1]))


def jemmig(z, v, bins=20):
    m, total = table(z, v, bins), 0.0
    for k in range(v.shape[1]):
        order = sorted(range(z.shape[1]), key=lambda j: -m[j, k])
        joint = entropy(list(zip(bins_of(z[:, order[0]], bins), v[:, k].tolist(), strict=True)))
        above = joint - m[order[0], k] + m[order[1], k]
        total += 1 - above / (entropy(v[:, k].tolist()) + math.log(bins))
    return total / v.shape[1]


def modularity(z, v):
    m, scores = table(z, v), []
    for j in range(z.shape[1]):
        top = max(m[j])
        if top == 0:
            scores.append(0.0)
            continue
        at = list(m[j]).index(top)
        rest = sum(m[j, k] ** 2 for k in range(v.shape[1]) if k != at)
        scores.append(1 - rest / (top**2 * (v.shape[1] - 1)))
    return sum(scores) / len(scores)


def sap_r2(z, v):
    total = 0.0
    for k in range(v.shape[1]):
        scores = []
        for j in range(z.shape[1]):
            if np.var(z[:, j]) <= 1e-12:
                scores.append(0.0)
            else:
                scores.append(np.corrcoef(z[:, j], v[:, k])[0, 1] ** 2)
        scores.sort()
        total += scores[-1] - scores[-2]
    return total / v.shape[1]


def irs(z, v, quantile=0.99):
    above = below = 0.0
    for j in range(z.shape[1]):
        reach = max(abs(z[:, j] - z[:, j].mean()))
        if reach == 0:
            continue
        best = -1.0
        for k in range(v.shape[1]):
            moved = []
            for a in sorted(set(v[:, k].tolist())):
                group = z[v[:, k] == a, j]
                moved.append(np.quantile(np.abs(group - group.mean()), quantile))
            best = max(best, 1 - sum(moved) / len(moved) / reach)
        above, below = above + reach * best, below + reach
    return above / below


def one_sided(importance):
    """D of [codes, factors]; of the transpose, C."""
    rows, columns = importance.shape
    total, score = importance.sum(), 0.0
    for j in range(rows):
        p = (importance[j] + 1e-11) / (importance[j] + 1e-11).sum()
        h = -sum(float(x) * math.log(float(x), columns) for x in p)
        score += importance[j].sum() / total * (1 - h)
    return score


def total_correlation(z):
    s = np.cov(z, rowvar=False)
    return 0.5 * (sum(math.log(s[j, j]) for j in range(len(s))) - math.log(np.linalg.det(s)))


def wasserstein(z):
    from scipy.linalg import sqrtm

    s = np.cov(z, rowvar=False)
    half = np.diag(np.sqrt(np.diag(s)))
    return 2 * np.trace(s) - 2 * np.trace(sqrtm(half @ s @ half)).real


def mi_score(z):
    placed = [bins_of(z[:, j]) for j in range(z.shape[1])]
    pairs = [(a, b) for a in range(len(placed)) for b in range(len(placed)) if a != b]
    return sum(information(placed[a], placed[b]) for a, b in pairs) / len(pairs)


def factor_vae(grid, sizes, votes, test_votes, batch, rng, prune=0.05):
    scale = grid.var(axis=0)
    alive = [j for j in range(grid.shape[1]) if math.sqrt(scale[j]) >= prune]

    def vote():
        k = int(rng.integers(len(sizes)))
        value = int(rng.integers(sizes[k]))
        drawn = []
        for _ in range(batch):
            tuple_ = [int(rng.integers(n)) for n in sizes]
            tuple_[k] = value
            drawn.append(grid[np.ravel_multi_index(tuple_, sizes)])
        spread = np.var(drawn, axis=0, ddof=1)
        return min(alive, key=lambda j: spread[j] / scale[j]), k

    table = np.zeros((grid.shape[1], len(sizes)))
    for _ in range(votes):
        j, k = vote()
        table[j, k] += 1
    rule = table.argmax(axis=1)
    right = 0
    for _ in range(test_votes):
        j, k = vote()
        right += rule[j] == k
    return right / test_votes


def beta_vae(grid, sizes, train, test, batch, rng):
    from sklearn.linear_model import LogisticRegression

    def point():
        k = int(rng.integers(len(sizes)))
        total = np.zeros(grid.shape[1])
        for _ in range(batch):
            one, two = ([int(rng.integers(n)) for n in sizes] for _ in range(2))
            two[k] = one[k]
            total += np.abs(grid[np.ravel_multi_index(one, sizes)] - grid[np.ravel_multi_index(two, sizes)])
        return total / batch, k

    def several(n):
        x, y = zip(*(point() for _ in range(n)), strict=True)
        return np.array(x), np.array(y)

    model = LogisticRegression().fit(*several(train))
    return model.score(*several(test))


def mig_posterior_gains(mean, logvar, v, samples):
    """[J, K] information for given samples [S, J] with their rows' labels: (rows, z)."""
    rows, z = samples
    out = np.zeros((mean.shape[1], v.shape[1]))

    def log_q(x, j, members):
        terms = [
            -0.5 * (math.log(2 * math.pi) + logvar[n, j] + (x - mean[n, j]) ** 2 / math.exp(logvar[n, j]))
            for n in members
        ]
        top = max(terms)
        return top + math.log(sum(math.exp(t - top) for t in terms)) - math.log(len(terms))

    for j in range(mean.shape[1]):
        marginal = np.mean([-log_q(z[s, j], j, range(len(mean))) for s in range(len(z))])
        for k in range(v.shape[1]):
            members = {a: [n for n in range(len(mean)) if v[n, k] == a] for a in set(v[:, k].tolist())}
            inner = np.mean([-log_q(z[s, j], j, members[v[rows[s], k]]) for s in range(len(z))])
            out[j, k] = max(0.0, marginal - inner)
    return out


def udr_pair(relation):
    a, b = relation.shape
    one = sum(max(relation[i, j] ** 2 for i in range(a)) / sum(relation[:, j]) for j in range(b)) / b
    two = sum(max(relation[i, j] ** 2 for j in range(b)) / sum(relation[i]) for i in range(a)) / a
    return (one + two) / 2
