"""An ONNX file of ours, ready to predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from stormproof_train.errors import UserError, first_line
from stormproof_train.predict.facts import KEY, Facts

FILE = "model.onnx"
"""The artifact of a folder."""


class Artifact:
    """Opens an artifact.

    Args:
        path: the file, or a folder with a ``model.onnx``.

    Attributes:
        path: the file.
        facts: what it says of itself.

    Raises:
        UserError: if it is not there, or no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = _file_of(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised
        try:
            self._session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no class in common but this
            told = first_line(error).rpartition(" : ")[2]
            raise UserError(f"model={path} is no ONNX file that can be run: {told}") from error
        written = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        if written is None:
            raise UserError(f"model={path} says nothing of its classes and inputs, as files of this application do")
        try:
            self.facts = Facts.read(written)
        except ValueError as error:
            raise UserError(f"model={path} is damaged: {first_line(error)}") from error

    def predict(self, where: str, inputs: NDArray[Any]) -> NDArray[np.float32]:
        r"""Predictions (N, classes or values) for inputs (N, \*input_shape).

        Args:
            where: they come from, for messages.
            inputs: numbers of any kind.

        Raises:
            UserError: if they are of another shape, not finite, or too many for the memory.
        """
        wanted = tuple(self.facts.input_shape)
        if inputs.shape[1:] != wanted:
            raise UserError(
                f"{where} holds samples of shape {inputs.shape[1:]}, and the network takes {wanted}: give (N, "
                f"{', '.join(map(str, wanted))})"
            )
        (taken,) = self._session.get_inputs()
        kind = np.dtype(_KINDS.get(taken.type, np.float32))
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes infinite, or another number
            numbers = inputs.astype(kind)
        unusable = np.sum(~np.isfinite(numbers) if kind.kind == "f" else numbers != inputs)
        if unusable:
            what = "NaN, infinite or too large for float32: fill them in" if kind.kind == "f" else f"no {kind}"
            raise UserError(f"{where}: {unusable:,} of its numbers are {what}")
        try:
            outputs: Any = self._session.run(None, {taken.name: numbers})[0]
        except Exception as error:
            raise UserError(f"{self.path} cannot be computed for {where}: {first_line(error)}") from error
        return outputs


_KINDS: dict[str, Any] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8}
"""What inputs may be, if not float32."""


def _file_of(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"model={path} is not there: give the file of an artifact, or its folder")
    if not (path / FILE).is_file():
        others = sorted(each.name for each in path.glob("*.onnx"))
        hint = (
            f"choose one: {', '.join(others)}"
            if others
            else "compress writes one where it recommends an artifact; all it made are in artifacts/"
        )
        raise UserError(f"model={path} has no {FILE}; {hint}")
    return path / FILE
