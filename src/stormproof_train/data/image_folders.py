"""Which folder is a split and which a class; nothing is read but names and sizes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from stormproof_train.data.image_file import Sample
from stormproof_train.errors import UserError

_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def split_folders(path: Path) -> dict[str, Path]:
    """The folder of each split: those in ``path`` where it has a ``train`` of folders, else ``path`` for all.

    Raises:
        UserError: if ``path`` is no folder, or has beside ``train`` a folder that is no split.
    """
    if not path.is_dir():
        below = "" if path.is_absolute() else f" (from {Path.cwd()})"
        raise UserError(f"data.path={path} {'is no folder' if path.exists() else 'is not there'}{below}")
    names = _folders_in(path)
    if "train" not in names or not _folders_in(path / "train"):
        return {"train": path}
    unknown = [name for name in names if name not in _SPLITS]
    if unknown:
        raise UserError(
            f"data.path={path} has the split train/, and {unknown[0]}/ beside it, which is none of "
            f"{', '.join(f'{name}/' for name in _SPLITS)}: rename it, or move it away"
        )
    if {"val", "validation"} <= set(names):
        raise UserError(f"data.path={path} has both val/ and validation/: leave one of them")
    return {_SPLITS[name]: path / name for name in names}


def classes_in(folder: Path) -> list[str]:
    """The classes of a split, sorted: its folders.

    Raises:
        UserError: if there is none.
    """
    names = _folders_in(folder)
    if not names:
        raise UserError(f"{folder} has no folders: put the images of each class into one of the class's name")
    return names


def samples_in(folder: Path, classes: Sequence[str], known: Sequence[str]) -> list[Sample]:
    """The images of a split and the indices of their classes, in the order of their names.

    Args:
        folder: the split.
        classes: those that it has.
        known: those of the training split, whose indices count.

    Raises:
        UserError: if a class is none of the known ones, or has no image.
    """
    for name in classes:
        if name not in known:
            raise UserError(f"{folder / name}: the class {name!r} is none of the training split's: {', '.join(known)}")
    indices = {name: index for index, name in enumerate(known) if name in classes}
    samples = make_dataset(str(folder), indices, extensions=IMG_EXTENSIONS, allow_empty=True)
    found = {index for _, index in samples}
    for name, index in indices.items():
        if index not in found:
            raise UserError(
                f"{folder / name} has no images ({', '.join(IMG_EXTENSIONS)}): put some there, or take it away"
            )
    return samples


def fingerprint(path: Path, samples: Mapping[str, Iterable[Sample]]) -> str:
    """Sixteen hex digits of the SHA-256 of the images' names below ``path`` and their sizes; they are not read."""
    digest = hashlib.sha256()
    for split in sorted(samples):
        for file, _ in samples[split]:
            digest.update(os.fsencode(f"{split} {os.path.relpath(file, path)} {Path(file).stat().st_size}\n"))
    return digest.hexdigest()[:16]


def _folders_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
