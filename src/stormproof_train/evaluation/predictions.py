"""What a network says of the samples of a split, and what is true of them."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from stormproof.checkpoint import atomic_write
from stormproof_train.errors import UserError

ZIP_ERRORS = zipfile.BadZipFile, zlib.error
OutputKind = Literal["probabilities", "scores", "values"]


@dataclass(frozen=True)
class Predictions:
    """Predictions in the order of the samples.

    Attributes:
        kind: of the outputs: ``probabilities`` of the classes; ``scores``, the highest of which is of the predicted
            class; or ``values`` in the target's own unit.
        outputs: (N, classes) or (N, values).
        target: the true classes (N,), integers; or the true values (N, values).
        samples: what tells each sample from others, (N,), equal wherever a network is given the same; None where nobody
            knows.

    Raises:
        ValueError: if there is no sample, or what is given does not fit.

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
            raise ValueError(f"there are no predictions of kind {self.kind}")
        expected_shape = self.outputs.shape[:1] if self.is_classification else self.outputs.shape
        if self.outputs.ndim != 2 or not len(self.outputs) or self.target.shape != expected_shape:
            raise ValueError(f"outputs of shape {self.outputs.shape} and a target of {self.target.shape} do not fit")
        if self.is_classification and not set(np.unique(self.target)) <= set(range(self.outputs.shape[1])):
            raise ValueError(f"a target is no class from 0 to {self.outputs.shape[1] - 1}")
        if self.samples is not None and self.samples.shape != self.outputs.shape[:1]:
            raise ValueError(f"outputs of shape {self.outputs.shape} and {self.samples.shape} samples do not fit")

    def __len__(self) -> int:
        return len(self.target)

    @property
    def is_classification(self) -> bool:
        """Whether the target is classes."""
        return self.kind != "values"

    @property
    def classes(self) -> NDArray[Any]:
        """The predicted class of each sample, (N,)."""
        return self.outputs.argmax(1)

    def save(self, path: Path) -> None:
        """Writes all of it as an ``.npz``, whole or not at all."""
        optional_arrays: dict[str, Any] = {} if self.samples is None else {"samples": self.samples}
        with atomic_write(path) as file:
            np.savez_compressed(
                file, kind=np.array(self.kind), outputs=self.outputs, target=self.target, **optional_arrays
            )

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Reads what :meth:`save` wrote; nothing in it is executed.

        Raises:
            UserError: if it is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                kind, samples = cast("OutputKind", str(arrays["kind"])), arrays.get("samples")
                return cls(kind, arrays["outputs"], arrays["target"], samples)
        except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, *ZIP_ERRORS) as error:
            raise UserError(f"{path} holds no predictions of ours, or is damaged: evaluate again") from error
