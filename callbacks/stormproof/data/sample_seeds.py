"""Seeds random numbers per sample, independently of the process that fetches it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from zlib import crc32

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader, Dataset, Subset

from stormproof.data.dataset_proxy import DatasetProxy
from stormproof.data.deterministic_datasets import collates_deterministically, fetches_deterministically
from stormproof.data.fingerprint import NONE_FINGERPRINT, SavedValues, TimedSearch, has_comparable_part, summarize_paths
from stormproof.data.owned_attributes import EXEMPT_ATTRIBUTE, named_owned_attributes
from stormproof.data.owned_objects import find_owned_objects
from stormproof.data.rng import RngState, get_state, is_generator, seed_generator, seed_process, set_state

_SEARCHED_BATCHES = 16
"""Number of batches of a process after each of which generators are searched for. Later after 32, 64, 128 and so on."""
_MANY_OBJECTS = 1000
"""With more objects, generators are searched for after 1, 2, 4, 8, 16 batches and so on."""
_LIBRARIES = {"torch", "numpy", "stormproof", *sys.stdlib_module_names}


class SeededIndices(NamedTuple):
    """Indices of one batch, with the positions of its samples in the epoch.

    Attributes:
        seed_key: Seed and epoch.
        first_position: Position of the first sample in the epoch of all ranks, from 0.
        stride: Distance between the positions of neighboring samples.
        indices: Indices into the data set.
    """

    seed_key: tuple[int, int]
    first_position: int
    stride: int
    indices: Any


class SeededSamples(DatasetProxy, Dataset[Any]):
    """Map-style data set that seeds the generators by (seed, epoch, position in the epoch) before each sample.

    The augmentation of a sample therefore depends neither on the worker nor on restarts. A data set that fetches whole
    batches (``__getitems__``) is seeded once per batch. A batch that certainly draws no random numbers is not seeded.

    Also seeds the separate generators of the data set, of ``collate_fn`` and in the global variables of their modules.
    A data set may create them at any time, such as at the first sample in a worker. The search runs before and after
    the first batches, then less and less often. If there is a new one, the batch is fetched again.

    Warns once about attributes of the data set and of ``collate_fn`` that change in a worker process.

    Args:
        loader: Loader of the user.
        preserves_rng: Whether to save the generators of the process before they are seeded, for :meth:`restore_rng`.
    """

    def __init__(self, loader: DataLoader[Any], preserves_rng: bool) -> None:
        super().__init__(loader.dataset)
        self._set_own_attribute("_has_deterministic_collate", collates_deterministically(loader.collate_fn))
        self._set_own_attribute("_has_getitems", callable(getattr(loader.dataset, "__getitems__", None)))
        self._set_own_attribute("_preserves_rng", preserves_rng)
        self._set_own_attribute("_process_state", None)
        self._set_own_attribute("_seeded_generators", {})
        self._set_own_attribute("_num_objects", 0)
        self._set_own_attribute("_collate_samples", loader.collate_fn)
        self._set_own_attribute("_worker_init_fn", loader.worker_init_fn)
        self._set_own_attribute("_fetch_again", None)
        self._set_own_attribute("_worker_changes", WorkerChanges() if loader.num_workers > 0 else None)
        self.restart_search()

    def restart_search(self) -> None:
        """Searches for separate generators in the next batches, because code between two epochs may replace them."""
        self._set_own_attribute("_num_seeded_batches", 0)

    def __getitem__(self, seeded_indices: SeededIndices) -> Any:
        """Returns one sample, for a loader without batches."""
        if self._prepares_seeding(partial(self.__getitem__, seeded_indices)):
            self._seed(seeded_indices)
        return self.wrapped[seeded_indices.indices]

    def __getitems__(self, seeded_indices: SeededIndices) -> Any:
        """Returns all samples of a batch."""
        is_seeded = self._prepares_seeding(partial(self.__getitems__, seeded_indices))
        if self._has_getitems:
            if is_seeded:
                self._seed(seeded_indices)
            return self.wrapped.__getitems__(seeded_indices.indices)
        if not is_seeded:
            return [self.wrapped[index] for index in seeded_indices.indices]
        samples = []
        for position, index in enumerate(seeded_indices.indices):
            self._seed(seeded_indices, position)
            samples.append(self.wrapped[index])
        return samples

    def collate_seeded(self, samples: Any) -> Any:
        """Returns a batch of ``samples``. Fetches them again if a new generator exists, which had no seed."""
        batch = self._collate_samples(samples)
        self._set_own_attribute("_num_seeded_batches", self._num_seeded_batches + 1)
        is_due = self._num_seeded_batches.bit_count() == 1
        searches_often = self._num_objects <= _MANY_OBJECTS and self._num_seeded_batches <= _SEARCHED_BATCHES
        if self._fetch_again is not None and (is_due or searches_often) and self._finds_generator():
            batch = self._collate_samples(self._fetch_again())
        if self._worker_changes is not None and is_due:
            self._worker_changes.check(self.wrapped, self._collate_samples)
        return batch

    def _seed(self, seeded_indices: SeededIndices, index: int = 0) -> None:
        key = (*seeded_indices.seed_key, seeded_indices.first_position + index * seeded_indices.stride)
        seed_process(*key)
        for path, generator in self._seeded_generators.items():
            seed_generator(generator, *key, crc32(path.encode()))

    def _finds_generator(self) -> bool:
        """Searches for separate generators. Returns whether there is one at a new path."""
        roots = {"dataset": self.wrapped, "collate_fn": self._collate_samples, "worker_init_fn": self._worker_init_fn}
        objects = _find_objects(roots)
        generators = {path: item for path, item in objects.items() if is_generator(item)}
        self._set_own_attribute("_num_objects", len(objects))
        is_new = bool(generators.keys() - self._seeded_generators)
        self._set_own_attribute("_seeded_generators", generators)
        return is_new

    def _prepares_seeding(self, fetch_again: Callable[[], Any]) -> bool:
        """Returns whether the next samples need seeds. If so, saves the generators.

        Each batch asks anew, because a transform may be added at any time, in a worker too.
        """
        if self._worker_changes is not None:
            self._worker_changes.observe(self.wrapped, self._collate_samples)
        may_draw = _may_draw(self.wrapped, self._has_deterministic_collate)
        self._set_own_attribute("_fetch_again", fetch_again if may_draw else None)
        if may_draw and self._num_seeded_batches == 0:
            self._finds_generator()
        if may_draw and self._preserves_rng and self._process_state is None:
            states = [(generator, get_state(generator)) for generator in self._seeded_generators.values()]
            self._set_own_attribute("_process_state", (RngState(), states))
        return may_draw

    def restore_rng(self) -> None:
        """Restores the generators of the process if the last batch was seeded. Call it after collation."""
        if self._process_state is not None:
            process_state, generator_states = self._process_state
            process_state.restore()
            for generator, state in generator_states:
                set_state(generator, state)
            self._set_own_attribute("_process_state", None)

    def __len__(self) -> int:
        return len(self.wrapped)


def _find_objects(roots: dict[str, Any]) -> dict[str, Any]:
    """Returns the objects that are reachable from ``roots``, and the global variables of their modules."""
    objects = dict(find_owned_objects(roots, lambda _: True))
    modules = {getattr(item, "__module__", "") for item in (*objects.values(), *map(type, objects.values()))}
    for module in modules:
        if isinstance(module, str) and module.partition(".")[0] not in _LIBRARIES:
            objects |= {
                f"{module}.{name}": value for name, value in vars(sys.modules.get(module, SimpleNamespace())).items()
            }
    return objects


def draws_random_numbers(loader: DataLoader[Any]) -> bool:
    """Returns whether fetching and collating a batch of ``loader`` may draw from the global generators.

    Returns the attribute ``draws_random_numbers`` of the data set if it exists. Otherwise returns False only for data
    sets that :func:`fetches_deterministically` recognizes, with torch's default ``collate_fn``.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> draws_random_numbers(DataLoader(TensorDataset(torch.zeros(3))))
        False
        >>> draws_random_numbers(DataLoader([1, 2, 3]))
        True
    """
    return _may_draw(loader.dataset, collates_deterministically(loader.collate_fn))


def _may_draw(dataset: Any, has_deterministic_collate: bool) -> bool:
    while type(dataset) is Subset:
        dataset = dataset.dataset
    is_declared = getattr(dataset, "draws_random_numbers", None) is not None  # which includes the collate function
    return not ((is_declared or has_deterministic_collate) and fetches_deterministically(dataset))


class WorkerChanges:
    """Warns once, in one of the workers, about attributes of the data set and of ``collate_fn`` that change there.

    A resume in the middle of an epoch starts new workers, in which the attributes have their first values.
    """

    def __init__(self) -> None:
        self._is_reported = torch.zeros(1, dtype=torch.bool, device="cpu").share_memory_()  # by any worker
        self._search = TimedSearch().share_memory()
        self._first_fingerprints: dict[str, Any] | None = None

    def observe(self, dataset: Any, collate_fn: Any) -> None:
        """Takes the first fingerprints. Call it before a worker fetches its first batch."""
        if self._first_fingerprints is None and not self._is_reported:
            self._first_fingerprints = self._fingerprint(dataset, collate_fn)

    def check(self, dataset: Any, collate_fn: Any) -> None:
        """Warns if attributes differ from the first ones. Values that are set once do not count."""
        if self._first_fingerprints is None or self._is_reported:
            return
        changed_paths = []
        for path, fingerprint in self._fingerprint(dataset, collate_fn).items():
            first_fingerprint = self._first_fingerprints.get(path, NONE_FINGERPRINT)
            if first_fingerprint == NONE_FINGERPRINT:
                self._first_fingerprints[path] = fingerprint
            elif fingerprint != first_fingerprint and has_comparable_part(fingerprint):
                changed_paths.append(path)
        if changed_paths:
            self._is_reported.fill_(True)
            rank_zero_warn(
                f"These attributes change in the worker processes of a loader: {summarize_paths(changed_paths)}. They "
                "are not in the checkpoint, so a resume in the middle of an epoch may not be exact. If the batches "
                "depend on them, compute them from the index of the sample. Otherwise list them in the class attribute "
                f"{EXEMPT_ATTRIBUTE}."
            )

    def _fingerprint(self, dataset: Any, collate_fn: Any) -> dict[str, Any]:
        roots = [("worker", SimpleNamespace(dataset=dataset, collate_fn=collate_fn))]
        fingerprints = self._search.fingerprint(named_owned_attributes(roots, set()), SavedValues())
        return {path.removeprefix("worker."): fingerprint for path, _, fingerprint in fingerprints}
