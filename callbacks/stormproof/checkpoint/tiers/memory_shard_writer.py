"""Writes each rank's shard of a copy to the memory of its node, and sends it to another node."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stormproof.checkpoint.file_names import METADATA_FILE, UNSHARDED_FILE, format_shard_name
from stormproof.checkpoint.manifest import Checkpoint, decode_manifest
from stormproof.checkpoint.sharding.rank_channel import Report, raise_first_error
from stormproof.checkpoint.sharding.shard_writer import ShardWriter
from stormproof.checkpoint.tiers.memory_folder import MemoryFolder
from stormproof.checkpoint.tiers.peer import PeerReceiver, PeerSender, warn_without_peer
from stormproof.distributed.collectives import all_gather

SEND_TIMEOUT_SECONDS = 300.0
"""Maximum time for all ranks to send their files to another node, in seconds."""
CLOSE_TIMEOUT_SECONDS = 10.0
"""Maximum time to wait for other ranks at the end of training, in seconds."""


@dataclass(frozen=True)
class ManifestRequest:
    """Asks a rank to send its files to another node, and the first rank of each node to add the manifest.

    Attributes:
        folder: Name of the checkpoint's folder.
        manifest: Content of the manifest.
    """

    folder: str
    manifest: bytes


@dataclass(frozen=True)
class ClearRequest:
    """Asks the first rank of each node to delete copies.

    Attributes:
        keeps_newest: Whether to keep the newest copy with a manifest.
    """

    keeps_newest: bool


class MemoryShardWriter(ShardWriter):
    """Writes this rank's shard of each copy in memory, and sends it to a rank of the next node.

    A copy is a sharded checkpoint whose storage is the memory of all nodes. The writer has its own host buffers, so
    that slow storage does not delay copies. All ranks create the writer together.

    Args:
        folder: Folder in the memory of this node.
        rank: Rank of this process.
        nodes: Node rank of each rank.
        storage_writer: Writer of this rank's shard to storage. Provides the names of tensors that may be non-finite.

    Attributes:
        folder: Folder in the memory of this node.
        has_sent: Whether all ranks have sent the last copy to other nodes. True with one node.
    """

    def __init__(self, folder: MemoryFolder, rank: int, nodes: Sequence[int], storage_writer: ShardWriter) -> None:
        self.folder, self._storage_writer = folder, storage_writer
        self.has_sent = True
        self._is_first_on_node = nodes.index(nodes[rank]) == rank
        targets = [find_target(nodes, source) for source in range(len(nodes))]
        shard_nodes = [*nodes, *(nodes[target] for target in targets if target is not None)]
        self._shards_on_node = shard_nodes.count(nodes[rank])
        self._problem: str | None = None  # last error of the sender, until a report contains it
        self._has_warned = False
        self._sender = None if targets[rank] is None else PeerSender.create(self._record_problem)
        addresses = all_gather(None if self._sender is None else self._sender.address)
        for source, address in enumerate(addresses):
            if address is not None and targets[source] == rank:
                PeerReceiver(folder, address)
        super().__init__(folder.storage, rank)

    def stage(self) -> None:
        """Copies this rank's shard into host memory, so that training can continue."""
        self._baseline_names = self._storage_writer.baseline_names
        super().stage()

    def send_and_add_manifest(self, checkpoint: Checkpoint, manifest: bytes) -> None:
        """Sends the files of all ranks to the next node, and writes the manifest on all nodes. Runs on rank 0.

        Warns once if files cannot be sent.

        Raises:
            OSError: If the memory of a node is full, or a rank has ended.
        """
        reports = self._request(ManifestRequest(checkpoint.path.name, manifest), SEND_TIMEOUT_SECONDS)
        raise_first_error(reports)
        problems = [f"rank {rank}: {report.warning}" for rank, report in enumerate(reports) if report.warning]
        self.has_sent = not problems
        if problems and not self._has_warned:
            self._has_warned = True
            warn_without_peer(problems[0])

    def clear(self, seconds: float, *, keeps_newest: bool = False) -> None:
        """Deletes the copies on all nodes. Runs on rank 0.

        Args:
            seconds: Maximum time to wait for the other ranks, in seconds.
            keeps_newest: Whether to keep the newest copy with a manifest.

        Raises:
            OSError: If a rank has ended, or does not reply in time.
        """
        raise_first_error(self._request(ClearRequest(keeps_newest), seconds))

    def close(self, *, is_interrupted: bool = False, has_ended: bool = False) -> None:
        """Ends the threads.

        Args:
            is_interrupted: Whether to skip the wait for the last write.
            has_ended: Whether training has ended normally. If True, the other ranks wait until rank 0 has deleted the
                copies, and rank 0 waits for their threads, for at most ``CLOSE_TIMEOUT_SECONDS``.
        """
        deadline = time.monotonic() + CLOSE_TIMEOUT_SECONDS
        if has_ended and self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_SECONDS)
        super().close(is_interrupted=is_interrupted)
        if has_ended and self._rank == 0:  # if rank 0 exits first, torch logs connection errors on the other ranks
            for rank in range(1, self._world_size):
                while self._pause_for(rank, deadline):
                    pass
        if self._sender is not None:
            self._sender.close()

    def start_close_timeout(self) -> None:
        """Limits the wait for the other ranks to 60 s, because the run ends."""
        super().start_close_timeout()
        if self._sender is not None:
            self._sender.is_closing = True

    def _execute(self, request: Any) -> Report:
        if isinstance(request, ManifestRequest):
            return self._send_and_add_manifest(request)
        if isinstance(request, ClearRequest):
            if self._is_first_on_node and request.keeps_newest:
                self.folder.delete_all_but_newest()
            elif self._is_first_on_node:
                self.folder.clear()
            return Report()
        return super()._execute(request)

    def _write_shard(self, save_id: int, folder: str) -> Report:
        self.folder.make_room(folder, self._shards_on_node * self._stager.staged_bytes)
        return super()._write_shard(save_id, folder)

    def _send_and_add_manifest(self, request: ManifestRequest) -> Report:
        checkpoint, _ = decode_manifest(request.manifest, self.folder.path / request.folder)
        own_names = {format_shard_name(self._rank), *((METADATA_FILE, UNSHARDED_FILE) if self._rank == 0 else ())}
        for name, file in (checkpoint.files or {}).items():
            if self._sender is not None and name in own_names:
                self._sender.send_file(self.folder, f"{request.folder}/{name}", file)
        if self._is_first_on_node:
            self.folder.add_manifest(checkpoint, request.manifest)
        problem, self._problem = self._problem, None
        return Report(warning=problem)

    def _record_problem(self, problem: str) -> None:
        self._problem = problem


def find_target(nodes: Sequence[int], rank: int) -> int | None:
    """Returns the rank on the next node to which ``rank`` sends its files. None with one node.

    Args:
        nodes: Node rank of each rank.
        rank: Rank that sends.

    Example:
        >>> [find_target([0, 0, 1, 1, 4], rank) for rank in range(5)]
        [2, 3, 4, 4, 0]
    """
    order = list(dict.fromkeys(nodes))
    if len(order) == 1:
        return None
    next_node = order[(order.index(nodes[rank]) + 1) % len(order)]
    targets = [target for target, node in enumerate(nodes) if node == next_node]
    return targets[nodes[:rank].count(nodes[rank]) % len(targets)]
