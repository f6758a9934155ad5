"""Supervised InfoNCE and dependence, against loops over their definitions."""

import math
from itertools import permutations

import pytest
import torch

from unbraid.core.errors import UnbraidError
from unbraid.losses.contrastive import affinity, info_nce
from unbraid.losses.dependence import gaussian_kernel, hsic, label_cka


def by_hand(z, labels, tau, form, weight):
    """The definition, sample by sample."""
    n, losses = len(z), []
    for j in range(n):
        a = {k: float(torch.cosine_similarity(z[j], z[k], dim=0)) / tau for k in range(n) if k != j and labels[k] >= 0}
        w = {k: weight(int(labels[j]), int(labels[k])) for k in a}
        if labels[j] < 0 or not sum(w.values()):
            continue
        every = math.log(sum(math.exp(x) for x in a.values()))
        if form == "inside":
            positive = math.log(sum(w[k] * math.exp(a[k]) for k in a))
        else:
            positive = sum(w[k] * a[k] for k in a) / sum(w.values())
        losses.append(every - positive)
    return sum(losses) / len(losses), len(losses) / n


@pytest.mark.parametrize("form", ["inside", "outside"])
@pytest.mark.parametrize("bandwidth", [None, 1.3])
def test_info_nce_is_its_definition(form, bandwidth):
    torch.manual_seed(0)
    z = torch.randn(14, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, -1, 5, -1, 2, 4, 0, 1])

    def weight(a, b):
        if bandwidth is None:
            return float(a == b)
        value = math.exp(-((a - b) ** 2) / (2 * bandwidth**2))
        return value if value >= 1e-3 else 0.0

    made = info_nce(z, labels, 0.2, form, bandwidth)
    loss, share = by_hand(z.detach(), labels, 0.2, form, weight)
    assert float(made.loss.detach()) == pytest.approx(loss, abs=1e-9)
    assert float(made.anchored) == pytest.approx(share)
    assert torch.autograd.gradcheck(lambda x: info_nce(x, labels, 0.5, form, bandwidth).loss, (z,))


def test_unlabelled_samples_change_nothing_and_no_pair_is_zero():
    torch.manual_seed(1)
    z, labels = torch.randn(9, 2), torch.tensor([0, 1, 0, 1, 2, 2, 0, 1, 2])
    more = torch.cat([z, torch.randn(4, 2)])
    unknown = torch.cat([labels, torch.full((4,), -1)])
    assert float(info_nce(z, labels).loss) == pytest.approx(float(info_nce(more, unknown).loss), abs=1e-6)
    none = info_nce(z.requires_grad_(), torch.arange(9))
    assert float(none.loss.detach()) == 0
    assert float(none.anchored) == 0
    none.loss.backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_cyclic_labels_go_the_shorter_way_round():
    near = affinity(torch.tensor([0, 9, 5]), bandwidth=1.0, period=10)
    assert float(near[0, 1]) == pytest.approx(math.exp(-0.5))
    assert float(near[0, 2]) == 0
    assert float(near.diagonal().sum()) == 0


def test_the_minimum_is_reached_by_directions_per_class():
    labels = torch.arange(3).repeat(8)
    good = torch.stack([torch.tensor([math.cos(2 * math.pi * k / 3), math.sin(2 * math.pi * k / 3)]) for k in labels])
    torch.manual_seed(0)
    assert float(info_nce(good, labels, 0.1).loss) < 1e-3 < float(info_nce(torch.randn(24, 2), labels, 0.1).loss)
    assert float(info_nce(7 * good, labels, 0.1).loss) == pytest.approx(float(info_nce(good, labels, 0.1).loss))


def test_hsic_is_the_average_over_quadruples():
    torch.manual_seed(0)
    x, y = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    k, other = gaussian_kernel(x), gaussian_kernel(y)
    values = [  # Song et al. 2012: h over ordered quadruples of different samples
        float(k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q])) for i, j, q, r in permutations(range(6), 4)
    ]
    assert float(hsic(k, other)) == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_label_cka_tells_dependence_from_none():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (400,))
    noise = torch.randn(400, 2)
    means = [float(label_cka(torch.randn(128, 2), torch.randint(0, 3, (128,)))) for _ in range(40)]
    assert abs(sum(means) / 40) < 0.01  # unbiased
    assert float(label_cka(noise * 0.2 + 2 * torch.nn.functional.one_hot(labels, 3)[:, :2], labels)) > 0.5
    assert float(label_cka(noise, torch.zeros(400))) == 0
    assert float(label_cka(noise[:3], labels[:3])) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda z: info_nce(z, torch.zeros(3)), "must be as many"),
        (lambda z: info_nce(z, torch.zeros(5), form="both"), "must be 'inside'"),
        (lambda z: info_nce(z, torch.zeros(5), tau=0), "temperature"),
        (lambda z: affinity(z), "must be flat"),
        (lambda z: affinity(z[:, 0], bandwidth=-1), "must be positive"),
        (lambda z: hsic(z, z), "two square matrices"),
        (lambda z: hsic(torch.ones(3, 3), torch.ones(3, 3)), "at least 4"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, words):
    with pytest.raises(UnbraidError, match=words):
        call(torch.randn(5, 2))
