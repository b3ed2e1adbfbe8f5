"""One history on Weights & Biases, however often the run was stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers import WandbLogger

from stormproof_train.console import say
from stormproof_train.metrics_file import read_rows


@contextmanager
def service_may_be_gone() -> Iterator[None]:
    """W&B's own process may die, as of a SIGTERM that was meant for all of a job; training does not end by that.

    ``metrics.csv`` goes on, and the next start sends what W&B lacks.
    """
    try:
        yield
    except ConnectionError:
        sentence = "W&B's service has ended: metrics.csv has what follows, and W&B gets it if this run goes on"
        warnings.warn(sentence, stacklevel=1)  # shown once


class WandbHistory(WandbLogger):
    """A W&B logger whose rows carry the step explicitly, each step once over all attempts.

    W&B keeps a row in memory for some seconds, so that a kill loses the last ones, and a resumed run goes through some
    of the steps before again. ``metrics.csv`` has every row: what W&B lacks from before is sent first, what it has is
    not sent again.

    Args:
        run: the W&B run; None on a rank that does not log.
        sent: the last step that W&B has from earlier attempts; -1 for none.
    """

    def __init__(self, run: Any, sent: int = -1) -> None:
        super().__init__(experiment=run)
        self._sent = sent
        self._waiting: dict[str, float] = {}

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
        for row in read_rows(metrics):  # a later attempt's value of a step comes later
            if self._sent < row.step < before:
                at = {} if row.epoch is None else {"epoch": row.epoch}
                rows.setdefault(row.step, {}).update(at, **{row.name: row.value})
        for step in sorted(rows):
            self.experiment.log(rows[step], step=step)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Sends one row, unless W&B has its step; what tells of the recovery goes with the next row that is sent."""
        if step is not None and step <= self._sent:
            self._waiting |= {name: value for name, value in metrics.items() if name.startswith("recovery/")}
            return
        with service_may_be_gone():
            self.experiment.log({**self._waiting, **metrics}, step=step)
        self._waiting = {}


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
