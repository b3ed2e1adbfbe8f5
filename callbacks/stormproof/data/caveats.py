"""Finds reasons why the resume of a wrapped loader may not be exact."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from stormproof.data.owned_objects import find_owned_objects
from stormproof.data.rng import find_attribute_generators, is_generator
from stormproof.data.sampler_state import SamplerState, is_stateful
from stormproof.data.source import has_custom_iteration


def find_caveats(loader: Any) -> list[str]:
    """Returns the reasons why ``resumable(loader)`` may not resume exactly. Empty if it resumes exactly.

    Args:
        loader: Loader of the user, without the wrapper.

    Example:
        >>> find_caveats(DataLoader([1, 2], num_workers=1, in_order=False))  # doctest: +ELLIPSIS
        ['with in_order=False, the order of batches depends on the speed of the workers: set in_order=True']
    """
    type_name, num_workers = type(loader).__name__, getattr(loader, "num_workers", 0)
    if is_stateful(loader):
        return _find_stateful_loader_caveats(loader, type_name, num_workers)
    if has_custom_iteration(loader):
        return [_CUSTOM_ITERATION_CAVEAT.format(kind=type_name)]
    caveats = [_IN_ORDER_CAVEAT] if num_workers and not loader.in_order else []
    if isinstance(loader.dataset, IterableDataset):
        return caveats + _find_iterable_caveats(loader.dataset, num_workers)
    return caveats + _find_map_caveats(loader)


_WORKERS_CAVEAT = (
    "the workers of {kind} do not resume their random numbers: wrap a torch DataLoader instead, or set "
    "draws_random_numbers = False on a data set that draws no random numbers"
)
_GENERATOR_CAVEAT = (
    "the state of {kind} does not contain its generator: wrap a torch DataLoader instead, or remove the generator"
)
_SAMPLE_GENERATOR_CAVEAT = (
    "{} is a separate random number generator ({}): use the global generators of Python, NumPy or torch, or wrap a "
    "torch DataLoader instead"
)
_CUSTOM_ITERATION_CAVEAT = (
    "{kind} overrides the iteration, so that a resume repeats the epoch up to the batch, which is exact only if the "
    "epoch depends on the global generators only: implement state_dict and load_state_dict, or use a torch DataLoader"
)
_IN_ORDER_CAVEAT = "with in_order=False, the order of batches depends on the speed of the workers: set in_order=True"
_ITERABLE_CAVEAT = (
    "the data set {kind} has no state_dict and load_state_dict, so that a resume repeats the epoch up to the batch, "
    "which is exact only if the epoch depends on the global generators only: implement both and set num_workers=0"
)
_ITERABLE_WORKERS_CAVEAT = (
    "the state_dict of the data set {kind} is not available from {workers} workers, so that a resume repeats the epoch "
    "up to the batch, which is exact only if the epoch depends on the global generators only: set num_workers=0"
)


def _find_stateful_loader_caveats(loader: Any, type_name: str, num_workers: int) -> list[str]:
    caveats = [] if getattr(loader, "generator", None) is None else [_GENERATOR_CAVEAT.format(kind=type_name)]
    dataset = getattr(loader, "dataset", None)
    if is_stateful(dataset) or not getattr(dataset, "draws_random_numbers", True):
        return caveats
    caveats += [
        _SAMPLE_GENERATOR_CAVEAT.format(path, type(generator).__name__)
        for path, generator in find_owned_objects({"dataset": dataset}, is_generator)
    ]
    return [*caveats, _WORKERS_CAVEAT.format(kind=type_name)] if num_workers else caveats


def _find_iterable_caveats(dataset: Any, num_workers: int) -> list[str]:
    type_name = type(dataset).__name__
    if not is_stateful(dataset):
        return [_ITERABLE_CAVEAT.format(kind=type_name)]
    return [_ITERABLE_WORKERS_CAVEAT.format(kind=type_name, workers=num_workers)] if num_workers else []


def _find_map_caveats(loader: DataLoader[Any]) -> list[str]:
    caveats: list[str] = []
    # a sampler may have a reference to the data set, whose generators are seeded for each sample
    seeded_objects = {"dataset": loader.dataset, "collate_fn": loader.collate_fn}
    covered_generators = [generator for _, generator in find_owned_objects(seeded_objects, is_generator)]
    for path, sampler in SamplerState(loader).samplers.items():
        if not is_stateful(sampler):
            covered_generators += find_attribute_generators(sampler).values()  # which SamplerState restores
            sampler_attributes = {f"{path}.{name}": value for name, value in getattr(sampler, "__dict__", {}).items()}
            caveats += [
                f"{generator_path} is a random number generator ({type(generator).__name__}) that is not saved: "
                "implement state_dict and load_state_dict in the sampler"
                for generator_path, generator in find_owned_objects(sampler_attributes, is_generator)
                if not any(generator is covered_generator for covered_generator in covered_generators)
            ]
    return caveats
