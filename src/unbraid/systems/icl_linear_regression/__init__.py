"""Linear regression in context: how softmax attention learns a step of gradient descent, and how to see it."""

from importlib import import_module

from unbraid.core.system import Card, ClaimSpec

CARD = Card(
    slug="icl_linear_regression",
    title="In-Context Linear Regression Demystified: Training Dynamics and Mechanistic Interpretability of Multi-Head "
    "Softmax Attention",
    arxiv="2503.12734",
    year=2025,
    field="theory",
    verbs=("see", "swap"),
    code="https://github.com/XintianPan/ICL_linear",
    claims=(
        ClaimSpec("several heads", "Two heads are much better than one.", "loss against L", "0.243 against 0.405"),
        ClaimSpec("same predictor", "Layers of two and more heads end at the same loss.", "loss against L",
                  "curves of 2, 4 and 8 heads coincide"),
        ClaimSpec("diagonal KQ", "KQ of the covariates becomes a multiple of the identity.", "global pattern",
                  "0.999 of its norm on the diagonal"),
        ClaimSpec("label OV", "OV keeps only the label.", "global pattern", "0.9999 of its squared norm"),
        ClaimSpec("signs", "omega and mu of a head have the same sign.", "global pattern"),
        ClaimSpec("zero sum", "The label weights of all heads sum to zero.", "local pattern"),
        ClaimSpec("equal size", "All heads but dummies have the same |omega|.", "local pattern"),
        ClaimSpec("manifold", "The sum of mu over each group is mu_gamma.", "solution manifold"),
        ClaimSpec("more heads: diagonal KQ", "The same of three and more heads.", "global pattern"),
        ClaimSpec("more heads: equal size", "The same of three and more heads.", "local pattern"),
        ClaimSpec("more heads: manifold", "The same of three and more heads.", "solution manifold"),
        ClaimSpec("debiased GD", "Several heads compute a debiased step of gradient descent.", "equivalent predictor"),
        ClaimSpec("projection", "Two numbers a head are all that matters.", "global pattern; a check of this "
                                                                            "project's"),
        ClaimSpec("one head", "One head learns omega = 1/sqrt(d).", "single-head closed form", "0.447 for d = 5"),
        ClaimSpec("one head, finite L", "One head learns the best omega of a single kernel at this L.",
                  "a check of this project's"),
        ClaimSpec("limits", "|omega| ends near 0.13 and |mu| near 3.5 for 2, 3 and 4 heads.", "notebook, 5e5 steps",
                  "0.13 and 3.5"),
        ClaimSpec("longer contexts", "Errors keep falling on contexts longer than those of training.",
                  "length generalisation", "0.164 at L = 100; one head 0.284"),
        ClaimSpec("linear at its length", "Linear attention computes the same step at the length of training.",
                  "linear attention"),
        ClaimSpec("linear elsewhere", "The error of linear attention rises with the length.", "length generalisation"),
        ClaimSpec("preconditioner", "With correlated covariates KQ becomes the optimal preconditioner.", "anisotropic",
                  "cosine 0.99 with Omega* (method sheet)"),
        ClaimSpec("preconditioned GD", "Two heads reach the loss of preconditioned gradient descent.", "anisotropic",
                  "0.242 against 0.240 (method sheet)"),
        ClaimSpec("one head, tasks", "A single head for two tasks weighs their shared coordinates more.", "multi-task"),
        ClaimSpec("two heads, tasks", "Two heads become an opposite pair, one step for both tasks.", "multi-task"),
        ClaimSpec("superposition", "Three heads hold two tasks and are as good as four.", "multi-task",
                  "same predictor as with 4 heads"),
        ClaimSpec("superposition: conditions", "They meet the linear conditions: sum of mu 0, sum of mu omega a step "
                  "on a task's own coordinates and 0 elsewhere.", "multi-task", "about 1 and about 0"),
        ClaimSpec("separate steps", "Four heads compute a step for each of two tasks.", "multi-task"),
        ClaimSpec("own labels", "With one shared b each task reads its own labels only.", "multi-task, write-up",
                  "OV_22 = diag(mu)"),
        ClaimSpec("rank and one", "Three tasks need four heads, not six.", "a check of this project's: rank + 1"),
        ClaimSpec("activation affine", "With 1 + x in place of exp the same step is learned.", "other activations"),
        ClaimSpec("activation square", "With (1 + x)^2 in place of exp the same step is learned.", "other activations"),
        ClaimSpec("activation tanh", "With 1 + tanh x in place of exp the same step is learned.", "other activations"),
        ClaimSpec("approximate loss", "L~ is the loss of the two-number layer for gamma up to 0.2.",
                  "approximate loss; sheet's threshold 2 %"),
        ClaimSpec("descent", "Descent of L~ from small random numbers matches signs and balances the sum.", "dynamics"),
        ClaimSpec("approximation", "The distance from debiased GD vanishes as gamma does.", "theorem, part 1",
                  "at most of order sqrt(1 + sigma^2) gamma d"),
        ClaimSpec("optimality", "On the manifold L~ is the least as gamma goes to 0.", "theorem, part 2"),
        ClaimSpec("Bayes ratio", "The risk of the best step is within a factor of the Bayes risk.", "theorem, part 3"),
        ClaimSpec("notebook", "The notebook's errors over L, five predictors by four lengths.", "plots.ipynb",
                  "20 figures, 0.104 to 0.875"),
        ClaimSpec("solver", "Steps of rank r fit in r + 1 heads exactly, and not in r.", "a check of this project's"),
    ),
)  # fmt: skip

SYSTEM = "unbraid.systems.icl_linear_regression.system:InContextRegression"
RUN = "unbraid.systems.icl_linear_regression.study.study:run"

_HOME = {
    "InContextRegression": "system",
    "Regression": "sampling",
    "Circuits": "circuits",
    "Attention": "layer",
    "attention_of": "layer",
    "as_multihead": "layer",
    "as_llama": "layer",
    "load_attention": "layer",
    "read_circuits": "reading",
    "per_head": "reading",
    "PatternReport": "patterns",
    "report": "patterns",
    "bands": "patterns",
    "Reduced": "projection",
    "to_reduced": "projection",
    "from_reduced": "projection",
    "projection_cost": "projection",
    "descend": "reduced",
    "train": "ensemble",
    "solve": "superposition",
    "run": "study.study",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
