"""What a disk may hold after a power cut, at any moment of a program that was watched.

The program runs for real. Before each of its file operations (Python's audit events tell of every one) the folder is
compared with what it was: that gives the operations one by one, whatever function made them. A file that was written,
and a name that was created, moved or removed, is on the disk for sure once the file, or the folder of the name, was
fsynced. Until then each is there or not, on its own: names in any order and any subset (a rename may be seen by half:
more than POSIX allows), contents cut off or zeroed anywhere. What holds in all of these states holds on every file
system that keeps what fsync promises.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, product
from math import prod
from pathlib import Path

NameKey = tuple[int, str]  # a folder, and a name in it
Tree = dict[str, bytes | None]  # path: content; None for a folder


@dataclass(frozen=True)
class Write:
    file: int
    content: bytes


@dataclass(frozen=True)
class NameChange:
    key: NameKey
    node: int | None


@dataclass(frozen=True)
class Fsync:
    node: int


@dataclass(frozen=True)
class Note:
    """Something that the program had come to, such as the end of a commit."""

    event: str
    name: str


Operation = Write | NameChange | Fsync | Note
_OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


class Recorder:
    """Writes down the file operations in ``root``, which is empty and on the disk."""

    def __init__(self, root: Path) -> None:
        self.operations: list[Operation] = []
        self._root = root
        self._nodes = {root.stat().st_ino: 0}
        self._count = 0
        self._names: dict[NameKey, int] = {}
        self._contents: dict[int, bytes] = {}
        self.folders = {0}

    def record_changes(self) -> None:
        """Writes down what changed since the last look."""
        names: dict[NameKey, int] = {}
        self._scan(self._root, 0, names)
        for key in names.keys() | self._names.keys():
            if names.get(key) != self._names.get(key):
                self.operations.append(NameChange(key, names.get(key)))
        self._names = names
        live_nodes = {*names.values(), 0}
        self._nodes = {inode: node for inode, node in self._nodes.items() if node in live_nodes}

    def record_fsync(self, descriptor: int) -> None:
        """Writes down an fsync."""
        self.record_changes()
        node = self._nodes.get(os.fstat(descriptor).st_ino)
        if node is not None:
            self.operations.append(Fsync(node))

    def record_event(self, event: str, name: str) -> None:
        self.record_changes()
        self.operations.append(Note(event, name))

    def flush_all(self) -> None:
        """As after a long while: everything was written back."""
        self.record_changes()
        self.operations += [Fsync(node) for node in sorted({*self._names.values(), 0})]

    def _scan(self, folder: Path, node: int, names: dict[NameKey, int]) -> None:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            entry_node = self._nodes.get(entry.inode())
            if entry_node is None:
                self._count += 1
                entry_node = self._nodes[entry.inode()] = self._count
            names[node, entry.name] = entry_node
            if entry.is_dir():
                self.folders.add(entry_node)
                self._scan(Path(entry.path), entry_node, names)
            else:
                content = Path(entry.path).read_bytes()
                if content != self._contents.get(entry_node, b""):
                    self._contents[entry_node] = content
                    self.operations.append(Write(entry_node, content))


_ACTIVE: list[Recorder] = []


def _audit(event: str, _: object) -> None:
    if _ACTIVE and event in _OPERATIONS:
        recorder = _ACTIVE.pop()  # looking opens files too
        try:
            recorder.record_changes()
        finally:
            _ACTIVE.append(recorder)


@contextmanager
def record_operations(root: Path) -> Iterator[Recorder]:
    """Records what the block does to the files in ``root``."""
    if _audit not in _HOOKED:
        sys.addaudithook(_audit)  # it cannot be removed, and does nothing while nobody records
        _HOOKED.append(_audit)
    recorder = Recorder(root)
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        _ACTIVE.clear()
        recorder.record_fsync(descriptor)
        _ACTIVE.append(recorder)

    os.fsync = watched
    _ACTIVE.append(recorder)
    try:
        yield recorder
    finally:
        _ACTIVE.clear()
        os.fsync = fsync


_HOOKED: list[object] = []


class Disk:
    """What is on the disk for sure, and what may be."""

    def __init__(self, folders: set[int]) -> None:
        self._folders = folders
        self._names: dict[NameKey, int | None] = {}
        self._contents: dict[int, bytes] = {}
        self._new_names: dict[NameKey, list[int | None]] = {}
        self._new_contents: dict[int, bytes] = {}

    def apply(self, operation: Operation) -> None:
        if isinstance(operation, Write):
            self._new_contents[operation.file] = operation.content
        elif isinstance(operation, NameChange):
            self._new_names.setdefault(operation.key, []).append(operation.node)
        elif isinstance(operation, Fsync):
            self._sync(operation.node)

    def _sync(self, node: int) -> None:
        if node in self._new_contents:
            self._contents[node] = self._new_contents.pop(node)
        for key in [key for key in self._new_names if key[0] == node]:
            self._names[key] = self._new_names.pop(key)[-1]

    def states(self, most: int, seed: int) -> Iterator[Tree]:
        """The trees that a crash may leave now; if there are more than ``most``, that many of them at random."""
        names = {key: [self._names.get(key), *new] for key, new in self._new_names.items()}
        contents = {
            file: list(torn_writes(self._contents.get(file, b""), new)) for file, new in self._new_contents.items()
        }
        choices = [list(dict.fromkeys(values)) for values in (*names.values(), *contents.values())]
        picks = product(*choices)
        if prod(map(len, choices)) > most:
            generator = random.Random(seed)
            picks = (tuple(generator.choice(values) for values in choices) for _ in range(most))
        for pick in islice(picks, most):
            chosen_names = self._names | dict(zip(names, pick, strict=False))
            chosen_contents = self._contents | dict(zip(contents, pick[len(names) :], strict=True))
            yield dict(self._tree(0, "", chosen_names, chosen_contents))

    def _tree(
        self, folder: int, path: str, names: dict[NameKey, int | None], contents: dict[int, bytes]
    ) -> Iterator[tuple[str, bytes | None]]:
        for (parent, name), node in names.items():
            if parent != folder or node is None:
                continue
            if node in self._folders:
                yield f"{path}{name}", None
                yield from self._tree(node, f"{path}{name}/", names, contents)
            else:
                yield f"{path}{name}", contents.get(node, b"")


def torn_writes(before: bytes, after: bytes) -> Iterator[bytes]:
    """What a file may hold that was ``before`` when it was last synced, and was then written to be ``after``."""
    common_length = next(
        (at for at, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(before)
    )
    rest = len(after) - common_length
    yield before
    yield after
    for share in (0.02, 0.2, 0.4, 0.6, 0.8, 0.98):
        length = common_length + int(rest * share)
        yield after[:length]
        yield after[:length] + bytes(len(after) - length)
        yield after[:common_length] + bytes(length - common_length) + after[length:]
    yield after[:-1]
    yield after[:common_length] + bytes(rest)


def crash_states(
    operations: list[Operation], folders: set[int], most: int = 80
) -> Iterator[tuple[list[Note], list[Note], Tree]]:
    """Each state after each operation, once: the notes before it, those after it, and the tree."""
    disk = Disk(folders)
    notes = [operation for operation in operations if isinstance(operation, Note)]
    visited: set[object] = set()
    passed = 0
    for moment, operation in enumerate(operations):
        disk.apply(operation)
        passed += isinstance(operation, Note)
        for tree in disk.states(most, seed=moment):
            state_key = (passed, frozenset(tree.items()))
            if state_key not in visited:
                visited.add(state_key)
                yield notes[:passed], notes[passed:], tree


def write_tree(tree: Tree, root: Path) -> None:
    """Makes the files of a state."""
    root.mkdir()
    for path, content in tree.items():
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)
