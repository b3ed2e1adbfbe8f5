"""Logs one W&B history over all attempts of a run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from lightning_fabric.utilities.rank_zero import rank_zero_only
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning.loggers import WandbLogger

from stormproof import CheckpointRecovery
from stormproof.checkpoint import Checkpoint
from stormproof_train.console import print_line
from stormproof_train.loggers.wandb_evaluation import build_charts, summary_values
from stormproof_train.metric_direction import higher_is_better
from stormproof_train.run.metrics_rows import read_rows

STEP_KEY = "step"
"""Number of optimizer steps in each row, the x-axis of all charts."""
PER_ATTEMPT_PREFIXES = ("recovery/", "test/")
"""Groups that a resumed attempt may log at a step that the previous attempt has sent."""


@contextmanager
def tolerate_service_failure() -> Iterator[None]:
    """Converts failures of the W&B service to warnings, so that they do not end training.

    The service may end by a SIGTERM to all processes of a job, or the server may not respond. The file
    ``metrics.csv`` contains all values. The next start sends the missing ones.
    """
    try:
        yield
    except ConnectionError:
        message = "the W&B service has ended; metrics.csv contains the following values, and a resume sends them"
        warnings.warn(message, stacklevel=1)  # shown once
    except wandb.Error as error:
        warnings.warn(f"W&B did not receive a part of the run: {error}", stacklevel=1)


class WandbHistory(WandbLogger):
    """A W&B logger whose rows contain the step explicitly, each step once over all attempts.

    W&B buffers rows for some seconds, so a kill loses the last rows, and a resumed run repeats some steps.
    ``metrics.csv`` contains every row. Missing rows are sent first, and rows that W&B has are not sent again. The
    summary contains the last value of each metric, and for metrics of the task also the best one, as ``best`` and
    ``last``. They cover all attempts, which ``define_metric(summary="max")`` of W&B does not.

    Args:
        run: W&B run. None on ranks that do not log.
        last_sent_step: Last step that W&B has from earlier attempts. -1 without one.
        checkpoints: Maximum number of checkpoints to upload.
    """

    def __init__(self, run: Any, last_sent_step: int = -1, checkpoints: int = 0) -> None:
        super().__init__(experiment=run)
        self._last_sent_step = last_sent_step
        self._last_step = -1
        self._num_checkpoints = checkpoints
        self._pending_metrics: dict[str, float] = {}
        self._best_values: dict[str, float] = {}
        if run is not None:
            run.define_metric(STEP_KEY, hidden=True)
            run.define_metric("epoch", step_metric=STEP_KEY, hidden=True)
            run.define_metric("*", step_metric=STEP_KEY)

    @rank_zero_only
    def send_missing_rows(self, metrics: Path, resume_step: int) -> None:
        """Sends rows of earlier attempts that W&B lacks.

        Args:
            metrics: The run's ``metrics.csv``.
            resume_step: Step from which training resumes. Later rows are not sent.
        """
        if not metrics.exists():
            return
        rows: dict[int, dict[str, float]] = {}
        try:
            for row in read_rows(metrics):  # values of later attempts replace earlier ones
                if row.step < resume_step:
                    epoch_entry = {} if row.epoch is None else {"epoch": row.epoch}
                    rows.setdefault(row.step, {}).update(epoch_entry, **{row.name: row.value})
        except (OSError, ValueError) as error:
            rank_zero_warn(f"Cannot read {metrics} ({error}). Rows of earlier attempts may be missing in W&B.")
        for step in sorted(rows):
            if step > self._last_sent_step:
                self._send_row(rows[step], step)
            else:
                self._update_summary(rows[step])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Sends one row, unless W&B has its step. Values that only this attempt logs are added to the next row.

        Args:
            metrics: Metrics by name.
            step: Step. None for values that belong to the last step, such as a table.
        """
        if step is not None and step <= self._last_sent_step:
            self._last_step = step
            with tolerate_service_failure():
                self._update_summary(metrics)
            self._pending_metrics |= {
                name: value for name, value in metrics.items() if name.startswith(PER_ATTEMPT_PREFIXES)
            }
            return
        with tolerate_service_failure():
            self._send_row({**self._pending_metrics, **metrics}, self._last_step if step is None else step)
        self._pending_metrics = {}

    @rank_zero_only
    def upload_results(self, recovery: CheckpointRecovery | None, folder: Path | None) -> None:
        """Sends charts, summary values and checkpoints of a finished run. Errors are printed and ignored.

        Args:
            recovery: Callback with the run's checkpoints. None to send none.
            folder: Folder of the run, which contains the test results. None if the run has not finished.
        """
        if folder is None:
            return
        run = self.experiment
        try:
            if wandb_charts := build_charts(folder):
                run.summary.update(summary_values(folder))
                self.log_metrics(wandb_charts)
            if recovery is not None:
                upload_checkpoints(run, sort_best_first(recovery)[: self._num_checkpoints])
        except Exception as error:  # noqa: BLE001 (the run has finished, and a failed upload must not fail it)
            print_line(f"warning: W&B did not receive all results of the run: {error!r}")

    def _send_row(self, row: Mapping[str, Any], step: int) -> None:
        self._last_step = step
        self._update_summary(row)
        # W&B rejects rows before its last step, so late values get their own row
        self.experiment.log({**row, STEP_KEY: step}, step=max(step, self._last_sent_step + 1))

    def _update_summary(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            is_higher_better = higher_is_better(name)
            if is_higher_better is None or name.startswith("test/"):  # test metrics have a single value
                continue
            if name not in self._best_values:
                self.experiment.define_metric(name, step_metric=STEP_KEY, summary="none")
            previous_best = self._best_values.get(name, math.nan)
            self._best_values[name] = float(
                np.fmax(value, previous_best) if is_higher_better else np.fmin(value, previous_best)
            )  # fmax and fmin ignore NaN
            self.experiment.summary[name] = {"best": self._best_values[name], "last": value}


def last_offline_step(folder: Path, run_id: str) -> int:
    """Returns the last step in the offline files of a run, or -1 without any."""
    files = sorted(folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    return max((step for file in files for step in _read_steps(file)), default=-1)


def _read_steps(file: Path) -> list[int]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if process.returncode:
        print_line(f"W&B: {file} cannot be read, so its rows will be sent again ({process.stderr.strip()})")
    records = [json.loads(line) for line in process.stdout.splitlines()]
    return [int(record["history"]["step"]["num"]) for record in records if record["type"] == "history"]


_UPLOAD_SECONDS = 1800
"""Maximum time that a finished run waits for the upload of the files."""


def sort_best_first(recovery: CheckpointRecovery) -> list[Checkpoint]:
    """Returns the committed checkpoints of a run, the best by the monitored metric first, or the newest without one."""
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
    artifact.wait(timeout=_UPLOAD_SECONDS)
    for version in wandb.Api().artifacts("model", f"{run.entity}/{run.project}/{name}"):
        if version.id != artifact.id:
            version.delete(delete_aliases=True)
