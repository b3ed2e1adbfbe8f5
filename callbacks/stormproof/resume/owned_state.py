"""Finds state outside every ``state_dict``: generators and unregistered modules of the trainer's objects."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from stormproof.data import rng
from stormproof.data.owned_attributes import find_scopes
from stormproof.data.owned_objects import find_owned_objects
from stormproof.lightning import internals

_LIBRARY_PREFIXES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "stormproof.")
_LOADER_ATTRIBUTES = ("dataset", "collate_fn", "generator", "sampler", "batch_sampler")


def find_owners(trainer: pl.Trainer) -> dict[str, Any]:
    """Returns the module, the data module and the user's own callbacks, by name."""
    owners_by_name: dict[str, Any] = {"module": trainer.lightning_module}
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is not None:
        owners_by_name["datamodule"] = datamodule
    for callback in filter(_is_user_object, internals.callbacks(trainer)):
        name, suffix = type(callback).__name__, 1
        while name in owners_by_name:
            suffix += 1
            name = f"{type(callback).__name__}[{suffix}]"
        owners_by_name[name] = callback
    return owners_by_name


def find_schedules(trainer: pl.Trainer) -> dict[str, Any]:
    """Returns the optimizers and learning-rate schedules, by name."""
    optimizers = {f"optimizers[{index}]": optimizer for index, optimizer in enumerate(trainer.optimizers)}
    configs = enumerate(trainer.lr_scheduler_configs)
    return {**optimizers, **{f"lr_schedulers[{index}]": config.scheduler for index, config in configs}}


def find_generators(trainer: pl.Trainer, train_loaders: Iterable[Any]) -> dict[str, Any]:
    """Returns the random number generators of the owners, optimizers and schedules, and of users' modules, by path.

    Excludes the generators of training loaders, which :func:`stormproof.resumable` restores at the right batch, unless
    an owner shares them.

    Args:
        trainer: Trainer in ``fit``.
        train_loaders: Its training loaders.
    """
    roots = {**find_owners(trainer), **find_schedules(trainer)}
    generators = dict(find_owned_objects(roots, rng.is_generator, _make_descend_predicate(trainer)))
    for scope in {scope for root in roots.values() for scope in find_scopes(root) if isinstance(scope, str)}:
        global_generators = rng.find_attribute_generators(sys.modules[scope])
        generators |= {f"{scope}.{name}": generator for name, generator in global_generators.items()}
    loader_generator_ids = _find_loader_generator_ids(train_loaders) if generators else set()
    for owner in find_owners(trainer).values():
        loader_generator_ids -= {id(generator) for generator in rng.find_attribute_generators(owner).values()}
    return {path: generator for path, generator in generators.items() if id(generator) not in loader_generator_ids}


def capture_generators(trainer: pl.Trainer, train_loaders: Iterable[Any]) -> rng.State:
    """Returns the states of :func:`find_generators` by path, as plain values and tensors."""
    generators = find_generators(trainer, train_loaders)
    return {path: rng.get_state(generator) for path, generator in generators.items()}


def restore_generators(trainer: pl.Trainer, train_loaders: Iterable[Any], states: rng.State) -> None:
    """Sets the generators to ``states``, in place. Warns about missing generators and other types."""
    generators, missing_paths = find_generators(trainer, train_loaders), []
    for path, state in states.items():
        try:
            rng.set_state(generators[path], state)
        except (KeyError, TypeError, ValueError, RuntimeError):
            missing_paths.append(path)
    if missing_paths:
        rank_zero_warn(
            f"These random number generators are missing or of a different type and were not restored: "
            f"{', '.join(missing_paths)}. This resume is not exact."
        )


def find_modules(trainer: pl.Trainer) -> dict[str, nn.Module]:
    """Returns the modules of the owners that are not registered as submodules, such as metrics in a list, by path."""
    return {path: module for modules in find_modules_by_owner(trainer).values() for path, module in modules.items()}


def find_modules_by_owner(trainer: pl.Trainer) -> dict[str, dict[str, nn.Module]]:
    """Returns the modules of :func:`find_modules` by the name of the owner and path."""
    registered_ids = {id(child) for child in trainer.lightning_module.modules()}
    modules: dict[str, dict[str, nn.Module]] = {}
    for name, owner in find_owners(trainer).items():
        modules[name] = {}
        for path, module in find_owned_objects(
            {name: owner}, lambda item: isinstance(item, nn.Module), _make_descend_predicate(trainer)
        ):
            if id(module) not in registered_ids:
                modules[name][path] = module
                registered_ids |= {id(child) for child in module.modules()}
    return modules


def _make_descend_predicate(trainer: pl.Trainer) -> Callable[[object], bool]:
    return lambda owner: owner is not trainer and _is_user_object(owner)


def _is_user_object(owner: object) -> bool:
    return isinstance(owner, nn.Module) or not f"{type(owner).__module__}.".startswith(_LIBRARY_PREFIXES)


def _find_loader_generator_ids(loaders: Iterable[Any]) -> set[int]:
    generator_ids: set[int] = set()
    for loader in loaders:
        user_loader = getattr(loader, "wrapped", loader)
        attributes: Mapping[str, Any] = {name: getattr(user_loader, name, None) for name in _LOADER_ATTRIBUTES}
        samplers = {
            name: getattr(attribute, "__dict__", {})
            for name, attribute in attributes.items()
            if name.endswith("sampler")
        }
        generator_ids |= {
            id(generator) for _, generator in find_owned_objects({**attributes, **samplers}, rng.is_generator)
        }
    return generator_ids
