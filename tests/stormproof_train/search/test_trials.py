"""Trials in a storage: what a kill cuts off, what waits, and several that ask at once."""

from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import filelock
import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from stormproof_train.errors import StorageError, UserError
from stormproof_train.search.paused_trials_storage import PausedTrialsStorage
from stormproof_train.search.rungs import Rungs, rung_fractions
from stormproof_train.search.settings import Settings
from stormproof_train.search.space import Parameter
from stormproof_train.search.trials import PAUSED, TrialStore, trial_status
from tests.stormproof_train.search.trial_storage import (
    SPACE,
    complete_trial,
    in_memory_trials,
    proposed_params,
    storage_url,
    stored_trials,
)
from tests.support.forked_command import FORKSERVER_CONTEXT


def open_study_storage(folder: Path) -> tuple[BaseStorage, int]:
    """What is really stored, and the number of the study."""
    storage = optuna.storages.get_storage(storage_url(folder))
    return storage, storage.get_study_id_from_name("made")


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("postgresql+psycopg://user@host/trials", {"pool_pre_ping": True}),
        ("postgresql://user@host/trials", {"pool_pre_ping": True}),
        ("sqlite:///trials.db", {"connect_args": {"timeout": 120}}),
        ("mysql+pymysql://user@host/trials", None),
    ],
)
def test_a_storage_is_opened_with_the_options_of_its_database(
    url: str, options: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
):
    class OpenedError(Exception):
        pass

    def open_storage(url: str, engine_kwargs: dict[str, Any] | None) -> None:
        raise OpenedError(url, engine_kwargs)

    monkeypatch.setattr("stormproof_train.search.trials.RDBStorage", open_storage)
    with pytest.raises(OpenedError) as raised:
        TrialStore(url, "mine", Settings(), SPACE)
    assert raised.value.args == (url, options)


def test_what_waits_looks_pruned_to_a_sampler_and_runs_in_the_storage(tmp_path: Path):
    trials = stored_trials(tmp_path)
    for _ in range(3):
        trials.ask()
    trials.report(1, 0.25, 0.7)
    trials.report(1, 0.5, 0.6)
    trials.note(1, **{PAUSED: True})
    storage, study = open_study_storage(tmp_path)
    trial_states = PausedTrialsStorage(storage).get_all_trials(study)
    assert [trial.state for trial in trial_states] == [TrialState.RUNNING, TrialState.PRUNED, TrialState.RUNNING]
    assert trial_states[1].value == 0.6
    assert [
        trial.number for trial in PausedTrialsStorage(storage).get_all_trials(study, states=[TrialState.PRUNED])
    ] == [1]
    assert storage.get_trial(trial_states[1]._trial_id).state == TrialState.RUNNING
    assert [trial.state for trial in trials.records()] == ["running", "paused", "running"]


def test_what_waits_may_go_on_and_complete():
    trials = in_memory_trials()
    trials.ask()
    trials.note(0, **{PAUSED: True})
    trials.note(0, **{PAUSED: False})
    assert trials.record(0).state == "running"
    trials.finish(0, "complete", [0.5])
    record = trials.record(0)
    assert (record.state, record.values, record.has_ended) == ("complete", [0.5], True)
    assert record.start is not None
    assert record.end is not None


def test_a_trial_ends_once():
    trials = in_memory_trials()
    trials.ask()
    trials.finish(0, "pruned")
    trials.finish(0, "complete", [0.5])
    assert trials.record(0).state == "pruned"


def test_the_first_value_at_a_place_counts():
    trials = in_memory_trials()
    trials.ask()
    for value in (0.5, 0.4):
        trials.report(0, 0.25, value)
    assert trials.record(0).curve == {0.25: 0.5}


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 6], ids=["drawn at random", "proposed from others"])
@pytest.mark.parametrize("written", [0, 1])
def test_a_proposal_that_a_kill_cut_off_is_completed_with_the_same_values(
    before: int, written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments: dict[str, Any] = {"sampler_arguments": {"n_startup_trials": 3}, "seed": 1}
    uninterrupted, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (uninterrupted, cut):
        folder.mkdir()
        trials = stored_trials(folder, **arguments)
        for number in range(before):
            complete_trial(trials, number / 10)
    expected = stored_trials(uninterrupted, **arguments).ask()
    assert len(expected.params) > written, "the kill would come after the proposal"
    suggest, counted = Parameter.suggest, []

    def killed(parameter: Parameter, trial: optuna.Trial) -> Any:
        if len(counted) == written:
            raise KeyboardInterrupt
        counted.append(parameter.key)
        return suggest(parameter, trial)

    with monkeypatch.context() as patch:
        patch.setattr(Parameter, "suggest", killed)
        with pytest.raises(KeyboardInterrupt):
            stored_trials(cut, **arguments).ask()
    assert len(stored_trials(cut, **arguments).record(before).params) == written
    resumed_proposal = stored_trials(cut, **arguments).complete_proposal(before)
    assert proposed_params(resumed_proposal) == proposed_params(expected)
    assert proposed_params(stored_trials(cut, **arguments).complete_proposal(before)) == proposed_params(expected)


def ask_trials(folder: Path, begin: Barrier) -> None:
    lock, trials = filelock.FileLock(folder / ".lock"), stored_trials(folder, sampler="random")
    begin.wait(60)
    for _ in range(8):
        with lock:
            trials.ask()


@pytest.mark.slow
def test_two_that_ask_at_once_get_different_trials_those_that_one_would_get(tmp_path: Path):
    alone, together = in_memory_trials(sampler="random"), stored_trials(tmp_path, sampler="random")
    expected = [proposed_params(alone.ask()) for _ in range(16)]
    begin = FORKSERVER_CONTEXT.Barrier(2)
    asking = [FORKSERVER_CONTEXT.Process(target=ask_trials, args=(tmp_path, begin)) for _ in range(2)]
    for entry in asking:
        entry.start()
    for entry in asking:
        entry.join(60)
    assert [entry.exitcode for entry in asking] == [0, 0]
    records = together.records()
    assert [entry.number for entry in records] == list(range(16))
    assert [proposed_params(entry) for entry in records] == expected


def test_what_was_shared_is_there_for_all(tmp_path: Path):
    assert stored_trials(tmp_path).get_shared("began") is None
    stored_trials(tmp_path).set_shared("began", 3.5)
    assert stored_trials(tmp_path).get_shared("began") == 3.5


@pytest.mark.slow
def test_a_trial_behind_the_median_of_the_complete_ones_is_told():
    trials = in_memory_trials()
    for value in (0.1, 0.2, 0.3, 0.4, 0.5):
        number = trials.ask().number
        trials.report(number, 0.5, value)
        trials.finish(number, "complete", [value])
    for value, behind in ((0.25, False), (0.35, True)):
        number = trials.ask().number
        trials.report(number, 0.5, value)
        assert trials.is_worse_than_median(number) is behind


@pytest.mark.slow
def test_importances_want_trials_that_differ():
    trials = in_memory_trials(sampler="random")
    assert trials.importances() == [{}]
    for _ in range(12):
        record = trials.ask()
        trials.finish(record.number, "complete", [record.params["optimizer.lr"]])
    (shares,) = trials.importances()
    assert max(shares, key=lambda key: shares[key]) == "optimizer.lr"
    assert sum(shares.values()) == pytest.approx(1)


def test_the_rungs_see_a_trial_with_its_losses():
    trials = in_memory_trials(objectives="val/accuracy")
    trials.ask()
    trials.report(0, 0.5, 0.75)
    trials.note(0, passed=1, **{PAUSED: True})
    trial_standing = trial_status(trials.record(0), Settings(objectives="val/accuracy").all_objectives[0].as_loss)
    assert (
        trial_standing.losses,
        trial_standing.rungs_passed,
        trial_standing.is_paused,
        trial_standing.is_complete,
        trial_standing.has_ended,
    ) == ({0.5: -0.75}, 1, True, False, False)


@pytest.mark.parametrize("url", ["nonsense", "mango://host/db", "redis+nothing://x"])
def test_a_storage_that_is_none_is_one_sentence(url: str):
    with pytest.raises(UserError, match=r"^search\.storage cannot be used \(.*\): write sqlite:///FILE or"):
        TrialStore(url, "made", Settings(), SPACE)


def test_a_storage_that_does_not_answer_is_told(tmp_path: Path):
    with pytest.raises(StorageError, match=r"^search\.storage does not answer: .*unable to open database file"):
        TrialStore(f"sqlite:///{tmp_path / 'nowhere' / 'study.db'}", "made", Settings(), SPACE)


def test_who_is_validated_at_a_rung_has_come_to_it():
    trials = in_memory_trials()
    trials.ask()
    trials.report(0, 36 / 972, 0.5)  # a 27th
    (trial_standing,) = [trial_status(trial, float) for trial in trials.records()]
    assert Rungs(rung_fractions(3, 3), 3).loss_at(trial_standing, 0) == 0.5
