"""The variants by name."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from unbraid.core.errors import UnbraidError
from unbraid.systems.attention_sinks.variants import gates, softmaxes
from unbraid.systems.attention_sinks.variants.base import Sizes, Variant

VARIANTS: dict[str, type[Variant]] = {
    "softmax": softmaxes.Plain,
    "clipped": softmaxes.Clipped,
    "softmax1": softmaxes.SoftmaxOne,
    "sink_logit": softmaxes.SinkLogit,
    "kv_bias": softmaxes.KeyValueBias,
    "key_bias": softmaxes.KeyBias,
    "softpick": softmaxes.Softpick,
    "elastic": softmaxes.Elastic,
    "sigmoid": softmaxes.Sigmoid,
    "relu": softmaxes.Relu,
    "quantizable_gate": gates.QuantizableGate,
    "output_gate": gates.OutputGate,
    "value_gate": gates.ValueGate,
    "scaling_factor": gates.ScalingFactor,
}
REGISTERS = "registers"
# settings under which a pretrained model stays as it is when converted
LOSSLESS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "sink_logit": {"start": -20.0},
    "clipped": {"alpha": 0.0},
    "elastic": {"temperature": 1.0},
    "output_gate": {"open": 20.0},
    "value_gate": {"open": 20.0},
    "scaling_factor": {},
}


def make_variant(name: str, sizes: Sizes, **options: Any) -> Variant:
    """A variant for an attention of these sizes.

    Raises:
        UnbraidError: no variant has this name, or it has no such option.
    """
    if name not in VARIANTS:
        close = difflib.get_close_matches(name, [*VARIANTS, REGISTERS], 1)
        raise UnbraidError(
            f"There is no attention variant {name!r}" + (f"; did you mean {close[0]!r}?" if close else ".")
            + f" Known: {', '.join([*VARIANTS, REGISTERS])}."
        )  # fmt: skip
    cls = VARIANTS[name]
    accepted = [p for p in inspect.signature(cls.__init__).parameters if p not in ("self", "sizes")]
    wrong = [o for o in options if o not in accepted]
    if wrong:
        raise UnbraidError(f"{name} has no option {wrong[0]!r}; it has {', '.join(accepted) or 'none'}.")
    return cls(sizes, **options)


def describe_variants() -> list[dict[str, str]]:
    """One row per variant: name, what its weights or output are, and its options with their defaults."""
    rows = []
    for name, cls in VARIANTS.items():
        options = [str(p) for n, p in inspect.signature(cls.__init__).parameters.items() if n not in ("self", "sizes")]
        rows.append(
            {
                "variant": name, "what it is": (inspect.getdoc(cls) or "").split("\n")[0],
                "options": "; ".join(options), "lossless start": str(LOSSLESS[name]) if name in LOSSLESS else "none",
            }
        )  # fmt: skip
    rows.append(
        {"variant": REGISTERS, "what it is": "K learned tokens before the text, dropped at the output.",
         "options": "count: int = 1; std: float = 0.02", "lossless start": "none"}
    )  # fmt: skip
    return rows
