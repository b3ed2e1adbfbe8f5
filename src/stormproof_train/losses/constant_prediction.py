"""What a loss is worth to a network that has learnt nothing but the target."""

from __future__ import annotations

import torch

from stormproof_train.losses import classification, regression
from stormproof_train.losses.class_targets import class_shares
from stormproof_train.losses.constant_search import minimize_constant
from stormproof_train.losses.contract import Loss, loss_properties


def best_constant(loss: Loss, target: torch.Tensor) -> float:
    r"""The value of a loss for the best constant prediction, :math:`\inf_c L((c, \dots, c), t)`.

    A network that does no better on a split does not use its input there. Of a loss that brings no ``best_constant`` it
    is searched for, which is exact where the loss is smooth and convex.

    Args:
        loss: ours, torch's, or a user's.
        target: (N,) class indices, (N, classes) class probabilities, or (N, outputs) numbers as the loss sees them.

    Example:
        >>> target = torch.tensor([0, 0, 0, 1])
        >>> round(best_constant(torch.nn.CrossEntropyLoss(), target), 4)  # the entropy of 3/4 and 1/4, in nats
        0.5623
    """
    closed_form = getattr(loss, "best_constant", None)
    if closed_form is not None:
        return closed_form(target)
    properties = loss_properties(loss)
    if properties.task == "classification" or not target.is_floating_point():
        initial_points = classification.initial_logits(class_shares(target))
    else:
        initial_points = regression.initial_outputs(target.double()).repeat(1, properties.outputs_per_target)
    return minimize_constant(loss, target, initial_points)
