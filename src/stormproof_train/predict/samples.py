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
from stormproof_train.predict.images import ImagePreprocessor
from stormproof_train.predict.table import TablePreprocessor

TABLE_SUFFIXES = {".csv", ".tsv", ".txt", ".xlsx"}
CHUNK_SIZE = 256
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
        base_hint = "" if path.is_absolute() else f" (from {Path.cwd()})"
        raise UserError(f"input={path} is not there{base_hint}")
    kind = (preparation or {}).get("kind")
    if path.suffix.lower() in arrays.SUFFIXES:
        yield from _read_array_samples(path)
    elif preparation is not None and kind == "image":
        if path.suffix.lower() in TABLE_SUFFIXES:
            raise UserError(f"input={path}: this network takes images, or a folder of them")
        yield from _read_image_samples(path, ImagePreprocessor.from_dict(preparation))
    elif preparation is not None and kind == "table":
        if path.is_dir():
            raise UserError(f"input={path}: this network takes a .csv file, and no folder")
        inputs, warnings = TablePreprocessor(preparation).transform(path)
        yield Samples("row", _row_names(0, len(inputs)), inputs, tuple(warnings))
    else:
        raise UserError(f"input={path}: this network takes arrays, as its data give them: an .npy or .npz file")


def _read_array_samples(path: Path) -> Iterator[Samples]:
    inputs = arrays.read_array(path)
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
