"""The tensors of a module that a ``state_dict`` omits, or in which the ranks differ: buffers and gradients."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from stormproof.distributed.collectives import share, world_size
from stormproof.resume.tensor_digest import tensor_digest

Tensors = dict[str, torch.Tensor]


def capture_buffers(module: nn.Module, saved: Collection[str], *, first: bool) -> Tensors:
    """Returns the buffers that the checkpoint needs in addition to the ``state_dict``. All ranks call it together.

    Args:
        module: Module to search.
        saved: Names in the ``state_dict``, on rank 0.
        first: Whether this is rank 0, which returns the buffers that are not in ``saved``. Other ranks return the
            buffers that differ from rank 0's. Each rank validates with its own running statistics.

    Example:
        >>> module = torch.nn.Module()
        >>> module.register_buffer("mean", torch.zeros(1), persistent=False)
        >>> capture_buffers(module, module.state_dict(), first=True)
        {'mean': tensor([0.])}
    """
    return _own(dict(module.named_buffers()), saved, first=first)


def capture_gradients(module: pl.LightningModule, *, first: bool) -> Tensors:
    """Returns the gradients that the next steps may use. All ranks call it together.

    Lightning sets gradients to None before each backward pass, unless the module uses manual optimization or overrides
    ``optimizer_zero_grad``, or an optimizer overrides ``zero_grad``. Then gradients may accumulate over several steps.

    Args:
        module: LightningModule, between two batches.
        first: Whether this is rank 0. Other ranks return the gradients that differ from those of rank 0.
    """
    if not _keeps_gradients(module):
        return {}
    gradients = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    return _own({name: _local(gradient) for name, gradient in gradients.items()}, (), first=first)


def capture_unsaved_parameters(
    optimizers: Iterable[torch.optim.Optimizer], checkpoint: Mapping[str, Any], *, first: bool
) -> Tensors:
    """Returns the optimized parameters that are not in the checkpoint. All ranks call it together.

    These belong to no submodule or are omitted by a custom ``state_dict``.

    Args:
        optimizers: Optimizers of the trainer.
        checkpoint: Checkpoint of this rank.
        first: Whether this is rank 0. Other ranks return the parameters that differ from rank 0's.
    """
    states = [checkpoint.get(key, {}) for key in ("state_dict", "current_model_state")]  # the latter if averaged
    saved = {tensor.data_ptr() for state in states for tensor in _dense(state.values())}
    unsaved = {
        name: parameter.detach()
        for name, parameter in _optimized(optimizers)
        if parameter.numel() and parameter.data_ptr() not in saved
    }
    return _own(unsaved, (), first=first)


@torch.no_grad()
def restore_unsaved_parameters(
    optimizers: Iterable[torch.optim.Optimizer], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Restores the parameters of :func:`capture_unsaved_parameters`."""
    for name, parameter in _optimized(optimizers):
        if name in tensors:
            parameter.copy_(tensors[name])


def _optimized(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[tuple[str, torch.Tensor]]:
    for number, optimizer in enumerate(optimizers):
        for group_number, group in enumerate(optimizer.param_groups):
            for index, parameter in enumerate(group["params"]):
                yield f"{number}/{group_number}/{index}", parameter


def _dense(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    return (value for value in values if isinstance(value, torch.Tensor) and value.layout == torch.strided)


@torch.no_grad()
def restore_buffers(module: nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    """Sets buffers, in place where the shape is the same, and registers missing ones."""
    modules, lost = dict(module.named_modules()), []
    for name, value in buffers.items():
        path, _, leaf = name.rpartition(".")
        owner = modules.get(path)
        if owner is None:
            lost.append(name)
            continue
        current = getattr(owner, leaf, None)
        if current is not None and _fits(current, value):
            current.copy_(value)
            continue
        place = current if current is not None else next(iter((*module.parameters(), *module.buffers(), value)))
        moved = value.to(place.device, copy=True)
        if hasattr(owner, leaf):
            setattr(owner, leaf, moved)
        else:
            owner.register_buffer(leaf, moved, persistent=False)
    if lost:
        rank_zero_warn(f"the checkpoint contains buffers of modules that do not exist in this run: {', '.join(lost)}")


def restore_gradients(module: nn.Module, gradients: Mapping[str, torch.Tensor]) -> None:
    """Sets the gradients of all parameters. A parameter without an entry gets None."""
    for name, parameter in module.named_parameters():
        parameter.grad = None
        if name in gradients:
            gradient = torch.zeros_like(parameter, requires_grad=False)
            _local(gradient).copy_(gradients[name])
            parameter.grad = gradient


def _own(tensors: Tensors, saved: Collection[str], *, first: bool) -> Tensors:
    if world_size() > 1:
        digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
        of_first = share(digests)
        if not first:
            return {name: tensor for name, tensor in tensors.items() if of_first.get(name) != digests[name]}
    return {name: tensor for name, tensor in tensors.items() if name not in saved}


def _keeps_gradients(module: pl.LightningModule) -> bool:
    defining = next(kind for kind in type(module).__mro__ if "optimizer_zero_grad" in vars(kind))
    overrides = defining.__name__ != "LightningModule" or "optimizer_zero_grad" in vars(module)
    own = any(type(each).zero_grad is not torch.optim.Optimizer.zero_grad for each in module.trainer.optimizers)
    return not module.automatic_optimization or overrides or own


def _fits(current: torch.Tensor, value: torch.Tensor) -> bool:
    return not current.is_inference() and (current.shape, current.dtype) == (value.shape, value.dtype)


def _local(tensor: Any) -> torch.Tensor:
    """Returns this rank's part of a parameter that FSDP2 shards."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
