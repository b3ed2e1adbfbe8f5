"""Seeds random numbers per sample, independently of the process that fetches it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate, default_convert

from stormproof.data.dataset_proxy import DatasetProxy
from stormproof.data.rng import seed_process


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
    batches (``__getitems__``) is seeded once per batch.

    Args:
        wrapped: Data set of the user.
        is_random: Whether it may draw random numbers.
    """

    def __init__(self, wrapped: Any, is_random: bool) -> None:
        super().__init__(wrapped)
        self._set_own_attribute("_is_random", is_random)
        self._set_own_attribute("_has_getitems", callable(getattr(wrapped, "__getitems__", None)))

    def __getitem__(self, seeded_indices: SeededIndices) -> Any:
        """Returns one sample, for a loader without batches."""
        if self._is_random:
            seed_process(*seeded_indices.seed_key, seeded_indices.first_position)
        return self.wrapped[seeded_indices.indices]

    def __getitems__(self, seeded_indices: SeededIndices) -> Any:
        """Returns all samples of a batch."""
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
    """Returns whether fetching and collating a batch of ``loader`` may draw from the global generators.

    Returns the attribute ``draws_random_numbers`` of the data set if it exists. Otherwise returns False only for
    torch's TensorDataset, or a subset of it, with torch's default ``collate_fn``.

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
