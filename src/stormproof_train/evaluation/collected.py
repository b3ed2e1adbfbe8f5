"""The predictions of a pass over the test split, which the ranks share."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stormproof.distributed.collectives import gather
from stormproof_train.evaluation.predictions import Kind, Predictions

Arrays = tuple[NDArray[Any], ...]


class Collected:
    """Collects what a network is given, says and should say, batch by batch on the host, and joins that of all ranks.

    Args:
        kind: of the outputs.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind: Kind = kind
        self._batches: list[Arrays] = []
        self._ranks: list[Arrays] = []
        self._samples: int | None = None

    def add(self, inputs: torch.Tensor, outputs: torch.Tensor, target: torch.Tensor) -> None:
        """Takes a batch's inputs (N, …), outputs, (N, classes or values), and targets; other outputs it leaves."""
        if outputs.ndim != 2:
            return
        self._batches.append((outputs.cpu().numpy(), target.cpu().numpy(), told_apart(inputs)))

    def gather(self, loader: Any) -> None:
        """Brings what the ranks have to rank 0; all ranks call it together.

        Args:
            loader: of the split, whose data set may say how many samples there are.
        """
        own = tuple(np.concatenate(arrays) for arrays in zip(*self._batches, strict=True))
        self._batches = []
        self._ranks = gather(own) or []
        self._samples = samples_in(loader)

    def predictions(self) -> Predictions:
        """Those of the whole split, in its order, on rank 0.

        Raises:
            ValueError: if there is not one for each sample.
        """
        if not self._ranks or not all(self._ranks):
            raise ValueError("there is not one for each sample")
        whole = (in_order(list(parts), self._samples) for parts in zip(*self._ranks, strict=True))
        return Predictions(self.kind, *whole)


def told_apart(inputs: torch.Tensor) -> NDArray[np.uint32]:
    """The CRC-32 of each sample's bytes, (N,).

    Args:
        inputs: of a batch, (N, …).

    Example:
        >>> told_apart(torch.tensor([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0]]))
        array([ 775923062, 3729189491,  775923062], dtype=uint32)
    """
    rows = inputs.detach().cpu().reshape(len(inputs), -1).contiguous().view(torch.uint8).numpy()
    return np.array([zlib.crc32(row) for row in rows], dtype=np.uint32)


def in_order(parts: list[NDArray[Any]], samples: int | None = None) -> NDArray[Any]:
    """The rows of all ranks, of which rank r of W had every W-th, beginning with the r-th.

    Args:
        parts: of each rank; of other lengths than these would be, they are put one behind the other.
        samples: how many there are; fewer than one a rank beyond were filled up. None: nobody knows.

    Raises:
        ValueError: if there are more than that: some ranks had the same samples.

    Example:
        >>> in_order([np.array([0, 2, 4]), np.array([1, 3])])
        array([0, 1, 2, 3, 4])
    """
    whole = np.concatenate(parts)
    if samples is not None and len(whole) - samples >= len(parts):
        raise ValueError(f"{len(parts)} ranks tested {len(whole)} samples, and there are {samples}")
    if [len(part) for part in parts] == [len(whole[rank :: len(parts)]) for rank in range(len(parts))]:
        for rank, part in enumerate(parts):
            whole[rank :: len(parts)] = part
    return whole[:samples]


def samples_in(loader: Any) -> int | None:
    """The samples of a loader; None where nobody says."""
    one: Any = loader[0] if isinstance(loader, list) and len(loader) == 1 else loader
    dataset = getattr(one, "dataset", None)
    try:
        return None if dataset is None else len(dataset)
    except (TypeError, NotImplementedError):  # an iterable one has none, or says that it has none
        return None
