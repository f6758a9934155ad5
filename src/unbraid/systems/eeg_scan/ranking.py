"""Which of several fits is disentangled, without any label: UDR over codes of the same epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unbraid.core.errors import UnbraidError
from unbraid.metrics.disentanglement.ranking import udr

if TYPE_CHECKING:
    from unbraid.metrics.disentanglement.inputs import Score
    from unbraid.systems.eeg_scan.system import EEGScan

LEAST = 5  # runs; a median over fewer partners is chance


def rank_models(models: Sequence[EEGScan], x: Any) -> Score:
    """Unsupervised disentanglement ranking of fits (Lasso 0.1, latents above 0.01 nats, median over partners).

    Fits of one setting with several seeds should be told to agree up to order and sign; take ``models[score.best]``.

    Args:
        models: five or more, with the same number of latents.
        x: the same epochs for all.

    Returns:
        ``scores`` per model, ``best`` (number of the best), ``matrix`` of the pairs. A model whose latents have all
        collapsed agrees with nobody: 0/0 counts as 0, and if all have collapsed all scores are 0 and ``best`` says
        nothing.

    Raises:
        UnbraidError: fewer than five models, other numbers of latents, or one that is not fitted.
    """
    if len(models) < LEAST:
        raise UnbraidError(f"UDR compares fits with one another; give at least {LEAST}, not {len(models)}.")
    if len({m.latents for m in models}) > 1:
        raise UnbraidError(f"UDR needs fits of the same size; these have {[m.latents for m in models]} latents.")
    return udr([m.transform(x) for m in models], kl=[m.kl_ for m in models])
