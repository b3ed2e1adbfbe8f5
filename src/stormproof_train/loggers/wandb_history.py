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
from stormproof_train.console import say
from stormproof_train.loggers.wandb_checkpoints import best_first, keep_only
from stormproof_train.loggers.wandb_evaluation import charts, numbers
from stormproof_train.metrics import higher_is_better
from stormproof_train.run.metrics_file import read_rows

STEP = "step"
"""The number of optimizer steps, in each row: the x-axis of all else."""
OF_THIS_ATTEMPT = ("recovery/", "test/")
"""Groups of which a resumed attempt logs something at a step that the one before had sent."""


@contextmanager
def service_may_be_gone() -> Iterator[None]:
    """W&B's own process may die, as of a SIGTERM that was meant for all of a job; training does not end by that.

    Nor does it where the server is asked first, as for a table, and has gone. ``metrics.csv`` goes on, and the next
    start sends what W&B lacks.
    """
    try:
        yield
    except ConnectionError:
        sentence = "W&B's service has ended: metrics.csv has what follows, and W&B gets it if this run goes on"
        warnings.warn(sentence, stacklevel=1)  # shown once
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
        sent: the last step that W&B has from earlier attempts; -1 for none.
        checkpoints: how many W&B is to keep of the run's.
    """

    def __init__(self, run: Any, sent: int = -1, checkpoints: int = 0) -> None:
        super().__init__(experiment=run)
        self._sent = sent
        self._last = -1
        self._checkpoints = checkpoints
        self._waiting: dict[str, float] = {}
        self._best: dict[str, float] = {}
        if run is not None:
            run.define_metric(STEP, hidden=True)
            run.define_metric("epoch", step_metric=STEP, hidden=True)
            run.define_metric("*", step_metric=STEP)

    @rank_zero_only
    def send_what_is_missing(self, metrics: Path, before: int) -> None:
        """Sends the rows of earlier attempts that W&B lacks.

        Args:
            metrics: the run's ``metrics.csv``.
            before: the step that training goes on from; later ones come again.
        """
        if not metrics.exists():
            return
        rows: dict[int, dict[str, float]] = {}
        try:
            for row in read_rows(metrics):  # a later attempt's value of a step comes later
                if row.step < before:
                    at = {} if row.epoch is None else {"epoch": row.epoch}
                    rows.setdefault(row.step, {}).update(at, **{row.name: row.value})
        except (OSError, ValueError) as error:
            rank_zero_warn(f"Cannot read {metrics} ({error}). Rows of earlier attempts may be missing in W&B")
        for step in sorted(rows):
            if step > self._sent:
                self._send(rows[step], step)
            else:
                self._summarize(rows[step])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Sends one row, unless W&B has its step; what it cannot have of that goes with the next row that is sent.

        Args:
            metrics: by name.
            step: None for what belongs to the last one, like a table.
        """
        if step is not None and step <= self._sent:
            self._last = step
            with service_may_be_gone():
                self._summarize(metrics)
            self._waiting |= {name: value for name, value in metrics.items() if name.startswith(OF_THIS_ATTEMPT)}
            return
        with service_may_be_gone():
            self._send({**self._waiting, **metrics}, self._last if step is None else step)
        self._waiting = {}

    @rank_zero_only
    def end(self, recovery: CheckpointRecovery | None, folder: Path | None) -> None:
        """Sends what stays of the run; whatever goes wrong is said, and costs nothing.

        Args:
            recovery: has the run's checkpoints; None to send none.
            folder: the run's, which holds what its test has shown; None where it has not finished.
        """
        if folder is None:
            return
        run = self.experiment
        try:
            if shown := charts(folder):
                run.summary.update(numbers(folder))
                self.log_metrics(shown)
            if recovery is not None:
                keep_only(run, best_first(recovery)[: self._checkpoints])
        except Exception as error:  # noqa: BLE001 (the training has ended, and must not fail by what shows it)
            say(f"warning: W&B lacks some of how the run ended: {error!r}")

    def _send(self, row: Mapping[str, Any], step: int) -> None:
        self._last = step
        self._summarize(row)
        # W&B takes no row of a step before the last one it has: what comes so late has a row of its own
        self.experiment.log({**row, STEP: step}, step=max(step, self._sent + 1))

    def _summarize(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            higher = higher_is_better(name)
            if higher is None or name.startswith("test/"):  # which comes once
                continue
            if name not in self._best:
                self.experiment.define_metric(name, step_metric=STEP, summary="none")
            known = self._best.get(name, math.nan)
            self._best[name] = float(np.fmax(value, known) if higher else np.fmin(value, known))  # a NaN gives way
            self.experiment.summary[name] = {"best": self._best[name], "last": value}


def last_step_kept(folder: Path, run_id: str) -> int:
    """The last step in the offline files of a run; -1 if there is none.

    Args:
        folder: where W&B was told to keep its files.
        run_id: of the run.
    """
    files = sorted(folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    return max((step for file in files for step in _steps_in(file)), default=-1)


def _steps_in(file: Path) -> list[int]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if listed.returncode:
        say(f"W&B: {file} cannot be read, and its rows will be sent again ({listed.stderr.strip()})")
    records = [json.loads(line) for line in listed.stdout.splitlines()]
    return [int(record["history"]["step"]["num"]) for record in records if record["type"] == "history"]
