"""Finds the split and class folders of an image folder by their names."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_warn
from torchvision.datasets.folder import IMG_EXTENSIONS

from stormproof_train.data.image_file import Sample
from stormproof_train.errors import UserError
from stormproof_train.path_errors import describe_broken_link

_IMAGE_SUFFIXES = (*IMG_EXTENSIONS, ".jfif", ".gif")
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def find_split_folders(path: Path) -> dict[str, Path]:
    """Returns the folder of each split. Without a folder ``train`` that contains folders, it is ``path`` for ``train``.

    Split names are case-insensitive. Hidden folders are ignored.

    Raises:
        UserError: If ``path`` is not a folder, or contains ``train`` together with a folder that is not a split, or two
            folders of the same split.
    """
    if not path.is_dir():
        base_hint = "" if path.is_absolute() else f" (from {Path.cwd()})"
        link = describe_broken_link(path)
        reason = f": {link}" if link else ""
        raise UserError(
            f"data.path={path} {'is not a folder' if path.exists() else 'does not exist'}{base_hint}{reason}"
        )
    names = _list_folders(path)
    train = next((name for name in names if name.lower() == "train"), None)
    if train is None or not _list_folders(path / train):
        return {"train": path}
    folders: dict[str, Path] = {}
    for name in names:
        split = _SPLITS.get(name.lower())
        if split is None:
            raise UserError(
                f"data.path={path} contains the split {train}/ and also {name}/, which is not one of "
                f"{', '.join(f'{split_name}/' for split_name in _SPLITS)}. Rename it, or move it elsewhere."
            )
        if split in folders:
            raise UserError(f"data.path={path} contains both {folders[split].name}/ and {name}/. Remove one of them.")
        folders[split] = path / name
    return folders


def list_classes(folder: Path) -> list[str]:
    """Returns the sorted classes of a split, which are the names of its folders.

    Raises:
        UserError: If there are no folders.
    """
    names = _list_folders(folder)
    if not names:
        raise UserError(f"{folder} contains no folders. Create one folder per class with its images.")
    return names


def list_samples(folder: Path, classes: Sequence[str], train_classes: Sequence[str]) -> list[Sample]:
    """Returns the images of a split and their class indices, sorted by path.

    Other files are ignored with a warning.

    Args:
        folder: Folder of the split.
        classes: Classes of the split.
        train_classes: Classes of the training split, which define the indices.

    Raises:
        UserError: If a class is not in the training split, contains only folders, or has no image.
    """
    for name in classes:
        if name not in train_classes:
            raise UserError(f"{folder / name}: class {name!r} is not in the training split: {', '.join(train_classes)}")
    samples: list[Sample] = []
    ignored_suffixes: Counter[str] = Counter()
    for index, name in enumerate(train_classes):
        if name in classes:
            files = _list_class_files(folder / name)
            images = [file for file in files if _is_image(file)]
            if not images:
                raise UserError(
                    f"{folder / name} contains no images ({', '.join(_IMAGE_SUFFIXES)}). Add images, or remove it."
                )
            samples += [(file, index) for file in images]
            ignored_suffixes.update(Path(file).suffix for file in files if not _is_image(file))
    if ignored_suffixes:
        suffixes = ", ".join(suffix or "no extension" for suffix in sorted(ignored_suffixes))
        files = "1 file is" if ignored_suffixes.total() == 1 else f"{ignored_suffixes.total()} files are"
        rank_zero_warn(f"{folder}: {files} ignored because of the file name extension ({suffixes})")
    return samples


def compute_fingerprint(path: Path, samples: Mapping[str, Iterable[Sample]]) -> str:
    """Returns 16 hex digits of the SHA-256 of the paths of the images below ``path``.

    The paths determine splits and classes. The content is excluded, so that repairing an image does not change the data
    set.
    """
    digest = hashlib.sha256()
    for split in sorted(samples):
        for file, _ in samples[split]:
            digest.update(os.fsencode(f"{split} {os.path.relpath(file, path)}\n"))
    return digest.hexdigest()[:16]


def read_file_sizes(samples: Mapping[str, Iterable[Sample]]) -> list[int]:
    """Returns the sizes of the images in bytes, in the order of :func:`compute_fingerprint`.

    Raises:
        UserError: If an image is a broken link.
    """
    return [_read_file_size(file) for split in sorted(samples) for file, _ in samples[split]]


def _read_file_size(file: str) -> int:
    try:
        return Path(file).stat().st_size
    except OSError as error:
        link = f", a link to {Path(file).readlink()}," if Path(file).is_symlink() else ""
        raise UserError(f"data: the image {file}{link} cannot be read ({error.strerror}). Remove it.") from error


def _list_folders(folder: Path) -> list[str]:
    entries = [entry for entry in folder.iterdir() if not _is_hidden(entry.name)]
    for entry in entries:
        if entry.is_symlink() and not entry.exists() and not _is_image(entry.name):
            raise UserError(f"{describe_broken_link(entry) or f'{entry} is a broken link'}. Remove or repair it.")
    return sorted(entry.name for entry in entries if entry.is_dir())


def _list_class_files(folder: Path) -> list[str]:
    """Returns the files of a class sorted by path, including those in subfolders and linked folders."""
    subfolders = _list_folders(folder)
    if subfolders and not any(_is_image(entry.name) for entry in folder.iterdir()):
        raise UserError(
            f"{folder} contains no images, only folders ({', '.join(subfolders[:3])}{' …' if subfolders[3:] else ''}). "
            "Put the images of each class directly into its folder, and the classes of a split into train/, val/ or "
            "test/."
        )
    listings: list[tuple[str, list[str]]] = []
    visited = {folder.resolve()}
    for root, folders, files in os.walk(folder, followlinks=True):
        real_root = Path(root).resolve()
        real_paths = {(Path(root) / name).resolve(): name for name in sorted(folders) if not _is_hidden(name)}
        # a link may point to a parent folder
        new_folders = {
            target: name
            for target, name in real_paths.items()
            if target not in visited and not real_root.is_relative_to(target)
        }
        folders[:] = new_folders.values()
        visited.update(new_folders)
        listings.append((root, files))
    return [
        os.path.join(root, name)  # noqa: PTH118 (of many files)
        for root, files in sorted(listings)
        for name in sorted(files)
        if not _is_hidden(name)
    ]


def _is_image(file: str) -> bool:
    return file.lower().endswith(_IMAGE_SUFFIXES) and not _is_hidden(os.path.basename(file))  # noqa: PTH119 (of many files)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")
