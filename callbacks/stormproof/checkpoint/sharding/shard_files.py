"""Writes the files of one rank in the format of torch.distributed.checkpoint."""

from __future__ import annotations

import io
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from stormproof.checkpoint.fault_points import reach_fault_point
from stormproof.checkpoint.file_names import METADATA_FILE, UNSHARDED_FILE, format_shard_name
from stormproof.checkpoint.hashing import StoredFile, put_hashed
from stormproof.checkpoint.sharding.shard_plan import PlannedValue
from stormproof.checkpoint.storage import Storage


class ShardFiles:
    """Writes files of a sharded checkpoint.

    Args:
        storage: Storage of the checkpoints.
        folder: Name of the checkpoint's folder in the storage, which exists.

    Attributes:
        files: Files written so far.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder
        self.files: dict[str, StoredFile] = {}

    def write_shard(self, rank: int, plan: SavePlan, values: Mapping[MetadataIndex, PlannedValue]) -> list[WriteResult]:
        """Writes the shard of one rank.

        Args:
            rank: Rank of this process.
            plan: Items to write.
            values: Their values, in host memory.

        Returns:
            Positions of the items, for :meth:`write_metadata`.

        Raises:
            OSError: If the storage fails.
        """
        results: list[WriteResult] = []

        def write(file: BinaryIO) -> None:
            writer = _make_writer(self._folder, file)
            results.extend(writer.write_data(plan, _StagedPlanner(values)).wait())

        self._put(format_shard_name(rank), write, "shard")
        return results

    def write_unsharded_state(self, checkpoint: Mapping[str, Any]) -> None:
        """Writes the checkpoint without parameters and optimizer states."""
        self._put(UNSHARDED_FILE, lambda file: torch.save(checkpoint, file), "unsharded state")

    def write_metadata(self, metadata: Metadata, results: Collection[list[WriteResult]]) -> None:
        """Writes the file ``.metadata``.

        Args:
            metadata: Names and shapes of all tensors.
            results: From :meth:`write_shard` of each rank.
        """
        self._put(METADATA_FILE, lambda file: _make_writer(self._folder, file).finish(metadata, [*results]), "metadata")

    def _put(self, name: str, write: Any, label: str) -> None:
        self.files[name] = put_hashed(
            self._storage,
            f"{self._folder}/{name}",
            write,
            lambda stage: reach_fault_point(f"{label} {stage}"),
            lambda: reach_fault_point(f"{label} half written"),
        )


def _make_writer(folder: str, file: BinaryIO) -> FileSystemWriter:
    """Returns torch's writer, which writes to ``file``."""
    # per_thread_copy_ahead=0: the tensors are in host memory, and torch need not use the GPU
    writer = FileSystemWriter(folder, sync_files=False, per_thread_copy_ahead=0, thread_count=1)
    writer.fs = _OneFile(file)
    return writer


class _OneFile(FileSystem):
    """File system of which all files are the same open file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Generator[io.IOBase, None, None]:
        yield self._file  # type: ignore[misc]  # a BinaryIO that is an IOBase

    def rename(self, path: Any, new_path: Any) -> None:
        pass

    def exists(self, path: Any) -> bool:
        return False


class _StagedPlanner(DefaultSavePlanner):
    """Planner whose values are already computed."""

    def __init__(self, values: Mapping[MetadataIndex, PlannedValue]) -> None:
        super().__init__()
        self._values = values

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        value = self._values[write_item.index]
        return io.BytesIO(value) if isinstance(value, bytes) else value
