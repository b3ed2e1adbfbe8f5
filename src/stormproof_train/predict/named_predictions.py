"""Formats predictions as CSV or as a short table."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from stormproof_train.console import format_value
from stormproof_train.predict.artifact_metadata import ArtifactMetadata

_SCORE_NAMES = {"probabilities": "probability", "scores": "score"}


@dataclass(frozen=True)
class NamedPredictions:
    """Predictions with names of samples.

    Attributes:
        unit: Unit of a sample: ``file`` or ``row``.
        names: Names of the samples.
        outputs: Predictions ``(samples, classes or values)``.
    """

    unit: str
    names: list[str]
    outputs: NDArray[Any]


def to_csv(metadata: ArtifactMetadata, predictions: NamedPredictions) -> str:
    """Returns one row per sample: its name, the predicted class and the probabilities or scores, or its values.

    Numbers have nine digits, which identify every float32 number.

    Example:
        >>> import numpy as np
        >>> metadata = ArtifactMetadata("probabilities", ["cat", "dog"], [2], "small_mouse")
        >>> print(to_csv(metadata, NamedPredictions("file", ["a.png"], np.array([[0.25, 0.75]]))), end="")
        file,predicted,probability of cat,probability of dog
        a.png,dog,0.25,0.75
    """
    count = predictions.outputs.shape[1]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if metadata.kind == "values":
        writer.writerow([predictions.unit, *_value_names(metadata, count)])
    else:
        score_columns = (f"{_SCORE_NAMES[metadata.kind]} of {name}" for name in _class_names(metadata, count))
        writer.writerow([predictions.unit, "predicted", *score_columns])
    for name, outputs in zip(predictions.names, predictions.outputs, strict=True):
        numbers = [f"{value:.9g}" for value in outputs]
        writer.writerow([name, *([] if metadata.kind == "values" else [_predicted_class(metadata, outputs)]), *numbers])
    return text.getvalue()


def preview_table(
    metadata: ArtifactMetadata, predictions: NamedPredictions, max_rows: int
) -> tuple[list[str], list[list[str]]]:
    """Returns columns and first rows of a table: the predicted class and its probability or score, or the values."""
    preview_rows = list(zip(predictions.names, predictions.outputs, strict=True))[:max_rows]
    if metadata.kind == "values":
        columns = [predictions.unit, *_value_names(metadata, predictions.outputs.shape[1])]
        return columns, [[name, *(format_value(float(value)) for value in outputs)] for name, outputs in preview_rows]
    columns = [predictions.unit, "predicted", _SCORE_NAMES[metadata.kind]]
    return columns, [
        [name, _predicted_class(metadata, outputs), format_value(float(outputs.max()))]
        for name, outputs in preview_rows
    ]


def _predicted_class(metadata: ArtifactMetadata, outputs: NDArray[Any]) -> str:
    return _class_names(metadata, len(outputs))[outputs.argmax()]


def _class_names(metadata: ArtifactMetadata, count: int) -> list[str]:
    return metadata.classes or [str(index) for index in range(count)]


def _value_names(metadata: ArtifactMetadata, count: int) -> list[str]:
    name = metadata.target or "value"
    return [name] if count == 1 else [f"{name} {number}" for number in range(1, count + 1)]
