"""Uploads the best checkpoints of a run as a W&B artifact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import wandb

from stormproof import CheckpointRecovery
from stormproof.checkpoint import Checkpoint

UPLOAD_SECONDS = 1800
"""Maximum time that a finished run waits for the upload of the files."""


def sort_best_first(recovery: CheckpointRecovery) -> list[Checkpoint]:
    """Returns the committed checkpoints of a run, the best by the monitored metric first, or the newest without one.

    Args:
        recovery: Callback with the checkpoints of the run.
    """
    candidates = [checkpoint for checkpoint in recovery.store.read_checkpoints() if checkpoint.finite]
    ranked_checkpoints = recovery.retention.sort_by_score(candidates) if recovery.monitored_metric.name else []
    return ranked_checkpoints or candidates[::-1]


def upload_checkpoints(run: Any, checkpoints: Sequence[Checkpoint]) -> None:
    """Uploads checkpoints with their manifests as a version of ``checkpoints-<id of the run>``, and deletes the others.

    Args:
        run: W&B run. If it is offline, the version is uploaded by ``wandb sync``, and nothing is deleted.
        checkpoints: Checkpoints, the best first. If empty, nothing is done.
    """
    if not checkpoints:
        return
    checkpoint_metadata = [
        {"step": checkpoint.step, "epoch": checkpoint.epoch, "score": checkpoint.score} for checkpoint in checkpoints
    ]
    name = f"checkpoints-{run.id}"
    artifact = wandb.Artifact(name, "model", metadata={"best_first": checkpoint_metadata})
    for checkpoint in checkpoints:
        folder = checkpoint.path.parent
        for file in (*(folder / name for name in checkpoint.stored_files), checkpoint.manifest_path):
            artifact.add_file(str(file), name=str(file.relative_to(folder)), policy="immutable", skip_cache=True)
    run.log_artifact(artifact, aliases=["latest", "best"])
    if run.offline or run.disabled:
        return
    artifact.wait(timeout=UPLOAD_SECONDS)
    for version in wandb.Api().artifacts("model", f"{run.entity}/{run.project}/{name}"):
        if version.id != artifact.id:
            version.delete(delete_aliases=True)
