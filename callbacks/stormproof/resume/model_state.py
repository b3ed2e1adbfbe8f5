"""What a training has learnt, weights and the optimizers' states: taken in one piece, and set back.

Where it is spread over the ranks (FSDP2), Lightning and torch gather it on rank 0. To know what an optimizer's state
looks like, torch has one that took no step take one, of zeros, which it then counts; that is undone here. What they
save and would not load again is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType

from stormproof.errors import NotResumableError
from stormproof.lightning import internals


def without_a_step(trainer: pl.Trainer) -> list[int]:
    """The numbers of the optimizers that took no step yet, or keep no state."""
    return [number for number, optimizer in enumerate(trainer.optimizers) if not optimizer.state]


def forget_steps(trainer: pl.Trainer, numbers: Iterable[int]) -> None:
    """Makes these optimizers as they were before their first step."""
    for number in numbers:
        trainer.optimizers[number].state.clear()


def dump_checkpoint(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """What ``trainer.save_checkpoint`` would write, whole on rank 0; all ranks call it, and nothing changes.

    Args:
        trainer: between two batches, or at the end of the training; its parameters may be spread, or not.
        module: what it trains.

    Raises:
        NotResumableError: if Lightning would not load it again.
    """
    if not internals.gathers_checkpoints(trainer):
        return internals.dump_checkpoint(trainer)
    untouched = without_a_step(trainer)
    _refuse_unloadable(trainer, module, untouched)
    held = [parameter for number in untouched for parameter in _parameters(trainer.optimizers[number])]
    gradients = [parameter.grad for parameter in held]
    for parameter in held:  # where there are some, torch makes no state
        parameter.grad = None
    checkpoint = internals.dump_checkpoint(trainer)
    for number in untouched:
        if not trainer.optimizers[number].state:
            kind = type(trainer.optimizers[number]).__name__
            raise _refusal(trainer, f"{kind} keeps no state: give it momentum")
    forget_steps(trainer, untouched)
    for parameter, gradient in zip(held, gradients, strict=True):
        parameter.grad = gradient
    return checkpoint


@dataclass(frozen=True)
class StateDtypes:
    """The parts of an optimizer's saved state that ``Optimizer.load_state_dict`` may convert to the parameter's dtype.

    For example, NAdam keeps a product in float32 even for parameters in float64 or bfloat16. Scalars are always kept,
    because their dtype may equal that of another parameter.

    Attributes:
        groups: Indices of the parameters of each group, as saved.
        state: Tensors by parameter index and name.
    """

    groups: list[list[int]]
    state: dict[int, dict[str, Any]]

    @classmethod
    def of(cls, saved: Mapping[str, Any], types: Collection[torch.dtype]) -> StateDtypes:
        """Collects the tensors of one saved optimizer.

        Args:
            saved: Entry of ``optimizer_states``.
            types: Floating-point dtypes of the saved weights. If there are several, all tensors are collected.
        """
        groups = [group["params"] for group in saved.get("param_groups", [])]
        state = {number: _of_other_dtypes(values, types) for number, values in saved.get("state", {}).items()}
        return cls(groups, state)

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Replaces converted tensors with the saved ones."""
        # ``groups`` is empty if configure_optimizers returned None
        for group, numbers in zip(optimizer.param_groups, self.groups, strict=False):
            for parameter, number in zip(group["params"], numbers, strict=True):
                _undo_conversion(optimizer.state.get(parameter, {}), self.state.get(number, {}))


def _of_other_dtypes(value: Any, types: Collection[torch.dtype]) -> Any:
    if isinstance(value, dict):
        return {name: _of_other_dtypes(item, types) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_of_other_dtypes(item, types) for item in value]
    is_kept = isinstance(value, torch.Tensor) and (value.numel() == 1 or {value.dtype} != {*types})
    return value if is_kept else None


def _undo_conversion(current: Any, saved: Any) -> Any:
    if isinstance(current, torch.Tensor) and isinstance(saved, torch.Tensor) and current.dtype != saved.dtype:
        return saved.to(current.device, copy=True)
    if isinstance(current, dict) and isinstance(saved, dict):
        current.update({name: _undo_conversion(current[name], saved[name]) for name in current.keys() & saved.keys()})
    elif type(current) in {list, tuple} and isinstance(saved, list) and len(current) == len(saved):
        return type(current)(map(_undo_conversion, current, saved))
    return current


def state_dtypes(checkpoint: Mapping[str, Any], unsaved: Mapping[str, torch.Tensor]) -> list[StateDtypes]:
    """Returns :class:`StateDtypes` of each optimizer in a checkpoint.

    Args:
        checkpoint: Lightning checkpoint, without sharded parameters.
        unsaved: Optimized parameters that are not in its ``state_dict``.
    """
    values = (*checkpoint["state_dict"].values(), *unsaved.values())
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    types = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return [StateDtypes.of(saved, types) for saved in checkpoint["optimizer_states"]]


def set_back(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    checkpoint: Mapping[str, Any],
    unsaved: Mapping[str, torch.Tensor],
) -> None:
    """Sets weights and the optimizers' states to those of a checkpoint, which every rank has whole.

    The optimizers keep their hyperparameters. All ranks call it together.

    Args:
        trainer: in a fit, between two steps; its parameters may be spread, or not.
        module: what it trains.
        checkpoint: of :func:`dump_checkpoint`.
        unsaved: Optimized parameters that are not in its ``state_dict``.
    """
    if not internals.gathers_checkpoints(trainer):
        trainer.strategy.load_model_state_dict(checkpoint, strict=module.strict_loading)
        for optimizer, saved in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
            # both are empty if configure_optimizers returned None
            optimizer.load_state_dict({**optimizer.state_dict(), "state": saved.get("state", {})})
        for optimizer, types in zip(trainer.optimizers, state_dtypes(checkpoint, unsaved), strict=True):
            types.restore(optimizer)
        return
    options = StateDictOptions(full_state_dict=True, strict=module.strict_loading)
    set_model_state_dict(module, checkpoint["state_dict"], options=options)
    for optimizer, saved in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
        current = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        named = FullyShardedDataParallel.rekey_optim_state_dict(saved, OptimStateKeyType.PARAM_NAME, module)
        set_optimizer_state_dict(module, optimizer, named, options=options)
        for group, kept in zip(optimizer.param_groups, current, strict=True):
            group.update(kept)


def _refuse_unloadable(trainer: pl.Trainer, module: pl.LightningModule, untouched: Collection[int]) -> None:
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    compiled = next((name for name in names.values() if "_orig_mod" in name), None)
    if compiled is not None:
        raise _refusal(trainer, f"torch.compile has renamed {compiled}: compile in place, network.compile()")
    for number, optimizer in enumerate(trainer.optimizers):
        if isinstance(optimizer, torch.optim.LBFGS):
            raise _refusal(trainer, "LBFGS cannot take a step by itself: choose another optimizer")
        for parameter in _parameters(optimizer):
            name = names.get(parameter, "a parameter of nobody")
            if not parameter.requires_grad:
                raise _refusal(trainer, f"{name} is frozen: leave it out of the optimizer, or train it")
            if number not in untouched and parameter not in optimizer.state:
                raise _refusal(trainer, f"{name} has had no gradient: leave it out of the optimizer, or use it")


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _refusal(trainer: pl.Trainer, reason: str) -> NotResumableError:
    return NotResumableError(
        f"{type(trainer.strategy).__name__} would not load a checkpoint of this training again, because {reason}; or "
        "use DDPStrategy"
    )
