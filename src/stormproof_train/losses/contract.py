"""What a loss is here: a callable of (outputs, target), and a few facts that the run asks of it.

``outputs`` are the network's, (N, classes) logits or (N, outputs x outputs_per_target) numbers. ``target`` is (N,)
class indices or (N, classes) class probabilities, or (N, outputs) numbers, scaled as the loss wants them. The value is
a scalar. Any such callable will do; what it does not say of itself is taken to be what :class:`LossProperties` calls
usual.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from stormproof_train.data.spec import DataSpec
from stormproof_train.losses.class_targets import total_weight

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps (network output, target) to a scalar."""

TaskName = Literal["classification", "regression"]

Scaling = Literal["standardized", "divided by the mean"]
"""What a regression trains on: (target - mean) / std, or target / mean, where numbers have to keep their sign."""

Domain = Literal["of any size", "of 0 and above", "above 0"]
"""The targets that a regression loss is for."""

# torch's accept the other task's shapes without a murmur: cross-entropy of one output is always 0.
_CLASSIFICATION = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
_REGRESSION = (nn.MSELoss, nn.HuberLoss, nn.SmoothL1Loss, nn.L1Loss, nn.PoissonNLLLoss)
_CLASSIFICATION_FUNCTIONS = (F.cross_entropy, F.nll_loss, F.multi_margin_loss)
_REGRESSION_FUNCTIONS = (F.mse_loss, F.huber_loss, F.smooth_l1_loss, F.l1_loss, F.poisson_nll_loss)


@dataclass(frozen=True)
class LossProperties:
    """What the run has to know of a loss; a loss says it by attributes of these names.

    Attributes:
        name: for messages.
        task: what it is for; None where nobody knows, as of a plain function.
        outputs_per_target: numbers that the network gives for each target; usually 1.
        prediction: maps outputs to what the metrics are of, in the scale the loss trains on; usually the outputs.
        scaling: of a regression's targets; usually standardized.
        domain: of a regression's targets, before they are scaled; usually of any size.
        normalizer: maps a batch's target to what its loss was divided by, so that the loss of many batches is that of
            all their samples; usually their number.
        softmax: whether it takes the softmax of the outputs for the probabilities of the classes; usually it does not,
            but torch's cross-entropy does.
    """

    name: str
    task: TaskName | None
    outputs_per_target: int
    prediction: Callable[[torch.Tensor], torch.Tensor]
    scaling: Scaling
    domain: Domain
    normalizer: Callable[[torch.Tensor], torch.Tensor | int]
    softmax: bool

    def shift_and_scale(self, spec: DataSpec) -> tuple[float, float]:
        """The numbers (a, b) for which the loss trains on (target - a) / b; (0, 1) for classes."""
        if spec.num_classes:
            return 0.0, 1.0
        if self.scaling == "divided by the mean":
            return 0.0, spec.target_mean
        return spec.target_mean, spec.target_std


def loss_properties(loss: Loss) -> LossProperties:
    """Reads the facts off a loss: ours, torch's, or a user's.

    Example:
        >>> properties = loss_properties(nn.L1Loss())
        >>> properties.name, properties.task, properties.outputs_per_target
        ('L1Loss', 'regression', 1)
    """
    loss_function = loss.func if isinstance(loss, functools.partial) else loss
    return LossProperties(
        name=getattr(loss_function, "__name__", type(loss_function).__name__),
        task=getattr(loss_function, "task", None) or _infer_torch_task(loss_function),
        outputs_per_target=getattr(loss_function, "outputs_per_target", 1),
        prediction=getattr(loss_function, "prediction", _identity),
        scaling=getattr(loss_function, "scaling", "standardized"),
        domain=getattr(loss_function, "domain", "of any size"),
        normalizer=getattr(loss_function, "normalizer", None) or _make_torch_normalizer(loss_function),
        softmax=getattr(
            loss_function, "softmax", isinstance(loss_function, nn.CrossEntropyLoss) or loss_function is F.cross_entropy
        ),
    )


def _infer_torch_task(loss: object) -> TaskName | None:
    if isinstance(loss, _CLASSIFICATION) or loss in _CLASSIFICATION_FUNCTIONS:
        return "classification"
    if isinstance(loss, _REGRESSION) or loss in _REGRESSION_FUNCTIONS:
        return "regression"
    return None


def _make_torch_normalizer(loss: object) -> Callable[[torch.Tensor], torch.Tensor | int]:
    """What torch divides by: the weights of classes, where the target is their indices."""
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        return len
    weight = loss.weight
    return lambda target: total_weight(None if target.is_floating_point() else weight, target)


def _identity(outputs: torch.Tensor) -> torch.Tensor:
    return outputs
