"""Folders of small, real sharded checkpoints."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from stormproof.checkpoint import Checkpoint, CommitInfo, Store
from stormproof.checkpoint.sharding.shard_writer import ShardWriter
from stormproof.checkpoint.storage import ObjectStorage


def make_sharded_state(step: int) -> dict[str, Any]:
    """Returns the parameters and optimizer states of 40 weights, which depend on the step."""
    weight = torch.arange(40, dtype=torch.float32) + step
    return {
        "state_dict": {"weight": weight, "bias": torch.zeros(2)},
        "optimizer_0": {
            "state": {"weight": {"step": torch.tensor(float(step)), "exp_avg": weight / 2}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": ["bias", "weight"]}],
        },
    }


def commit_shards(
    store: Store,
    step: int,
    *,
    attempt: int = 1,
    shards: ShardWriter | None = None,
    fence: Callable[[], object] | None = None,
) -> Checkpoint:
    shards = shards or ShardWriter(store.storage, 0)
    shards.plan(make_sharded_state(step))
    shards.stage()
    rest = {"global_step": step, "epoch": step // 100}
    return store.commit_sharded(
        lambda folder: shards.write(folder, rest),
        CommitInfo(step=step, epoch=step // 100, world_size=1),
        attempt=attempt,
        fence=fence,
    )


def make_sharded_store(folder: Path | ObjectStorage, steps: Sequence[int] = (10, 20, 30)) -> Store:
    """Creates a folder or prefix with one attempt and a sharded checkpoint at each of ``steps``."""
    store = Store(folder)
    store.begin_attempt(store.resolve())
    for step in steps:
        commit_shards(store, step)
    return store
