"""Reads samples from arrays, images or tables in chunks."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stormproof_train.errors import UserError, first_line
from stormproof_train.predict import images
from stormproof_train.predict.images import ImagePreprocessor
from stormproof_train.predict.table import TablePreprocessor

TABLE_SUFFIXES = {".csv", ".tsv", ".txt", ".xlsx"}
CHUNK_SIZE = 256
"""Maximum number of samples in memory if they are read one by one."""


@dataclass(frozen=True)
class Samples:
    """A chunk of samples.

    Attributes:
        unit: Unit of a sample: ``file`` or ``row``.
        names: Name of each sample: its file, or its row number counted from 1.
        inputs: Inputs ``(samples, …)``.
        warnings: Warnings about the samples.
    """

    unit: Literal["file", "row"]
    names: list[str]
    inputs: NDArray[Any]
    warnings: tuple[str, ...] = ()


def read_samples(path: Path, preparation: Mapping[str, Any] | None) -> Iterator[Samples]:
    """Yields the samples of a file or folder in order.

    Args:
        path: An ``.npy`` or ``.npz`` with inputs, or a file that the preparation supports: an image, a folder of
            images, or a table.
        preparation: Conversion of a file to inputs, from the data module of the run. None if it has none.

    Raises:
        UserError: If the input does not exist or is not supported.
    """
    if not path.exists():
        base_hint = "" if path.is_absolute() else f" (from {Path.cwd()})"
        raise UserError(f"input={path} does not exist{base_hint}")
    kind = (preparation or {}).get("kind")
    if path.suffix.lower() in _SUFFIXES:
        yield from _read_array_samples(path)
    elif preparation is not None and kind == "image":
        if path.suffix.lower() in TABLE_SUFFIXES:
            raise UserError(f"input={path}: this network needs an image, or a folder of images")
        yield from _read_image_samples(path, ImagePreprocessor.from_dict(preparation))
    elif preparation is not None and kind == "table":
        if path.is_dir():
            raise UserError(f"input={path}: this network needs a .csv file, not a folder")
        inputs, warnings = TablePreprocessor(preparation).transform(path)
        yield Samples("row", _row_names(0, len(inputs)), inputs, tuple(warnings))
    else:
        raise UserError(f"input={path}: this network needs an .npy or .npz file with arrays as in the training data")


def _read_array_samples(path: Path) -> Iterator[Samples]:
    inputs = _read_array(path)
    for start in range(0, len(inputs), CHUNK_SIZE):
        chunk = inputs[start : start + CHUNK_SIZE]
        yield Samples("row", _row_names(start, len(chunk)), chunk)


def _read_image_samples(path: Path, preparation: ImagePreprocessor) -> Iterator[Samples]:
    files = images.list_images(path)
    for start in range(0, len(files), CHUNK_SIZE):
        chunk = files[start : start + CHUNK_SIZE]
        yield Samples("file", [str(file) for file in chunk], np.stack([preparation.load(file) for file in chunk]))


def _row_names(start: int, count: int) -> list[str]:
    return [str(number) for number in range(start + 1, start + count + 1)]


_SUFFIXES = (".npy", ".npz")
_ARRAY_NAMES = ("inputs", "input")
"""Names of the inputs in an ``.npz`` with several arrays."""


def _read_array(path: Path) -> NDArray[Any]:
    """Returns the numbers ``(samples, …)`` in a file without executing code from it.

    Args:
        path: An ``.npy``, an ``.npz`` with one array, or an ``.npz`` with an array named ``inputs``.

    Raises:
        UserError: If the file cannot be read, or does not contain such an array.

    Example:
        >>> np.savez("samples.npz", inputs=np.zeros((3, 2)), labels=np.zeros(3))
        >>> _read_array(Path("samples.npz")).shape
        (3, 2)
    """
    try:
        content = np.load(path, allow_pickle=False)
        array = content if isinstance(content, np.ndarray) else _select_array(path, content)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        message = first_line(error)
        if "pickle" in message and "Object arrays" not in message:  # NumPy suggests loading the file unsafely
            message = "it is damaged, or has another format"
        raise UserError(f"input={path} cannot be read as an array: {message}") from error
    if array.ndim < 2 or not len(array) or array.dtype.kind not in "fiub":
        raise UserError(
            f"input={path} is an array of shape {array.shape} and type {array.dtype}, expected numbers (samples, …) "
            "with at least one sample"
        )
    return array


def _select_array(path: Path, arrays: Any) -> NDArray[Any]:
    with arrays:
        name = (
            arrays.files[0]
            if len(arrays.files) == 1
            else next((candidate for candidate in _ARRAY_NAMES if candidate in arrays), None)
        )
        if name is None:
            contents = f"the arrays {', '.join(arrays.files)}" if arrays.files else "no array"
            raise UserError(f"input={path} contains {contents}. Name one of them inputs.")
        return arrays[name]
