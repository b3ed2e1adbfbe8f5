"""Loads an ONNX artifact for prediction, and formats its predictions as CSV or as a short table."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from stormproof_train.console import format_value
from stormproof_train.errors import UserError, first_line
from stormproof_train.predict.artifact_metadata import METADATA_KEY, ArtifactMetadata

MODEL_FILE = "model.onnx"
"""Name of the artifact in a folder."""
_SCORE_NAMES = {"probabilities": "probability", "scores": "score"}


class ArtifactSession:
    """Loads an artifact.

    Args:
        path: Path of the file, or of a folder with a ``model.onnx``.

    Attributes:
        path: Path of the file.
        metadata: Metadata of the artifact.

    Raises:
        UserError: If the file does not exist, or is not an artifact.
    """

    def __init__(self, path: Path) -> None:
        self.path = _find_model_file(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        try:
            self._session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the errors of onnxruntime have no common base class
            message = first_line(error).rpartition(" : ")[2]
            raise UserError(f"model={path} is not an executable ONNX file: {message}") from error
        metadata_json = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if metadata_json is None:
            raise UserError(f"model={path} has no metadata about its classes and inputs. Use an artifact of compress.")
        try:
            self.metadata = ArtifactMetadata.from_json(metadata_json)
        except ValueError as error:
            raise UserError(f"model={path} is damaged: {first_line(error)}") from error

    def predict(self, location: str, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Returns predictions ``(samples, classes or values)`` for inputs ``(samples, *input_shape)``.

        Args:
            location: Source of the inputs, for messages.
            inputs: Numbers of any type.

        Raises:
            UserError: If the inputs have another shape, are not finite, or need too much memory.
        """
        expected_shape = tuple(self.metadata.input_shape)
        if inputs.shape[1:] != expected_shape:
            raise UserError(
                f"{location} contains samples of shape {inputs.shape[1:]}, expected (samples, "
                f"{', '.join(map(str, expected_shape))})"
            )
        (model_input,) = self._session.get_inputs()
        dtype = np.dtype(_INPUT_DTYPES.get(model_input.type, np.float32))
        with np.errstate(over="ignore", invalid="ignore"):  # unrepresentable numbers are detected below
            numbers = inputs.astype(dtype)
        num_unusable = np.sum(~np.isfinite(numbers) if dtype.kind == "f" else numbers != inputs)
        if num_unusable:
            problem = "NaN, infinite or too large for float32. Replace them." if dtype.kind == "f" else f"not {dtype}"
            raise UserError(f"{location}: {num_unusable:,} of its numbers are {problem}")
        try:
            outputs: Any = self._session.run(None, {model_input.name: numbers})[0]
        except Exception as error:
            raise UserError(f"{self.path} failed for {location}: {first_line(error)}") from error
        return outputs


_INPUT_DTYPES: dict[str, Any] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8}
"""Types of inputs other than float32."""


def _find_model_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"model={path} does not exist. Choose the file of an artifact, or its folder.")
    if not (path / MODEL_FILE).is_file():
        other_files = sorted(file.name for file in path.glob("*.onnx"))
        hint = (
            f"Choose one of {', '.join(other_files)}."
            if other_files
            else "compress writes it if an artifact fits the budget. All artifacts are in artifacts/."
        )
        raise UserError(f"model={path} contains no {MODEL_FILE}. {hint}")
    return path / MODEL_FILE


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
