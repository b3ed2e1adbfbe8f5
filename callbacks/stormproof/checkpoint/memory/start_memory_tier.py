"""Starts copying the state to memory, on all ranks."""

from __future__ import annotations

from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint.memory.memory_folder import MemoryFolder, name_folder
from stormproof.checkpoint.memory.memory_tier import MemoryTier
from stormproof.checkpoint.memory.peer import PeerReceiver, PeerSender
from stormproof.checkpoint.store import Store
from stormproof.distributed.collectives import all_gather, broadcast, run_on_rank_zero


def start_memory_tier(store: Store, *, rank: int, local_rank: int, node_rank: int) -> MemoryTier | PeerReceiver | None:
    """Starts copying the state to memory, after an attempt has begun. All ranks call it together.

    Args:
        store: Storage of the checkpoints.
        rank: Rank of this process.
        local_rank: Rank of this process among those of its node.
        node_rank: Number of this node.

    Returns:
        The tier on rank 0, the receiver on the first rank of another node, and None on the other ranks, or if the
        memory cannot be used.
    """
    attempt = run_on_rank_zero(lambda: store.read_attempts()[-1])
    name = run_on_rank_zero(lambda: name_folder(store.backend.absolute_location, attempt))
    folder = problem = None
    if local_rank == 0:
        try:
            folder = MemoryFolder(name)
            folder.prepare()
        except OSError as error:
            problem = str(error)
    problems = all_gather(problem)
    if problems[0] is not None:
        rank_zero_warn(f"`memory_tier` is disabled: {problems[0]}. Checkpoints are still saved.")
        return None
    places = all_gather((node_rank, local_rank))
    peer_rank = next((other for other, (node, local) in enumerate(places) if node != places[0][0] and local == 0), None)
    if peer_rank is not None and problems[peer_rank] is not None:
        rank_zero_warn(
            f"The state is copied only to the memory of rank 0's node, because another node cannot keep it: "
            f"{problems[peer_rank]}."
        )
        peer_rank = None
    sender = PeerSender.create() if rank == 0 and peer_rank is not None else None
    address = broadcast(None if sender is None else sender.address)
    if rank == 0:
        assert folder is not None
        return MemoryTier(folder, attempt.number, sender)
    if rank == peer_rank:
        assert folder is not None
        assert address is not None
        return PeerReceiver(folder, address)
    return None
