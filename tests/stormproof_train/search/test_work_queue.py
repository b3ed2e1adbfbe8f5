"""Which trial is next, and who has it."""

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution

from stormproof_train.search.pruner import TrialPruner, increase_limits
from stormproof_train.search.settings import DEFAULT_TRIALS, Settings
from stormproof_train.search.space import Parameter, Space
from stormproof_train.search.trials import TrialStore
from stormproof_train.search.work_queue import Claims, WorkQueue
from tests.stormproof_train.search.trial_storage import unlocked_folder

SMALL = Space([
    Parameter("activation", CategoricalDistribution(["relu", "elu"])), Parameter("model.depth", IntDistribution(1, 3)),
])  # fmt: skip


class Search:
    """A search of a small space, by one worker."""

    def __init__(self, folder: Path, **settings: object) -> None:
        search_settings = Settings(pruner="none", **settings)  # pyright: ignore[reportArgumentType]
        self.trials = TrialStore("sqlite:///:memory:", "made", search_settings, SMALL)
        self.trials.set_shared("limits", increase_limits(None, search_settings, DEFAULT_TRIALS))
        self.claims = folder
        self.judge = TrialPruner(search_settings, self.trials, unlocked_folder())
        self.queue = self.worker()

    def worker(self) -> WorkQueue:
        return WorkQueue(SMALL, unlocked_folder(), self.trials, self.judge, Claims(self.claims))

    def ended(self, number: int) -> dict[str, object]:
        """Its parameters, once it is complete."""
        self.trials.finish(number, "complete", [float(number)])
        self.queue.release(number)
        return dict(self.trials.record(number).params)


@pytest.mark.slow
def test_a_small_space_is_searched_whole_and_nothing_of_it_twice(tmp_path: Path):
    search = Search(tmp_path)
    proposals = []
    while not search.queue.is_finished():
        number = search.queue.claim_next()
        assert number is not None
        proposals.append(search.ended(number))
    assert len(proposals) == 6
    assert {(params["activation"], params["model.depth"]) for params in proposals} == {
        (activation, depth) for activation in ("relu", "elu") for depth in (1, 2, 3)
    }


def test_copies_are_no_trials(tmp_path: Path):
    search = Search(tmp_path, trials=5)
    for _ in range(5):
        number = search.queue.claim_next()
        assert number is not None
        search.ended(number)
    assert search.queue.is_finished()
    assert sum(not trial.is_duplicate for trial in search.trials.records()) == 5


def test_a_copy_that_was_cut_off_before_it_was_found_out_is_none_either(tmp_path: Path):
    search = Search(tmp_path)
    first = search.queue.claim_next()
    assert first is not None
    params = search.ended(first)
    search.trials.enqueue(params)
    copy = search.trials.ask().number  # and its worker is killed
    following = search.queue.claim_next()
    assert following not in {None, copy}
    assert search.trials.record(copy).is_duplicate
    assert following is not None
    search.queue.release(following)


def test_what_was_interrupted_comes_first_and_is_one_workers(tmp_path: Path):
    search = Search(tmp_path)
    first = search.queue.claim_next()
    assert first is not None
    second_worker = search.worker()
    second = second_worker.claim_next()
    assert second not in {None, first}
    search.queue.release(first)  # as a worker that was killed
    assert second_worker.claim_next() == first
    assert second is not None
    for number in (first, second):
        second_worker.release(number)
