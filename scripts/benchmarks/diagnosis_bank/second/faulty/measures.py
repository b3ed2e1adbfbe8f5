"""Checks of the outcome of a run, independent of the diagnosis."""

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
    """A module whose training step returns predictions and targets with the loss, if requested.

    Args:
        return_dict: If True, the training step returns a dict with loss, predictions and targets.
    """

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict

    def step_output(self, loss: torch.Tensor, preds: torch.Tensor, target: torch.Tensor) -> Any:
        """Returns the output of a training step in either form."""
        return {"loss": loss, "preds": preds, "target": target} if self.return_dict else loss


def training_tensors(outcome: Outcome) -> tuple[torch.Tensor, ...]:
    """Returns all training data."""
    return cast("TensorDataset", outcome.fit.train.dataset).tensors


def outputs(outcome: Outcome, *inputs: Any) -> torch.Tensor:
    """Returns the outputs of the trained module."""
    module = cast("Any", outcome.after).eval()
    with torch.no_grad():
        return module(*inputs).float()


def accuracy(outcome: Outcome) -> float:
    """Returns the accuracy of the trained classifier on its training data."""
    inputs, label = training_tensors(outcome)[:2]
    return float((outputs(outcome, inputs).argmax(1) == label).float().mean())


def spread(outcome: Outcome) -> float:
    """Returns the deviation of the outputs over the training inputs."""
    return float(outputs(outcome, training_tensors(outcome)[0]).std(0).max())


def entropy(label: torch.Tensor) -> float:
    """Returns the cross entropy of the best constant prediction of classes."""
    share = torch.bincount(label.flatten().long()).double() / label.numel()
    return -float(torch.special.xlogy(share, share).sum())


def variance(target: torch.Tensor) -> float:
    """Returns the squared error of the best constant prediction of numbers."""
    return float(target.double().var())


def is_finite(outcome: Outcome) -> bool:
    """Returns True if all losses and all final weights are finite."""
    weights = all(bool(torch.isfinite(weight).all()) for weight in outcome.after.parameters())
    return weights and all(map(math.isfinite, outcome.losses))


def became_non_finite(outcome: Outcome) -> bool:
    """Returns True if a loss or a weight became NaN or infinite."""
    return not is_finite(outcome)


def has_changed(outcome: Outcome, prefix: str = "") -> float:
    """Returns how far the weights with this prefix changed, relative to their size."""
    after: Mapping[str, torch.Tensor] = outcome.after.state_dict()
    names = [name for name in after if name.startswith(prefix) and after[name].is_floating_point()]
    way = sum(float((after[name] - outcome.before[name]).double().pow(2).sum()) for name in names)
    size = sum(float(outcome.before[name].double().pow(2).sum()) for name in names)
    return math.sqrt(way / max(size, 1e-30))


def is_in_no_optimizer(outcome: Outcome, parameters: Any) -> bool:
    """Returns True if these parameters receive gradients and are in no optimizer."""
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
    """Returns True if the loss is finite and not much lower than for a constant prediction."""
    return outcome.error is None and outcome.mean_loss(15) > share * constant


def is_overfitted(outcome: Outcome, rise: float = 1.15) -> bool:
    """Returns True if the validation loss rose well above its best value while the training loss fell."""
    fell = outcome.mean_loss(20) < 0.5 * outcome.first_loss(20)
    return fell and outcome.validation[-1] > rise * min(outcome.validation)


def has_loss_spike(outcome: Outcome, times: float = 5.0, first: int = 20) -> bool:
    """Returns True if a loss was many times the losses before it."""
    for index in range(first, len(outcome.losses)):
        before = torch.tensor(outcome.losses[index - 10 : index])
        if outcome.losses[index] > times * float(before.max()):
            return True
    return False


def binary_error(outcome: Outcome) -> float:
    """Returns the share of wrong entries of outputs that are logits, on the training data."""
    inputs, target = training_tensors(outcome)[:2]
    return float(((outputs(outcome, inputs) > 0).float() != target).float().mean())


def squared_error(outcome: Outcome) -> float:
    """Returns the mean squared error of outputs and training targets, entry by entry."""
    inputs, target = training_tensors(outcome)[:2]
    return float(functional.mse_loss(outputs(outcome, inputs).flatten(), target.float().flatten()))
