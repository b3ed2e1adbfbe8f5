"""Where samples come from: arrays, images, a table; a part at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stormproof_train.errors import UserError
from stormproof_train.predict import arrays, images
from stormproof_train.predict.images import ImagePreparation
from stormproof_train.predict.table import TablePreparation

TABLES = {".csv", ".tsv", ".txt", ".xlsx"}
PART = 256
"""Samples that are in memory together, where they are read one by one."""


@dataclass(frozen=True)
class Samples:
    """Some samples.

    Attributes:
        unit: what each is: a ``file`` or a ``row``.
        names: of each, the file or the number of the row from 1.
        inputs: (N, …).
        warnings: sentences.
    """

    unit: Literal["file", "row"]
    names: list[str]
    inputs: NDArray[Any]
    warnings: tuple[str, ...] = ()


def read_samples(path: Path, preparation: Mapping[str, Any] | None) -> Iterator[Samples]:
    """The samples of a file or folder, in its order.

    Args:
        path: an ``.npy`` or ``.npz`` of inputs as they are; else what the preparation is for: an image, a folder of
            them, a table.
        preparation: what the data module of the training said; None where it said nothing.

    Raises:
        UserError: if there is nothing that can be read so.
    """
    if not path.exists():
        below = "" if path.is_absolute() else f" (from {Path.cwd()})"
        raise UserError(f"input={path} is not there{below}")
    kind = (preparation or {}).get("kind")
    if path.suffix.lower() in arrays.ENDINGS:
        yield from _of_array(path)
    elif preparation is not None and kind == "image":
        if path.suffix.lower() in TABLES:
            raise UserError(f"input={path}: this network takes images, or a folder of them")
        yield from _of_images(path, ImagePreparation.read(preparation))
    elif preparation is not None and kind == "table":
        if path.is_dir():
            raise UserError(f"input={path}: this network takes a .csv file, and no folder")
        inputs, warnings = TablePreparation(preparation).of(path)
        yield Samples("row", _numbered(0, len(inputs)), inputs, tuple(warnings))
    else:
        raise UserError(f"input={path}: this network takes arrays, as its data give them: an .npy or .npz file")


def _of_array(path: Path) -> Iterator[Samples]:
    inputs = arrays.read_array(path)
    for first in range(0, len(inputs), PART):
        part = inputs[first : first + PART]
        yield Samples("row", _numbered(first, len(part)), part)


def _of_images(path: Path, preparation: ImagePreparation) -> Iterator[Samples]:
    files = images.image_files(path)
    for first in range(0, len(files), PART):
        part = files[first : first + PART]
        yield Samples("file", [str(file) for file in part], np.stack([preparation.of(file) for file in part]))


def _numbered(first: int, count: int) -> list[str]:
    return [str(number) for number in range(first + 1, first + count + 1)]
