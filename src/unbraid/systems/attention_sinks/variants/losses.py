"""Losses against sinks and outliers during training (survey section 5.4), as plain functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def decorrelation(h: Tensor, first: int = 0) -> Tensor:
    """Mean cosine of every token's state with the first token's.

    Args:
        h: [batch, tokens, width] residual stream.
        first: position of the first token.
    """
    cosine = functional.cosine_similarity(h, h[:, first : first + 1], dim=-1)
    others = torch.arange(h.shape[1], device=h.device) != first
    return cosine[:, others].mean()


def distilled_registers(teacher: Tensor, student: Tensor) -> Tensor:
    """Squared distance between a teacher's states and those of a student with registers, registers dropped.

    Args:
        teacher: [batch, tokens, width].
        student: [batch, tokens, width].
    """
    return (teacher.detach() - student).pow(2).sum(-1).mean()


def sink_attraction(mass: Tensor) -> Tensor:
    """1 less the mean attention mass on a sink token: pulls attention to it (FOCUS).

    Args:
        mass: attention on the sink token, any shape; `taps.Mass(..., grad=True).live` has it.
    """
    return 1 - mass.mean()


def sink_surgery(harmful: Tensor, refusal: Tensor, weight: float = 1.0) -> Tensor:
    """Weight times the mean over heads of how much more sink mass harmful texts draw than refusals (Surgery).

    Args:
        harmful: [heads] mean sink mass on harmful texts.
        refusal: [heads] mean sink mass on refusals.
        weight: lambda.
    """
    return weight * functional.relu(harmful - refusal).mean()


def tail_penalty(h: Tensor, threshold: float = 3.0, power: float = 4.0) -> Tensor:
    """mean((|h| / threshold) ** power): small for ordinary activations, large for outliers (TWEO).

    The form and the constants are from the methods sheet, where they are marked as unverified.

    Args:
        h: activations, any shape.
        threshold: where the penalty begins to bite.
        power: how steeply.
    """
    return (h.abs() / threshold).pow(power).mean()
