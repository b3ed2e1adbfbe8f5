"""Successive halving: who goes on, who waits, against a plain reference."""

import math
import random
from collections import Counter

import pytest

from stormproof_train.search.rungs import Rungs, TrialStatus, rung_fractions
from tests.support.cases import slow_except


class ReferenceHalving:
    """Algorithm 2 of Li et al. 2020 in lists, but that who is among the best on arrival goes on at once."""

    def __init__(self, rungs: int, reduction: int) -> None:
        self.come: list[dict[int, float]] = [{} for _ in range(rungs)]
        self.gone_on: list[set[int]] = [set() for _ in range(rungs)]
        self.reduction = reduction

    def arrives(self, number: int, rung: int, loss: float) -> bool:
        self.come[rung][number] = loss
        if number in self._best(rung):
            self.gone_on[rung].add(number)
        return number in self.gone_on[rung]

    def promotes(self) -> int | None:
        for rung in reversed(range(len(self.come))):
            waiting = self._best(rung) - self.gone_on[rung]
            if waiting:
                number = min(waiting, key=lambda trial_number: (self.come[rung][trial_number], trial_number))
                self.gone_on[rung].add(number)
                return number
        return None

    def _best(self, rung: int) -> set[int]:
        ranked = sorted(self.come[rung], key=lambda number: (self.come[rung][number], number))
        return {
            trial_number
            for trial_number in ranked[: len(ranked) // self.reduction]
            if self.come[rung][trial_number] < math.inf
        }


@pytest.mark.parametrize("reduction", [2, 3, 4])
@pytest.mark.parametrize("seed", slow_except(range(5), [0]))
def test_who_goes_on_and_who_waits_is_that_of_a_plain_reference(seed: int, reduction: int):
    draw, levels = random.Random(seed), 3
    rungs, plain = Rungs(rung_fractions(levels, reduction), reduction), ReferenceHalving(levels, reduction)
    trials: dict[int, TrialStatus] = {}
    for _ in range(300):
        promotable = rungs.find_promotable(list(trials.values()))
        expected = plain.promotes()
        assert (promotable[0] if promotable else None) == expected
        number = len(trials) if expected is None else expected
        before = trials.get(number, TrialStatus(number))
        passed, waits = rungs.advance([*trials.values()], number) if expected is not None else (0, False)
        losses = dict(before.losses)
        while not waits and passed < levels:
            losses[rungs.fractions[passed]] = draw.choice([draw.random(), draw.random(), 0.5, math.inf])
            reached = passed
            trials[number] = TrialStatus(number, losses, passed)
            passed, waits = rungs.advance(list(trials.values()), number)
            assert waits is not plain.arrives(number, reached, losses[rungs.fractions[reached]])
        trials[number] = TrialStatus(
            number, losses, passed, is_paused=waits, is_complete=not waits, has_ended=not waits
        )
    assert any(trial.is_complete for trial in trials.values())


RUNGS = Rungs([0.25, 0.5], reduction=2)


def make_standing(*losses: float, at: float = 0.25, passed: int = 0) -> list[TrialStatus]:
    return [TrialStatus(number, {at: loss}, passed, is_paused=True) for number, loss in enumerate(losses)]


def test_the_first_to_come_waits_and_the_better_half_goes_on():
    assert RUNGS.advance(make_standing(0.5), 0) == (0, True)
    assert RUNGS.advance(make_standing(0.5, 0.4), 1) == (1, False)
    assert RUNGS.find_promotable(make_standing(0.4, 0.5)) == [0]
    assert RUNGS.find_promotable(make_standing(0.4, 0.5, 0.3, 0.6)) == [2, 0]


def test_of_two_that_are_alike_the_earlier_one_is_better():
    assert RUNGS.find_promotable(make_standing(0.4, 0.4)) == [0]


def test_who_is_furthest_is_promoted_first():
    far = [TrialStatus(number, {0.25: 0.1, 0.5: loss}, 1, is_paused=True) for number, loss in ((7, 0.3), (8, 0.2))]
    assert RUNGS.find_promotable([*make_standing(0.05, 0.06, 0.5, 0.6, 0.7), *far]) == [8, 0, 1]


def test_a_loss_that_is_not_finite_never_goes_on():
    assert RUNGS.find_promotable(make_standing(math.inf, math.inf, math.inf)) == []
    assert RUNGS.find_promotable(make_standing(math.inf), promote_at_least_one=True) == []
    assert RUNGS.find_promotable(make_standing(math.inf, 0.9, math.inf)) == [1]


def test_where_nobody_else_will_come_the_best_of_a_rung_goes_on():
    assert RUNGS.find_promotable(make_standing(0.5)) == []
    assert RUNGS.find_promotable(make_standing(0.5), promote_at_least_one=True) == [0]
    assert RUNGS.find_promotable(make_standing(0.5, 0.4), promote_at_least_one=True) == [1]
    assert RUNGS.advance(make_standing(0.5), 0, promote_at_least_one=True) == (1, False)


def test_what_has_ended_still_counts_among_those_that_came_but_is_not_promoted():
    result = TrialStatus(0, {0.25: 0.1}, 2, is_complete=True, has_ended=True)
    assert RUNGS.find_promotable([result, *make_standing(0.4, 0.5)[1:]]) == []
    stopped = TrialStatus(0, {0.25: 0.1}, is_paused=True, has_ended=True)
    assert RUNGS.find_promotable([stopped, TrialStatus(1, {0.25: 0.5}, is_paused=True)]) == []


def test_one_that_was_given_up_for_another_reason_leaves_its_place_to_the_next():
    critical = TrialStatus(0, {0.25: 0.1}, has_ended=True)
    assert RUNGS.find_promotable([critical, TrialStatus(1, {0.25: 0.5}, is_paused=True)]) == [1]


def test_a_validation_after_the_rung_is_the_one_that_counts_there():
    trial = TrialStatus(0, {0.2: 9.0, 0.3: 1.0, 0.4: 2.0})
    assert RUNGS.loss_at(trial, 0) == 1.0
    assert RUNGS.loss_at(trial, 1) is None
    assert RUNGS.loss_at(TrialStatus(0, {0.2: 9.0}, is_complete=True), 1) == 9.0


def test_one_validation_may_pass_several_rungs():
    other_trials = [TrialStatus(number, {0.25: 0.9, 0.5: 0.9}, is_paused=True) for number in (1, 2, 3)]
    assert RUNGS.advance([TrialStatus(0, {0.6: 0.1}), *other_trials], 0) == (2, False)


def test_brackets_begin_at_later_rungs_and_share_the_work():
    rungs = Rungs(rung_fractions(2, 3), reduction=3, num_brackets=3)
    firsts = [rungs.first_rung(number) for number in range(340)]
    trials = Counter(firsts)
    # a third of the trials goes on to three times the length: each rung of a bracket is as much work
    work = {bracket: (3 - bracket) * trials[bracket] * 3.0 ** (bracket - 2) for bracket in range(3)}
    assert trials[0] > trials[1] > trials[2] > 0
    assert max(work.values()) < 1.2 * min(work.values())
    assert {0, 1, 2} == set(firsts[:6])


def test_trials_of_one_bracket_are_compared_among_themselves():
    rungs = Rungs([0.25, 0.5], reduction=2, num_brackets=2)
    early = [number for number in range(40) if rungs.first_rung(number) == 0][:2]
    late = [number for number in range(40) if rungs.first_rung(number) == 1][:2]
    standings = [TrialStatus(number, {0.25: 0.9 - number / 100}, is_paused=True) for number in early]
    standings += [TrialStatus(number, {0.25: 0.0, 0.5: 0.1}, is_paused=True) for number in late]
    assert rungs.find_promotable(standings) == [late[0], early[1]]
    assert rungs.advance(standings, late[1]) == (1, True)


def test_the_last_bracket_of_hyperband_is_never_stopped():
    rungs = Rungs([0.5], reduction=2, num_brackets=2)
    last = next(number for number in range(9) if rungs.first_rung(number) == 1)
    assert rungs.advance([TrialStatus(last, {0.5: math.inf})], last) == (1, False)
