"""Implements knowledge distillation: mixes targets with the predictions of a trained network."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from stormproof_train.config.signature_binding import forwards_arguments
from stormproof_train.errors import UserError
from stormproof_train.initialization.checkpoint import extract_network_weights, read_checkpoint
from stormproof_train.losses import Loss, loss_properties
from stormproof_train.task import SCALE_KEY


def supports_distillation(loss: Loss, num_classes: int | None) -> bool:
    """Returns True if the predictions of a network trained with this loss can replace targets.

    Args:
        loss: For classification, its outputs must be logits of a softmax. For regression, it must use one output per
            target.
        num_classes: Number of classes. None for regression.
    """
    properties = loss_properties(loss)
    return properties.softmax if num_classes else properties.outputs_per_target == 1


@forwards_arguments("network")
class Teacher:
    r"""Mixes the targets of a batch with the predictions of a teacher. Must be the last augmentation.

    .. math:: (1 - \lambda)\, y + \lambda\, t(x)

    where t are the teacher's class probabilities, or its values in the unit of the target. With cross-entropy this is
    knowledge distillation at a temperature of 1. The teacher is in evaluation mode and processes the same augmented
    batch as the student.

    Args:
        network: Network of the teacher, with any weights.
        path: Checkpoint of the teacher.
        loss: Loss of the run, with which the teacher was trained too.
        num_classes: Number of classes. None for regression.
        sha256: Expected SHA-256 of the checkpoint. None accepts any content.
        share: :math:`\lambda`, in (0, 1].

    Raises:
        ValueError: If ``share`` is out of its range.
        UserError: If the loss does not support distillation, or the checkpoint is of another network.

    References:
        Hinton, Vinyals & Dean, Distilling the knowledge in a neural network, 2015, section 2. Beyer et al., Knowledge
        distillation: a good teacher is patient and consistent, 2022, section 3, for the same view of each sample.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str,
        loss: Loss,
        num_classes: int | None,
        sha256: str | None = None,
        share: float = 0.5,
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"`share` must be in (0, 1], got {share}")
        if not supports_distillation(loss, num_classes):
            raise UserError(
                f"augmentation: {loss_properties(loss).name} does not support the outputs of a teacher as targets"
            )
        checkpoint = read_checkpoint(Path(path), sha256)
        try:
            network.load_state_dict(extract_network_weights(checkpoint))
        except RuntimeError as error:
            raise UserError(f"augmentation: the weights in {path} do not fit the network of the teacher") from error
        self._network = network.eval().requires_grad_(requires_grad=False)
        self._predict = loss_properties(loss).prediction
        target_scale = checkpoint.get(SCALE_KEY, {"shift": 0.0, "scale": 1.0})
        self._shift, self._scale = target_scale["shift"], target_scale["scale"]
        self._num_classes, self.share = num_classes, share

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the inputs unchanged, with targets as (batch, classes) probabilities or (batch, outputs) values."""
        weight = next(self._network.parameters())
        if weight.device != inputs.device:
            self._network.to(inputs.device)
        outputs = self._network(inputs.to(weight.dtype) if inputs.is_floating_point() else inputs)
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        if self._num_classes:
            teacher_target = outputs.softmax(dim=1)
            true_target = target if target.is_floating_point() else F.one_hot(target, self._num_classes)
        else:
            teacher_target = self._predict(outputs) * self._scale + self._shift
            true_target = target.reshape(teacher_target.shape)
        return inputs, torch.lerp(true_target.to(teacher_target.dtype), teacher_target, self.share)
