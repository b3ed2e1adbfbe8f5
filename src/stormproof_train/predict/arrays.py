"""Reads network inputs from NumPy files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stormproof_train.errors import UserError, first_line

SUFFIXES = (".npy", ".npz")
ARRAY_NAMES = ("inputs", "input")
"""Names of the inputs in an ``.npz`` with several arrays."""


def read_array(path: Path) -> NDArray[Any]:
    """Returns the numbers ``(samples, …)`` in a file without executing code from it.

    Args:
        path: An ``.npy``, an ``.npz`` with one array, or an ``.npz`` with an array named ``inputs``.

    Raises:
        UserError: If the file cannot be read, or does not contain such an array.

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
            else next((candidate for candidate in ARRAY_NAMES if candidate in arrays), None)
        )
        if name is None:
            contents = f"the arrays {', '.join(arrays.files)}" if arrays.files else "no array"
            raise UserError(f"input={path} contains {contents}. Name one of them inputs.")
        return arrays[name]
