"""Defines the interface of a loss: a callable of ``(outputs, target)`` with optional attributes.

``outputs`` are the outputs of the network: logits ``(batch, classes)`` or numbers
``(batch, outputs x outputs_per_target)``. ``target`` contains class indices ``(batch,)``, class probabilities
``(batch, classes)``, or numbers ``(batch, outputs)`` in the scale that the loss expects. The loss returns a scalar.
Missing attributes take the defaults of :class:`LossProperties`.
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
"""Maps (outputs, target) to a scalar."""

TaskName = Literal["classification", "regression"]

Scaling = Literal["standardized", "divided by the mean"]
"""Scale of regression targets: (target - mean) / std, or target / mean if the sign must be kept."""

Domain = Literal["of any size", "of 0 and above", "above 0"]
"""Valid range of the targets of a regression loss."""

# Losses of torch accept targets of the other task: cross-entropy with one output is always 0.
_CLASSIFICATION = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
_REGRESSION = (nn.MSELoss, nn.HuberLoss, nn.SmoothL1Loss, nn.L1Loss, nn.PoissonNLLLoss)
_CLASSIFICATION_FUNCTIONS = (F.cross_entropy, F.nll_loss, F.multi_margin_loss)
_REGRESSION_FUNCTIONS = (F.mse_loss, F.huber_loss, F.smooth_l1_loss, F.l1_loss, F.poisson_nll_loss)


@dataclass(frozen=True)
class LossProperties:
    """Properties of a loss that a run uses. A loss defines them as attributes of the same names.

    Attributes:
        name: Name of the loss, for messages.
        task: Task of the loss. None if unknown, as for a plain function.
        outputs_per_target: Number of network outputs per target. Default: 1.
        prediction: Maps outputs to predictions for the metrics, in the scale of the loss. Default: the outputs.
        scaling: Scale of regression targets. Default: standardized.
        domain: Valid range of regression targets before scaling. Default: of any size.
        normalizer: Maps the target of a batch to the divisor of its loss, which weights the loss of the batch in the
            mean over batches. Default: the number of samples.
        softmax: True if the loss applies softmax to the outputs. Default: False, except for torch's cross-entropy.

    Example:
        >>> loss_properties(nn.CrossEntropyLoss()).softmax
        True
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
        """Returns the numbers (a, b) of the scaled target (target - a) / b. They are (0, 1) for classes."""
        if spec.num_classes:
            return 0.0, 1.0
        if self.scaling == "divided by the mean":
            return 0.0, spec.target_mean
        return spec.target_mean, spec.target_std


def loss_properties(loss: Loss) -> LossProperties:
    """Returns the properties of a loss of this package, of torch, or of a user.

    Args:
        loss: Callable of (outputs, target). A ``functools.partial`` is unwrapped.

    Returns:
        Properties from the attributes of the loss, with defaults for missing attributes.

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
    """Returns a function for torch's divisor: the sum of weights for class indices, else the number of samples."""
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        return len
    weight = loss.weight
    return lambda target: total_weight(None if target.is_floating_point() else weight, target)


def _identity(outputs: torch.Tensor) -> torch.Tensor:
    return outputs
