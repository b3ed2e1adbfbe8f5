"""Reads sharded checkpoints in the format of torch.distributed.checkpoint, without executing code from them."""

from __future__ import annotations

import errno
import io
import os
import pickle
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata

from stormproof.checkpoint.file_names import METADATA_FILE, UNSHARDED_FILE
from stormproof.checkpoint.load_check import find_load_problem, summarize_refusal
from stormproof.checkpoint.sharding.parameter_ids import rekey_to_parameter_ids

OpenFile = Callable[[str], BinaryIO]
_INVALID_METADATA = f"its file {METADATA_FILE} is not valid metadata of torch.distributed.checkpoint"


class ShardReader(FileSystemReader):
    """Reads a sharded checkpoint.

    Unlike torch's reader, unpickles only the classes of which ``Metadata`` consists, and opens only the given files.

    Args:
        open_file: Opens a file by its name in the checkpoint, for reading.
        files: Names of its files.
    """

    def __init__(self, open_file: OpenFile, files: Collection[str]) -> None:
        super().__init__("")
        self._open_file, self._files = open_file, files

    @classmethod
    def from_folder(cls, folder: Path) -> ShardReader:
        """Returns a reader of a folder."""
        return cls(lambda name: (folder / name).open("rb"), {path.name for path in folder.iterdir()})

    # torch's own reader takes any arguments
    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Reads the file ``.metadata``.

        Raises:
            ValueError: If it contains anything else, or refers to a file that is not in the checkpoint.
            OSError: If it cannot be read.
        """
        with self._open_file(METADATA_FILE) as file:
            content = file.read()
        try:
            metadata = _MetadataUnpickler(io.BytesIO(content)).load()
            used_files = {str(info.relative_path) for info in metadata.storage_data.values()}
            missing_name = _find_missing(metadata)
        except MemoryError as error:  # says nothing about the checkpoint
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
        except Exception as error:  # a crafted file can make pickle raise any exception
            raise ValueError(f"{_INVALID_METADATA}: {error}") from error
        if not isinstance(metadata, Metadata):
            raise ValueError(_INVALID_METADATA)  # noqa: TRY004 (the type comes from the file)
        if missing_name is not None:
            raise ValueError(f"its file {METADATA_FILE} has no position for a part of {missing_name}")
        unknown_files = used_files - set(self._files)
        if unknown_files:
            name = min(unknown_files)
            raise ValueError(f"its file {METADATA_FILE} refers to {name!r:.60}, which is not a file of this checkpoint")
        return metadata

    def read_objects(self, metadata: Metadata) -> dict[str, Any]:
        """Returns all values that are not tensors, by name.

        Raises:
            ValueError: If ``torch.load(weights_only=True)`` refuses one.
            OSError: If a file cannot be read.
        """
        return {name: _load_object(name, content) for name, content in self._open_objects(metadata)}

    def read_tensors(self, metadata: Metadata, tensors: Mapping[str, torch.Tensor]) -> None:
        """Reads tensors in place, by name. Reads only this rank's shard of a ``DTensor``.

        Uses no collective, so that no rank waits for one that failed.

        Raises:
            OSError: If a file cannot be read.
            ValueError: If a tensor has another shape in the checkpoint.
        """
        self.fs = _Files(self._open_file)
        planner = DefaultLoadPlanner(flatten_state_dict=False)
        planner.set_up_planner(dict(tensors), metadata, is_coordinator=True)
        self.set_up_storage_reader(metadata, is_coordinator=True)
        plan = self.prepare_local_plan(planner.create_local_plan())
        (plan,) = self.prepare_global_plan(planner.create_global_plan([plan]))
        self.read_data(planner.finish_plan(plan), planner).wait()

    def _open_objects(self, metadata: Metadata) -> Iterator[tuple[str, io.BytesIO]]:
        infos = {key.fqn: info for key, info in metadata.storage_data.items()}
        with ExitStack() as stack:
            files: dict[str, BinaryIO] = {}  # an object store sends a request for each file that is opened
            for name, description in metadata.state_dict_metadata.items():
                if isinstance(description, BytesStorageMetadata):
                    info = infos[name]
                    if info.relative_path not in files:
                        files[info.relative_path] = stack.enter_context(self._open_file(info.relative_path))
                    file = files[info.relative_path]
                    file.seek(info.offset)
                    yield name, io.BytesIO(file.read(info.length))


def _find_missing(metadata: Metadata) -> str | None:
    """Returns the name of a value of which a part was not written. None if all parts were."""
    positions = {(key.fqn, None if key.offset is None else tuple(key.offset)) for key in (metadata.storage_data or {})}
    for name, description in metadata.state_dict_metadata.items():
        chunks = description.chunks if isinstance(description, TensorStorageMetadata) else []
        parts = {(name, tuple(chunk.offsets)) for chunk in chunks} or {(name, None)}
        if (name, None) not in positions and not parts <= positions:
            return name
    return None


class _Files(FileSystem):
    """File system with the files of a checkpoint."""

    def __init__(self, open_file: OpenFile) -> None:
        self._open_file = open_file

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Generator[Any, None, None]:
        assert mode == "rb"
        with self._open_file(str(path)) as file:
            yield file


def find_shard_problem(open_file: OpenFile, files: Collection[str]) -> str | None:
    """Returns why unchanged files of a sharded checkpoint cannot be loaded. None if they can be.

    Args:
        open_file: Opens a file by its name in the checkpoint, for reading.
        files: Names of its files, according to the manifest.

    Raises:
        OSError: If a file cannot be read.
    """
    missing_files = {METADATA_FILE, UNSHARDED_FILE} - set(files)
    if missing_files:
        return f"it has no file {min(missing_files)}"
    with open_file(UNSHARDED_FILE) as file:
        problem = find_load_problem(file)
    if problem is not None:
        return f"{UNSHARDED_FILE}: {problem}"
    reader = ShardReader(open_file, files)
    try:
        reader.read_objects(reader.read_metadata())
    except ValueError as error:
        return str(error)
    return None


def load_full(folder: Path) -> dict[str, Any]:
    """Loads a sharded checkpoint as :func:`stormproof.checkpoint.load_checkpoint` does."""
    reader = ShardReader.from_folder(folder)
    metadata = reader.read_metadata()
    tensors = {
        name: torch.empty(description.size, dtype=description.properties.dtype)
        for name, description in metadata.state_dict_metadata.items()
        if isinstance(description, TensorStorageMetadata)
    }
    reader.read_tensors(metadata, tensors)
    state = unflatten({**tensors, **reader.read_objects(metadata)}, metadata)
    checkpoint = torch.load(folder / UNSHARDED_FILE, map_location="cpu", weights_only=True)
    objects = checkpoint.get("stormproof", {}).get("objects", {})  # unchanged, unlike in the shards
    checkpoint["state_dict"] = state.get("state_dict", {}) | objects
    if "current_model_state" in state:  # then the state_dict contains an average
        checkpoint["current_model_state"] = state["current_model_state"] | objects
    optimizers = sorted((name for name in state if name.startswith("optimizer_")), key=lambda name: int(name[10:]))
    checkpoint["optimizer_states"] = [rekey_to_parameter_ids(state[name]) for name in optimizers]
    return checkpoint


def get_path(name: str, metadata: Metadata) -> tuple[str | int, ...]:
    """Returns the keys that lead to a value, such as ``("optimizer_0", "state", "weight", "step")``.

    Args:
        name: Name in the metadata.
        metadata: Metadata of the checkpoint.
    """
    return tuple((metadata.planner_data or {}).get(name, (name,)))


def unflatten(values: Mapping[str, Any], metadata: Metadata) -> dict[str, Any]:
    """Returns nested dicts and lists of the values of a checkpoint.

    Args:
        values: Values by the names in the metadata.
        metadata: Metadata of the checkpoint.
    """
    tree: dict[Any, Any] = {}
    for name, value in values.items():
        *parents, key = get_path(name, metadata)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = value
    return _make_lists(tree)


def _make_lists(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    values = {key: _make_lists(value) for key, value in tree.items()}
    is_list = bool(values) and values.keys() == set(range(len(values)))
    return [values[position] for position in range(len(values))] if is_list else values


def _load_object(name: str, content: io.BytesIO) -> Any:
    try:
        return torch.load(content, weights_only=True)
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
    except Exception as error:  # a crafted file can make torch raise any exception
        raise ValueError(f"torch.load(weights_only=True) refuses {name}: {summarize_refusal(error)}") from error


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickles only the classes of which torch's ``Metadata`` consists."""

    def find_class(self, module_name: str, name: str) -> Any:
        if module_name == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module_name, name) == ("builtins", "getattr"):  # Python 3.11.0 to 3.11.3, for a member of an enumeration
            return _get_memory_format
        if (module_name, name) in _METADATA_CLASSES:
            return super().find_class(module_name, name)
        raise pickle.UnpicklingError(f"it contains {module_name}.{name}")


def _get_memory_format(enumeration: object, name: str) -> Any:
    """Returns a member of torch's enumeration of memory formats."""
    if enumeration is not dcp_metadata._MEM_FORMAT_ENCODING:  # noqa: SLF001 (a part of the format)
        raise pickle.UnpicklingError("it contains builtins.getattr")
    return dcp_metadata._MEM_FORMAT_ENCODING[name]  # noqa: SLF001 (as above)


_METADATA_CLASSES = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),  # path of the folder when it was written
    ("pathlib._local", "PosixPath"),  # Python 3.13
    (filesystem.__name__, "_StorageInfo"),
    *(
        (dcp_metadata.__name__, name)
        for name in (
            "Metadata",
            "MetadataIndex",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "TensorProperties",
            "ChunkStorageMetadata",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}
