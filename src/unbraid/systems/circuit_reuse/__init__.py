"""Circuit reuse: which heads carry a task, how many carry another one too, and a repair that follows from it."""

from importlib import import_module

from unbraid.core.system import Card, ClaimSpec

CARD = Card(
    slug="circuit_reuse",
    title="Circuit Component Reuse Across Tasks in Transformer Language Models",
    arxiv="2310.08744",
    year=2023,
    field="language",
    verbs=("see", "steer"),
    code="https://github.com/jmerullo/circuit_reuse",
    claims=(
        ClaimSpec(
            "overlap", "Two different tasks are carried by mostly the same heads, far more than by chance.",
            "abstract, section 4 (GPT-2 Medium, top 2 % of heads per stage)", "25 of 32 heads shared (78 %)",
        ),
        ClaimSpec(
            "controls", "Tasks of another kind share few heads with indirect object identification.",
            "appendix: greater-than, world capitals", "greater-than 3 of 18 (16.7 %), world capitals 25 %",
        ),
        ClaimSpec(
            "repair", "Making four heads of one circuit attend to the wrong colours repairs the other task.",
            "section 5", "49.6 % to 93.7 %; random heads change nothing",
        ),
        ClaimSpec("harmless", "The repair makes no new mistakes.", "section 5", "zero new mistakes"),
        ClaimSpec(
            "downstream", "After the repair, movers turn from the wrong colours to the right one.", "section 5",
            "-8.7 % attention on wrong colours, +2.7 % on the right one",
        ),
        ClaimSpec(
            "rank", "How much a mover gains by the repair follows how much it mattered before.", "section 5",
            "Spearman 0.69 (p < .01)",
        ),
        ClaimSpec(
            "gatherers", "Without the heads that read the question, the answer is a guess among the colours.",
            "section 4", "35 %; random heads 49.9 % (1.0)",
        ),
    ),
)  # fmt: skip

SYSTEM = "unbraid.systems.circuit_reuse.system:CircuitReuse"
RUN = "unbraid.systems.circuit_reuse.study:run"

_HOME = {
    "CircuitReuse": "system",
    "Circuit": "circuit",
    "Stage": "circuit",
    "PLAN": "circuit",
    "find_circuit": "circuit",
    "overlap": "sharing",
    "overlap_curve": "sharing",
    "bootstrap_overlap": "sharing",
    "attend_to": "rows",
    "block_keys": "rows",
    "accuracy": "answering",
    "repair": "mending",
    "roles": "behaviour",
    "planted_edges": "planted",
    "planted_tasks": "planted",
    "run": "study",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
