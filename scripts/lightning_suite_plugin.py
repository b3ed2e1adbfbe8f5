"""Adds Stormproof's callbacks to every Trainer of a pytest run and records the outcome of each test.

``lightning_suite.py`` runs pytest with ``-p lightning_suite_plugin``. The environment variable ``STORMPROOF_CALLBACKS``
names the set of callbacks, and ``STORMPROOF_OUTCOMES`` names the file for the outcomes.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.trainer.connectors.callback_connector import _CallbackConnector

from stormproof import (
    CheckpointRecovery,
    DeadNeuronDetector,
    GradientNormMonitor,
    HangWatch,
    Preemption,
    StepTimer,
    TrainingHealth,
)


def monitors(_: Path) -> list[pl.Callback]:
    return [GradientNormMonitor(), DeadNeuronDetector(), StepTimer(), TrainingHealth()]


def recovery(folder: Path) -> list[pl.Callback]:
    return [Preemption(), HangWatch(), CheckpointRecovery(tempfile.mkdtemp(dir=folder))]


SETS = {"monitors": monitors, "recovery": recovery, "none": lambda _: []}
OURS = (
    CheckpointRecovery, DeadNeuronDetector, GradientNormMonitor, HangWatch, Preemption, StepTimer, TrainingHealth
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "flaky: marker of pytest-rerunfailures, which is not used here")
    make, folder = SETS[os.environ["STORMPROOF_CALLBACKS"]], Path(tempfile.mkdtemp(prefix="stormproof-suite-"))
    init = _CallbackConnector.on_trainer_init

    def on_trainer_init(self: _CallbackConnector, *args: object, **kwargs: object) -> None:
        init(self, *args, **kwargs)  # type: ignore[arg-type]
        # Lightning appends to the list of the user, which two trainers may share
        user_callbacks = [callback for callback in self.trainer.callbacks if not isinstance(callback, OURS)]
        self.trainer.callbacks = self._reorder_callbacks([*user_callbacks, *make(folder)])

    _CallbackConnector.on_trainer_init = on_trainer_init  # type: ignore[method-assign]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Writes ``<outcome> <phase> <test>``, one line per phase of a test."""
    with Path(os.environ["STORMPROOF_OUTCOMES"]).open("a") as file:
        file.write(f"{report.outcome} {report.when} {report.nodeid}\n")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Writes modules that cannot be imported, for example because a package is missing."""
    if report.failed:
        with Path(os.environ["STORMPROOF_OUTCOMES"]).open("a") as file:
            file.write(f"failed collect {report.nodeid}\n")
