"""Seeds random numbers per sample, independently of the process that fetches it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, Subset

from stormproof.data.dataset_proxy import DatasetProxy
from stormproof.data.deterministic_datasets import collates_deterministically, fetches_deterministically
from stormproof.data.rng import RngState, seed_process


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

    def __getitem__(self, seeded_indices: SeededIndices) -> Any:
        """Returns one sample, for a loader without batches."""
        if self._prepares_seeding():
            seed_process(*seeded_indices.seed_key, seeded_indices.first_position)
        return self.wrapped[seeded_indices.indices]

    def __getitems__(self, seeded_indices: SeededIndices) -> Any:
        """Returns all samples of a batch."""
        is_seeded = self._prepares_seeding()
        if self._has_getitems:
            if is_seeded:
                seed_process(*seeded_indices.seed_key, seeded_indices.first_position)
            return self.wrapped.__getitems__(seeded_indices.indices)
        if not is_seeded:
            return [self.wrapped[index] for index in seeded_indices.indices]
        samples = []
        for position, index in enumerate(seeded_indices.indices):
            seed_process(*seeded_indices.seed_key, seeded_indices.first_position + position * seeded_indices.stride)
            samples.append(self.wrapped[index])
        return samples

    def _prepares_seeding(self) -> bool:
        """Returns whether the next samples need seeds. If so, saves the generators.

        Each batch asks anew, because a transform may be added at any time, in a worker too.
        """
        may_draw = _may_draw(self.wrapped, self._has_deterministic_collate)
        if may_draw and self._preserves_rng:
            self._set_own_attribute("_process_state", RngState())
        return may_draw

    def restore_rng(self) -> None:
        """Restores the generators of the process if the last batch was seeded. Call it after collation."""
        if self._process_state is not None:
            self._process_state.restore()
            self._set_own_attribute("_process_state", None)

    def __len__(self) -> int:
        return len(self.wrapped)


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
