"""Writes, verifies, finds and deletes checkpoints."""

from stormproof.checkpoint.atomic import atomic_write
from stormproof.checkpoint.fault_points import (
    COMMIT_POINTS,
    PRUNING_POINTS,
    SHARD_POINTS,
    observe_fault_points,
    reach_fault_point,
)
from stormproof.checkpoint.lease import Lease
from stormproof.checkpoint.loading import load_checkpoint
from stormproof.checkpoint.manifest import Checkpoint, CommitInfo
from stormproof.checkpoint.resolution import BadCheckpoint, Resolution
from stormproof.checkpoint.retention import Retention
from stormproof.checkpoint.store import Attempt, Store

__all__ = [
    "COMMIT_POINTS",
    "PRUNING_POINTS",
    "SHARD_POINTS",
    "Attempt",
    "BadCheckpoint",
    "Checkpoint",
    "CommitInfo",
    "Lease",
    "Resolution",
    "Retention",
    "Store",
    "atomic_write",
    "load_checkpoint",
    "observe_fault_points",
    "reach_fault_point",
]
