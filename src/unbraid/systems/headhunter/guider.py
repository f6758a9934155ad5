"""SoftPAG as a guider of diffusers' modular pipelines: `SoftPAGGuider`.

diffusers' own `PerturbedAttentionGuidance` works by whole layers and reaches neither SD3 nor FLUX (0.42); this one
takes heads, and its formula is the one of `guide`: base + w (v_cond - v_S), with the base of classifier-free guidance.

Reference: arXiv 2506.10978.
"""

from __future__ import annotations

import json
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput, rescale_noise_cfg
from torch import LongTensor, Tensor, nn

from unbraid.core.attach import Session, attach
from unbraid.core.errors import UnbraidError
from unbraid.core.heads import HeadSet
from unbraid.systems.headhunter.guiding import check_heads, denoiser_of
from unbraid.taps import perturb

Pair = tuple[str, int]


class SoftPAGGuider(BaseGuidance):
    """Classifier-free guidance with, on top, guidance away from damaged heads.

    Args:
        heads: a `HeadSet`, or pairs (site, head); none: classifier-free guidance alone.
        strength: u from 0 to 1.
        weight: w; 0 switches the damaged pass off.
        guidance_scale: c of classifier-free guidance; 1: none.
        kind: of damage, see `taps.perturb`.
        scope: "joint" or "image", see `taps.perturb`.
        guidance_rescale: as in diffusers' other guiders.
        start: share of the steps after which both guidances begin.
        stop: share of the steps after which they end.
        enabled: False gives the conditional prediction.

    Raises:
        UnbraidError: a strength, weight, kind or scope that `guide` would refuse.

    Example:
        >>> pipe.update_components(guider=SoftPAGGuider(heads, strength=0.5, weight=3.0, guidance_scale=3.0))
    """

    _input_predictions: Any = ["pred_cond", "pred_uncond", "pred_cond_skip"]  # noqa: RUF012 (diffusers wants a list)

    @register_to_config
    def __init__(
        self,
        heads: list[Pair] | None = None,
        strength: float = 0.5,
        weight: float = 3.0,
        guidance_scale: float = 7.5,
        kind: str = "identity",
        scope: str = "joint",
        guidance_rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        super().__init__(start, stop, enabled)
        self.chosen = HeadSet((str(site), int(head)) for site, head in heads or ())
        # diffusers takes what was given by position for defaults, and would leave it out of a copy made from the config
        self.register_to_config(heads=json.loads(self.chosen.to_json())["heads"], _use_default_values=[])
        self.tap = perturb(self.chosen, kind, strength, scope=scope)  # type: ignore[arg-type]
        self.strength, self.weight = float(strength), float(weight)
        self.guidance_scale, self.guidance_rescale = guidance_scale, guidance_rescale
        self._session: Session | None = None

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Before each of the passes of a step: damages the model for the last of them."""
        self._close()
        self._count_prepared += 1
        if self._damages() and self._count_prepared == self.num_conditions:
            check_heads(denoiser_of(denoiser), self.chosen, self.tap.kind)
            self._session = attach(denoiser, self.tap)
            self._session.__enter__()

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """After each pass: the model is as it was."""
        self._close()

    def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.__exit__(None, None, None)

    def set_state(self, step: int, num_inference_steps: int, timestep: LongTensor) -> None:
        """Begins a step; what a pass that failed left open is closed."""
        if self._session is not None:
            session, self._session = self._session, None
            session.__exit__(UnbraidError, None, None)
        super().set_state(step, num_inference_steps, timestep)

    def prepare_inputs(self, data: Any) -> list[Any]:
        """One batch for each pass."""
        return [self._prepare_batch(data, at, name) for at, name in self._passes()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, str | tuple[str, str]]) -> list[Any]:
        """One batch for each pass."""
        return [self._prepare_batch_from_block_state(input_fields, data, at, name) for at, name in self._passes()]

    def _passes(self) -> list[tuple[int, str]]:
        found = [(0, "pred_cond")]
        if self._guides():
            found.append((1, "pred_uncond"))
        if self._damages():
            found.append((0, "pred_cond_skip"))
        return found

    def forward(
        self, pred_cond: Tensor, pred_uncond: Tensor | None = None, pred_cond_skip: Tensor | None = None
    ) -> GuiderOutput:
        """Base + w (cond - damaged)."""
        made = pred_cond
        if pred_uncond is not None:
            made = pred_uncond + self.guidance_scale * (pred_cond - pred_uncond)
        if pred_cond_skip is not None:
            made = made + self.weight * (pred_cond - pred_cond_skip)
        if self.guidance_rescale > 0.0:
            made = rescale_noise_cfg(made, pred_cond, self.guidance_rescale)
        return GuiderOutput(pred=made, pred_cond=pred_cond, pred_uncond=pred_uncond)

    @property
    def is_conditional(self) -> bool:
        """Whether the pass under way sees the prompt."""
        return not (self._guides() and self._count_prepared == 2)

    @property
    def num_conditions(self) -> int:
        """Passes of a step."""
        return 1 + self._guides() + self._damages()

    def _within(self) -> bool:
        if not self._enabled:
            return False
        steps = self._num_inference_steps
        return steps is None or int(self._start * steps) <= self._step < int(self._stop * steps)

    def _guides(self) -> bool:
        return self._within() and abs(self.guidance_scale - 1.0) > 1e-9

    def _damages(self) -> bool:
        return self._within() and self.weight != 0 and self.strength != 0 and len(self.chosen) > 0
