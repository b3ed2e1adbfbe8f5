"""Averages sharded parameters with Lightning's weight averaging callbacks.

``WeightAveraging`` deep-copies the module in ``setup``. At that time, the strategy has not sharded the parameters, and
torch refuses to copy a module after ``fully_shard``. This module creates the average after sharding. The average has
``DTensor`` parameters with the same placements, so that each rank averages its shards without communication. All other
code of the callback is Lightning's own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel

from stormproof.distributed.dtensor import distribute_like
from stormproof.errors import NotResumableError
from stormproof.lightning import internals
from stormproof.lightning.layout import Layout
from stormproof.lightning.method_replacement import call_before, replace, undo_together

TRAINED_STATE_KEY = "current_model_state"
"""Key with which Lightning saves the trained weights if the ``state_dict`` contains their average."""
_EXTRA_STATE_SUFFIX = "_extra_state"


class ShardedAverage(AveragedModel):
    """Average of a module with sharded parameters.

    Args:
        module: Module whose parameters are sharded.
        saves_shards: Whether :meth:`state_dict` returns the shards of this rank. If False, it gathers the full average
            on rank 0, in host memory.
        options: Arguments of ``AveragedModel``.
    """

    def __init__(self, module: nn.Module, *, saves_shards: bool, **options: Any) -> None:
        reshard(module)
        super().__init__(_copy_structure(module, {}), **options)
        self._saves_shards = saves_shards
        self._source = weakref.ref(module)  # not a submodule, and not copied with the average

    def update_parameters(self, model: nn.Module) -> None:
        """Averages the shards of this rank."""
        reshard(model)
        super().update_parameters(model)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Returns the average with the prefix ``module.``, and the number of updates. All ranks call it together."""
        from torch.distributed.checkpoint.state_dict import (  # noqa: PLC0415 (0.3 s at the start of other runs too)
            StateDictOptions,
            get_model_state_dict,
        )

        options = StateDictOptions(full_state_dict=not self._saves_shards, cpu_offload=not self._saves_shards)
        source = self._source()
        assert source is not None, "the trained module was deleted"
        source_state = get_model_state_dict(source)
        extra_states = {name: value for name, value in source_state.items() if name.endswith(_EXTRA_STATE_SUFFIX)}
        state = {**extra_states, **get_model_state_dict(self.module, options=options)}
        return {"n_averaged": self.n_averaged, **{f"module.{name}": value for name, value in state.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any], *arguments: Any, **options: Any) -> Any:
        """Loads the shards of this rank. Extra states belong to the trained module and are skipped."""
        tensors = {name: value for name, value in state_dict.items() if not name.endswith(_EXTRA_STATE_SUFFIX)}
        return super().load_state_dict(tensors, *arguments, **options)

    def saved_names(self) -> set[str]:
        """Returns the names in :meth:`state_dict`, without extra states. Uses no collective."""
        return {*super().state_dict()}


def prepare_averaging(trainer: pl.Trainer, layout: Layout) -> Callable[[], None]:
    """Prepares the weight averaging callbacks for sharded parameters. Call it before their ``setup``.

    Call :func:`create_averages` after the strategy has sharded the parameters.

    Returns:
        Function that undoes this.

    Raises:
        NotResumableError: If a callback averages weights in another way.
    """
    undo_functions: list[Callable[[], None]] = []
    if not layout.is_sharded:
        return lambda: None
    for callback in internals.callbacks(trainer):
        if _is_derived(callback, "StochasticWeightAveraging"):
            raise NotResumableError(
                f"{type(callback).__name__} does not support sharded parameters. Use EMAWeightAveraging instead."
            )
    for callback in _find_averaging_callbacks(trainer):
        setup_owner = next(cls for cls in type(callback).__mro__ if "setup" in vars(cls))
        if setup_owner.__name__ != "WeightAveraging":
            raise NotResumableError(
                f"{setup_owner.__name__} overrides setup, which is not called with sharded parameters. Use another "
                "hook, such as on_fit_start."
            )
        undo_functions += [
            replace(callback, "setup", lambda *_, **__: None),
            call_before(callback, "_swap_models", reshard),
            call_before(callback, "_copy_average_to_current", reshard),
        ]
    if undo_functions and layout.saves_shards:
        undo_functions.append(call_before(trainer.strategy, "save_checkpoint", _drop_trained_state))
    return undo_together(*undo_functions)


def create_averages(trainer: pl.Trainer, module: pl.LightningModule, layout: Layout) -> None:
    """Creates the averages of sharded parameters. Does nothing for other strategies.

    Call it after the strategy has set up the module, and before a checkpoint is loaded.
    """
    if not layout.is_sharded:
        return
    for callback in _find_averaging_callbacks(trainer):
        callback._average_model = ShardedAverage(
            module,
            saves_shards=layout.saves_shards,
            device=callback._device,
            use_buffers=callback._use_buffers,
            **callback._kwargs,
        )


def find_average(trainer: pl.Trainer) -> ShardedAverage | None:
    """Returns the average of sharded parameters. None if the trainer has none."""
    models = internals.averaged_models(trainer)
    return next((model for model in models if isinstance(model, ShardedAverage)), None)


def shard_averaged_state(trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Replaces model states in a checkpoint by the shards of this rank, for the hook of the callback.

    Call it after the ``state_dict``, which contains the average, was loaded into the module. Does nothing without an
    average of sharded parameters.

    Args:
        trainer: Trainer with sharded parameters.
        module: Module that it trains.
        checkpoint: Loaded checkpoint, full or with the shards of this rank. Modified in place.
    """
    from torch.distributed.checkpoint.state_dict import get_model_state_dict  # noqa: PLC0415 (0.3 s)

    if find_average(trainer) is None:
        return
    reshard(module)
    checkpoint["state_dict"] = get_model_state_dict(module)
    if TRAINED_STATE_KEY in checkpoint:
        checkpoint[TRAINED_STATE_KEY] = {
            name: _shard_like(value, checkpoint["state_dict"].get(name))
            for name, value in checkpoint[TRAINED_STATE_KEY].items()
        }


def explain_callback_order(trainer: pl.Trainer, exception: BaseException) -> None:
    """Adds a note to the error with which torch refuses to copy a sharded module before :func:`prepare_averaging`.

    Recognizes the error by its message, because training may fail before :class:`Layout` is valid.
    """
    callbacks = _find_averaging_callbacks(trainer)
    if isinstance(exception, AssertionError) and callbacks and "FSDP does not support deepcopy" in str(exception):
        exception.add_note(
            f"Put CheckpointRecovery before {type(callbacks[0]).__name__} in the list of callbacks, so that the "
            "weights are averaged after they are sharded."
        )


def reshard(module: nn.Module) -> None:
    """Frees the full parameters that FSDP2 gathered, so that ``module`` has only the shards of this rank."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _find_averaging_callbacks(trainer: pl.Trainer) -> list[Any]:
    return [callback for callback in internals.callbacks(trainer) if _is_derived(callback, "WeightAveraging")]


def _is_derived(callback: object, name: str) -> bool:
    """Compares class names, because ``pytorch_lightning`` and ``lightning.pytorch`` define separate classes."""
    return name in {cls.__name__ for cls in type(callback).__mro__}


def _drop_trained_state(checkpoint: dict[str, Any], *_: Any, **__: Any) -> None:
    """Removes the trained weights, of which Lightning would save only rank 0's shards."""
    if checkpoint.pop(TRAINED_STATE_KEY, None) is not None:
        checkpoint.pop("averaging_state", None)
        rank_zero_warn(
            "Sharded checkpoints that Lightning saves contain only the averaged weights. Resume from the checkpoints "
            "of CheckpointRecovery, which also contain the trained weights."
        )


def _copy_structure(module: nn.Module, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    """Returns plain modules with the same parameters and buffers, named as in a ``state_dict``."""
    if module in copies:
        return copies[module]
    copied_module = copies[module] = nn.Module()
    wrapped_module = getattr(module, "_checkpoint_wrapped_module", module)  # omitted in the names of a state_dict
    for name, parameter in wrapped_module._parameters.items():
        copied_module.register_parameter(name, parameter)
    for name, buffer in wrapped_module._buffers.items():
        copied_module.register_buffer(name, buffer, persistent=name not in wrapped_module._non_persistent_buffers_set)
    for name, child in wrapped_module._modules.items():
        copied_module.add_module(name, None if child is None else _copy_structure(child, copies))
    return copied_module


def _shard_like(value: Any, current_value: Any) -> Any:
    """Returns this rank's shard of a full tensor, sharded and placed as the current one."""
    if not isinstance(current_value, DTensor) or not isinstance(value, torch.Tensor) or isinstance(value, DTensor):
        return value
    return distribute_like(value, current_value)
