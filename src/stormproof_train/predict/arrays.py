"""Inputs in a NumPy file: as the data module gives them to the network."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stormproof_train.errors import UserError, first_line

SUFFIXES = (".npy", ".npz")
ARRAY_NAMES = ("inputs", "input")
"""Of the array among several of an ``.npz``."""


def read_array(path: Path) -> NDArray[Any]:
    r"""The numbers (N, …) in a file; nothing in it is executed.

    Args:
        path: an ``.npy``; or an ``.npz`` of one array, or with one called ``inputs``.

    Raises:
        UserError: if it cannot be read, or is no such array.

    Example:
        >>> np.savez("samples.npz", inputs=np.zeros((3, 2)), labels=np.zeros(3))
        >>> read_array(Path("samples.npz")).shape
        (3, 2)
    """
    try:
        content = np.load(path, allow_pickle=False)
        array = content if isinstance(content, np.ndarray) else _select_array(path, content)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        message = first_line(error)
        if "pickle" in message and "Object arrays" not in message:  # NumPy advises to load it unsafely
            message = "it is damaged, or another kind of file"
        raise UserError(f"input={path} cannot be read as an array: {message}") from error
    if array.ndim < 2 or not len(array) or array.dtype.kind not in "fiub":
        raise UserError(
            f"input={path} is an array of shape {array.shape} and type {array.dtype}: give numbers (samples, …), one "
            "sample at least"
        )
    return array


def _select_array(path: Path, arrays: Any) -> NDArray[Any]:
    with arrays:
        name = (
            arrays.files[0]
            if len(arrays.files) == 1
            else next((candidate for candidate in ARRAY_NAMES if candidate in arrays), None)
        )
        if name is None:
            contents = f"the arrays {', '.join(arrays.files)}" if arrays.files else "no array"
            raise UserError(f"input={path} has {contents}: call one inputs")
        return arrays[name]
