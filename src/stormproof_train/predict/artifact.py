"""An ONNX file of ours, ready to predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from stormproof_train.errors import UserError, first_line
from stormproof_train.predict.artifact_metadata import METADATA_KEY, ArtifactMetadata

MODEL_FILE = "model.onnx"
"""The artifact of a folder."""


class ArtifactSession:
    """Opens an artifact.

    Args:
        path: the file, or a folder with a ``model.onnx``.

    Attributes:
        path: the file.
        metadata: what it says of itself.

    Raises:
        UserError: if it is not there, or no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = _find_model_file(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised
        try:
            self._session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no class in common but this
            message = first_line(error).rpartition(" : ")[2]
            raise UserError(f"model={path} is no ONNX file that can be run: {message}") from error
        metadata_json = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if metadata_json is None:
            raise UserError(f"model={path} says nothing of its classes and inputs, as files of this application do")
        try:
            self.metadata = ArtifactMetadata.from_json(metadata_json)
        except ValueError as error:
            raise UserError(f"model={path} is damaged: {first_line(error)}") from error

    def predict(self, location: str, inputs: NDArray[Any]) -> NDArray[np.float32]:
        r"""Predictions (N, classes or values) for inputs (N, \*input_shape).

        Args:
            location: they come from, for messages.
            inputs: numbers of any kind.

        Raises:
            UserError: if they are of another shape, not finite, or too many for the memory.
        """
        expected_shape = tuple(self.metadata.input_shape)
        if inputs.shape[1:] != expected_shape:
            raise UserError(
                f"{location} holds samples of shape {inputs.shape[1:]}, and the network takes {expected_shape}: give "
                f"(N, "
                f"{', '.join(map(str, expected_shape))})"
            )
        (model_input,) = self._session.get_inputs()
        dtype = np.dtype(_INPUT_DTYPES.get(model_input.type, np.float32))
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes infinite, or another number
            numbers = inputs.astype(dtype)
        num_unusable = np.sum(~np.isfinite(numbers) if dtype.kind == "f" else numbers != inputs)
        if num_unusable:
            problem = "NaN, infinite or too large for float32: fill them in" if dtype.kind == "f" else f"no {dtype}"
            raise UserError(f"{location}: {num_unusable:,} of its numbers are {problem}")
        try:
            outputs: Any = self._session.run(None, {model_input.name: numbers})[0]
        except Exception as error:
            raise UserError(f"{self.path} cannot be computed for {location}: {first_line(error)}") from error
        return outputs


_INPUT_DTYPES: dict[str, Any] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8}
"""What inputs may be, if not float32."""


def _find_model_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"model={path} is not there: give the file of an artifact, or its folder")
    if not (path / MODEL_FILE).is_file():
        other_files = sorted(file.name for file in path.glob("*.onnx"))
        hint = (
            f"choose one: {', '.join(other_files)}"
            if other_files
            else "compress writes one where it recommends an artifact; all it made are in artifacts/"
        )
        raise UserError(f"model={path} has no {MODEL_FILE}; {hint}")
    return path / MODEL_FILE
