"""Measures of runs, and outputs of training steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from diagnosis_bank.program import Outcome
from torch import nn


def step_output(return_dict: bool, loss: torch.Tensor, preds: torch.Tensor, target: torch.Tensor) -> Any:
    """Returns the output of a training step in either form."""
    return {"loss": loss, "preds": preds, "target": target} if return_dict else loss


def ran_to_end(outcome: Outcome) -> bool:
    """Returns True if training finished. Sufficient for faults that are visible in the code."""
    return outcome.error is None and len(outcome.losses) >= 20


def ends_above(outcome: Outcome, least: float) -> bool:
    """Returns True if the last losses are at least ``least`` or not finite."""
    return ran_to_end(outcome) and not outcome.mean_loss(20) < least


def ends_below(outcome: Outcome, most: float) -> bool:
    """Returns True if the last losses are below ``most``."""
    return ran_to_end(outcome) and outcome.mean_loss(20) < most


def training_tensors(outcome: Outcome) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns all training inputs and targets."""
    inputs, target = outcome.fit.train.dataset.tensors[:2]  # type: ignore[attr-defined]
    return inputs, target


@torch.no_grad()
def predictions(outcome: Outcome) -> torch.Tensor:
    """Returns the outputs of the trained module on the training inputs."""
    return outcome.after.eval()(training_tensors(outcome)[0])


def accuracy(outcome: Outcome) -> float:
    """Returns the accuracy of the trained module on the training rows."""
    return float((predictions(outcome).argmax(1) == training_tensors(outcome)[1]).float().mean())


def squared_error(outcome: Outcome) -> float:
    """Returns the mean squared error on the training rows, for any shapes."""
    return float((predictions(outcome).flatten() - training_tensors(outcome)[1].flatten()).square().mean())


def is_unchanged(outcome: Outcome, prefix: str) -> bool:
    """Returns True if all weights under ``prefix`` are unchanged."""
    after = outcome.after.state_dict()
    return all(torch.equal(value, after[name]) for name, value in outcome.before.items() if name.startswith(prefix))


def is_finite(outcome: Outcome) -> bool:
    """Returns True if all trained weights are finite."""
    return all(bool(weight.isfinite().all()) for weight in outcome.after.parameters())


@torch.no_grad()
def activations(outcome: Outcome, kind: type[nn.Module]) -> list[torch.Tensor]:
    """Returns the outputs of all layers of a kind on the training inputs, with channels or units last."""
    outputs: list[torch.Tensor] = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for module in outcome.after.modules()
        if isinstance(module, kind)
    ]
    predictions(outcome)
    for handle in handles:
        handle.remove()
    return [(output.movedim(1, -1) if output.dim() == 4 else output).flatten(0, -2) for output in outputs]


def dead_share(outcome: Outcome) -> float:
    """Returns the share of ReLU units that are zero on all training inputs, in the layer with most of them."""
    return max(float((layer <= 0).all(0).float().mean()) for layer in activations(outcome, nn.ReLU))


def saturated_share(outcome: Outcome, kind: type[nn.Module], low: float, high: float) -> float:
    """Returns the share of activations within 1% of ``low`` or ``high``, in the layer with most of them."""
    margin = 0.01 * (high - low)
    return max(
        float(((layer < low + margin) | (layer > high - margin)).float().mean()) for layer in activations(outcome, kind)
    )


def chance_loss(outcome: Outcome) -> float:
    """Returns the cross entropy of the best constant prediction."""
    share = training_tensors(outcome)[1].flatten().bincount().double()
    share = share[share > 0] / share.sum()
    return -math.fsum((share * share.log()).tolist())
