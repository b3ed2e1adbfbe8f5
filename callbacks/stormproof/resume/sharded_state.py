"""Restores parameters and optimizer states that are sharded over the ranks.

Restores checkpoints of any strategy and world size. :func:`load_for_strategy` distinguishes four cases:

| checkpoint       | run with whole parameters               | run with sharded parameters                        |
| ---------------- | --------------------------------------- | -------------------------------------------------- |
| file             | Lightning restores it, read by torch or | :func:`restore_full`: each rank maps the file and  |
|                  | by a memory map                         | copies its shard of each ``DTensor``               |
| folder of shards | Lightning restores it, after each rank  | :func:`restore_sharded`: each rank reads only its  |
|                  | has read all shards                     | shard of each ``DTensor``                          |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from stormproof.checkpoint.file_names import UNSHARDED_FILE
from stormproof.checkpoint.read_retry import retry_read
from stormproof.checkpoint.sharding.parameter_ids import rekey_to_parameter_ids
from stormproof.distributed.dtensor import distribute_like
from stormproof.errors import NotResumableError
from stormproof.lightning import internals, sharded_averaging
from stormproof.lightning.layout import Layout
from stormproof.lightning.sharded_averaging import TRAINED_STATE_KEY
from stormproof.resume.mapped_loading import is_mappable, load_mapped
from stormproof.resume.snapshot_state import CHECKPOINT_KEY

_WRAPPER_PATTERN = re.compile(r"(?:_orig_mod|_checkpoint_wrapped_module)\.")
"""Parts of parameter names that torch omits in sharded checkpoints."""


def pop_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Removes parameters and optimizer states from a checkpoint and returns them, named as in Lightning's format.

    torch changes the keys of nested dicts. Values of the ``state_dict`` that are not tensors therefore also stay in the
    checkpoint.
    """
    state = {key: checkpoint.pop(key) for key in ("state_dict", TRAINED_STATE_KEY) if key in checkpoint}
    objects = {name: value for name, value in state["state_dict"].items() if not isinstance(value, torch.Tensor)}
    if objects:
        checkpoint[CHECKPOINT_KEY]["objects"] = objects
    for index, optimizer_state in enumerate(checkpoint.pop("optimizer_states", [])):
        state[f"optimizer_{index}"] = optimizer_state
    return state


def collect_state(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """Returns the parameters and optimizer states of the trainer, named as in Lightning's format. Copies no tensor."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict  # noqa: PLC0415 (0.3 s)

    state: dict[str, Any] = {"state_dict": get_model_state_dict(module)}
    average = sharded_averaging.find_average(trainer)
    if average is not None:
        state = {"state_dict": get_model_state_dict(average.module), TRAINED_STATE_KEY: state["state_dict"]}
    for index, optimizer in enumerate(trainer.optimizers):
        names = parameter_names(module, optimizer)
        states = {name: optimizer.state[parameter] for parameter, name in names.items() if parameter in optimizer.state}
        state[f"optimizer_{index}"] = {"state": states}
    return state


def load_for_strategy(
    trainer: pl.Trainer, layout: Layout, path: Path, weights_only: bool, load_original: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Loads a checkpoint of any strategy for the strategy of this trainer. Retries failed reads.

    Args:
        trainer: Trainer that loads the checkpoint.
        layout: Its layout.
        path: File or folder.
        weights_only: As for ``Trainer.fit``. Sharded checkpoints are always loaded with ``weights_only=True``.
        load_original: Loads the checkpoint as Lightning would.

    Returns:
        Lightning checkpoint. If parameters are sharded, they and the optimizer states are restored already and not in
        it.

    Raises:
        OSError: If the checkpoint cannot be read three times.
        NotResumableError: If the module or the optimizers do not match the checkpoint.
    """

    def load() -> dict[str, Any]:
        try:
            if layout.is_sharded:
                return _load_into_shards(trainer, path, weights_only)
            return _load_whole(trainer, path, weights_only, load_original)
        except FileNotFoundError as error:
            path.stat()
            raise OSError(f"{path} exists but could not be found") from error  # fsspec hides the error of the storage

    return retry_read(load)


def _load_whole(
    trainer: pl.Trainer, path: Path, weights_only: bool, load_original: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Returns the whole state, which Lightning restores."""
    if path.is_dir():
        from stormproof.checkpoint.sharding.shard_reader import load_full  # noqa: PLC0415 (0.3 s)

        return load_full(path)
    if weights_only and internals.loads_with_torch(trainer) and is_mappable(path):
        copies_states = trainer.strategy.root_device.type == "cpu"
        checkpoint = load_mapped(path, trainer.lightning_module, copies_optimizer_states=copies_states)
    else:
        checkpoint = load_original()
    if checkpoint.get(CHECKPOINT_KEY, {}).get("shared", {}).get("is_sharded"):
        checkpoint["optimizer_states"] = [*map(rekey_to_parameter_ids, checkpoint["optimizer_states"])]
    return checkpoint


def _load_into_shards(trainer: pl.Trainer, path: Path, weights_only: bool) -> dict[str, Any]:
    """Restores parameters and optimizer states. Returns the rest of the checkpoint."""
    module = trainer.lightning_module
    if path.is_dir():
        return restore_sharded(trainer, module, path, with_hyperparameters=True)
    checkpoint = load_mapped(path, module, weights_only=weights_only, copies_optimizer_states=False)
    restore_full(trainer, module, checkpoint, with_hyperparameters=True)
    del checkpoint["state_dict"]
    return checkpoint


def restore_sharded(
    trainer: pl.Trainer, module: pl.LightningModule, folder: Path, *, with_hyperparameters: bool
) -> dict[str, Any]:
    """Restores parameters and optimizer states from a sharded checkpoint.

    Args:
        trainer: Trainer with sharded parameters.
        module: Module that it trains.
        folder: Folder of the checkpoint.
        with_hyperparameters: Whether to restore the hyperparameters of the optimizers, such as the learning rate.

    Returns:
        The unsharded state, and the shards of the trained weights if the loaded ones are their average.

    Raises:
        OSError: If a file cannot be read.
        NotResumableError: If the module has other parameters or the optimizers have other parameter groups.
    """
    from torch.distributed.checkpoint.metadata import (  # noqa: PLC0415 (0.3 s at the start of unsharded runs too)
        TensorStorageMetadata,
    )

    from stormproof.checkpoint.sharding.shard_reader import ShardReader, get_path, unflatten  # noqa: PLC0415

    reader = ShardReader.from_folder(folder)
    metadata = reader.read_metadata()
    unsharded_state = torch.load(folder / UNSHARDED_FILE, map_location="cpu", weights_only=True)
    objects = reader.read_objects(metadata)
    saved_tree = unflatten(dict.fromkeys(metadata.state_dict_metadata) | objects, metadata)  # without tensors
    current_state = _prepare_model_state(trainer, module, saved_tree)
    _check_optimizer_count(trainer, sum(str(key).startswith("optimizer_") for key in saved_tree))
    for number, optimizer in enumerate(trainer.optimizers):
        saved_optimizer = saved_tree.get(f"optimizer_{number}", {})
        _check_groups(optimizer, saved_optimizer.get("param_groups", []))
        states = _initialize(module, optimizer, saved_optimizer.get("state", {}))
        current_state[f"optimizer_{number}"] = {"state": states}
    tensors, optimizer_keys = {}, {f"optimizer_{number}" for number in range(len(trainer.optimizers))}
    for name, description in metadata.state_dict_metadata.items():
        path = get_path(name, metadata)
        target = _find(current_state, path)
        if isinstance(target, torch.Tensor) and target.shape == getattr(description, "size", None):
            tensors[name] = target
        elif path[0] == "state_dict" and isinstance(target, torch.Tensor):
            raise NotResumableError(
                f"{path[1]} has the shape {[*target.shape]} in the module, but "
                f"{[*getattr(description, 'size', [])]} in the checkpoint. Use the same model."
            )
        elif isinstance(description, TensorStorageMetadata) and path[0] in optimizer_keys:
            tensors[name] = torch.empty(description.size, dtype=description.properties.dtype)
    reader.read_tensors(metadata, tensors)
    saved_state = unflatten({**tensors, **objects}, metadata)
    model_objects = unsharded_state.get(CHECKPOINT_KEY, {}).get("objects", {})
    _load_module(module, saved_state.get("state_dict", {}) | model_objects)
    if TRAINED_STATE_KEY in current_state:
        unsharded_state[TRAINED_STATE_KEY] = saved_state[TRAINED_STATE_KEY] | model_objects
    for number, optimizer in enumerate(trainer.optimizers):
        optimizer_state = saved_state.get(f"optimizer_{number}", {})
        states = optimizer_state.get("state", {})
        names = parameter_names(module, optimizer)
        _set_states(optimizer, {parameter: states[name] for parameter, name in names.items() if name in states})
        if with_hyperparameters:
            _set_hyperparameters(optimizer, optimizer_state.get("param_groups", []))
    return unsharded_state


def restore_full(
    trainer: pl.Trainer, module: pl.LightningModule, checkpoint: Mapping[str, Any], *, with_hyperparameters: bool
) -> None:
    """Restores parameters and optimizer states from a full checkpoint, which every rank has.

    Args:
        trainer: Trainer with sharded parameters.
        module: Module that it trains.
        checkpoint: Lightning checkpoint, of any strategy.
        with_hyperparameters: Whether to restore the hyperparameters of the optimizers, such as the learning rate.

    Raises:
        NotResumableError: If the optimizers have other parameter groups.
    """
    _check_optimizer_count(trainer, len(checkpoint["optimizer_states"]))
    # no optimizers if the trainer only validates
    for optimizer, saved_state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=False):
        _check_groups(optimizer, saved_state.get("param_groups", []))
        states = saved_state.get("state", {})
        groups = saved_state.get("param_groups", [])
        keys = dict(zip(_parameters(optimizer), (key for group in groups for key in group["params"]), strict=False))
        names = parameter_names(module, optimizer)  # without parameters outside the module, refused at the next save
        parameters = {parameter: states[keys[parameter]] for parameter in names if keys.get(parameter) in states}
        current_states = _initialize(module, optimizer, {names[parameter] for parameter in parameters})
        _set_states(
            optimizer,
            {
                parameter: _distribute(state, current_states.get(names[parameter]))
                for parameter, state in parameters.items()
            },
        )
        if with_hyperparameters:
            _set_hyperparameters(optimizer, groups)
    _load_module(module, checkpoint["state_dict"], is_full=True)


def parameter_names(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, str]:
    """Returns the names of an optimizer's parameters in the module, as in torch's sharded checkpoints."""
    sharded_averaging.reshard(module)
    names = {parameter: _WRAPPER_PATTERN.sub("", name) for name, parameter in module.named_parameters()}
    return {parameter: names[parameter] for parameter in _parameters(optimizer) if parameter in names}


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _initialize(module: nn.Module, optimizer: torch.optim.Optimizer, saved_names: Collection[str]) -> dict[str, Any]:
    """Returns the states of an optimizer by the names of its parameters.

    If a saved parameter has no state yet, lets the optimizer create the states by a step with zero gradients and a
    learning rate of zero, as torch does. Only the optimizer knows how its states are sharded.
    """
    names = parameter_names(module, optimizer)
    unknown_names = sorted({*saved_names} - {*names.values()})
    if unknown_names:
        raise NotResumableError(
            f"The checkpoint contains the state of {unknown_names[0]}, which {type(optimizer).__name__} does not "
            "optimize. Use the same model and configure_optimizers."
        )
    if any(name in saved_names and not optimizer.state.get(parameter) for parameter, name in names.items()):
        parameters = _parameters(optimizer)
        gradients = [parameter.grad for parameter in parameters]
        rates = [group.get("lr") for group in optimizer.param_groups]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter, requires_grad=False)
        for group in optimizer.param_groups:
            if "lr" in group:
                group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], torch.Tensor) else 0.0
        optimizer.step()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if "lr" in group:
                group["lr"] = rate
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
    return {name: optimizer.state[parameter] for parameter, name in names.items() if parameter in optimizer.state}


def _prepare_model_state(
    trainer: pl.Trainer, module: pl.LightningModule, saved_tree: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the tensors into which a checkpoint is read.

    If the saved ``state_dict`` is an average, and the trainer averages weights, also reads the trained weights.
    """
    from torch.distributed.checkpoint.state_dict import get_model_state_dict  # noqa: PLC0415 (0.3 s)

    model_state = get_model_state_dict(module)
    if module.strict_loading:
        _check_names(model_state, saved_tree.get("state_dict", {}))
    if TRAINED_STATE_KEY not in saved_tree or sharded_averaging.find_average(trainer) is None:
        return {"state_dict": model_state}
    tensors = {name: value for name, value in model_state.items() if isinstance(value, torch.Tensor)}
    return {
        "state_dict": model_state,
        TRAINED_STATE_KEY: {name: torch.empty_like(tensor) for name, tensor in tensors.items()},
    }


def _set_states(optimizer: torch.optim.Optimizer, states: Mapping[nn.Parameter, Any]) -> None:
    """Replaces all states. A parameter without a saved state has none, as before its first gradient."""
    optimizer.state.clear()
    for parameter, state in states.items():
        optimizer.state[parameter] = state


def _check_names(current_names: Collection[str], saved_names: Collection[str]) -> None:
    missing_names, unknown_names = sorted({*current_names} - {*saved_names}), sorted({*saved_names} - {*current_names})
    if missing_names or unknown_names:
        problem = f"does not contain {missing_names[0]}" if missing_names else f"contains {unknown_names[0]}"
        others = "the module has" if missing_names else "the module does not have"
        raise NotResumableError(
            f"The checkpoint {problem}, which {others}. Use the same model, or set strict_loading=False in the module."
        )


def _check_optimizer_count(trainer: pl.Trainer, saved_count: int) -> None:
    count = len(trainer.optimizers)
    if count not in {0, saved_count}:
        raise NotResumableError(
            f"configure_optimizers returns {count} optimizers, but the checkpoint has {saved_count}. Use the same "
            "model and configure_optimizers."
        )


def _check_groups(optimizer: torch.optim.Optimizer, saved_groups: Sequence[Mapping[str, Any]]) -> None:
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    saved_sizes = [len(group["params"]) for group in saved_groups]
    if sizes != saved_sizes:
        raise NotResumableError(
            f"{type(optimizer).__name__} has parameter groups of sizes {sizes}, but the checkpoint has {saved_sizes}. "
            "Use the same model and configure_optimizers."
        )


def _set_hyperparameters(optimizer: torch.optim.Optimizer, saved_groups: Sequence[Mapping[str, Any]]) -> None:
    for group, saved_group in zip(optimizer.param_groups, saved_groups, strict=True):
        for key, value in saved_group.items():
            if isinstance(value, torch.Tensor) and isinstance(group.get(key), torch.Tensor):
                group[key] = value.to(group[key].device)
            elif key != "params":
                group[key] = value


def _load_module(module: nn.Module, state: Mapping[str, Any], *, is_full: bool = False) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict  # noqa: PLC0415

    strict = getattr(module, "strict_loading", True)
    set_model_state_dict(module, dict(state), options=StateDictOptions(full_state_dict=is_full, strict=strict))


def _distribute(value: Any, current_value: Any) -> Any:
    """Returns this rank's shard of a saved state, sharded and placed as the current one."""
    if isinstance(value, Mapping) and isinstance(current_value, Mapping):
        return {key: _distribute(item, current_value.get(key)) for key, item in value.items()}
    if not isinstance(value, torch.Tensor) or not isinstance(current_value, torch.Tensor):
        return value
    if isinstance(current_value, DTensor) and current_value.shape == value.shape:
        return current_value.copy_(distribute_like(value, current_value))
    return value.to(current_value.device, copy=True)


def _find(tree: Any, path: Sequence[Any]) -> Any:
    """Returns the value at ``path``. None if ``tree`` does not have it."""
    for key in path:
        if isinstance(tree, Mapping):
            tree = tree.get(key)
        elif isinstance(tree, list | tuple) and isinstance(key, int) and key < len(tree):
            tree = tree[key]
        else:
            return None
    return tree
