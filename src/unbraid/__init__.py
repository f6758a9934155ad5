"""Tap any attention in PyTorch: see what it carries, steer it, swap it, and separate what is entangled.

Importing this package does not import torch: every public name is resolved on first use.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "AttentionCall": "unbraid.core.calls",
    "Tap": "unbraid.core.calls",
    "Ask": "unbraid.core.calls",
    "attach": "unbraid.core.attach",
    "HeadSet": "unbraid.core.heads",
    "HeadScores": "unbraid.core.heads",
    "Card": "unbraid.core.system",
    "System": "unbraid.core.system",
    "create": "unbraid.core.registry",
    "list_systems": "unbraid.core.registry",
    "describe": "unbraid.core.registry",
    "fit_loop": "unbraid.core.train",
    "FactorData": "unbraid.data.factors",
    "Result": "unbraid.core.result",
    "Claim": "unbraid.core.result",
    "UnbraidError": "unbraid.core.errors",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'unbraid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
