"""Which trial is next, and who has it."""

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution

from stormproof_train.search.claims import Claims
from stormproof_train.search.limits import raised
from stormproof_train.search.pruner import Judge
from stormproof_train.search.settings import TRIALS, Settings
from stormproof_train.search.space import Parameter, Space
from stormproof_train.search.trials import Trials
from stormproof_train.search.work_queue import WorkQueue
from tests.stormproof_train.search.made_trials import unlocked

SMALL = Space([
    Parameter("activation", CategoricalDistribution(["relu", "elu"])), Parameter("model.depth", IntDistribution(1, 3)),
])  # fmt: skip


class Search:
    """A search of a small space, by one worker."""

    def __init__(self, folder: Path, **settings: object) -> None:
        told = Settings(pruner="none", **settings)  # pyright: ignore[reportArgumentType]
        self.trials = Trials("sqlite:///:memory:", "made", told, SMALL)
        self.trials.share("limits", raised(None, told, TRIALS))
        self.claims = folder
        self.judge = Judge(told, self.trials, unlocked())
        self.queue = self.worker()

    def worker(self) -> WorkQueue:
        return WorkQueue(SMALL, unlocked(), self.trials, self.judge, Claims(self.claims))

    def ended(self, number: int) -> dict[str, object]:
        """Its parameters, once it is complete."""
        self.trials.tell(number, "complete", [float(number)])
        self.queue.give_back(number)
        return dict(self.trials.record(number).params)


@pytest.mark.slow
def test_a_small_space_is_searched_whole_and_nothing_of_it_twice(tmp_path: Path):
    search = Search(tmp_path)
    found = []
    while not search.queue.is_over():
        number = search.queue.next()
        assert number is not None
        found.append(search.ended(number))
    assert len(found) == 6
    assert {(each["activation"], each["model.depth"]) for each in found} == {
        (activation, depth) for activation in ("relu", "elu") for depth in (1, 2, 3)
    }


def test_copies_are_no_trials(tmp_path: Path):
    search = Search(tmp_path, trials=5)
    for _ in range(5):
        number = search.queue.next()
        assert number is not None
        search.ended(number)
    assert search.queue.is_over()
    assert sum(not each.is_copy for each in search.trials.all()) == 5


def test_a_copy_that_was_cut_off_before_it_was_found_out_is_none_either(tmp_path: Path):
    search = Search(tmp_path)
    first = search.queue.next()
    assert first is not None
    params = search.ended(first)
    search.trials.enqueue(params)
    copy = search.trials.ask().number  # and its worker is killed
    following = search.queue.next()
    assert following not in {None, copy}
    assert search.trials.record(copy).is_copy
    assert following is not None
    search.queue.give_back(following)


def test_what_was_interrupted_comes_first_and_is_one_workers(tmp_path: Path):
    search = Search(tmp_path)
    first = search.queue.next()
    assert first is not None
    other = search.worker()
    second = other.next()
    assert second not in {None, first}
    search.queue.give_back(first)  # as a worker that was killed
    assert other.next() == first
    assert second is not None
    for number in (first, second):
        other.give_back(number)
