"""Copies of a run's state outside the storage of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stormproof.checkpoint.async_writer import CheckpointWriter
from stormproof.checkpoint.manifest import CommitInfo
from stormproof.checkpoint.resolution import Resolution
from stormproof.checkpoint.store import Store

if TYPE_CHECKING:  # imports torch.distributed.checkpoint, which takes 0.3 s
    from stormproof.checkpoint.sharding.shard_writer import ShardWriter


@dataclass(frozen=True)
class Ranks:
    """Position of a process in its job.

    Attributes:
        rank: Rank of this process.
        local_rank: Rank of this process among those of its node.
        node_rank: Rank of this node.
    """

    rank: int
    local_rank: int
    node_rank: int


@dataclass(frozen=True)
class Fit:
    """Store and writers of a fit that is running.

    Attributes:
        store: Store of the checkpoints, which rank 0 owns.
        ranks: Position of this process.
        writer: Writer of checkpoints on rank 0. None on other ranks.
        shard_writer: Writer of this rank's shard to storage. None if checkpoints are in one file.
    """

    store: Store
    ranks: Ranks
    writer: CheckpointWriter | None
    shard_writer: ShardWriter | None


@dataclass(frozen=True)
class Capture:
    """State of a run between two batches.

    Attributes:
        checkpoint: Lightning checkpoint. Contains no parameters and optimizer states if ``sharded_state`` is set.
        state_keys: Top-level keys with training state.
        sharded_state: Parameters and optimizer states. None if checkpoints are in one file.
        describe: Returns the description of the checkpoint. Called on rank 0.
        pause_start: Time at which training paused, by ``time.monotonic``.
    """

    checkpoint: Mapping[str, Any]
    state_keys: Collection[str]
    sharded_state: Mapping[str, Any] | None
    describe: Callable[[], CommitInfo]
    pause_start: float


class Tier:
    """Keeps copies of a run's state outside the storage of its checkpoints.

    The methods are listed in the order of a run. A tier overrides those that it needs; the others do nothing.
    """

    def commit_newest(self, store: Store, resolution: Resolution, identity: str | None) -> bool:
        """Commits a copy to ``store`` if it is newer than the newest good checkpoint there.

        Each process calls it on its own, before the trainer exists.

        Args:
            store: Store of the checkpoints.
            resolution: Current resolution of ``store``.
            identity: Identity of the run. Not compared if None.

        Returns:
            Whether this or another process committed a copy.

        Raises:
            OSError: If the storage cannot be read.
            StormproofError: If the copy is of another run, or nothing can be resumed without the tier.
        """
        return False

    def commit_newest_of_all_nodes(
        self, store: Store, resolution: Resolution, resolve: Callable[[], Resolution], ranks: Ranks
    ) -> Resolution:
        """Commits the newest copy of any node. All ranks call it together, before rank 0 owns the store.

        Args:
            store: Store of the checkpoints.
            resolution: Resolution of this rank.
            resolve: Returns the current resolution.
            ranks: Position of this process.

        Returns:
            Resolution with the newest checkpoint of all ranks. ``resolution`` itself if nothing newer was committed.

        Raises:
            FolderTakenError: If another run owns the store.
        """
        return resolution

    def start(self, fit: Fit) -> None:
        """Starts to copy, after an attempt has begun. All ranks call it together.

        Raises:
            FolderTakenError: If another running process owns the copies.
        """

    def is_due(self, now: float) -> bool:
        """Returns whether to copy the state now, although no checkpoint is due. Called on rank 0.

        Args:
            now: Current time by ``time.monotonic``, in seconds.
        """
        return False

    def copy(self, capture: Capture) -> None:
        """Copies the state, and returns while the copy is being written. All ranks call it together, if it is due.

        Raises:
            NotResumableError: If torch would refuse to load the state.
        """

    def after_commit(self) -> None:
        """Reacts to a committed checkpoint. Called by the thread of rank 0 that writes."""

    def discard(self) -> None:
        """Deletes copies that are newer than the checkpoints, because the run has diverged. Called on rank 0.

        Raises:
            OSError: If a copy may remain.
        """

    def finish(self, seconds: float, *, waits_for_all: bool = False) -> bool:
        """Waits until the newest checkpoint is copied, before the run ends. All ranks call it together.

        Args:
            seconds: Maximum time, in seconds.
            waits_for_all: Whether to also wait for older checkpoints that the tier keeps.

        Returns:
            Whether the newest checkpoint is copied.
        """
        return True

    def close(self, committed_step: int | None, *, is_interrupted: bool, has_ended: bool) -> None:
        """Ends the threads of this rank. Does nothing if the tier was not started.

        Args:
            committed_step: Step of the last committed checkpoint on rank 0. None without one, and on other ranks.
            is_interrupted: Whether the run ends because of Ctrl-C or a preemption, so that it waits shortly.
            has_ended: Whether training has ended normally.
        """
