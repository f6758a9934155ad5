"""Random-feature attention: what one layer with frozen queries and keys learns, and from how many samples."""

from importlib import import_module

from unbraid.core.system import Card, ClaimSpec

CARD = Card(
    slug="random_feature_attention",
    title="What can a Single Attention Layer Learn? A Study Through the Random Features Lens",
    arxiv="2307.11353",
    year=2023,
    field="theory",
    verbs=("see", "swap"),
    claims=(
        ClaimSpec(
            "kernel", "With many heads the Gram matrix of RFA and BRFA is a kernel in closed form; its error falls "
            "like one over the root of the heads.", "definition of RFA and BRFA; derived in the method sheet, check 1",
        ),
        ClaimSpec(
            "symmetry", "Predictions do not depend on the order of the keys, but do on which token is the query.",
            "definition of RFA; method sheet, check 2",
        ),
        ClaimSpec(
            "rfa_over_rfmlp", "On averages over keys of a quadratic function RFA learns from samples from which a "
            "random-feature MLP of as many parameters learns nothing.",
            "abstract (sample complexity); method sheet, check 3: RFA at most 0.35, RFMLP at least 0.8 at n = 800",
        ),
        ClaimSpec(
            "brfa_over_rfa", "A biased mean of the query-key weights helps where the target weighs keys by their "
            "correlation with the query.", "abstract (non-zero mean); method sheet, check 4: ratio at most 0.7",
        ),
        ClaimSpec(
            "bias_costs", "The bias costs samples on targets without the query.",
            "method sheet, check 4: ratio above 1",
        ),
        ClaimSpec(
            "keys_rfmlp", "The samples that RFMLP needs for a quadratic function grow at least linearly with the keys.",
            "derived in the method sheet, check 5: exponent p - 1 = 1",
        ),
        ClaimSpec(
            "keys_rfa", "The samples that RFA needs for the same grow mildly with the keys, less than RFMLP's.",
            "theorem on excess risk (no dependence on N); method sheet, check 5",
        ),
        ClaimSpec(
            "mixing", "The advantage of the bias falls as the matrix between query and key moves from the identity to "
            "a random one.", "experiments, family (iii) (from memory); method sheet",
        ),
        ClaimSpec(
            "data_bias", "A bias estimated from the data beats no bias where the identity is the wrong one.",
            "beyond the paper, method sheet",
        ),
    ),
)  # fmt: skip
SYSTEM = "unbraid.systems.random_feature_attention.system:RandomFeatureAttentionRegressor"
RUN = "unbraid.systems.random_feature_attention.study:run"

_HOME = {
    "RandomFeatureAttentionRegressor": "system",
    "RandomFeatureMLPRegressor": "baseline",
    "rfa_kernel": "kernels",
    "rfmlp_kernel": "kernels",
    "relu_moment": "kernels",
    "AttentionFeatures": "features",
    "NeuronFeatures": "features",
    "pad": "tokens",
    "Target": "targets",
    "target": "targets",
    "sphere_tokens": "targets",
    "sample_complexity": "complexity",
    "SampleComplexity": "complexity",
    "degree_shares": "degrees",
    "RandomFeatureAttention": "layer",
    "freeze_query_key": "freezing",
    "compare_frozen": "freezing",
    "run": "study",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
