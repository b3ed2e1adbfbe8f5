"""Copies of a run's state outside the storage of its checkpoints: in another storage, and in the memory of nodes."""

from __future__ import annotations

from dataclasses import replace

from stormproof.checkpoint.retention import Retention
from stormproof.checkpoint.storage import Storage
from stormproof.checkpoint.store import Store
from stormproof.checkpoint.tiers.memory_tier import MemoryTier
from stormproof.checkpoint.tiers.mirror import Mirror
from stormproof.checkpoint.tiers.tier import Tier


def make_tiers(
    store: Store,
    retention: Retention,
    *,
    mirror: Storage | None,
    mirror_keep_last: int,
    memory_tier: bool,
) -> list[Tier]:
    """Returns the tiers of a run, in the order in which a resume asks them for a newer state.

    Args:
        store: Store of the checkpoints.
        retention: Checkpoints to keep in the store.
        mirror: Storage for copies of the checkpoints. Disabled if None.
        mirror_keep_last: Number of the newest copies to keep. Must be at least 2.
        memory_tier: Whether to copy the state to the memory of nodes.

    Raises:
        ValueError: If ``mirror_keep_last`` is below 2, or ``mirror`` is set and the store is not in a folder. Also if
            ``memory_tier`` is set and the system has no ``/dev/shm``.
    """
    if mirror_keep_last < 2:
        raise ValueError(
            f"`mirror_keep_last` must be at least 2, so that a damaged checkpoint has a predecessor, got "
            f"{mirror_keep_last}."
        )
    tiers: list[Tier] = []
    if mirror is not None:
        if store.storage.folder is None:
            raise ValueError(
                f"`mirror` requires a folder as `dirpath`, got `dirpath={store.location}`. Pass a folder, or omit "
                "`mirror`."
            )
        tiers.append(Mirror(mirror, replace(retention, keep_last=mirror_keep_last)))
    if memory_tier:
        tiers.append(MemoryTier())
    return tiers
