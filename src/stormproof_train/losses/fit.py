"""Checks that a loss fits the task, the data and the network."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from stormproof_train.augmentation import Augmentation, no_augmentation
from stormproof_train.data.spec import DataSpec
from stormproof_train.errors import UserError, first_line
from stormproof_train.losses.classification import ClassificationLoss
from stormproof_train.losses.contract import Domain, Loss, LossProperties, loss_properties
from stormproof_train.models.dry_run import dry_run

DEFAULT_LOSSES = {
    "classification": "stormproof_train.losses.CrossEntropy",
    "regression": "stormproof_train.losses.MSE",
}
"""Import path of the default loss of each task."""

_DOMAIN_CHECKS: Mapping[Domain, Callable[[float], bool]] = {
    "of any size": lambda lowest: lowest >= -math.inf,
    "of 0 and above": lambda lowest: lowest >= 0,
    "above 0": lambda lowest: lowest > 0,
}


def check_task(loss: Loss, spec: DataSpec) -> None:
    """Raises an error if a loss is known to be for the other task.

    Args:
        loss: Loss, or a loss class that has not been instantiated.
        spec: Description of the data.

    Raises:
        UserError: If the task of the loss is not the task of the data.

    Example:
        >>> spec = DataSpec(input_shape=(4,), num_outputs=3, num_classes=3)
        >>> check_task(nn.CrossEntropyLoss(), spec)
        >>> check_task(nn.MSELoss(), spec)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        stormproof_train.errors.UserError: loss: MSELoss is for regression, but this data is for classification...
    """
    properties = loss_properties(loss)
    if properties.task not in {None, spec.task}:
        raise UserError(
            f"loss: {properties.name} is for {properties.task}, but this data is for {spec.task}. Omit loss= "
            f"({DEFAULT_LOSSES[spec.task]}) or choose a loss for {spec.task}. data.task sets the task of a table."
        )


def check_fit(
    network: nn.Module,
    loss: Loss,
    spec: DataSpec,
    augmentation: Augmentation = no_augmentation,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Runs two all-zero samples through augmentation, network and loss, and checks the shapes of the results.

    Args:
        network: Maps ``(batch, *input_shape)`` to the outputs. Its mode, buffers and gradients are unchanged.
        loss: Loss to check.
        spec: Description of the data.
        augmentation: Changes a batch of the training split without changing its shape.
        dtype: Floating-point type of the inputs.

    Raises:
        UserError: If the loss is for another task or another range of targets, if augmentation, network or loss rejects
            the shapes, or if the loss does not return a scalar.

    Example:
        >>> spec = DataSpec(input_shape=(4,), num_outputs=3, num_classes=3)
        >>> check_fit(nn.Linear(4, 3), nn.CrossEntropyLoss(), spec)
    """
    check_task(loss, spec)
    properties = loss_properties(loss)
    _check_domain(properties, spec)
    _check_classes(loss, properties, spec)
    num_outputs = spec.num_outputs * properties.outputs_per_target
    inputs = torch.zeros(2, *spec.input_shape, dtype=dtype)
    target = torch.zeros(2, dtype=torch.long) if spec.num_classes else torch.zeros(2, spec.num_outputs)
    with dry_run(network), torch.no_grad():
        inputs, target = _augment(augmentation, inputs, target)
        outputs = _compute_outputs(network, inputs, spec, num_outputs)
        _check_log_probabilities(loss, properties, outputs)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # torch only warns if shapes broadcast
                value = loss(outputs, target)
        except (UserWarning, RuntimeError, ValueError, TypeError, IndexError) as error:
            message = first_line(error)
            raise UserError(f"loss: {properties.name} does not fit {spec.task} with this data: {message}") from error
    if not isinstance(value, torch.Tensor) or value.ndim != 0:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise UserError(f"loss: {properties.name} returns {shape}, expected a scalar. Set reduction=mean or sum.")


def _compute_outputs(network: nn.Module, inputs: torch.Tensor, spec: DataSpec, num_outputs: int) -> torch.Tensor:
    try:
        outputs = network(inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        dtype_text = "" if inputs.dtype is torch.float32 else f" of {inputs.dtype} (usually torch.float32)"
        raise UserError(
            f"model: {type(network).__name__} does not accept the input of this data, "
            f"(batch, {', '.join(map(str, spec.input_shape))}){dtype_text}: {first_line(error)}"
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.shape != (2, num_outputs):
        output_shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise UserError(
            f"model: {type(network).__name__} returns {output_shape} for 2 samples, but {spec.task} with this data "
            f"needs (2, {num_outputs})."
        )
    return outputs


def _check_classes(loss: Loss, properties: LossProperties, spec: DataSpec) -> None:
    loss_classes = loss.num_classes if isinstance(loss, ClassificationLoss) else None
    if loss_classes not in {None, spec.num_classes}:
        raise UserError(
            f"loss: {properties.name} has weights or counts for {loss_classes} classes, but this data has "
            f"{spec.num_classes}. Set one per class."
        )


def _check_log_probabilities(loss: Loss, properties: LossProperties, outputs: torch.Tensor) -> None:
    """Checks that torch's NLL loss gets log probabilities, because it has no lower bound for logits."""
    loss_function = loss.func if isinstance(loss, functools.partial) else loss
    if (isinstance(loss_function, nn.NLLLoss) or loss_function is F.nll_loss) and outputs.logsumexp(
        dim=1
    ).abs().max() > 1e-3:
        raise UserError(
            f"loss: {properties.name} expects log probabilities, but this model returns logits. Choose "
            "loss=cross_entropy, or a model that ends with torch.nn.LogSoftmax."
        )


def _augment(
    augmentation: Augmentation, inputs: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    input_shape = tuple(inputs.shape)
    try:
        augmented_inputs, target = augmentation(inputs, target)
        shape = tuple(augmented_inputs.shape)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise UserError(
            f"augmentation: does not accept batches of this data, {input_shape}: {first_line(error)}"
        ) from error
    if shape != input_shape:
        raise UserError(f"augmentation: must keep the shape of its inputs, {input_shape}, but returns {shape}.")
    return augmented_inputs, target


def _check_domain(properties: LossProperties, spec: DataSpec) -> None:
    is_in_domain = _DOMAIN_CHECKS[properties.domain]
    if spec.num_classes or is_in_domain(-math.inf):
        return
    if spec.target_min is None:
        raise UserError(
            f"loss: {properties.name} is for targets {properties.domain}, but the smallest target of this data is "
            "unknown. Set `spec` of the data module to a stormproof_train.data.spec.DataSpec with target_min and "
            "target_mean."
        )
    if not is_in_domain(spec.target_min) or spec.target_mean <= 0:
        raise UserError(
            f"loss: {properties.name} is for targets {properties.domain}, but the training targets have minimum "
            f"{spec.target_min:g} and mean {spec.target_mean:g}. Choose another loss."
        )
