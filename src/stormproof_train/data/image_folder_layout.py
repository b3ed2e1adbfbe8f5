"""Which folder is a split and which a class; nothing is read but names and sizes."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_warn
from torchvision.datasets.folder import IMG_EXTENSIONS

from stormproof_train.broken_links import describe_broken_link
from stormproof_train.data.image_file import Sample
from stormproof_train.errors import UserError

_IMAGE_SUFFIXES = (*IMG_EXTENSIONS, ".jfif", ".gif")
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def find_split_folders(path: Path) -> dict[str, Path]:
    """The folder of each split: those in ``path`` where it has a ``train`` of folders, else ``path`` for all.

    A split is known in capitals too. Folders that are hidden, as in all that follows, are left out.

    Raises:
        UserError: if ``path`` is no folder, or has beside ``train`` a folder that is no split, or a split twice.
    """
    if not path.is_dir():
        base_hint = "" if path.is_absolute() else f" (from {Path.cwd()})"
        link = describe_broken_link(path)
        reason = f": {link}" if link else ""
        raise UserError(f"data.path={path} {'is no folder' if path.exists() else 'is not there'}{base_hint}{reason}")
    names = _list_folders(path)
    train = next((name for name in names if name.lower() == "train"), None)
    if train is None or not _list_folders(path / train):
        return {"train": path}
    folders: dict[str, Path] = {}
    for name in names:
        split = _SPLITS.get(name.lower())
        if split is None:
            raise UserError(
                f"data.path={path} has the split {train}/, and {name}/ beside it, which is none of "
                f"{', '.join(f'{split_name}/' for split_name in _SPLITS)}: rename it, or move it away"
            )
        if split in folders:
            raise UserError(f"data.path={path} has both {folders[split].name}/ and {name}/: leave one of them")
        folders[split] = path / name
    return folders


def list_classes(folder: Path) -> list[str]:
    """The classes of a split, sorted: its folders.

    Raises:
        UserError: if there is none.
    """
    names = _list_folders(folder)
    if not names:
        raise UserError(f"{folder} has no folders: put the images of each class into one of the class's name")
    return names


def list_samples(folder: Path, classes: Sequence[str], train_classes: Sequence[str]) -> list[Sample]:
    """The images of a split and the indices of their classes, in the order of their names.

    Other files are left out, with a warning.

    Args:
        folder: the split.
        classes: those that it has.
        train_classes: those of the training split, whose indices count.

    Raises:
        UserError: if a class is none of the known ones, holds only folders, or has no image.
    """
    for name in classes:
        if name not in train_classes:
            raise UserError(
                f"{folder / name}: the class {name!r} is none of the training split's: {', '.join(train_classes)}"
            )
    samples: list[Sample] = []
    ignored_suffixes: Counter[str] = Counter()
    for index, name in enumerate(train_classes):
        if name in classes:
            files = _list_class_files(folder / name)
            images = [file for file in files if _is_image(file)]
            if not images:
                raise UserError(
                    f"{folder / name} has no images ({', '.join(_IMAGE_SUFFIXES)}): put some there, or take it away"
                )
            samples += [(file, index) for file in images]
            ignored_suffixes.update(Path(file).suffix for file in files if not _is_image(file))
    if ignored_suffixes:
        suffixes = ", ".join(suffix or "no ending" for suffix in sorted(ignored_suffixes))
        files = "1 file is" if ignored_suffixes.total() == 1 else f"{ignored_suffixes.total()} files are"
        rank_zero_warn(f"{folder}: {files} left out, which are no images by their names ({suffixes})")
    return samples


def compute_fingerprint(path: Path, samples: Mapping[str, Iterable[Sample]]) -> str:
    """Returns 16 hex digits of the SHA-256 of the paths of the images below ``path``.

    The paths determine splits and classes. The content of the files does not count, so that a repaired image does not
    make another data set.
    """
    digest = hashlib.sha256()
    for split in sorted(samples):
        for file, _ in samples[split]:
            digest.update(os.fsencode(f"{split} {os.path.relpath(file, path)}\n"))
    return digest.hexdigest()[:16]


def read_file_sizes(samples: Mapping[str, Iterable[Sample]]) -> list[int]:
    """Returns the sizes of the images in bytes, in the order in which :func:`compute_fingerprint` counts them.

    Raises:
        UserError: If an image is a link to nothing.
    """
    return [_read_file_size(file) for split in sorted(samples) for file, _ in samples[split]]


def _read_file_size(file: str) -> int:
    try:
        return Path(file).stat().st_size
    except OSError as error:
        link = f", a link to {Path(file).readlink()}," if Path(file).is_symlink() else ""
        raise UserError(f"data: the image {file}{link} cannot be read ({error.strerror}): take it out") from error


def _list_folders(folder: Path) -> list[str]:
    entries = [entry for entry in folder.iterdir() if not _is_hidden(entry.name)]
    for entry in entries:
        if entry.is_symlink() and not entry.exists() and not _is_image(entry.name):
            raise UserError(f"{describe_broken_link(entry) or f'{entry} is a broken link'}: remove or repair it")
    return sorted(entry.name for entry in entries if entry.is_dir())


def _list_class_files(folder: Path) -> list[str]:
    """The files of a class, those in folders of it and behind links too, in the order of their names."""
    subfolders = _list_folders(folder)
    if subfolders and not any(_is_image(entry.name) for entry in folder.iterdir()):
        raise UserError(
            f"{folder} would be a class, and holds only folders "
            f"({', '.join(subfolders[:3])}{' …' if subfolders[3:] else ''}): "
            "put the images of each class right into its folder, and the classes of a split into train/, val/ or test/"
        )
    listings: list[tuple[str, list[str]]] = []
    visited = {folder.resolve()}
    for root, folders, files in os.walk(folder, followlinks=True):
        real_root = Path(root).resolve()
        real_paths = {(Path(root) / name).resolve(): name for name in sorted(folders) if not _is_hidden(name)}
        # a link may lead back to where one comes from
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
