"""Collects the predictions of a pass over the test split from all ranks."""

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
    """Collects outputs, targets and sample hashes per batch on the host, and gathers them from all ranks."""

    def __init__(self, kind: OutputKind) -> None:
        self.kind: OutputKind = kind
        self._batches: list[Arrays] = []
        self._rank_arrays: list[Arrays] = []
        self._num_samples: int | None = None

    def append(self, inputs: torch.Tensor, outputs: torch.Tensor, target: torch.Tensor) -> None:
        """Adds a batch. Outputs that are not two-dimensional are ignored.

        Args:
            inputs: Inputs (batch, ...).
            outputs: Outputs (batch, classes) or (batch, values).
            target: Targets of the batch.
        """
        if outputs.ndim != 2:
            return
        self._batches.append((outputs.cpu().numpy(), target.cpu().numpy(), hash_samples(inputs)))

    def gather(self, loader: Any) -> None:
        """Gathers the predictions of all ranks on rank 0. All ranks must call it.

        Args:
            loader: Test data loader. The length of its dataset is the number of samples, if it has one.
        """
        local_arrays = tuple(np.concatenate(arrays) for arrays in zip(*self._batches, strict=True))
        self._batches = []
        self._rank_arrays = gather(local_arrays) or []
        self._num_samples = count_samples(loader)

    def predictions(self) -> Predictions:
        """Returns the predictions of the whole split in order, on rank 0.

        Raises:
            ValueError: If there is not exactly one prediction per sample.
        """
        if not self._rank_arrays or not all(self._rank_arrays):
            raise ValueError("there is not exactly one prediction per sample")
        joined_arrays = (
            interleave_ranks(list(rank_parts), self._num_samples) for rank_parts in zip(*self._rank_arrays, strict=True)
        )
        return Predictions(self.kind, *joined_arrays)


def hash_samples(inputs: torch.Tensor) -> NDArray[np.uint32]:
    """Computes the CRC-32 of the bytes of each sample (batch,).

    Example:
        >>> hash_samples(torch.tensor([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0]]))
        array([ 775923062, 3729189491,  775923062], dtype=uint32)
    """
    rows = inputs.detach().cpu().reshape(len(inputs), -1).contiguous().view(torch.uint8).numpy()
    return np.array([zlib.crc32(row) for row in rows], dtype=np.uint32)


def interleave_ranks(rank_parts: list[NDArray[Any]], num_samples: int | None = None) -> NDArray[Any]:
    """Joins the rows of all ranks, where rank r of W processed samples r, r + W, r + 2W and so on.

    Args:
        rank_parts: Rows of each rank. They are concatenated if their lengths do not match this scheme.
        num_samples: Number of samples. Rows that pad the split to a multiple of the world size are dropped. None keeps
            all rows.

    Raises:
        ValueError: If there are more rows than padding explains, because some ranks processed the same samples.

    Example:
        >>> interleave_ranks([np.array([0, 2, 4]), np.array([1, 3])])
        array([0, 1, 2, 3, 4])
    """
    rows = np.concatenate(rank_parts)
    if num_samples is not None and len(rows) - num_samples >= len(rank_parts):
        raise ValueError(f"{len(rank_parts)} ranks tested {len(rows)} samples, but the split has {num_samples}")
    if [len(rank_part) for rank_part in rank_parts] == [
        len(rows[rank :: len(rank_parts)]) for rank in range(len(rank_parts))
    ]:
        for rank, rank_part in enumerate(rank_parts):
            rows[rank :: len(rank_parts)] = rank_part
    return rows[:num_samples]


def count_samples(loader: Any) -> int | None:
    """Returns the number of samples of a loader, or None if its dataset has no length."""
    single_loader: Any = loader[0] if isinstance(loader, list) and len(loader) == 1 else loader
    dataset = getattr(single_loader, "dataset", None)
    try:
        return None if dataset is None else len(dataset)
    except (TypeError, NotImplementedError):  # the dataset is iterable
        return None
