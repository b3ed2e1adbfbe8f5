"""Builds the task of a plan: network, loss and metrics, with initial weights."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils._pytree import tree_leaves

from stormproof_train.activations import Activation, activation_factory
from stormproof_train.augmentation import Compose
from stormproof_train.config.plan import Plan
from stormproof_train.config.signature_binding import Target
from stormproof_train.data.first_batches import check_first_batches
from stormproof_train.data.spec import DataSpec, fetch_first_batch
from stormproof_train.data.split_data import SplitDataModule
from stormproof_train.errors import UserError
from stormproof_train.losses import check_fit, check_task, loss_properties
from stormproof_train.task import Task, takes_run_length

TRUE_PRECISIONS = {"64", "64-true", "16-true", "bf16-true"}
"""Precisions for which Lightning converts inputs and weights to one type."""


def build_task(plan: Plan, data: pl.LightningDataModule, spec: DataSpec, loss_target: Target) -> Task:
    """Builds and initializes the network, and everything that trains it, and checks that the parts are compatible.

    Raises:
        UserError: If the parts are incompatible with each other or with the data.
    """
    check_task(loss_target.function, spec)
    dtype = torch.float32
    if isinstance(data, SplitDataModule):
        spec = data.load_spec()  # adds class counts and the range of targets, which some losses need
    else:
        dtype = check_first_batches(data, spec)
        if dtype.is_floating_point and str(plan.trainer.kwargs.get("precision")) in TRUE_PRECISIONS:
            dtype = torch.float32  # the type of the weights at this point
    loss = loss_target.build(class_counts=spec.class_counts)
    activation = activation_factory(plan.activation.factory())
    network_args = {
        "input_shape": spec.input_shape,
        "num_outputs": spec.num_outputs * loss_properties(loss).outputs_per_target,
        "num_classes": spec.num_classes,
        "activation": activation,
    }
    network = plan.model.build(**network_args)
    if not isinstance(network, torch.nn.Module):
        raise UserError(f"model: {plan.model.path} returns {type(network).__name__}, not a torch.nn.Module")
    augmentation = Compose(
        {name: target.build(loss=loss, **network_args) for name, target in plan.augmentation.items()}
    )
    check_fit(network, loss, spec, augmentation, dtype)
    _initialize(network, plan, data, spec, activation)
    _check_optimizer(plan.optimizer)
    return Task(
        network,
        loss,
        spec,
        optimizer=lambda parameters: plan.optimizer.build(params=parameters),
        scheduler=plan.scheduler.build,
        counts_steps=takes_run_length(plan.scheduler.function, plan.scheduler.kwargs),
        augmentation=augmentation,
        classes=_class_names(data, spec),
    )


def _check_optimizer(target: Target) -> None:
    """Raises UserError for arguments that the optimizer rejects, and for infinite ones, which torch accepts."""
    target.build(params=[torch.nn.Parameter(torch.zeros(1))])
    for name, value in target.kwargs.items():
        if any(isinstance(leaf, float) and not math.isfinite(leaf) for leaf in tree_leaves(value)):
            raise UserError(f"{target.config_key}.{name}={value} must be finite")


def _class_names(data: pl.LightningDataModule, spec: DataSpec) -> list[str]:
    """Returns the class names if the data module has one per class, else an empty list."""
    names: Any = getattr(data, "classes", None)
    is_complete = isinstance(names, list | tuple) and len(names) == spec.num_classes
    return [str(name) for name in names] if is_complete else []


def _initialize(
    network: torch.nn.Module, plan: Plan, data: pl.LightningDataModule, spec: DataSpec, activation: Activation
) -> None:
    target = plan.initialization
    model_activation = activation if plan.model.uses_injected("activation") else None
    inputs = fetch_first_batch(data)[0] if target.uses_injected("inputs") else None
    result = target.build(network=network, activation=model_activation, input_shape=spec.input_shape, inputs=inputs)
    if isinstance(result, torch.nn.Module) and result is not network:
        type_name = type(result).__name__
        raise UserError(
            f"initialization: {target.path} returns a {type_name}, but it must change the given network in place"
        )
