"""What an artifact computes: a network, and how a prediction is read off what it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import nn

from stormproof_train.evaluation.predictions import OutputKind
from stormproof_train.losses import loss_properties
from stormproof_train.task import Task


class DeployedModel(nn.Module):
    r"""A network that gives predictions, as :class:`stormproof_train.evaluation.predictions.Predictions` has them.

    With f(x) the network's outputs, in float32 at least: ``probabilities`` are :math:`\mathrm{softmax}(f(x))`,
    ``scores`` f(x), and ``values`` :math:`a + b\, \hat y(f(x))`, in the target's own unit.

    Args:
        network: maps (N, \*input_shape) to (N, classes) logits, or to (N, values x what the loss takes for each).
        kind: of the predictions.
        prediction: :math:`\hat y`, the loss's way to read values off the outputs; None: they are the values. Without
            effect for classes.
        shift: a, the target's; without effect for classes.
        scale: b, the target's; likewise.

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
        """What a task's loss and targets make of its network, or of another; which is shared, not copied."""
        shift, scale = task.shift_and_scale
        return cls(
            task.network if network is None else network,
            task.test_predictions.kind,
            loss_properties(task.loss).prediction,
            shift,
            scale,
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        r"""Maps inputs (N, \*input_shape) to predictions (N, classes) or (N, values)."""
        outputs = self.network(inputs)
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        if self.kind == "probabilities":
            return outputs.softmax(dim=1)
        if self.kind == "scores":
            return outputs
        values = outputs if self._prediction is None else self._prediction(outputs)
        return values * self._scale + self._shift
