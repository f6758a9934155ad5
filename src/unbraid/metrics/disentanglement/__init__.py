"""Disentanglement metrics on plain arrays: codes z [N, J] and true factors [N, K]; no torch, no global settings.

>>> import numpy as np
>>> from unbraid.metrics import disentanglement as dis
>>> factors = np.stack(np.meshgrid(range(4), range(3), indexing="ij"), -1).reshape(-1, 2).repeat(50, axis=0)
>>> z = factors - factors.mean(0)
>>> round(float(dis.mig(z, factors)), 2), round(float(dis.sap(z, factors, kind="r2")), 2)
(1.0, 1.0)
"""

from unbraid.metrics.disentanglement.audit import audit
from unbraid.metrics.disentanglement.cyclic import cyclic_view
from unbraid.metrics.disentanglement.discretiser import discretise
from unbraid.metrics.disentanglement.gaps import dcimig, jemmig, mig, mig_sup, modularity
from unbraid.metrics.disentanglement.infomec import infomec
from unbraid.metrics.disentanglement.information import mutual_information
from unbraid.metrics.disentanglement.informativeness import completeness, dci, disentanglement
from unbraid.metrics.disentanglement.inputs import Score
from unbraid.metrics.disentanglement.intervention import beta_vae, factor_vae, z_max_var
from unbraid.metrics.disentanglement.posterior import mig_posterior
from unbraid.metrics.disentanglement.predictive import downstream, explicitness, sap
from unbraid.metrics.disentanglement.presets import PRESETS
from unbraid.metrics.disentanglement.ranking import udr
from unbraid.metrics.disentanglement.robustness import irs
from unbraid.metrics.disentanglement.sampling import encode_grid
from unbraid.metrics.disentanglement.unsupervised import (
    active_codes,
    mi_score,
    total_correlation,
    wasserstein_correlation,
)

__all__ = [
    "PRESETS",
    "Score",
    "active_codes",
    "audit",
    "beta_vae",
    "completeness",
    "cyclic_view",
    "dci",
    "dcimig",
    "discretise",
    "disentanglement",
    "downstream",
    "encode_grid",
    "explicitness",
    "factor_vae",
    "infomec",
    "irs",
    "jemmig",
    "mi_score",
    "mig",
    "mig_posterior",
    "mig_sup",
    "modularity",
    "mutual_information",
    "sap",
    "total_correlation",
    "udr",
    "wasserstein_correlation",
    "z_max_var",
]
