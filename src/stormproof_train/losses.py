"""Which loss fits which task."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from stormproof_train.data.spec import DataSpec
from stormproof_train.dry_run import dry_run
from stormproof_train.errors import UserError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps (network output, target) to a scalar: (N, classes) and (N,) class indices, or (N, outputs) twice."""

DEFAULT = {"classification": "torch.nn.CrossEntropyLoss", "regression": "torch.nn.MSELoss"}
"""The import path of the loss that a task takes when none is chosen."""

# Some of these accept the other task's shapes without a murmur: cross-entropy of one output is always 0. So the known
# ones are told by their class, any other by a dry run.
_CLASSIFICATION = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
_REGRESSION = (nn.MSELoss, nn.HuberLoss, nn.SmoothL1Loss, nn.L1Loss, nn.PoissonNLLLoss)
_CLASSIFICATION_FUNCTIONS = (F.cross_entropy, F.nll_loss, F.multi_margin_loss)
_REGRESSION_FUNCTIONS = (F.mse_loss, F.huber_loss, F.smooth_l1_loss, F.l1_loss, F.poisson_nll_loss)


def check_fit(network: nn.Module, loss: Loss, spec: DataSpec) -> None:
    r"""Runs two all-zero samples through the network and the loss, before any data or weights are touched.

    Args:
        network: maps (N, \*input_shape) to the outputs; its mode, buffers and gradients stay as they are.
        loss: the loss to try.
        spec: the data's shapes.

    Raises:
        UserError: if the loss is one for another task, or either refuses the shapes, or no scalar comes out.
    """
    function = loss.func if isinstance(loss, functools.partial) else loss
    kind = getattr(function, "__name__", type(function).__name__)
    is_classification = spec.task == "classification"
    wrong = _REGRESSION if is_classification else _CLASSIFICATION
    if isinstance(loss, wrong) or function in (
        _REGRESSION_FUNCTIONS if is_classification else _CLASSIFICATION_FUNCTIONS
    ):
        other = "regression" if is_classification else "classification"
        raise UserError(
            f"loss: {kind} is for {other}, and this data is {spec.task}; leave loss= out ({DEFAULT[spec.task]}), "
            f"or choose one for {spec.task}"
        )
    inputs = torch.zeros(2, *spec.input_shape)
    target = torch.zeros(2, dtype=torch.long) if spec.num_classes else torch.zeros(2, spec.num_outputs)
    with dry_run(network), torch.no_grad():
        try:
            outputs = network(inputs)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"model: {type(network).__name__} does not take this data's input, "
                f"(batch, {', '.join(map(str, spec.input_shape))}): {_first_line(error)}"
            ) from error
        if not isinstance(outputs, torch.Tensor) or outputs.shape != (2, spec.num_outputs):
            got = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
            raise UserError(
                f"model: {type(network).__name__} gives {got} for 2 samples, and {spec.task} with this data needs "
                f"(2, {spec.num_outputs})"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # torch only warns where shapes broadcast
                value = loss(outputs, target)
        except (UserWarning, RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UserError(f"loss: {kind} does not fit {spec.task} with this data: {_first_line(error)}") from error
    if not isinstance(value, torch.Tensor) or value.ndim != 0:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise UserError(f"loss: {kind} gives {shape}, and training needs one number (reduction=mean or sum)")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
