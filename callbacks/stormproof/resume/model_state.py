"""Captures and restores weights and optimizer states, also with sharded parameters.

To initialize the state of an optimizer without steps, torch lets it do a step with zero gradients and counts that step.
This module undoes the step.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils._pytree import tree_map_only

from stormproof.errors import NotResumableError
from stormproof.lightning import internals
from stormproof.lightning.layout import Layout
from stormproof.lightning.sharded_averaging import TRAINED_STATE_KEY, shard_averaged_state
from stormproof.resume import sharded_state


def find_unstepped_optimizers(trainer: pl.Trainer) -> list[int]:
    """Returns the indices of the optimizers without state, because they did no step yet or keep none."""
    return [index for index, optimizer in enumerate(trainer.optimizers) if not optimizer.state]


def clear_optimizer_states(trainer: pl.Trainer, optimizer_indices: Iterable[int]) -> None:
    """Clears the states of these optimizers, as before their first step."""
    for index in optimizer_indices:
        trainer.optimizers[index].state.clear()


def dump_checkpoint(trainer: pl.Trainer, module: pl.LightningModule, layout: Layout) -> dict[str, Any]:
    """Returns the checkpoint that ``trainer.save_checkpoint`` would write. All ranks call it.

    Leaves the state of the trainer unchanged. If the strategy shards parameters and saves full checkpoints, only the
    one on rank 0 is full. If it saves sharded checkpoints, parameters and optimizer states are not copied.

    Args:
        trainer: Trainer between two batches or at the end of training, with or without sharded parameters.
        module: Module that it trains.
        layout: Layout of the trainer.

    Raises:
        NotResumableError: If the checkpoint could not be loaded.
    """
    if not layout.is_sharded:
        return internals.dump_checkpoint(trainer)
    _check_loadable(trainer, module)
    unstepped_indices = find_unstepped_optimizers(trainer)
    parameters = [
        parameter for index in unstepped_indices for parameter in _optimizer_parameters(trainer.optimizers[index])
    ]
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:  # torch initializes the state only without gradients
        parameter.grad = None
    if layout.saves_shards:
        checkpoint = internals.dump_sharded_checkpoint(trainer)
    else:
        checkpoint = internals.dump_checkpoint(trainer)
    clear_optimizer_states(trainer, unstepped_indices)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return checkpoint


@dataclass(frozen=True)
class StateDtypes:
    """The parts of an optimizer's saved state that ``Optimizer.load_state_dict`` may convert.

    torch converts tensors to the parameter's dtype. For example, NAdam keeps a product in float32 even for parameters
    in float64. Scalars are always kept, because their dtype may equal the dtype of another parameter. torch also
    rebuilds iterables from a generator. This changes strings and deques, and fails for arrays and named tuples.

    Attributes:
        groups: Indices of the parameters of each group, as saved.
        state: Tensors by parameter index and name.
        values: Values that contain another type than tensors, numbers, dicts, lists and tuples.
    """

    groups: list[list[int]]
    state: dict[int, dict[str, Any]]
    values: dict[int, dict[str, Any]]

    @classmethod
    def from_optimizer_state(
        cls, optimizer_state: Mapping[str, Any], weight_dtypes: Collection[torch.dtype]
    ) -> StateDtypes:
        """Collects the tensors of one saved optimizer, and removes ``values``, so that torch does not convert them.

        Args:
            optimizer_state: Entry of ``optimizer_states``. Modified in place.
            weight_dtypes: Floating-point dtypes of the saved weights. If there are several, all tensors are collected.
        """
        groups = [group["params"] for group in optimizer_state.get("param_groups", [])]
        saved_states = optimizer_state.get("state", {})
        parameter_indices = {*chain(*groups)}
        values = {
            index: {name: saved.pop(name) for name in [*saved] if _has_values(saved[name])}
            for index, saved in saved_states.items()
            if index in parameter_indices and isinstance(saved, dict)
        }
        state = {index: _select_other_dtypes(values, weight_dtypes) for index, values in saved_states.items()}
        return cls(groups, state, values)

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Replaces converted tensors with the saved ones."""
        # ``groups`` is empty if configure_optimizers returned None
        for group, indices in zip(optimizer.param_groups, self.groups, strict=False):
            for parameter, index in zip(group["params"], indices, strict=True):
                _undo_conversion(optimizer.state.get(parameter, {}), self.state.get(index, {}))
                for name, value in self.values.get(index, {}).items():
                    move = functools.partial(torch.Tensor.to, device=parameter.device)
                    optimizer.state[parameter][name] = tree_map_only(torch.Tensor, move, value)


def _has_values(value: Any) -> bool:
    if type(value) in {dict, list, tuple}:
        return any(map(_has_values, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, torch.Tensor | int | float | complex | None)


def _select_other_dtypes(value: Any, weight_dtypes: Collection[torch.dtype]) -> Any:
    if isinstance(value, dict):
        return {name: _select_other_dtypes(item, weight_dtypes) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_select_other_dtypes(item, weight_dtypes) for item in value]
    is_kept = isinstance(value, torch.Tensor) and (value.numel() == 1 or {value.dtype} != {*weight_dtypes})
    return value if is_kept else None


def _undo_conversion(current_value: Any, saved_value: Any) -> Any:
    if (
        isinstance(current_value, torch.Tensor)
        and isinstance(saved_value, torch.Tensor)
        and current_value.dtype != saved_value.dtype
    ):
        return saved_value.to(current_value.device, copy=True)
    if isinstance(current_value, dict) and isinstance(saved_value, dict):
        current_value.update(
            {
                name: _undo_conversion(current_value[name], saved_value[name])
                for name in current_value.keys() & saved_value.keys()
            }
        )
    elif (
        type(current_value) in {list, tuple}
        and isinstance(saved_value, list)
        and len(current_value) == len(saved_value)
    ):
        return type(current_value)(map(_undo_conversion, current_value, saved_value))
    return current_value


def collect_state_dtypes(checkpoint: Mapping[str, Any], unsaved: Mapping[str, torch.Tensor]) -> list[StateDtypes]:
    """Returns :class:`StateDtypes` of each optimizer in a checkpoint.

    Args:
        checkpoint: Lightning checkpoint, without sharded parameters.
        unsaved: Optimized parameters that are not in its ``state_dict``.
    """
    values = (*checkpoint["state_dict"].values(), *unsaved.values())
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    weight_dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return [
        StateDtypes.from_optimizer_state(optimizer_state, weight_dtypes)
        for optimizer_state in checkpoint["optimizer_states"]
    ]


def restore_model(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    layout: Layout,
    checkpoint: dict[str, Any],
    unsaved: Mapping[str, torch.Tensor],
    folder: Path | None = None,
) -> None:
    """Restores weights and optimizer states from a checkpoint.

    The optimizers keep their hyperparameters. All ranks call it together.

    Args:
        trainer: Trainer in ``fit``, between two steps, with or without sharded parameters.
        module: Module that it trains.
        layout: Layout of the trainer.
        checkpoint: From :func:`dump_checkpoint`. If parameters are sharded and averaged, model states become the shards
            of this rank, for the hook of the callback.
        unsaved: Optimized parameters that are not in its ``state_dict``.
        folder: Folder of a sharded checkpoint. None if ``checkpoint`` is full.
    """
    if not layout.is_sharded:
        trainer.strategy.load_model_state_dict(checkpoint, strict=module.strict_loading)
        # all are empty if configure_optimizers returned None
        parts = (trainer.optimizers, checkpoint["optimizer_states"], collect_state_dtypes(checkpoint, unsaved))
        for optimizer, optimizer_state, state_dtypes in zip(*parts, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": optimizer_state.get("state", {})})
            state_dtypes.restore(optimizer)
        return
    if folder is None:
        sharded_state.restore_full(trainer, module, checkpoint, with_hyperparameters=False)
    else:
        state = sharded_state.restore_sharded(trainer, module, folder, with_hyperparameters=False)
        checkpoint.update({key: state[key] for key in (TRAINED_STATE_KEY,) if key in state})
    shard_averaged_state(trainer, module, checkpoint)


def _check_loadable(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    compiled_name = next((name for name, _ in module.named_parameters() if "_orig_mod" in name), None)
    if compiled_name is not None:
        raise _make_error(trainer, f"torch.compile renamed {compiled_name}. Compile in place with network.compile()")
    for optimizer in trainer.optimizers:
        name = type(optimizer).__name__
        if isinstance(optimizer, torch.optim.LBFGS):
            raise _make_error(trainer, f"{name} cannot step without a closure. Use another optimizer")
        if len(sharded_state.parameter_names(module, optimizer)) < len(_optimizer_parameters(optimizer)):
            raise _make_error(trainer, f"{name} optimizes a parameter that is not in the module. Register it there")


def _optimizer_parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _make_error(trainer: pl.Trainer, reason: str) -> NotResumableError:
    return NotResumableError(
        f"{type(trainer.strategy).__name__} could not load a checkpoint of this run, because {reason}, or use "
        "DDPStrategy."
    )
