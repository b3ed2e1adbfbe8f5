"""The predictions of a pass over the test split, which the ranks share."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stormproof.distributed.collectives import gather
from stormproof_train.evaluation.predictions import OutputKind, Predictions

Arrays = tuple[NDArray[Any], ...]


class PredictionStore:
    """Collects what a network is given, says and should say, batch by batch on the host, and joins that of all ranks.

    Args:
        kind: of the outputs.
    """

    def __init__(self, kind: OutputKind) -> None:
        self.kind: OutputKind = kind
        self._batches: list[Arrays] = []
        self._rank_arrays: list[Arrays] = []
        self._num_samples: int | None = None

    def append(self, inputs: torch.Tensor, outputs: torch.Tensor, target: torch.Tensor) -> None:
        """Takes a batch's inputs (N, …), outputs, (N, classes or values), and targets; other outputs it leaves."""
        if outputs.ndim != 2:
            return
        self._batches.append((outputs.cpu().numpy(), target.cpu().numpy(), hash_samples(inputs)))

    def gather(self, loader: Any) -> None:
        """Brings what the ranks have to rank 0; all ranks call it together.

        Args:
            loader: of the split, whose data set may say how many samples there are.
        """
        local_arrays = tuple(np.concatenate(arrays) for arrays in zip(*self._batches, strict=True))
        self._batches = []
        self._rank_arrays = gather(local_arrays) or []
        self._num_samples = count_samples(loader)

    def predictions(self) -> Predictions:
        """Those of the whole split, in its order, on rank 0.

        Raises:
            ValueError: if there is not one for each sample.
        """
        if not self._rank_arrays or not all(self._rank_arrays):
            raise ValueError("there is not one for each sample")
        joined_arrays = (
            interleave_ranks(list(rank_parts), self._num_samples) for rank_parts in zip(*self._rank_arrays, strict=True)
        )
        return Predictions(self.kind, *joined_arrays)


def hash_samples(inputs: torch.Tensor) -> NDArray[np.uint32]:
    """The CRC-32 of each sample's bytes, (N,).

    Args:
        inputs: of a batch, (N, …).

    Example:
        >>> hash_samples(torch.tensor([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0]]))
        array([ 775923062, 3729189491,  775923062], dtype=uint32)
    """
    rows = inputs.detach().cpu().reshape(len(inputs), -1).contiguous().view(torch.uint8).numpy()
    return np.array([zlib.crc32(row) for row in rows], dtype=np.uint32)


def interleave_ranks(rank_parts: list[NDArray[Any]], num_samples: int | None = None) -> NDArray[Any]:
    """The rows of all ranks, of which rank r of W had every W-th, beginning with the r-th.

    Args:
        rank_parts: of each rank; of other lengths than these would be, they are put one behind the other.
        num_samples: how many there are; fewer than one a rank beyond were filled up. None: nobody knows.

    Raises:
        ValueError: if there are more than that: some ranks had the same samples.

    Example:
        >>> interleave_ranks([np.array([0, 2, 4]), np.array([1, 3])])
        array([0, 1, 2, 3, 4])
    """
    rows = np.concatenate(rank_parts)
    if num_samples is not None and len(rows) - num_samples >= len(rank_parts):
        raise ValueError(f"{len(rank_parts)} ranks tested {len(rows)} samples, and there are {num_samples}")
    if [len(rank_part) for rank_part in rank_parts] == [
        len(rows[rank :: len(rank_parts)]) for rank in range(len(rank_parts))
    ]:
        for rank, rank_part in enumerate(rank_parts):
            rows[rank :: len(rank_parts)] = rank_part
    return rows[:num_samples]


def count_samples(loader: Any) -> int | None:
    """The samples of a loader; None where nobody says."""
    single_loader: Any = loader[0] if isinstance(loader, list) and len(loader) == 1 else loader
    dataset = getattr(single_loader, "dataset", None)
    try:
        return None if dataset is None else len(dataset)
    except (TypeError, NotImplementedError):  # an iterable one has none, or says that it has none
        return None
