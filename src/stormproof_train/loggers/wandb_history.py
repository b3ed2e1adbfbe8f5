"""One history on Weights & Biases, however often the run was stopped."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from lightning_fabric.utilities.rank_zero import rank_zero_only
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning.loggers import WandbLogger

from stormproof import CheckpointRecovery
from stormproof_train.console import print_line
from stormproof_train.loggers.wandb_checkpoints import sort_best_first, upload_checkpoints
from stormproof_train.loggers.wandb_evaluation import build_charts, summary_values
from stormproof_train.metrics import higher_is_better
from stormproof_train.run.metrics_file import read_rows

STEP_KEY = "step"
"""The number of optimizer steps, in each row: the x-axis of all else."""
PER_ATTEMPT_PREFIXES = ("recovery/", "test/")
"""Groups of which a resumed attempt logs something at a step that the one before had sent."""


@contextmanager
def tolerate_service_failure() -> Iterator[None]:
    """W&B's own process may die, as of a SIGTERM that was meant for all of a job; training does not end by that.

    Nor does it where the server is asked first, as for a table, and has gone. ``metrics.csv`` goes on, and the next
    start sends what W&B lacks.
    """
    try:
        yield
    except ConnectionError:
        message = "W&B's service has ended: metrics.csv has what follows, and W&B gets it if this run goes on"
        warnings.warn(message, stacklevel=1)  # shown once
    except wandb.Error as error:
        warnings.warn(f"W&B lacks some of the run: {error}", stacklevel=1)


class WandbHistory(WandbLogger):
    """A W&B logger whose rows carry the step explicitly, each step once over all attempts.

    W&B keeps a row in memory for some seconds, so that a kill loses the last ones, and a resumed run goes through some
    of the steps before again. ``metrics.csv`` has every row: what W&B lacks from before is sent first, what it has is
    not sent again. The summary has of each metric the last value, of those of a task the best one too, as ``best`` and
    ``last``: over all attempts, which W&B's own ``define_metric(summary="max")`` would forget at each start.

    Args:
        run: the W&B run; None on a rank that does not log.
        last_sent_step: the last step that W&B has from earlier attempts; -1 for none.
        checkpoints: how many W&B is to keep of the run's.
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
        """Sends the rows of earlier attempts that W&B lacks.

        Args:
            metrics: the run's ``metrics.csv``.
            resume_step: the step that training goes on from; later ones come again.
        """
        if not metrics.exists():
            return
        rows: dict[int, dict[str, float]] = {}
        try:
            for row in read_rows(metrics):  # a later attempt's value of a step comes later
                if row.step < resume_step:
                    epoch_entry = {} if row.epoch is None else {"epoch": row.epoch}
                    rows.setdefault(row.step, {}).update(epoch_entry, **{row.name: row.value})
        except (OSError, ValueError) as error:
            rank_zero_warn(f"Cannot read {metrics} ({error}). Rows of earlier attempts may be missing in W&B")
        for step in sorted(rows):
            if step > self._last_sent_step:
                self._send_row(rows[step], step)
            else:
                self._update_summary(rows[step])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Sends one row, unless W&B has its step; what it cannot have of that goes with the next row that is sent.

        Args:
            metrics: by name.
            step: None for what belongs to the last one, like a table.
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
        """Sends what stays of the run; whatever goes wrong is said, and costs nothing.

        Args:
            recovery: has the run's checkpoints; None to send none.
            folder: the run's, which holds what its test has shown; None where it has not finished.
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
        except Exception as error:  # noqa: BLE001 (the training has ended, and must not fail by what shows it)
            print_line(f"warning: W&B lacks some of how the run ended: {error!r}")

    def _send_row(self, row: Mapping[str, Any], step: int) -> None:
        self._last_step = step
        self._update_summary(row)
        # W&B takes no row of a step before the last one it has: what comes so late has a row of its own
        self.experiment.log({**row, STEP_KEY: step}, step=max(step, self._last_sent_step + 1))

    def _update_summary(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            is_higher_better = higher_is_better(name)
            if is_higher_better is None or name.startswith("test/"):  # which comes once
                continue
            if name not in self._best_values:
                self.experiment.define_metric(name, step_metric=STEP_KEY, summary="none")
            previous_best = self._best_values.get(name, math.nan)
            self._best_values[name] = float(
                np.fmax(value, previous_best) if is_higher_better else np.fmin(value, previous_best)
            )  # a NaN gives way
            self.experiment.summary[name] = {"best": self._best_values[name], "last": value}


def last_offline_step(folder: Path, run_id: str) -> int:
    """The last step in the offline files of a run; -1 if there is none.

    Args:
        folder: where W&B was told to keep its files.
        run_id: of the run.
    """
    files = sorted(folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    return max((step for file in files for step in _read_steps(file)), default=-1)


def _read_steps(file: Path) -> list[int]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if process.returncode:
        print_line(f"W&B: {file} cannot be read, and its rows will be sent again ({process.stderr.strip()})")
    records = [json.loads(line) for line in process.stdout.splitlines()]
    return [int(record["history"]["step"]["num"]) for record in records if record["type"] == "history"]
