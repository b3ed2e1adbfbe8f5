"""Successive halving: who goes on, who waits, against a plain reference."""

import math
import random
from collections import Counter

import pytest

from stormproof_train.search.rungs import Rungs, Standing, fractions_of
from tests.support.cases import slow_except


class PlainHalving:
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
                number = min(waiting, key=lambda each: (self.come[rung][each], each))
                self.gone_on[rung].add(number)
                return number
        return None

    def _best(self, rung: int) -> set[int]:
        ranked = sorted(self.come[rung], key=lambda number: (self.come[rung][number], number))
        return {each for each in ranked[: len(ranked) // self.reduction] if self.come[rung][each] < math.inf}


@pytest.mark.parametrize("reduction", [2, 3, 4])
@pytest.mark.parametrize("seed", slow_except(range(5), [0]))
def test_who_goes_on_and_who_waits_is_that_of_a_plain_reference(seed: int, reduction: int):
    draw, levels = random.Random(seed), 3
    rungs, plain = Rungs(fractions_of(levels, reduction), reduction), PlainHalving(levels, reduction)
    trials: dict[int, Standing] = {}
    for _ in range(300):
        promotable = rungs.promotable(list(trials.values()))
        expected = plain.promotes()
        assert (promotable[0] if promotable else None) == expected
        number = len(trials) if expected is None else expected
        before = trials.get(number, Standing(number))
        passed, waits = rungs.climb([*trials.values()], number) if expected is not None else (0, False)
        losses = dict(before.losses)
        while not waits and passed < levels:
            losses[rungs.fractions[passed]] = draw.choice([draw.random(), draw.random(), 0.5, math.inf])
            reached = passed
            trials[number] = Standing(number, losses, passed)
            passed, waits = rungs.climb(list(trials.values()), number)
            assert waits is not plain.arrives(number, reached, losses[rungs.fractions[reached]])
        trials[number] = Standing(number, losses, passed, paused=waits, completed=not waits, ended=not waits)
    assert any(each.completed for each in trials.values())


RUNGS = Rungs([0.25, 0.5], reduction=2)


def waiting(*losses: float, at: float = 0.25, passed: int = 0) -> list[Standing]:
    return [Standing(number, {at: loss}, passed, paused=True) for number, loss in enumerate(losses)]


def test_the_first_to_come_waits_and_the_better_half_goes_on():
    assert RUNGS.climb(waiting(0.5), 0) == (0, True)
    assert RUNGS.climb(waiting(0.5, 0.4), 1) == (1, False)
    assert RUNGS.promotable(waiting(0.4, 0.5)) == [0]
    assert RUNGS.promotable(waiting(0.4, 0.5, 0.3, 0.6)) == [2, 0]


def test_of_two_that_are_alike_the_earlier_one_is_better():
    assert RUNGS.promotable(waiting(0.4, 0.4)) == [0]


def test_who_is_furthest_is_promoted_first():
    far = [Standing(number, {0.25: 0.1, 0.5: loss}, 1, paused=True) for number, loss in ((7, 0.3), (8, 0.2))]
    assert RUNGS.promotable([*waiting(0.05, 0.06, 0.5, 0.6, 0.7), *far]) == [8, 0, 1]


def test_a_loss_that_is_not_finite_never_goes_on():
    assert RUNGS.promotable(waiting(math.inf, math.inf, math.inf)) == []
    assert RUNGS.promotable(waiting(math.inf), closed=True) == []
    assert RUNGS.promotable(waiting(math.inf, 0.9, math.inf)) == [1]


def test_where_nobody_else_will_come_the_best_of_a_rung_goes_on():
    assert RUNGS.promotable(waiting(0.5)) == []
    assert RUNGS.promotable(waiting(0.5), closed=True) == [0]
    assert RUNGS.promotable(waiting(0.5, 0.4), closed=True) == [1]
    assert RUNGS.climb(waiting(0.5), 0, closed=True) == (1, False)


def test_what_has_ended_still_counts_among_those_that_came_but_is_not_promoted():
    done = Standing(0, {0.25: 0.1}, 2, completed=True, ended=True)
    assert RUNGS.promotable([done, *waiting(0.4, 0.5)[1:]]) == []
    stopped = Standing(0, {0.25: 0.1}, paused=True, ended=True)
    assert RUNGS.promotable([stopped, Standing(1, {0.25: 0.5}, paused=True)]) == []


def test_one_that_was_given_up_for_another_reason_leaves_its_place_to_the_next():
    critical = Standing(0, {0.25: 0.1}, ended=True)
    assert RUNGS.promotable([critical, Standing(1, {0.25: 0.5}, paused=True)]) == [1]


def test_a_validation_after_the_rung_is_the_one_that_counts_there():
    trial = Standing(0, {0.2: 9.0, 0.3: 1.0, 0.4: 2.0})
    assert RUNGS.loss_at(trial, 0) == 1.0
    assert RUNGS.loss_at(trial, 1) is None
    assert RUNGS.loss_at(Standing(0, {0.2: 9.0}, completed=True), 1) == 9.0


def test_one_validation_may_pass_several_rungs():
    others = [Standing(number, {0.25: 0.9, 0.5: 0.9}, paused=True) for number in (1, 2, 3)]
    assert RUNGS.climb([Standing(0, {0.6: 0.1}), *others], 0) == (2, False)


def test_brackets_begin_at_later_rungs_and_share_the_work():
    rungs = Rungs(fractions_of(2, 3), reduction=3, brackets=3)
    firsts = [rungs.first(number) for number in range(340)]
    trials = Counter(firsts)
    # a third of the trials goes on to three times the length: each rung of a bracket is as much work
    work = {bracket: (3 - bracket) * trials[bracket] * 3.0 ** (bracket - 2) for bracket in range(3)}
    assert trials[0] > trials[1] > trials[2] > 0
    assert max(work.values()) < 1.2 * min(work.values())
    assert {0, 1, 2} == set(firsts[:6])


def test_trials_of_one_bracket_are_compared_among_themselves():
    rungs = Rungs([0.25, 0.5], reduction=2, brackets=2)
    early = [number for number in range(40) if rungs.first(number) == 0][:2]
    late = [number for number in range(40) if rungs.first(number) == 1][:2]
    standings = [Standing(number, {0.25: 0.9 - number / 100}, paused=True) for number in early]
    standings += [Standing(number, {0.25: 0.0, 0.5: 0.1}, paused=True) for number in late]
    assert rungs.promotable(standings) == [late[0], early[1]]
    assert rungs.climb(standings, late[1]) == (1, True)


def test_the_last_bracket_of_hyperband_is_never_stopped():
    rungs = Rungs([0.5], reduction=2, brackets=2)
    last = next(number for number in range(9) if rungs.first(number) == 1)
    assert rungs.climb([Standing(last, {0.5: math.inf})], last) == (1, False)
