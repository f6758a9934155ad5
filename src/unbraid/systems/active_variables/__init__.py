"""Active variables: which latents of a VAE carry something, and why its means look more correlated than samples."""

from importlib import import_module

from unbraid.core.system import Card, ClaimSpec

CARD = Card(
    slug="active_variables",
    title="Be More Active! Understanding the Differences between Mean and Sampled Representations of Variational "
    "Autoencoders",
    arxiv="2109.12679",
    year=2021,
    field="factors",
    verbs=("see", "separate"),
    code="https://github.com/bonheml/tc_study",
    claims=(
        ClaimSpec(
            "active_agree", "Active variables are as correlated in mean codes as in sampled ones.",
            "abstract; total correlation on index sets",
        ),
        ClaimSpec(
            "passive_differ", "Passive variables correlate with others in mean codes and not in sampled ones.",
            "abstract; correlation matrices",
        ),
        ClaimSpec(
            "passive_explain", "Passive variables explain the gap between mean and sampled codes.",
            "abstract; total correlation with and without passive variables",
        ),
        ClaimSpec(
            "gap_grows", "The gap grows with the strength of regularisation, as more latents collapse.",
            "abstract; repository",
        ),
        ClaimSpec(
            "downstream", "Removing passive variables does not change downstream accuracy.",
            "abstract; downstream tasks",
        ),
        ClaimSpec(
            "dip_i_apart", "DIP-VAE I regularises the covariance of means directly, so its means have no such gap.",
            "why the paper leaves it out; section on models",
        ),
        ClaimSpec(
            "identity", "corr(z) = corr(mu) sqrt(r_i r_j) for every Gaussian posterior.",
            "derived: the noise is independent of the input",
        ),
        ClaimSpec(
            "labels_match_kl", "Passive latents have almost no divergence from the prior, the others much.",
            "a check of this project's: below 0.01 and above 0.5 nats",
        ),
        ClaimSpec(
            "discs_checks", "On discs with continuous factors labels, gaps, identity and linear probes are as told.",
            "checks (a) to (e) of this project's method sheet",
        ),
    ),
)  # fmt: skip

SYSTEM = "unbraid.systems.active_variables.system:ActiveVariables"
RUN = "unbraid.systems.active_variables.study:run"

_HOME = {
    "ActiveVariables": "system",
    "Moments": "statistics",
    "classify": "labels",
    "posterior": "adapters",
    "Pruned": "pruning",
    "prune": "pruning",
    "Dynamics": "dynamics",
    "index_sets": "scores",
    "accuracies": "downstream",
    "linear_r2": "downstream",
    "run": "study",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
