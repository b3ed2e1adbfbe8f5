"""Stores the outputs of a network for a split together with the targets."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from stormproof.checkpoint import atomic_write
from stormproof_train.errors import DamagedFileError

ZIP_ERRORS = zipfile.BadZipFile, zlib.error
OutputKind = Literal["probabilities", "scores", "values"]


@dataclass(frozen=True)
class Predictions:
    """Outputs and targets in the order of the samples.

    Attributes:
        kind: Kind of the outputs: ``probabilities`` of the classes, ``scores`` whose maximum is at the predicted class,
            or ``values`` in the unit of the target.
        outputs: Outputs (samples, classes) or (samples, values).
        target: True classes (samples,) as integers, or true values (samples, values).
        samples: Hash of the inputs of each sample (samples,), to recognize the same samples. None if unknown.

    Raises:
        ValueError: If there are no samples, or the shapes or classes do not match.

    Example:
        >>> Predictions("probabilities", np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])).classes
        array([0, 1])
    """

    kind: OutputKind
    outputs: NDArray[Any]
    target: NDArray[Any]
    samples: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(OutputKind):
            raise ValueError(f"`kind` must be one of {', '.join(get_args(OutputKind))}, got {self.kind}")
        expected_shape = self.outputs.shape[:1] if self.is_classification else self.outputs.shape
        if self.outputs.ndim != 2 or not len(self.outputs) or self.target.shape != expected_shape:
            raise ValueError(f"outputs of shape {self.outputs.shape} do not match target of shape {self.target.shape}")
        if self.is_classification and not set(np.unique(self.target)) <= set(range(self.outputs.shape[1])):
            raise ValueError(f"the target classes must be from 0 to {self.outputs.shape[1] - 1}")
        if self.samples is not None and self.samples.shape != self.outputs.shape[:1]:
            raise ValueError(f"outputs of shape {self.outputs.shape} do not match {self.samples.shape} samples")

    def __len__(self) -> int:
        return len(self.target)

    @property
    def is_classification(self) -> bool:
        """True if the targets are classes."""
        return self.kind != "values"

    @property
    def classes(self) -> NDArray[Any]:
        """Predicted class of each sample (samples,)."""
        return self.outputs.argmax(1)

    def save(self, path: Path) -> None:
        """Writes an ``.npz`` file atomically."""
        optional_arrays: dict[str, Any] = {} if self.samples is None else {"samples": self.samples}
        with atomic_write(path) as file:
            np.savez_compressed(
                file, kind=np.array(self.kind), outputs=self.outputs, target=self.target, **optional_arrays
            )

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Reads a file that :meth:`save` wrote, without executing anything in it.

        Raises:
            DamagedFileError: If the file is missing or damaged, or was not written by :meth:`save`.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                kind, samples = cast("OutputKind", str(arrays["kind"])), arrays.get("samples")
                return cls(kind, arrays["outputs"], arrays["target"], samples)
        except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, *ZIP_ERRORS) as error:
            raise DamagedFileError(
                f"{path} is damaged or contains no predictions of Stormproof: evaluate again"
            ) from error
