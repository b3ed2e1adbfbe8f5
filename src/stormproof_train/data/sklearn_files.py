"""Reads data sets in the files of scikit-learn without importing it, which takes a second."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np


def read_sklearn_file(name: str, delimiter: str | None = None) -> np.ndarray:
    """Reads numbers from a file in ``sklearn/datasets/data``.

    Args:
        name: Name of the file.
        delimiter: Separator of the columns. None for whitespace.

    Returns:
        Numbers ``(rows, columns)``, or ``(rows,)`` for a single column.

    Example:
        >>> read_sklearn_file("digits.csv.gz", delimiter=",").shape
        (1797, 65)
    """
    spec = find_spec("sklearn")
    assert spec is not None, "the extra [train] contains scikit-learn"
    assert spec.origin is not None
    return np.loadtxt(Path(spec.origin).parent / "datasets" / "data" / name, delimiter=delimiter)
