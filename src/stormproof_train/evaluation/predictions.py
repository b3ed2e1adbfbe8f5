"""What a network says of the samples of a split, and what is true of them."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stormproof.checkpoint import atomic_write
from stormproof_train.errors import UserError


@dataclass(frozen=True)
class Predictions:
    """Predictions in the order of the samples.

    Attributes:
        outputs: of classification the probabilities (N, classes), of regression the values (N, outputs) in the target's
            own unit.
        target: the true classes (N,), integers; or the true values (N, outputs).

    Raises:
        ValueError: if there is no sample, or the shapes do not fit each other.

    Example:
        >>> Predictions(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])).classes
        array([0, 1])
    """

    outputs: NDArray[Any]
    target: NDArray[Any]

    def __post_init__(self) -> None:
        expected = self.outputs.shape[:1] if self.is_classification else self.outputs.shape
        if self.outputs.ndim != 2 or not len(self.outputs) or self.target.shape != expected:
            raise ValueError(f"outputs of shape {self.outputs.shape} and a target of {self.target.shape} do not fit")

    def __len__(self) -> int:
        return len(self.target)

    @property
    def is_classification(self) -> bool:
        """Whether the target is classes."""
        return np.issubdtype(self.target.dtype, np.integer)

    @property
    def classes(self) -> NDArray[Any]:
        """The most probable class of each sample, (N,)."""
        return self.outputs.argmax(1)

    def save(self, path: Path) -> None:
        """Writes both arrays as an ``.npz``, whole or not at all."""
        with atomic_write(path) as file:
            np.savez_compressed(file, outputs=self.outputs, target=self.target)

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Reads what :meth:`save` wrote; nothing in it is executed.

        Raises:
            UserError: if it is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["outputs"], arrays["target"])
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} holds no predictions of ours: {error}") from error


def in_order(parts: list[NDArray[Any]], samples: int | None = None) -> NDArray[Any]:
    """The rows of all ranks, of which rank r of W had every W-th, beginning with the r-th.

    Args:
        parts: of each rank; of other lengths than these would be, they are put one behind the other.
        samples: how many there are; what is beyond was filled up. None: all.

    Example:
        >>> in_order([np.array([0, 2, 4]), np.array([1, 3])]).tolist()
        [0, 1, 2, 3, 4]
    """
    whole = np.concatenate(parts)
    if [len(part) for part in parts] != [len(whole[rank :: len(parts)]) for rank in range(len(parts))]:
        return whole
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole[:samples]
