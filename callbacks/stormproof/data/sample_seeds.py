"""Random numbers that belong to the sample, not to the process that happens to fetch it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate, default_convert

from stormproof.data.dataset_proxy import DatasetProxy
from stormproof.data.rng import seed_process


class SeededIndices(NamedTuple):
    """What one batch consists of: sample ``i`` of it is the ``first + i * stride``-th of the pass over all ranks."""

    seed_key: tuple[int, int]
    first_position: int
    stride: int
    indices: Any


class SeededSamples(DatasetProxy, Dataset[Any]):
    """A map-style data set whose every sample draws from generators seeded by (seed, epoch, position in the pass).

    So a sample's augmentation is the same in whichever worker, and after whichever restart, it is made. A data set
    that fetches whole batches (``__getitems__``) is seeded once a batch.

    Args:
        wrapped: the user's data set.
        is_random: whether it may draw random numbers.
    """

    def __init__(self, wrapped: Any, is_random: bool) -> None:
        super().__init__(wrapped)
        self._set_own_attribute("_is_random", is_random)
        self._set_own_attribute("_has_getitems", callable(getattr(wrapped, "__getitems__", None)))

    def __getitem__(self, seeded_indices: SeededIndices) -> Any:
        """One sample, for a loader without batches."""
        if self._is_random:
            seed_process(*seeded_indices.seed_key, seeded_indices.first_position)
        return self.wrapped[seeded_indices.indices]

    def __getitems__(self, seeded_indices: SeededIndices) -> Any:
        """All samples of a batch."""
        if self._has_getitems:
            if self._is_random:
                seed_process(*seeded_indices.seed_key, seeded_indices.first_position)
            return self.wrapped.__getitems__(seeded_indices.indices)
        if not self._is_random:
            return [self.wrapped[index] for index in seeded_indices.indices]
        samples = []
        for position, index in enumerate(seeded_indices.indices):
            seed_process(*seeded_indices.seed_key, seeded_indices.first_position + position * seeded_indices.stride)
            samples.append(self.wrapped[index])
        return samples

    def __len__(self) -> int:
        return len(self.wrapped)


def draws_random_numbers(loader: DataLoader[Any]) -> bool:
    """Whether fetching and collating a batch of ``loader`` may draw from the process' generators.

    Who knows can say that it does not, by an attribute ``draws_random_numbers = False`` of the data set. Torch's own
    data sets of tensors, collated in torch's own way, are known to draw none.

    Example:
        >>> import torch
        >>> draws_random_numbers(DataLoader(TensorDataset(torch.zeros(3))))
        False
        >>> draws_random_numbers(DataLoader([1, 2, 3]))
        True
    """
    dataset: Any = loader.dataset
    while type(dataset) is Subset:
        dataset = dataset.dataset
    is_deterministic = type(dataset) is TensorDataset and loader.collate_fn in {default_collate, default_convert}
    return bool(getattr(dataset, "draws_random_numbers", not is_deterministic))
