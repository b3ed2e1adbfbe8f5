"""Measures of a trained module on its training inputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from diagnosis_bank.program import Outcome
from torch import Tensor, nn


def training_tensors(outcome: Outcome) -> tuple[Tensor, Tensor]:
    """Returns all inputs and targets of one epoch of pairs."""
    inputs, targets = zip(*outcome.fit.train, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def predictions(outcome: Outcome) -> tuple[Tensor, Tensor]:
    """Returns the predictions of the trained module on its training inputs, and their targets."""
    inputs, targets = training_tensors(outcome)
    outcome.after.eval()
    with torch.no_grad():
        return outcome.after(inputs), targets


def accuracy(outcome: Outcome) -> float:
    """Returns the accuracy on the training inputs."""
    scores, targets = predictions(outcome)
    if scores.dim() == 2 and scores.shape[1] > 1:
        return (scores.argmax(1) == targets).float().mean().item()
    return ((scores.flatten() > 0) == (targets.flatten() > 0.5)).float().mean().item()


def explained_variance(outcome: Outcome) -> float:
    """Returns the explained variance: 0 for the best constant, NaN for non-finite weights."""
    values, targets = predictions(outcome)
    values, targets = values.flatten().double(), targets.flatten().double()
    return 1 - ((values - targets).square().mean() / targets.var(correction=0)).item()


def output_spread(outcome: Outcome) -> float:
    """Returns the largest deviation of an output over the training inputs."""
    return predictions(outcome)[0].flatten(1).std(0).max().item()


def activations(outcome: Outcome, layer: nn.Module) -> Tensor:
    """Returns the outputs of a layer of the trained module on all training inputs."""
    outputs: list[Tensor] = []

    def keep(_layer: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(output)

    hook = layer.register_forward_hook(keep)
    predictions(outcome)
    hook.remove()
    return torch.cat(outputs)


def constant_share(outcome: Outcome, layer: nn.Module) -> float:
    """Returns the share of units or channels of a layer whose output is constant."""
    output = activations(outcome, layer)
    output = output.transpose(1, -1).flatten(0, -2) if output.dim() > 2 else output
    return ((output.max(0).values - output.min(0).values) < 1e-6).float().mean().item()


def is_unchanged(outcome: Outcome, prefix: str) -> bool:
    """Returns True if all weights under ``name`` are unchanged after training."""
    after = {name: value for name, value in outcome.after.state_dict().items() if name.startswith(prefix)}
    assert after, prefix
    return ran_to_end(outcome) and all(torch.equal(outcome.before[name], value) for name, value in after.items())


def ran_to_end(outcome: Outcome) -> bool:
    """Returns True if training finished."""
    return outcome.error is None and len(outcome.losses) > 0


def became_non_finite(outcome: Outcome) -> bool:
    """Returns True if the loss or the weights became non-finite."""
    return any(not math.isfinite(loss) for loss in outcome.losses) or any(
        not bool(value.isfinite().all()) for value in outcome.after.state_dict().values()
    )
