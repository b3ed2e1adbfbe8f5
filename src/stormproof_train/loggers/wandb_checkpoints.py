"""The best checkpoints of a run, as an artifact of W&B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import wandb

from stormproof import CheckpointRecovery
from stormproof.checkpoint import Checkpoint

UPLOAD_SECONDS = 1800
"""How long a run that has ended waits for W&B to take the files of a version."""


def best_first(recovery: CheckpointRecovery) -> list[Checkpoint]:
    """The committed checkpoints of a run: by its monitored metric where there is one, else the newest first.

    Args:
        recovery: of the run.
    """
    committed = [each for each in recovery.store.checkpoints() if each.finite]
    ranked = recovery.retention.ranked(committed) if recovery.monitored.name else []
    return ranked or committed[::-1]


def keep_only(run: Any, checkpoints: Sequence[Checkpoint]) -> None:
    """Uploads checkpoints with their manifests as a version of ``checkpoints-<id of the run>``, and deletes the others.

    Args:
        run: the W&B run. Offline, the version waits for ``wandb sync``, and nothing is deleted.
        checkpoints: the best first; without any, nothing is done.
    """
    if not checkpoints:
        return
    described = [{"step": each.step, "epoch": each.epoch, "score": each.score} for each in checkpoints]
    name = f"checkpoints-{run.id}"
    artifact = wandb.Artifact(name, "model", metadata={"best_first": described})
    for each in checkpoints:
        for file in (each.path, each.manifest):
            artifact.add_file(str(file), name=file.name, policy="immutable", skip_cache=True)
    run.log_artifact(artifact, aliases=["latest", "best"])
    if run.offline or run.disabled:
        return
    artifact.wait(timeout=UPLOAD_SECONDS)
    for version in wandb.Api().artifacts("model", f"{run.entity}/{run.project}/{name}"):
        if version.id != artifact.id:
            version.delete(delete_aliases=True)
