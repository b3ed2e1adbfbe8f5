"""Captures tensors that a ``state_dict`` omits or that differ among ranks: buffers, gradients and parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torch.distributed.tensor import DTensor

from stormproof.data.fingerprint import digest_tensor
from stormproof.distributed.collectives import broadcast, world_size
from stormproof.distributed.dtensor import distribute_like, to_full, to_local

Tensors = dict[str, torch.Tensor]


def capture_buffers(module: nn.Module, saved_names: Collection[str], *, is_rank_zero: bool) -> Tensors:
    """Returns the buffers that the checkpoint needs in addition to the ``state_dict``. All ranks call it together.

    Args:
        module: Module to search.
        saved_names: Names in the ``state_dict``, on rank 0.
        is_rank_zero: Whether this is rank 0, which returns the buffers that are not in ``saved_names``. Other ranks
            return the buffers that differ from rank 0's. Each rank validates with its own running statistics.

    Example:
        >>> module = torch.nn.Module()
        >>> module.register_buffer("mean", torch.zeros(1), persistent=False)
        >>> capture_buffers(module, module.state_dict(), is_rank_zero=True)
        {'mean': tensor([0.])}
    """
    buffers = {name: to_full(buffer) for name, buffer in module.named_buffers()}
    return _select_rank_tensors(buffers, saved_names, is_rank_zero=is_rank_zero)


def capture_gradients(module: pl.LightningModule, *, is_rank_zero: bool) -> Tensors:
    """Returns the gradients that the next steps may use. All ranks call it together.

    Lightning sets gradients to None before each backward pass, unless the module uses manual optimization or overrides
    ``optimizer_zero_grad``, or an optimizer overrides ``zero_grad``. Then gradients may accumulate over several steps.

    Args:
        module: LightningModule, between two batches.
        is_rank_zero: Whether this is rank 0. Other ranks return the gradients that differ from those of rank 0.
    """
    if not _keeps_gradients(module):
        return {}
    gradients = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    return _select_rank_tensors(
        {name: to_local(gradient) for name, gradient in gradients.items()}, (), is_rank_zero=is_rank_zero
    )


def capture_unsaved_parameters(
    optimizers: Iterable[torch.optim.Optimizer], checkpoint: Mapping[str, Any], *, is_rank_zero: bool
) -> Tensors:
    """Returns the optimized parameters that are not in the checkpoint. All ranks call it together.

    These belong to no submodule or are omitted by a custom ``state_dict``.

    Args:
        optimizers: Optimizers of the trainer.
        checkpoint: Checkpoint of this rank.
        is_rank_zero: Whether this is rank 0. Other ranks return the parameters that differ from rank 0's.
    """
    states = [checkpoint.get(key, {}) for key in ("state_dict", "current_model_state")]  # the latter if averaged
    saved_addresses = {tensor.data_ptr() for state in states for tensor in _strided_tensors(state.values())}
    unsaved_parameters = {
        name: parameter.detach()
        for name, parameter in _named_optimized_parameters(optimizers)
        if parameter.numel() and parameter.data_ptr() not in saved_addresses
    }
    return _select_rank_tensors(unsaved_parameters, (), is_rank_zero=is_rank_zero)


@torch.no_grad()
def restore_unsaved_parameters(
    optimizers: Iterable[torch.optim.Optimizer], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Restores the parameters of :func:`capture_unsaved_parameters`."""
    for name, parameter in _named_optimized_parameters(optimizers):
        if name in tensors:
            parameter.copy_(tensors[name])


def _named_optimized_parameters(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[tuple[str, torch.Tensor]]:
    for optimizer_index, optimizer in enumerate(optimizers):
        for group_index, group in enumerate(optimizer.param_groups):
            for parameter_index, parameter in enumerate(group["params"]):
                yield f"{optimizer_index}/{group_index}/{parameter_index}", parameter


def _strided_tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    return (value for value in values if isinstance(value, torch.Tensor) and value.layout == torch.strided)


@torch.no_grad()
def restore_buffers(module: nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    """Sets buffers, in place where the shape is the same, and registers missing ones."""
    modules, missing_names = dict(module.named_modules()), []
    for name, value in buffers.items():
        path, _, buffer_name = name.rpartition(".")
        owner = modules.get(path)
        if owner is None:
            missing_names.append(name)
            continue
        current_buffer = getattr(owner, buffer_name, None)
        if current_buffer is not None and _is_copyable(current_buffer, value):
            current_buffer.copy_(distribute_like(value, current_buffer))
            continue
        reference_tensor = (
            current_buffer
            if current_buffer is not None
            else next(iter((*module.parameters(), *module.buffers(), value)))
        )
        device = reference_tensor.device
        # torch does not copy nested tensors with `copy=True`
        device_value = value.clone().to(device) if value.is_nested else value.to(device, copy=True)
        if hasattr(owner, buffer_name):
            setattr(owner, buffer_name, device_value)
        else:
            owner.register_buffer(buffer_name, device_value, persistent=False)
    if missing_names:
        rank_zero_warn(
            "The checkpoint contains buffers of modules that do not exist in this run: "
            f"{', '.join(missing_names)}. They are ignored."
        )


def restore_gradients(module: nn.Module, gradients: Mapping[str, torch.Tensor]) -> None:
    """Sets the gradients of all parameters. A parameter without an entry gets None."""
    for name, parameter in module.named_parameters():
        parameter.grad = None
        if name in gradients and isinstance(parameter, DTensor):
            parameter.grad = torch.zeros_like(parameter, requires_grad=False)
            to_local(parameter.grad).copy_(gradients[name])
        elif name in gradients:
            parameter.grad = gradients[name].to(parameter.device, copy=True)


def _select_rank_tensors(tensors: Tensors, saved_names: Collection[str], *, is_rank_zero: bool) -> Tensors:
    if world_size() > 1:
        digests = {name: digest_tensor(tensor) for name, tensor in tensors.items()}
        rank_zero_digests = broadcast(digests)
        if not is_rank_zero:
            return {name: tensor for name, tensor in tensors.items() if rank_zero_digests.get(name) != digests[name]}
    return {name: tensor for name, tensor in tensors.items() if name not in saved_names}


def _keeps_gradients(module: pl.LightningModule) -> bool:
    defining_class = next(cls for cls in type(module).__mro__ if "optimizer_zero_grad" in vars(cls))
    overrides_zero_grad = defining_class.__name__ != "LightningModule" or "optimizer_zero_grad" in vars(module)
    has_custom_optimizer = any(
        type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad for optimizer in module.trainer.optimizers
    )
    return not module.automatic_optimization or overrides_zero_grad or has_custom_optimizer


def _is_copyable(buffer: torch.Tensor, value: torch.Tensor) -> bool:
    if any(item.layout != torch.strided or item.is_quantized or item.is_nested for item in (buffer, value)):
        return False
    return not buffer.is_inference() and (buffer.shape, buffer.dtype) == (value.shape, value.dtype)
