"""Which loss fits which task."""

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
"""The import path of the loss that a task takes when none is chosen."""

_DOMAIN_CHECKS: Mapping[Domain, Callable[[float], bool]] = {
    "of any size": lambda lowest: lowest >= -math.inf,
    "of 0 and above": lambda lowest: lowest >= 0,
    "above 0": lambda lowest: lowest > 0,
}


def check_task(loss: Loss, spec: DataSpec) -> None:
    """Refuses a loss, or its class before one is built, where it is known to be for the other task.

    Raises:
        UserError: if it is.
    """
    properties = loss_properties(loss)
    if properties.task not in {None, spec.task}:
        raise UserError(
            f"loss: {properties.name} is for {properties.task}, and this data is {spec.task}; leave loss= out "
            f"({DEFAULT_LOSSES[spec.task]}), or choose one for {spec.task} (which of the two a table is for, "
            f"data.task says)"
        )


def check_fit(
    network: nn.Module,
    loss: Loss,
    spec: DataSpec,
    augmentation: Augmentation = no_augmentation,
    dtype: torch.dtype = torch.float32,
) -> None:
    r"""Runs two all-zero samples through the augmentation, the network and the loss, before any weights are touched.

    Args:
        network: maps (N, \*input_shape) to the outputs; its mode, buffers and gradients stay as they are.
        loss: the loss to try.
        spec: the data's shapes.
        augmentation: changes a training batch.
        dtype: of the inputs.

    Raises:
        UserError: if the loss is one for another task or other targets, or one of the three refuses the shapes, or no
            scalar comes out.
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
                warnings.simplefilter("error", UserWarning)  # torch only warns where shapes broadcast
                value = loss(outputs, target)
        except (UserWarning, RuntimeError, ValueError, TypeError, IndexError) as error:
            message = first_line(error)
            raise UserError(f"loss: {properties.name} does not fit {spec.task} with this data: {message}") from error
    if not isinstance(value, torch.Tensor) or value.ndim != 0:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise UserError(f"loss: {properties.name} gives {shape}, and training needs one number (reduction=mean or sum)")


def _compute_outputs(network: nn.Module, inputs: torch.Tensor, spec: DataSpec, num_outputs: int) -> torch.Tensor:
    try:
        outputs = network(inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        dtype_text = "" if inputs.dtype is torch.float32 else f" of {inputs.dtype}, where torch.float32 is usual"
        raise UserError(
            f"model: {type(network).__name__} does not take this data's input, "
            f"(batch, {', '.join(map(str, spec.input_shape))}){dtype_text}: {first_line(error)}"
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.shape != (2, num_outputs):
        output_shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise UserError(
            f"model: {type(network).__name__} gives {output_shape} for 2 samples, and {spec.task} with this data needs "
            f"(2, {num_outputs})"
        )
    return outputs


def _check_classes(loss: Loss, properties: LossProperties, spec: DataSpec) -> None:
    loss_classes = loss.num_classes if isinstance(loss, ClassificationLoss) else None
    if loss_classes not in {None, spec.num_classes}:
        raise UserError(
            f"loss: {properties.name} has weights or counts of {loss_classes} classes, and this data has "
            f"{spec.num_classes}: give "
            "one for each"
        )


def _check_log_probabilities(loss: Loss, properties: LossProperties, outputs: torch.Tensor) -> None:
    """Torch's NLL takes an output for the logarithm of a probability: of logits it has no least value."""
    loss_function = loss.func if isinstance(loss, functools.partial) else loss
    if (isinstance(loss_function, nn.NLLLoss) or loss_function is F.nll_loss) and outputs.logsumexp(
        dim=1
    ).abs().max() > 1e-3:
        raise UserError(
            f"loss: {properties.name} is of log probabilities, and this model gives logits: choose "
            f"loss=cross_entropy, or a "
            "model that ends with torch.nn.LogSoftmax"
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
            f"augmentation: it does not take this data's batches, {input_shape}: {first_line(error)}"
        ) from error
    if shape != input_shape:
        raise UserError(f"augmentation: it gives {shape} for inputs of {input_shape}; their shape has to stay")
    return augmented_inputs, target


def _check_domain(properties: LossProperties, spec: DataSpec) -> None:
    is_in_domain = _DOMAIN_CHECKS[properties.domain]
    if spec.num_classes or is_in_domain(-math.inf):
        return
    if spec.target_min is None:
        raise UserError(
            f"loss: {properties.name} is for targets {properties.domain}, and this data does not tell its smallest: "
            f"give the "
            "data module a spec, a stormproof_train.data.spec.DataSpec with target_min and target_mean"
        )
    if not is_in_domain(spec.target_min) or spec.target_mean <= 0:
        raise UserError(
            f"loss: {properties.name} is for targets {properties.domain}, and the training targets here begin at "
            f"{spec.target_min:g} and have the mean {spec.target_mean:g}: choose another loss"
        )
