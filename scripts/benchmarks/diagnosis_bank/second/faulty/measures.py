"""Kinds of checks of what happened in a run, none of which knows the tool."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
from diagnosis_bank.program import Outcome
from torch.nn import functional
from torch.utils.data import TensorDataset


class StepOutputModule(pl.LightningModule):
    """A module that returns what it predicted, if it is to.

    Args:
        return_dict: whether the training step returns predictions and targets beside the loss.
    """

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict

    def step_output(self, loss: torch.Tensor, preds: torch.Tensor, target: torch.Tensor) -> Any:
        """What a training step returns."""
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss


def training_tensors(outcome: Outcome) -> tuple[torch.Tensor, ...]:
    """All training data."""
    return cast("TensorDataset", outcome.fit.train.dataset).tensors


def outputs(outcome: Outcome, *inputs: Any) -> torch.Tensor:
    """What the trained module puts out."""
    module = cast("Any", outcome.after).eval()
    with torch.no_grad():
        return module(*inputs).float()


def accuracy(outcome: Outcome) -> float:
    """Of the trained classifier, on its training data."""
    inputs, label = training_tensors(outcome)[:2]
    return float((outputs(outcome, inputs).argmax(1) == label).float().mean())


def spread(outcome: Outcome) -> float:
    """The deviation of the outputs over the training inputs."""
    return float(outputs(outcome, training_tensors(outcome)[0]).std(0).max())


def entropy(label: torch.Tensor) -> float:
    """The cross-entropy of the best constant prediction of classes."""
    share = torch.bincount(label.flatten().long()).double() / label.numel()
    return -float(torch.special.xlogy(share, share).sum())


def variance(target: torch.Tensor) -> float:
    """The squared error of the best constant prediction of numbers."""
    return float(target.double().var())


def is_finite(outcome: Outcome) -> bool:
    """Whether no loss, nor any weight at the end, was NaN or infinite."""
    weights = all(bool(torch.isfinite(weight).all()) for weight in outcome.after.parameters())
    return weights and all(map(math.isfinite, outcome.losses))


def became_non_finite(outcome: Outcome) -> bool:
    """Whether a loss or a weight became NaN or infinite."""
    return not is_finite(outcome)


def has_changed(outcome: Outcome, prefix: str = "") -> float:
    """How far the weights of this prefix went, relative to their size."""
    after: Mapping[str, torch.Tensor] = outcome.after.state_dict()
    names = [name for name in after if name.startswith(prefix) and after[name].is_floating_point()]
    way = sum(float((after[name] - outcome.before[name]).double().pow(2).sum()) for name in names)
    size = sum(float(outcome.before[name].double().pow(2).sum()) for name in names)
    return math.sqrt(way / max(size, 1e-30))


def is_in_no_optimizer(outcome: Outcome, parameters: Any) -> bool:
    """Whether these parameters got a gradient, and no optimizer holds them."""
    optimizer_parameters = {
        id(parameter)
        for optimizer in outcome.after.trainer.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return all(
        id(parameter) not in optimizer_parameters
        and parameter.grad is not None
        and bool(parameter.grad.abs().sum() > 0)
        for parameter in parameters
    )


def is_no_better_than_constant(outcome: Outcome, constant: float, share: float = 0.9) -> bool:
    """Whether the loss is finite and not much lower than that of a constant prediction."""
    return outcome.error is None and outcome.mean_loss(15) > share * constant


def is_overfitted(outcome: Outcome, rise: float = 1.15) -> bool:
    """Whether validation rose well above its best while the training loss fell."""
    fell = outcome.mean_loss(20) < 0.5 * outcome.first_loss(20)
    return fell and outcome.validation[-1] > rise * min(outcome.validation)


def has_loss_spike(outcome: Outcome, times: float = 5.0, first: int = 20) -> bool:
    """Whether a loss was many times what those before it were."""
    for index in range(first, len(outcome.losses)):
        before = torch.tensor(outcome.losses[index - 10 : index])
        if outcome.losses[index] > times * float(before.max()):
            return True
    return False


def binary_error(outcome: Outcome) -> float:
    """Of outputs that are logits, the share of wrong entries in the training targets."""
    inputs, target = training_tensors(outcome)[:2]
    return float(((outputs(outcome, inputs) > 0).float() != target).float().mean())


def squared_error(outcome: Outcome) -> float:
    """Of outputs with the training targets, entry by entry."""
    inputs, target = training_tensors(outcome)[:2]
    return float(functional.mse_loss(outputs(outcome, inputs).flatten(), target.float().flatten()))
