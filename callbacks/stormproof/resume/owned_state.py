"""State outside every ``state_dict``: generators and unregistered modules of the module, callbacks, data module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from stormproof.data import rng
from stormproof.data.owned_objects import find_owned
from stormproof.lightning import internals

_LIBRARIES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "stormproof.")
_SAMPLING = ("dataset", "collate_fn", "generator", "sampler", "batch_sampler")


def owners(trainer: pl.Trainer) -> dict[str, Any]:
    """Returns the module, the data module and the user's own callbacks, by name."""
    named: dict[str, Any] = {"module": trainer.lightning_module}
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is not None:
        named["datamodule"] = datamodule
    for callback in filter(_is_user_object, internals.callbacks(trainer)):
        name, number = type(callback).__name__, 1
        while name in named:
            number += 1
            name = f"{type(callback).__name__}[{number}]"
        named[name] = callback
    return named


def find_generators(trainer: pl.Trainer, train_loaders: Iterable[Any]) -> dict[str, Any]:
    """Returns the random number generators that the owners hold, by path.

    Excludes those of the training loaders: :func:`stormproof.resumable` restores them at the right batch.

    Args:
        trainer: Trainer in ``fit``.
        train_loaders: Its training loaders.
    """
    found = dict(find_owned(owners(trainer), rng.is_generator, _descends(trainer)))
    others = _generators_of_loaders(train_loaders) if found else set()
    return {path: generator for path, generator in found.items() if id(generator) not in others}


def capture_generators(trainer: pl.Trainer, train_loaders: Iterable[Any]) -> rng.State:
    """Returns the states of :func:`find_generators` by path, as plain values and tensors."""
    found = find_generators(trainer, train_loaders)
    return {path: rng.state_of(generator) for path, generator in found.items()}


def restore_generators(trainer: pl.Trainer, train_loaders: Iterable[Any], states: rng.State) -> None:
    """Sets the generators to ``states``, in place. Warns about those that are missing or of another type."""
    found, lost = find_generators(trainer, train_loaders), []
    for path, state in states.items():
        try:
            rng.set_state(found[path], state)
        except (KeyError, TypeError, ValueError, RuntimeError):
            lost.append(path)
    if lost:
        rank_zero_warn(
            f"random number generators could not be restored (missing or of a different type): {', '.join(lost)}. This "
            "resume is not exact"
        )


def find_modules(trainer: pl.Trainer) -> dict[str, nn.Module]:
    """Returns the modules, such as metrics, that the owners hold without registering them as submodules, by path."""
    return {path: module for modules in find_modules_of_owners(trainer).values() for path, module in modules.items()}


def find_modules_of_owners(trainer: pl.Trainer) -> dict[str, dict[str, nn.Module]]:
    """Returns what :func:`find_modules` does, by the name of the owner."""
    known = {id(child) for child in trainer.lightning_module.modules()}
    modules: dict[str, dict[str, nn.Module]] = {}
    for name, owner in owners(trainer).items():
        modules[name] = {}
        for path, module in find_owned({name: owner}, lambda item: isinstance(item, nn.Module), _descends(trainer)):
            if id(module) not in known:
                modules[name][path] = module
                known |= {id(child) for child in module.modules()}
    return modules


def _descends(trainer: pl.Trainer) -> Callable[[object], bool]:
    return lambda owner: owner is not trainer and _is_user_object(owner)


def _is_user_object(owner: object) -> bool:
    return isinstance(owner, nn.Module) or not f"{type(owner).__module__}.".startswith(_LIBRARIES)


def _generators_of_loaders(loaders: Iterable[Any]) -> set[int]:
    found: set[int] = set()
    for loader in loaders:
        wrapped = getattr(loader, "wrapped", loader)
        parts: Mapping[str, Any] = {name: getattr(wrapped, name, None) for name in _SAMPLING}
        samplers = {name: getattr(part, "__dict__", {}) for name, part in parts.items() if name.endswith("sampler")}
        found |= {id(generator) for _, generator in find_owned({**parts, **samplers}, rng.is_generator)}
    return found
