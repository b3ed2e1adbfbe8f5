"""Accesses the trials of a search in Optuna's storage."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypedDict, Unpack, cast

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError, SQLAlchemyError

from stormproof_train.errors import StorageError, UserError, first_line
from stormproof_train.search.paused_trials_storage import PAUSED, PausedTrialsStorage
from stormproof_train.search.rungs import TrialStatus
from stormproof_train.search.samplers import create_sampler
from stormproof_train.search.settings import Settings
from stormproof_train.search.space import Space

STEP_RESOLUTION = 10_000
"""Resolution of fractions of a run's length. Optuna's steps are integers."""
_ENGINE_OPTIONS = {
    "sqlite": {"connect_args": {"timeout": 120}},  # seconds to wait for the lock of another worker
    "postgresql": {"pool_pre_ping": True},  # a server restart drops connections
}
_STATE_NAMES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
State = Literal["waiting", "running", "paused", "complete", "pruned", "failed"]


class TrialNotes(TypedDict, total=False):
    """User attributes that workers store for a trial.

    Attributes:
        complete: Whether all parameters were proposed.
        same_as: Number of the earlier trial with the same parameters.
        length: Steps of the whole run. None if unlimited.
        samples: Sizes of the ``training`` and the ``validation`` split. None if unknown.
        gpus: Number of GPUs.
        measured: Values by objective and constraint.
        steps: Steps so far.
        seconds: Duration so far.
        gpu_seconds: Duration so far, times the number of GPUs.
        passed: Number of rungs passed.
        paused: Whether the trial is paused at a rung (``PAUSED``).
        paused_at: When it was paused, in ISO 8601.
        reason: Why it was paused, pruned or failed.
    """

    complete: bool
    same_as: int
    length: float | None
    samples: dict[str, int] | None
    gpus: int
    measured: dict[str, float]
    steps: int
    seconds: float
    gpu_seconds: float
    passed: int
    paused: bool
    paused_at: str
    reason: str | None


@dataclass(frozen=True)
class TrialRecord:
    """A trial.

    Attributes:
        number: Counts from 0.
        state: State of the trial.
        params: Values by key, of the parameters that exist.
        values: Values of the objectives. None before it completes.
        curve: Values of the objective by fraction of its length.
        notes: User attributes.
        start: Start time. None before it starts.
        end: End time. None before it ends.
    """

    number: int
    state: State
    params: Mapping[str, Any]
    values: Sequence[float] | None
    curve: Mapping[float, float]
    notes: TrialNotes
    start: datetime | None = None
    end: datetime | None = None

    @property
    def has_ended(self) -> bool:
        """True if the trial will not resume."""
        return self.state in {"complete", "pruned", "failed"}

    @property
    def is_duplicate(self) -> bool:
        """True if its parameters were already proposed, so that it is not run."""
        return "same_as" in self.notes


class TrialStore:
    """All trials of a search.

    Raises:
        UserError: If the storage cannot be used.
    """

    def __init__(self, url: str, study_name: str, settings: Settings, space: Space) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._settings, self._space, self._study_name = settings, space, study_name
        self._storage = _open_storage(url)
        directions: list[Any] = [
            "maximize" if objective.higher_is_better else "minimize" for objective in settings.all_objectives
        ]
        optuna.create_study(study_name=study_name, storage=self._storage, directions=directions, load_if_exists=True)
        self._study_id = self._storage.get_study_id_from_name(study_name)

    def records(self) -> list[TrialRecord]:
        """Returns all trials by number."""
        return [_to_record(trial) for trial in self._storage.get_all_trials(self._study_id, deepcopy=False)]

    def enqueue(self, combination: Mapping[str, Any]) -> None:
        """Sets the parameters of the next trial that has not started."""
        self._load_study(0).enqueue_trial(dict(combination))

    def ask(self) -> TrialRecord:
        """Creates a trial and proposes its parameters."""
        number = sum(record.state != "waiting" for record in self.records())
        with _suppress_experimental_warnings():
            trial = self._load_study(number).ask()
            self._space.suggest(trial)
        self.note(trial.number, complete=True)
        return self.record(trial.number)

    def complete_proposal(self, number: int) -> TrialRecord:
        """Proposes the missing parameters of a trial whose worker may have been killed during the proposal."""
        if not self.record(number).notes.get("complete"):
            with _suppress_experimental_warnings():
                trial = optuna.Trial(self._load_study(number), self._trial_id(number))
                self._replay_draws(trial)
                self._space.suggest(trial)
            self.note(number, complete=True)
        return self.record(number)

    def record(self, number: int) -> TrialRecord:
        """Returns a trial."""
        return _to_record(self._storage.get_trial(self._trial_id(number)))

    def report(self, number: int, fraction: float, value: float) -> None:
        """Stores the objective at a fraction of a run's length. The first value at a fraction is kept."""
        # rounded up, so that a trial that reaches a rung of 1/27 does not count as below it
        step = math.ceil(round(fraction * STEP_RESOLUTION, 6))
        if step not in self._storage.get_trial(self._trial_id(number)).intermediate_values:
            self._storage.set_trial_intermediate_value(self._trial_id(number), step, value)

    def note(self, number: int, **notes: Unpack[TrialNotes]) -> None:
        """Stores user attributes of a trial."""
        for key, value in notes.items():
            self._storage.set_trial_user_attr(self._trial_id(number), key, value)

    def finish(self, number: int, state: State, values: Sequence[float] | None = None) -> None:
        """Ends a trial unless it has ended."""
        record = self.record(number)
        if record.has_ended:
            return
        optuna_state = {name: trial_state for trial_state, name in _STATE_NAMES.items()}[state]
        study, measured_values = self._load_study(number), record.notes.get("measured", {})
        with _suppress_experimental_warnings():
            for constraint in self._settings.all_constraints:
                if constraint.name in measured_values:
                    optuna.Trial(study, self._trial_id(number)).set_constraint(
                        str(constraint), constraint.violation(measured_values)
                    )
            study.tell(number, values, optuna_state)  # prose: allow (Optuna's API)

    def is_worse_than_median(self, number: int) -> bool:
        """Returns True if a trial's best value so far is worse than the median of complete trials at this point."""
        study, pruner = self._load_study(number), optuna.pruners.MedianPruner()
        return bool(pruner.prune(study, self._storage.get_trial(self._trial_id(number))))

    def importances(self) -> list[dict[str, float]]:
        """Returns, for each objective, the share of its variance by parameter. Empty with too few trials."""
        study, importances = self._load_study(0), []
        for objective_index in range(len(self._settings.all_objectives)):
            try:
                with _suppress_experimental_warnings():
                    shares = optuna.importance.get_param_importances(
                        study,
                        evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
                        target=lambda trial, objective_index=objective_index: trial.values[objective_index],
                    )
            except (ValueError, RuntimeError):  # fewer than two complete trials, or equal values
                shares = {}
            importances.append({name: float(share) for name, share in shares.items()})
        return importances

    def pareto_front(self) -> list[int]:
        """Returns the numbers of complete trials that are not dominated by another trial."""
        return sorted(trial.number for trial in self._load_study(0).best_trials)

    def get_shared(self, key: str) -> Any:
        """Returns the value that :meth:`set_shared` stored, or None."""
        return self._storage.get_study_user_attrs(self._study_id).get(key)

    def tested_trial_numbers(self) -> list[int]:
        """Returns the numbers of tested trials. Several if limits were raised after a test."""
        keys = self._storage.get_study_user_attrs(self._study_id)
        return sorted(int(key.rpartition("-")[2]) for key in keys if key.startswith("test/"))

    def set_shared(self, key: str, value: Any) -> None:
        """Stores a plain value for all workers."""
        self._storage.set_study_user_attr(self._study_id, key, value)

    def _load_study(self, number: int) -> optuna.Study:
        trial_sampler = create_sampler(self._settings, number)
        return optuna.load_study(study_name=self._study_name, storage=self._storage, sampler=trial_sampler)

    def _replay_draws(self, trial: optuna.Trial) -> None:
        """Repeats the draws of stored parameters to bring the sampler to the same state."""
        distributions = trial.distributions
        for key in (parameter.key for parameter in self._space.parameters if parameter.key in distributions):
            if key not in trial.relative_params:
                frozen = self._storage.get_trial(self._trial_id(trial.number))
                trial.study.sampler.sample_independent(trial.study, frozen, key, distributions[key])

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


def trial_status(record: TrialRecord, as_loss: Callable[[float], float]) -> TrialStatus:
    """Converts a trial to its status at the rungs."""
    losses = {fraction: as_loss(value) for fraction, value in record.curve.items()}
    rungs_passed = record.notes.get("passed", 0)
    is_complete = record.state == "complete"
    is_paused = bool(record.notes.get("paused"))
    return TrialStatus(record.number, losses, rungs_passed, is_paused, is_complete, record.has_ended)


def _open_storage(url: str) -> BaseStorage:
    dialect = url.partition(":")[0].partition("+")[0]
    try:
        return PausedTrialsStorage(
            optuna.storages.get_storage(RDBStorage(url, engine_kwargs=_ENGINE_OPTIONS.get(dialect)))
        )  # pyright: ignore[reportArgumentType]
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
        raise UserError(
            f"search.storage cannot be used ({first_line(error)}): write sqlite:///FILE or "
            "postgresql+psycopg://USER@HOST/DATABASE"
        ) from error
    except OperationalError as error:
        raise StorageError(f"search.storage does not answer: {first_line(error)}") from error
    except (SQLAlchemyError, RuntimeError) as error:  # missing permissions, or tables of another Optuna release
        subject = url.removeprefix("sqlite:///") if dialect == "sqlite" else "search.storage"
        raise UserError(f"{subject} cannot store the trials of a search: {first_line(error)}") from error


def _to_record(trial: FrozenTrial) -> TrialRecord:
    state: Any = _STATE_NAMES.get(trial.state, "waiting" if trial.state == TrialState.WAITING else "running")
    if trial.datetime_complete is None and state != "waiting":
        state = "paused" if trial.user_attrs.get(PAUSED) else "running"
    curve = {step / STEP_RESOLUTION: value for step, value in trial.intermediate_values.items()}
    values = trial.values if state == "complete" else None
    timestamps = trial.datetime_start, trial.datetime_complete
    return TrialRecord(
        trial.number, state, trial.params, values, curve, cast("TrialNotes", trial.user_attrs), *timestamps
    )


@contextmanager
def _suppress_experimental_warnings() -> Iterator[None]:
    """Suppresses Optuna's warnings about experimental features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
