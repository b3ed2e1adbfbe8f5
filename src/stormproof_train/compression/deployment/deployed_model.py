"""Combines a network with the conversion of its outputs to predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import nn

from stormproof_train.evaluation.predictions import OutputKind
from stormproof_train.losses import loss_properties
from stormproof_train.task import Task


class DeployedModel(nn.Module):
    r"""A network that returns predictions as in :class:`stormproof_train.evaluation.predictions.Predictions`.

    For network outputs f(x), in float32 at least, ``probabilities`` are :math:`\mathrm{softmax}(f(x))`, ``scores`` are
    f(x), and ``values`` are :math:`a + b\, \hat y(f(x))` in the unit of the target.

    Args:
        network: Maps (batch, \*input_shape) to (batch, classes) logits, or to (batch, values x outputs per value).
        kind: Kind of the predictions.
        prediction: :math:`\hat y`, the conversion of the loss from outputs to values. None is the identity. Ignored for
            classes.
        shift: Shift a of the target. Ignored for classes.
        scale: Scale b of the target. Ignored for classes.

    Example:
        >>> DeployedModel(nn.Identity(), "values", shift=100.0, scale=2.0)(torch.tensor([[1.0]]))
        tensor([[102.]])
        >>> DeployedModel(nn.Identity(), "probabilities")(torch.zeros(1, 2))
        tensor([[0.5000, 0.5000]])
    """

    def __init__(
        self,
        network: nn.Module,
        kind: OutputKind,
        prediction: Callable[[torch.Tensor], torch.Tensor] | None = None,
        shift: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.kind: OutputKind = kind
        self._prediction = prediction
        self._shift, self._scale = shift, scale

    @classmethod
    def from_task(cls, task: Task, network: nn.Module | None = None) -> Self:
        """Combines a task's network, or another one, with its loss and target scale. Does not copy the network."""
        shift, scale = task.shift_and_scale
        return cls(
            task.network if network is None else network,
            task.test_predictions.kind,
            loss_properties(task.loss).prediction,
            shift,
            scale,
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        r"""Maps inputs (batch, \*input_shape) to predictions (batch, classes) or (batch, values)."""
        outputs = self.network(inputs)
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        if self.kind == "probabilities":
            return outputs.softmax(dim=1)
        if self.kind == "scores":
            return outputs
        values = outputs if self._prediction is None else self._prediction(outputs)
        return values * self._scale + self._shift
