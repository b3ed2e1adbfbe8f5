"""Presents paused trials to samplers as pruned trials."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Container, Sequence
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

T = TypeVar("T")
PAUSED = "paused"
"""User attribute of a paused trial."""


class PausedTrialsStorage(BaseStorage):
    """A storage that reports trials paused at a rung as pruned there.

    Optuna knows only running and finished trials. A paused trial may resume, so it must not be finished. But samplers
    would learn nothing from it while it is running, and would treat its parameters as bad.

    Operations are retried while the database is unavailable, for example during a restart.

    Args:
        storage: Storage that contains the study.
        retry_seconds: Seconds for which an operation is retried.
    """

    def __init__(self, storage: BaseStorage, retry_seconds: float = 180.0) -> None:
        self._storage = storage
        self._retry_seconds = retry_seconds

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Returns all trials, or those in the given states."""
        trials = [_as_pruned(trial) for trial in self._retry(self._storage.get_all_trials, study_id, deepcopy)]
        return trials if states is None else [trial for trial in trials if trial.state in states]

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Delegates to the storage."""
        return self._retry(self._storage.create_new_study, directions, study_name)

    def delete_study(self, study_id: int) -> None:
        """Delegates to the storage."""
        self._retry(self._storage.delete_study, study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Delegates to the storage."""
        self._retry(self._storage.set_study_user_attr, study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Delegates to the storage."""
        self._retry(self._storage.set_study_system_attr, study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        """Delegates to the storage."""
        return self._retry(self._storage.get_study_id_from_name, study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """Delegates to the storage."""
        return self._retry(self._storage.get_study_name_from_id, study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Delegates to the storage."""
        return self._retry(self._storage.get_study_directions, study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Delegates to the storage."""
        return self._retry(self._storage.get_study_user_attrs, study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Delegates to the storage."""
        return self._retry(self._storage.get_study_system_attrs, study_id)

    def get_all_studies(self) -> list[Any]:
        """Delegates to the storage."""
        return self._retry(self._storage.get_all_studies)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Delegates to the storage."""
        return self._retry(self._storage.create_new_trial, study_id, template_trial)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Delegates to the storage."""
        self._retry(self._storage.set_trial_param, trial_id, param_name, param_value_internal, distribution)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Delegates to the storage."""
        return self._retry(self._storage.get_trial_id_from_study_id_trial_number, study_id, trial_number)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Delegates to the storage."""
        return self._retry(self._storage.set_trial_state_values, trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Delegates to the storage."""
        self._retry(self._storage.set_trial_intermediate_value, trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Delegates to the storage."""
        self._retry(self._storage.set_trial_user_attr, trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Delegates to the storage."""
        self._retry(self._storage.set_trial_system_attr, trial_id, key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Delegates to the storage."""
        return self._retry(self._storage.get_trial, trial_id)

    def remove_session(self) -> None:
        """Delegates to the storage."""
        self._retry(self._storage.remove_session)

    def _retry(self, function: Callable[..., T], *arguments: Any) -> T:
        deadline, delay = time.monotonic() + self._retry_seconds, 1.0
        while True:
            try:
                return function(*arguments)
            except StorageInternalError:
                if time.monotonic() + delay > deadline:
                    raise
            time.sleep(delay)
            delay = min(2 * delay, 10.0)


def _as_pruned(trial: FrozenTrial) -> FrozenTrial:
    if trial.state != TrialState.RUNNING or not trial.user_attrs.get(PAUSED):
        return trial
    pruned_trial = copy.copy(trial)
    pruned_trial.state = TrialState.PRUNED
    if trial.last_step is not None:
        pruned_trial.value = trial.intermediate_values[trial.last_step]
    return pruned_trial
