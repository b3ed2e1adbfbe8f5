"""Random numbers that belong to the sample, not to the process that happens to fetch it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.utils.data import Dataset, Subset, TensorDataset

from stormproof.rng import seed


class Picked(NamedTuple):
    """What one batch consists of: sample ``i`` of it is the ``first + i * stride``-th of the pass over all ranks."""

    key: tuple[int, int]
    first: int
    stride: int
    indices: Any


class SeededSamples(Dataset):
    """A map-style data set whose every sample draws from generators seeded by (seed, epoch, position in the pass).

    So a sample's augmentation is the same in whichever worker, and after whichever restart, it is made. A data set
    that fetches whole batches (``__getitems__``) is seeded once a batch. Whatever else is read from or set on this
    object is the data set's own: ``get_worker_info().dataset`` may be used as if it were the user's.

    Args:
        dataset: the user's, with ``__getitem__`` or ``__getitems__``.
    """

    def __init__(self, dataset: Any) -> None:
        object.__setattr__(self, "wrapped", dataset)
        object.__setattr__(self, "_draws", draws_random_numbers(dataset))
        object.__setattr__(self, "_whole_batches", callable(getattr(dataset, "__getitems__", None)))

    def __getitem__(self, picked: Picked) -> Any:
        """One sample, for a loader without batches."""
        if self._draws:
            seed(*picked.key, picked.first)
        return self.wrapped[picked.indices]

    def __getitems__(self, picked: Picked) -> Any:
        """All samples of a batch."""
        if not self._draws:
            return self._plainly(picked.indices)
        if self._whole_batches:
            seed(*picked.key, picked.first)
            return self.wrapped.__getitems__(picked.indices)
        samples = []
        for position, index in enumerate(picked.indices):
            seed(*picked.key, picked.first + position * picked.stride)
            samples.append(self.wrapped[index])
        return samples

    def _plainly(self, indices: Any) -> Any:
        if self._whole_batches:
            return self.wrapped.__getitems__(indices)
        return [self.wrapped[index] for index in indices]

    def __len__(self) -> int:
        return len(self.wrapped)

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped" or name.startswith("__"):  # while unpickling, and what Python itself asks for
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.wrapped, name, value)

    def __reduce__(self) -> Any:
        return type(self), (self.wrapped,)


def draws_random_numbers(dataset: Any) -> bool:
    """Whether fetching and collating a batch may draw from the process' generators.

    Only who knows the data set can say that it does not: by an attribute ``draws_random_numbers = False``. It then
    costs nothing to keep its random numbers apart. Of torch's own, tensors are known to draw none.

    Example:
        >>> import torch
        >>> draws_random_numbers(TensorDataset(torch.zeros(3)))
        False
        >>> draws_random_numbers([1, 2, 3])
        True
    """
    if type(dataset) is Subset:
        return draws_random_numbers(dataset.dataset)
    return bool(getattr(dataset, "draws_random_numbers", type(dataset) is not TensorDataset))
