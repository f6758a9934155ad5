"""What the diffusion systems share: pipelines of any family seen as one, new words, tuning, maps, masks, regions.

Everything takes the pipelines that people load with `from_pretrained` and leaves them as it found them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unbraid.diffusion.painting import paint
    from unbraid.diffusion.parts import Context, Parts
    from unbraid.diffusion.pipelines import open_pipeline

_HOME = {
    "Context": "unbraid.diffusion.parts",
    "Parts": "unbraid.diffusion.parts",
    "open_pipeline": "unbraid.diffusion.pipelines",
    "paint": "unbraid.diffusion.painting",
}

__all__ = ["Context", "Parts", "open_pipeline", "paint"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'unbraid.diffusion' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
