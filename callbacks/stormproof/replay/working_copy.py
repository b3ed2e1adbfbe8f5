"""Copies the working folder of a command, so that certification never changes the user's files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from stormproof.replay.not_certifiable import NotCertifiable

MARKER_NAME = ".stormproof-certify"
"""File that marks an output folder of ``certify``, which a later certification may overwrite."""


def prepare_output(folder: Path, source: Path) -> None:
    """Creates an empty output folder. Deletes the content of a former one.

    Raises:
        NotCertifiable: If the folder exists and is not a former output folder, or contains the working folder.
    """
    if source.resolve().is_relative_to(folder.resolve()):
        raise NotCertifiable(f"`{folder}` contains the working folder. Pass a different folder with --output.")
    if folder.exists() and not (folder / MARKER_NAME).is_file():
        raise NotCertifiable(
            f"`{folder}` already exists and was not created by certify. Pass a different folder with --output."
        )
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER_NAME).touch()


def copy_working_folder(source: Path, target: Path, *, output: Path, links: Sequence[Path] = ()) -> None:
    """Copies a folder, without the output folder of the certification.

    The copy links to environments of installed packages. Symbolic links to missing places outside are left out.

    Args:
        source: Working folder of the command.
        target: Folder to create.
        output: Output folder, which is not copied.
        links: Files and folders below ``source`` that the copy links to instead of copying them.

    Raises:
        NotCertifiable: If a symbolic link leads out of the folder, or a link is not below it.
    """
    source = source.resolve()
    skipped = {output.resolve(), *(_check_link(source, path) for path in links)}
    linked = _without_nested({*skipped, *_find_environments(source, skipped)} - {output.resolve()})
    skipped |= {*linked, *(link for link in _outgoing_links(source, {*skipped, *linked}) if not link.exists())}

    def ignore(folder: str, names: list[str]) -> list[str]:
        parent = Path(folder)
        return [name for name in names if parent / name in skipped or _is_special(parent / name)]

    for link in _outgoing_links(source, skipped):
        raise NotCertifiable(
            f"`{link.relative_to(source)}` is a symbolic link to a place outside the working folder. "
            f"Pass --link {link.relative_to(source)} to link to its target instead of copying it."
        )
    shutil.copytree(source, target, symlinks=True, ignore=ignore)
    _move_links(source, target)
    for path in linked:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(path)


def copy_files(source: Path, target: Path) -> None:
    """Copies the files of a working copy, without sockets and pipes."""

    def ignore(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if _is_special(Path(folder, name))]

    shutil.copytree(source, target, symlinks=True, ignore=ignore)


def _move_links(source: Path, target: Path) -> None:
    """Lets the symbolic links of the copy lead into the copy, also absolute ones."""
    for folder, folder_names, file_names in os.walk(target):
        for name in (*folder_names, *file_names):
            copy = Path(folder, name)
            if not copy.is_symlink():
                continue
            destination = Path(os.path.realpath(source / copy.relative_to(target)))  # a loop is no error
            moved = os.path.relpath(target / destination.relative_to(source), copy.parent)
            if os.readlink(copy) != moved:  # noqa: PTH115 (a text to compare)
                copy.unlink()
                copy.symlink_to(moved)


def move_paths(text: str, source: Path, target: Path) -> str:
    """Returns text in which the working folder is replaced by its copy, such as an argument or ``PYTHONPATH``."""
    old = str(source.resolve())
    parts = text.split(old)
    moved = parts[0]
    for part in parts[1:]:
        moved += (str(target) if not part or part[0] in "/:,'\" " else old) + part
    return moved


def _without_nested(paths: set[Path]) -> list[Path]:
    return [path for path in sorted(paths) if paths.isdisjoint(path.parents)]


def _check_link(source: Path, path: Path) -> Path:
    linked = Path(os.path.abspath(source / path))  # noqa: PTH100 (resolve() would follow a symbolic link)
    if not linked.exists():
        raise NotCertifiable(f"--link {path} does not exist.")
    if not linked.is_relative_to(source) or linked == source:
        raise NotCertifiable(f"--link {path} is not inside the working folder.")
    return linked


def _find_environments(source: Path, skipped: set[Path]) -> Iterator[Path]:
    """Yields folders of installed packages: virtual and conda environments, and ``node_modules``."""
    for folder, folder_names, _ in os.walk(source):
        paths = [Path(folder, name) for name in folder_names]
        environments = {path for path in paths if path not in skipped and _is_environment(path)}
        yield from environments
        folder_names[:] = [path.name for path in paths if path not in environments | skipped]


def _is_environment(path: Path) -> bool:
    return path.name == "node_modules" or (path / "pyvenv.cfg").is_file() or (path / "conda-meta").is_dir()


def _outgoing_links(source: Path, skipped: set[Path]) -> Iterator[Path]:
    for folder, folder_names, file_names in os.walk(source):
        parent = Path(folder)
        folder_names[:] = [name for name in folder_names if parent / name not in skipped]
        for name in (*folder_names, *file_names):
            path = parent / name
            if path.is_symlink() and path not in skipped and not Path(os.path.realpath(path)).is_relative_to(source):
                yield path


def _is_special(path: Path) -> bool:
    """Returns whether a path is a socket, pipe or device, which cannot be copied."""
    return not path.is_symlink() and not path.is_file() and not path.is_dir()
