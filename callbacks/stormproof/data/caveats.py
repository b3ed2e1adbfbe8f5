"""What about the resume of a wrapped loader cannot be exact, or cannot be told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from stormproof.data.owned_objects import find_owned
from stormproof.data.rng import generators_of, is_generator
from stormproof.data.sample_seeds import draws_random_numbers
from stormproof.data.sampler_state import SamplerState, is_stateful
from stormproof.data.source import iterates_its_own_way


def doubts(loader: Any) -> list[str]:
    """One reason each why passes of ``loader``, wrapped by ``resumable``, may not resume exactly; empty if they will.

    Args:
        loader: the user's own.

    Example:
        >>> import random
        >>> from types import SimpleNamespace
        >>> dataset = SimpleNamespace(noise=random.Random(1), __len__=lambda: 3)
        >>> doubts(DataLoader(dataset))  # doctest: +ELLIPSIS
        ['dataset.noise is a generator of its own, a Random: let it draw from the global generators of ...']
    """
    kind, workers = type(loader).__name__, getattr(loader, "num_workers", 0)
    if is_stateful(loader):
        return _of_a_stateful_loader(loader, kind, workers)
    if iterates_its_own_way(loader):
        return [_OWN_WAY.format(kind=kind)]
    found = [_IN_ORDER] if workers and not loader.in_order else []
    if isinstance(loader.dataset, IterableDataset):
        return found + _of_a_stream(loader.dataset, workers)
    return found + _of_samples_and_samplers(loader)


_WORKERS = (
    "the workers of a {kind} do not resume their random numbers: wrap a torch DataLoader instead, or set "
    "draws_random_numbers = False on a data set that draws none"
)
_ITS_GENERATOR = (
    "its generator is not in the state of a {kind}: wrap a torch DataLoader instead, or give the loader no generator"
)
_OWN_WAY = (
    "a {kind} iterates in a way of its own, and its passes are run again up to the batch: give it state_dict and "
    "load_state_dict, or use a torch DataLoader"
)
_IN_ORDER = "in_order=False lets the faster worker decide the order of batches: leave it True"
_STREAM = (
    "dataset, a {kind}, has no state_dict and load_state_dict, and its passes are run again up to the batch, which is "
    "exact only if they depend on nothing but the global generators: give it both, and num_workers=0"
)
_STREAM_WORKERS = (
    "dataset, a {kind}, is not asked for its state_dict in {workers} workers, and its passes are run again up to the "
    "batch, which is exact only if they depend on nothing but the global generators: use num_workers=0"
)


def _of_a_stateful_loader(loader: Any, kind: str, workers: int) -> list[str]:
    found = [] if getattr(loader, "generator", None) is None else [_ITS_GENERATOR.format(kind=kind)]
    dataset = getattr(loader, "dataset", None)
    if is_stateful(dataset) or not getattr(dataset, "draws_random_numbers", True):
        return found
    found += map(_of_its_own, generators_in({"dataset": dataset}))
    return [*found, _WORKERS.format(kind=kind)] if workers else found


def _of_a_stream(dataset: Any, workers: int) -> list[str]:
    kind = type(dataset).__name__
    if not is_stateful(dataset):
        return [_STREAM.format(kind=kind)]
    return [_STREAM_WORKERS.format(kind=kind, workers=workers)] if workers else []


def _of_samples_and_samplers(loader: DataLoader[Any]) -> list[str]:
    of_samples = list(generators_in({"dataset": loader.dataset, "collate_fn": loader.collate_fn}))
    told = list(map(_of_its_own, of_samples)) if draws_random_numbers(loader) else []
    known = [generator for _, generator in of_samples]  # a sampler may have a reference to the data set
    for path, sampler in SamplerState(loader).samplers.items():
        if not is_stateful(sampler):
            known += generators_of(sampler).values()  # which are resumed
            inner = {f"{path}.{name}": value for name, value in getattr(sampler, "__dict__", {}).items()}
            told += [
                _in_a_sampler(found) for found in generators_in(inner) if not any(found[1] is each for each in known)
            ]
    return told


def _of_its_own(found: tuple[str, Any]) -> str:
    path, generator = found
    return (
        f"{path} is a generator of its own, a {type(generator).__name__}: let it draw from the global generators of "
        "Python, NumPy or torch, which are seeded for each sample"
    )


def _in_a_sampler(found: tuple[str, Any]) -> str:
    path, generator = found
    return f"{path} is a generator, a {type(generator).__name__}, that only a state_dict of the sampler could resume"


def generators_in(roots: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The random number generators that ``roots`` hold, directly or in what they hold, each once, by its path.

    Example:
        >>> import random
        >>> from functools import partial
        >>> [path for path, _ in generators_in({"x": {"jitter": partial(max, random.Random(1))}})]
        ["x['jitter'].args[0]"]
    """
    return find_owned(roots, is_generator)
