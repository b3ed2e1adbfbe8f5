"""Starts copying the state to memory, on all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint.store import Store
from stormproof.checkpoint.tiers.memory_copier import MemoryCopier
from stormproof.checkpoint.tiers.memory_folder import SHARED_MEMORY, MemoryFolder, name_last_folder
from stormproof.checkpoint.tiers.peer import PeerReceiver, PeerSender
from stormproof.distributed.collectives import all_gather, broadcast, run_on_rank_zero

if TYPE_CHECKING:  # imports torch.distributed.checkpoint, which takes 0.3 s
    from stormproof.checkpoint.sharding.shard_writer import ShardWriter
    from stormproof.checkpoint.tiers.memory_shard_writer import MemoryShardWriter


def start_memory_tier(
    store: Store, *, attempt: int | None, rank: int, local_rank: int, node_rank: int
) -> MemoryCopier | PeerReceiver | None:
    """Starts copying the state to memory, after an attempt has begun. All ranks call it together.

    Args:
        store: Storage of the checkpoints.
        attempt: Number of the attempt on rank 0. Ignored on other ranks.
        rank: Rank of this process.
        local_rank: Rank of this process among those of its node.
        node_rank: Rank of this node.

    Returns:
        The tier on rank 0, the receiver on the first rank of another node, and None on the other ranks, or if the
        memory cannot be used.
    """
    folder, problem = _prepare_folder(store, local_rank)
    ranks = all_gather((node_rank, local_rank, problem))
    first_node, _, first_problem = ranks[0]
    if first_problem is not None:
        _warn_disabled(first_problem)
        return None
    peers = [number for number, (node, local, _) in enumerate(ranks) if node != first_node and local == 0]
    peer_rank = next((number for number in peers if ranks[number][2] is None), None)
    if peers and peer_rank is None:
        rank_zero_warn(
            "The state is copied only to the memory of rank 0's node, because no other node can keep it: "
            f"{ranks[peers[0]][2]}."
        )
    sender = PeerSender.create() if rank == 0 and peer_rank is not None else None
    address = broadcast(None if sender is None else sender.address)
    if rank == 0:
        assert folder is not None
        assert attempt is not None
        return MemoryCopier(folder, attempt, sender)
    if rank == peer_rank and address is not None:
        assert folder is not None
        return PeerReceiver(folder, address)
    return None


def start_sharded_memory_tier(
    store: Store, storage_writer: ShardWriter, *, rank: int, local_rank: int, node_rank: int
) -> MemoryShardWriter | None:
    """Starts copying sharded states to memory, after an attempt has begun. All ranks call it together.

    Args:
        store: Storage of the checkpoints.
        storage_writer: Writer of this rank's shard to storage.
        rank: Rank of this process.
        local_rank: Rank of this process among those of its node.
        node_rank: Rank of this node.

    Returns:
        The writer of this rank's shards. None if the memory of a node cannot be used.
    """
    from stormproof.checkpoint.tiers.memory_shard_writer import MemoryShardWriter  # noqa: PLC0415 (0.3 s)

    folder, problem = _prepare_folder(store, local_rank)
    ranks = all_gather((node_rank, problem))
    problems = [f"rank {number}: {problem}" for number, (_, problem) in enumerate(ranks) if problem is not None]
    if problems:
        _warn_disabled(problems[0])
        return None
    assert folder is not None
    return MemoryShardWriter(folder, rank, [node for node, _ in ranks], storage_writer)


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


def _warn_disabled(problem: str) -> None:
    rank_zero_warn(
        f"`memory_tier` is disabled: {problem}. Checkpoints are still saved. Make "
        f"{SHARED_MEMORY} writable on all nodes, or set `memory_tier=False`."
    )
