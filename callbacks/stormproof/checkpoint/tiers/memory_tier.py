"""Copies of the newest state in the memory of nodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint.resolution import Resolution
from stormproof.checkpoint.store import Store
from stormproof.checkpoint.tiers import memory_folder
from stormproof.checkpoint.tiers.memory_commit import commit_from_any_node, commit_from_this_node
from stormproof.checkpoint.tiers.memory_copier import MemoryCopier
from stormproof.checkpoint.tiers.memory_folder import MemoryFolder, name_last_folder
from stormproof.checkpoint.tiers.peer import PeerReceiver, PeerSender
from stormproof.checkpoint.tiers.tier import Capture, Fit, Ranks, Tier
from stormproof.distributed.collectives import all_gather, broadcast, run_on_rank_zero
from stormproof.lightning.inactive_copies import InactiveCopies

if TYPE_CHECKING:  # imports torch.distributed.checkpoint, which takes 0.3 s
    from stormproof.checkpoint.sharding.shard_writer import ShardWriter
    from stormproof.checkpoint.tiers.memory_shard_writer import MemoryShardWriter


class MemoryTier(InactiveCopies, Tier):
    """Copies the state to the memory of rank 0's node and of one other node, between the checkpoints.

    With sharded checkpoints, each rank copies its shard to its own node and to one other node. If a memory cannot be
    used, one warning is issued and training continues.

    Raises:
        ValueError: If the system has no ``/dev/shm``.
    """

    def __init__(self) -> None:
        if not memory_folder.SHARED_MEMORY.is_dir():
            raise ValueError(f"`memory_tier=True` requires {memory_folder.SHARED_MEMORY}, which this system lacks.")
        self._fit: Fit | None = None  # during training
        self.copier: MemoryCopier | None = None  # on rank 0
        self._receiver: PeerReceiver | None = None  # on one rank of another node
        self._shard_writer: MemoryShardWriter | None = None  # on all ranks if checkpoints are sharded

    def commit_newest(self, store: Store, resolution: Resolution, identity: str | None) -> bool:
        """Commits the newest copy in the memory of this node if it is newer than the newest good checkpoint."""
        return commit_from_this_node(store, resolution.chosen_checkpoint)

    def commit_newest_of_all_nodes(
        self, store: Store, resolution: Resolution, resolve: Callable[[], Resolution], ranks: Ranks
    ) -> Resolution:
        """Commits the newest copy in the memory of the nodes. Each file is written by a node that has it."""
        return commit_from_any_node(store, resolution, resolve, rank=ranks.rank, local_rank=ranks.local_rank)

    def start(self, fit: Fit) -> None:
        """Prepares the memory of the nodes, and connects rank 0's node with another one."""
        self._fit = fit
        folder, problem = _prepare_folder(fit.store, fit.ranks.local_rank)
        ranks = all_gather((fit.ranks.node_rank, fit.ranks.local_rank, problem))
        problems = [f"rank {rank}: {problem}" for rank, (_, _, problem) in enumerate(ranks) if problem is not None]
        if fit.shard_writer is None:  # another node may lack a copy
            problems = [problem for *_, problem in ranks[:1] if problem is not None]
        if problems:
            rank_zero_warn(
                f"`memory_tier` is disabled: {problems[0]}. Checkpoints are still saved. Make "
                f"{memory_folder.SHARED_MEMORY} writable on all nodes, or set `memory_tier=False`."
            )
        elif fit.shard_writer is not None:
            assert folder is not None
            self._start_sharded(folder, fit, fit.shard_writer, [node for node, _, _ in ranks])
        else:
            self._start_unsharded(folder, fit, ranks)

    def is_due(self, now: float) -> bool:
        """Returns whether to copy the state now. Training pauses for at most 1% of the time."""
        return self.copier is not None and self.copier.is_due(now)

    def copy(self, capture: Capture) -> None:
        """Copies the state into host memory, and starts to write the copy."""
        # a copy is due only after all ranks have written the previous one
        if self._shard_writer is not None:
            assert capture.sharded_state is not None
            self._shard_writer.plan(capture.sharded_state)
            if self.copier is None:  # rank 0 stages in the copier
                self._shard_writer.stage()
        run_on_rank_zero(lambda: self._copy_on_rank_zero(capture))

    def discard(self) -> None:
        """Deletes the copies on all nodes."""
        if self.copier is not None:
            self.copier.clear()

    def close(self, committed_step: int | None, *, is_interrupted: bool, has_ended: bool) -> None:
        """Deletes the copies if a checkpoint of the same or a later step was committed."""
        if self.copier is not None:
            self.copier.close(committed_step, is_interrupted=is_interrupted)
        if self._shard_writer is not None:
            self._shard_writer.close(is_interrupted=is_interrupted, has_ended=has_ended)
        if self._receiver is not None and has_ended:
            self._receiver.wait_until_closed()
        self._fit = self.copier = self._shard_writer = self._receiver = None

    def _start_unsharded(self, folder: MemoryFolder | None, fit: Fit, ranks: list[tuple[int, int, str | None]]) -> None:
        peers = [number for number, (node, local, _) in enumerate(ranks) if node != ranks[0][0] and local == 0]
        peer_rank = next((number for number in peers if ranks[number][2] is None), None)
        if peers and peer_rank is None:
            rank_zero_warn(
                "The state is copied only to the memory of rank 0's node, because no other node can keep it: "
                f"{ranks[peers[0]][2]}."
            )
        sender = PeerSender.create() if fit.writer is not None and peer_rank is not None else None
        address = broadcast(None if sender is None else sender.address)
        if fit.writer is not None:
            assert folder is not None
            self.copier = MemoryCopier(folder, fit.writer.ownership.attempt, sender)
        elif fit.ranks.rank == peer_rank and address is not None:
            assert folder is not None
            self._receiver = PeerReceiver(folder, address)

    def _start_sharded(self, folder: MemoryFolder, fit: Fit, shard_writer: ShardWriter, nodes: list[int]) -> None:
        from stormproof.checkpoint.tiers.memory_shard_writer import MemoryShardWriter  # noqa: PLC0415 (0.3 s)

        self._shard_writer = MemoryShardWriter(folder, fit.ranks.rank, nodes, shard_writer)
        if fit.writer is not None:
            self.copier = MemoryCopier(folder, fit.writer.ownership.attempt, None, self._shard_writer)

    def _copy_on_rank_zero(self, capture: Capture) -> None:
        assert self.copier is not None
        assert self._fit is not None
        writer = self._fit.writer
        assert writer is not None
        checkpoint = writer.make_loadable(capture.checkpoint, capture.state_keys)
        self.copier.save(checkpoint, capture.describe(), writer.has_new_non_finite)
        self.copier.record_pause(time.monotonic() - capture.pause_start)

    def _inactive_state(self) -> dict[str, Any]:
        return dict.fromkeys(("_fit", "copier", "_receiver", "_shard_writer"))


def _prepare_folder(store: Store, local_rank: int) -> tuple[MemoryFolder | None, str | None]:
    """Returns the folder in memory and None, or None and the error. The first rank of a node prepares the folder."""
    name = run_on_rank_zero(lambda: name_last_folder(store))
    try:
        folder = MemoryFolder(name)
        if local_rank == 0:
            folder.prepare()
    except OSError as error:
        return None, str(error)
    return folder, None
