"""The first batches of a data module, looked at before anything is trained: what is wrong shows there, in words."""

from __future__ import annotations

import math

import pytorch_lightning as pl
import torch

from stormproof_train.data.spec import DataSpec, fetch_batch, fetch_first_batch
from stormproof_train.errors import UserError

MAX_TARGET = 1e15
"""Size that a number to predict may have: float32 has to hold sums of its squares."""


def check_first_batches(data: pl.LightningDataModule, spec: DataSpec) -> torch.dtype:
    """Looks at the first batch of training and of validation; gives the kind of numbers that the inputs are.

    Raises:
        UserError: if one is not there, or not as the spec says, or holds what no network learns from.
    """
    inputs, target = fetch_first_batch(data)
    check_samples(f"data: in the first training batch of {type(data).__name__}", inputs, target, spec)
    loader = data.val_dataloader()
    if isinstance(loader, list | tuple) and loader:  # Lightning takes several, and one like this
        loader = loader[0]
    validation_batch = fetch_batch(data, loader, "validation")
    check_samples(f"data: in the first validation batch of {type(data).__name__}", *validation_batch, spec)
    return inputs.dtype


def check_samples(location: str, inputs: torch.Tensor, target: torch.Tensor, spec: DataSpec) -> None:
    r"""Looks at samples that a loss will be given.

    Args:
        location: they are, for the message.
        inputs: (N, \*input_shape).
        target: (N,) class indices or (N, classes) class probabilities, or N x outputs numbers.
        spec: what they should be.

    Raises:
        UserError: if they are not.

    Example:
        >>> spec = DataSpec((1,), num_classes=2, num_outputs=2)
        >>> check_samples("data:", torch.zeros(3, 1), torch.tensor([1, 2, 2]), spec)
        Traceback (most recent call last):
        stormproof_train.errors.UserError: data: the class labels go from 1 to 2, and those of 2 classes from 0 to 1
    """
    if tuple(inputs.shape[1:]) != tuple(spec.input_shape):
        raise UserError(
            f"{location} a sample's inputs are {tuple(inputs.shape[1:])}, and they should be {spec.input_shape}"
        )
    if target.shape[:1] != inputs.shape[:1]:
        raise UserError(
            f"{location} the inputs are {tuple(inputs.shape)} and the targets {tuple(target.shape)}: both begin with "
            f"the "
            "samples (N, …), one of each"
        )
    for name, values in (("inputs", inputs), ("targets", target)):
        non_finite = values[~values.isfinite()]
        if len(non_finite):
            raise UserError(
                f"{location} {len(non_finite):,} of the {values.numel():,} numbers of the {name} are "
                f"{non_finite[0].item()} or the "
                "like, and nothing can be learnt from that: fill them in, or leave such samples out"
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
        raise UserError(f"{location} a sample's target has {outputs} numbers, and it should have {spec.num_outputs}")
    largest = target.abs().max().item()
    if largest > MAX_TARGET:
        raise UserError(f"{location} a target is {largest:.3g} in size, and {MAX_TARGET:.0e} is the most: divide them")


def _check_probabilities(location: str, target: torch.Tensor, num_classes: int) -> None:
    if target.shape[1:] != (num_classes,):
        raise UserError(
            f"{location} the targets are {tuple(target.shape)} of {target.dtype}: {num_classes} classes have labels "
            f"(N,) of "
            f"whole numbers (target.long()) or probabilities (N, {num_classes}), and a regression has no num_classes"
        )
    if target.min() < 0 or target.max() > 1:
        raise UserError(f"{location} the targets are no probabilities: they should be from 0 to 1")


def _check_labels(location: str, target: torch.Tensor, num_classes: int) -> None:
    if target.ndim != 1:
        fix = "target.argmax(dim=1)" if target.shape[1:] == (num_classes,) else "target.squeeze(1)"
        raise UserError(f"{location} the class labels are {tuple(target.shape)}, and they should be (N,): {fix}")
    lowest, highest = int(target.min()), int(target.max())
    if lowest < 0 or highest >= num_classes:
        raise UserError(
            f"{location} the class labels go from {lowest} to {highest}, and those of {num_classes} classes from 0 to "
            f"{num_classes - 1}"
        )
