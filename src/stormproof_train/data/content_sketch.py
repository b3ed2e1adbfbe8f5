"""Detects that files were replaced by other files with the same names."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import pytorch_lightning as pl

from stormproof.checkpoint import atomic_write
from stormproof_train.errors import UserError
from stormproof_train.mapping_file import read_mapping, read_unless_damaged, warn_once

MAX_FILES, BYTES_PER_FILE = 64, 2**16
"""Maximum number of files in a sketch, and number of bytes read from each file."""
SKETCH_FILE = "files.json"


@runtime_checkable
class HasSketch(Protocol):
    """Data module whose files may be replaced."""

    def sketch(self) -> list[int]:
        """Returns the result of :func:`compute_content_sketch` for its files."""
        ...


def compute_content_sketch(files: Sequence[str]) -> list[int]:
    """Returns checksums of the beginning of up to 64 evenly spaced files, 0 for files that cannot be read."""
    sampled_files = [
        files[index * len(files) // min(MAX_FILES, len(files))] for index in range(min(MAX_FILES, len(files)))
    ]
    return [_checksum(Path(file)) for file in sampled_files]


def _checksum(file: Path) -> int:
    try:
        with file.open("rb") as stream:
            return zlib.crc32(stream.read(BYTES_PER_FILE))
    except OSError:
        return 0


def save_sketch(run: Path, data: pl.LightningDataModule) -> None:
    """Saves the sketch of the files at the start of a run, if the data module has one."""
    if isinstance(data, HasSketch):
        with atomic_write(run / SKETCH_FILE) as file:
            file.write(json.dumps({"sketch": data.sketch()}).encode())


def check_files_unchanged(run: Path, data: pl.LightningDataModule) -> None:
    """Rejects data whose files have the same names as those of a run, but other content.

    Up to half of the files may differ, because files may have been repaired.

    Args:
        run: Folder of a run with the same fingerprint that has trained.
        data: Data module to use with the run.

    Raises:
        UserError: If more than half of the files in the sketch differ.
    """
    if not isinstance(data, HasSketch):
        return
    saved_record = read_unless_damaged(lambda: read_mapping(run / SKETCH_FILE, {"sketch": list})) or {"sketch": []}
    sketch, saved_sketch = data.sketch(), saved_record["sketch"]
    if len(sketch) != len(saved_sketch):
        warn_once(f"{run / SKETCH_FILE} is missing or damaged. Whether the images have changed is not checked.")
        return
    num_changed = sum(current != previous for current, previous in zip(sketch, saved_sketch, strict=True))
    if 2 * num_changed > len(sketch):
        raise UserError(
            f"the run {run} used other images with the same names ({num_changed} of {len(sketch)} compared files "
            "differ). Restore the previous images, or start a new run with another name (name=…)."
        )
