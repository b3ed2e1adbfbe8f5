"""Checks the first batches of a data module before training."""

from __future__ import annotations

import math

import pytorch_lightning as pl
import torch

from stormproof_train.data.spec import DataSpec, fetch_batch, fetch_first_batch
from stormproof_train.errors import UserError

MAX_TARGET = 1e15
"""Maximum absolute value of a regression target, because float32 must represent sums of its squares."""


def check_first_batches(data: pl.LightningDataModule, spec: DataSpec) -> torch.dtype:
    """Checks the first training batch and the first validation batch, and returns the type of the inputs.

    Raises:
        UserError: If a batch is missing, does not match the spec, or contains values that cannot be learned from.
    """
    inputs, target = fetch_first_batch(data)
    check_samples(f"data: in the first training batch of {type(data).__name__}", inputs, target, spec)
    loader = data.val_dataloader()
    if isinstance(loader, list | tuple) and loader:  # Lightning accepts several validation loaders
        loader = loader[0]
    validation_batch = fetch_batch(data, loader, "validation")
    check_samples(f"data: in the first validation batch of {type(data).__name__}", *validation_batch, spec)
    return inputs.dtype


def check_samples(location: str, inputs: torch.Tensor, target: torch.Tensor, spec: DataSpec) -> None:
    """Checks inputs and targets against a spec.

    Args:
        location: Beginning of the message, which names the samples.
        inputs: Inputs ``(batch, *input_shape)``.
        target: Class indices ``(batch,)``, class probabilities ``(batch, classes)``, or numbers ``(batch, outputs)``.
        spec: Expected shapes and task.

    Raises:
        UserError: If the samples do not match the spec.

    Example:
        >>> spec = DataSpec((1,), num_classes=2, num_outputs=2)
        >>> check_samples("data:", torch.zeros(3, 1), torch.tensor([1, 2, 2]), spec)
        Traceback (most recent call last):
        stormproof_train.errors.UserError: data: the class labels of 2 classes must be from 0 to 1, got 1 to 2
    """
    if tuple(inputs.shape[1:]) != tuple(spec.input_shape):
        raise UserError(
            f"{location} a sample's inputs have shape {tuple(inputs.shape[1:])}, expected {spec.input_shape}"
        )
    if target.shape[:1] != inputs.shape[:1]:
        raise UserError(
            f"{location} the inputs have shape {tuple(inputs.shape)} and the targets {tuple(target.shape)}. Both must "
            "have the same batch dimension."
        )
    for name, values in (("inputs", inputs), ("targets", target)):
        non_finite = values[~values.isfinite()]
        if len(non_finite):
            raise UserError(
                f"{location} {len(non_finite):,} of the {values.numel():,} numbers of the {name} are not finite "
                f"({non_finite[0].item()}). Replace them, or remove such samples."
            )
    if not spec.num_classes:
        _check_numbers(location, target, spec)
    elif target.is_floating_point():
        _check_probabilities(location, target, spec.num_classes)
    else:
        _check_labels(location, target, spec.num_classes)


def _check_numbers(location: str, target: torch.Tensor, spec: DataSpec) -> None:
    outputs = math.prod(target.shape[1:])
    if outputs != spec.num_outputs:
        raise UserError(f"{location} a sample's target has {outputs} numbers, expected {spec.num_outputs}")
    largest = target.abs().max().item()
    if largest > MAX_TARGET:
        raise UserError(
            f"{location} a target has the absolute value {largest:.3g}, at most {MAX_TARGET:.0e} is allowed. Divide "
            "the targets."
        )


def _check_probabilities(location: str, target: torch.Tensor, num_classes: int) -> None:
    if target.shape[1:] != (num_classes,):
        raise UserError(
            f"{location} the targets have shape {tuple(target.shape)} and type {target.dtype}. {num_classes} classes "
            f"need integer labels (batch,) (target.long()) or probabilities (batch, {num_classes}). For regression, "
            "do not set num_classes."
        )
    if target.min() < 0 or target.max() > 1:
        raise UserError(f"{location} the targets must be probabilities from 0 to 1")


def _check_labels(location: str, target: torch.Tensor, num_classes: int) -> None:
    if target.ndim != 1:
        fix = "target.argmax(dim=1)" if target.shape[1:] == (num_classes,) else "target.squeeze(1)"
        raise UserError(f"{location} the class labels have shape {tuple(target.shape)}, expected (batch,). Use {fix}.")
    lowest, highest = int(target.min()), int(target.max())
    if lowest < 0 or highest >= num_classes:
        raise UserError(
            f"{location} the class labels of {num_classes} classes must be from 0 to {num_classes - 1}, got {lowest} "
            f"to {highest}"
        )
