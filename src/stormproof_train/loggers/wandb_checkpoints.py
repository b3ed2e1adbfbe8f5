"""The best checkpoints of a run, as an artifact of W&B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import wandb

from stormproof import CheckpointRecovery
from stormproof.checkpoint import Checkpoint

UPLOAD_SECONDS = 1800
"""How long a run that has ended waits for W&B to take the files of a version."""


def sort_best_first(recovery: CheckpointRecovery) -> list[Checkpoint]:
    """The committed checkpoints of a run: by its monitored metric where there is one, else the newest first.

    Args:
        recovery: of the run.
    """
    candidates = [checkpoint for checkpoint in recovery.store.read_checkpoints() if checkpoint.finite]
    ranked_checkpoints = recovery.retention.sort_by_score(candidates) if recovery.monitored_metric.name else []
    return ranked_checkpoints or candidates[::-1]


def upload_checkpoints(run: Any, checkpoints: Sequence[Checkpoint]) -> None:
    """Uploads checkpoints with their manifests as a version of ``checkpoints-<id of the run>``, and deletes the others.

    Args:
        run: the W&B run. Offline, the version waits for ``wandb sync``, and nothing is deleted.
        checkpoints: the best first; without any, nothing is done.
    """
    if not checkpoints:
        return
    checkpoint_metadata = [
        {"step": checkpoint.step, "epoch": checkpoint.epoch, "score": checkpoint.score} for checkpoint in checkpoints
    ]
    name = f"checkpoints-{run.id}"
    artifact = wandb.Artifact(name, "model", metadata={"best_first": checkpoint_metadata})
    for checkpoint in checkpoints:
        for file in (checkpoint.path, checkpoint.manifest_path):
            artifact.add_file(str(file), name=file.name, policy="immutable", skip_cache=True)
    run.log_artifact(artifact, aliases=["latest", "best"])
    if run.offline or run.disabled:
        return
    artifact.wait(timeout=UPLOAD_SECONDS)
    for version in wandb.Api().artifacts("model", f"{run.entity}/{run.project}/{name}"):
        if version.id != artifact.id:
            version.delete(delete_aliases=True)
