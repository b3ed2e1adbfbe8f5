"""Computes the loss of the best constant prediction."""

from __future__ import annotations

import torch

from stormproof_train.losses import classification, regression
from stormproof_train.losses.class_targets import class_shares
from stormproof_train.losses.constant_search import minimize_constant
from stormproof_train.losses.contract import Loss, loss_properties


def best_constant(loss: Loss, target: torch.Tensor) -> float:
    r"""Returns the loss of the best constant prediction, :math:`\inf_c L((c, \dots, c), t)`.

    A network with the same or a higher loss on a split does not use its inputs there. If the loss has no method
    ``best_constant``, the constant is found by optimization, which is exact for smooth convex losses.

    Args:
        loss: Loss of this package, of torch, or of a user.
        target: Class indices ``(batch,)``, class probabilities ``(batch, classes)``, or numbers ``(batch, outputs)`` in
            the scale of the loss.

    Returns:
        The smallest loss.

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
