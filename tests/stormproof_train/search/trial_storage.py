"""Trials on a SQLite in a folder, for what decides on them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

from optuna.distributions import CategoricalDistribution, FloatDistribution

from stormproof_train.search.folder import SearchFolder
from stormproof_train.search.settings import Settings
from stormproof_train.search.space import Parameter, Space
from stormproof_train.search.trials import TrialRecord, TrialStore

SPACE = Space([
    Parameter("activation", CategoricalDistribution(["relu", "elu"])),
    Parameter("optimizer.lr", FloatDistribution(1e-4, 1e-1, log=True)),
    Parameter("activation.alpha", FloatDistribution(0.5, 2.0), {"activation": frozenset({"elu"})}),
])  # fmt: skip


def storage_url(folder: Path) -> str:
    """Of the storage in a folder."""
    return f"sqlite:///{folder / 'study.db'}"


def stored_trials(folder: Path, **settings: Any) -> TrialStore:
    """The trials of a search with some settings."""
    return TrialStore(storage_url(folder), "made", Settings(**settings), SPACE)


def in_memory_trials(**settings: Any) -> TrialStore:
    """The trials of a search that is gone with this process."""
    return TrialStore("sqlite:///:memory:", "made", Settings(**settings), SPACE)


def complete_trial(trials: TrialStore, value: float, **notes: Any) -> TrialRecord:
    """A new trial that has come to ``value`` at its end."""
    number = trials.ask().number
    trials.note(number, **notes)
    trials.finish(number, "complete", [value])
    return trials.record(number)


def proposed_params(record: TrialRecord) -> dict[str, Any]:
    """The parameters of a trial, as a dictionary that compares."""
    return dict(record.params)


def unlocked_folder() -> SearchFolder:
    """A folder that nobody else works in."""

    class Unlocked:
        def lock(self) -> AbstractContextManager[None]:
            return nullcontext()

    return cast("SearchFolder", Unlocked())
