"""Which artifact is recommended, and what is to be said against the others."""

import math
from typing import Any

import pytest

from stormproof_train.compression.artifact import Artifact
from stormproof_train.compression.budget import Budget
from stormproof_train.compression.choice import (
    find_dominating,
    guaranteed_gains,
    list_remarks,
    reaches_target,
    select_best,
)
from stormproof_train.evaluation.intervals import Interval

BUDGET, NO_BUDGET = Budget("1pp", 0.01), Budget("", math.inf)


def make_artifact(name: str, lost: float, size: int, macs: int, speed: float, half: float = 0.01) -> Artifact:
    speedup = Interval(speed, speed - half, speed + half)
    return Artifact(
        name=name, network=name, quantization="none", method="", parameters=size, macs=macs, bytes=size,
        value=Interval(0.9 - lost, None, None), degradation=Interval(lost, lost - 0.004, lost + 0.004),
        calibration_error=None,
        difference=0.0, latency={}, speedup={"1": speedup, "32": speedup}, memory=0, load_seconds=0.0, digests={},
    )  # fmt: skip


ORIGINAL = make_artifact("original", 0.0, 100, 100, 1.0)
INT8 = make_artifact("int8", 0.001, 30, 100, 1.7)
HALF = make_artifact("half", 0.005, 55, 50, 1.5)
FAST = make_artifact("fast", 0.02, 20, 25, 3.0)
SLOW = make_artifact("slow", 0.0, 20, 100, 0.8)
ALL = [ORIGINAL, INT8, HALF, FAST, SLOW]


@pytest.mark.parametrize(
    ("minimize", "budget", "target", "name"),
    [
        ("latency", BUDGET, {}, "int8"),
        ("size", BUDGET, {}, "slow"),
        ("macs", BUDGET, {}, "half"),
        ("latency", Budget("5pp", 0.05), {}, "fast"),
        ("latency", NO_BUDGET, {"speedup": 1.4}, "int8"),
        ("latency", NO_BUDGET, {"speedup": 2}, "fast"),
        ("macs", NO_BUDGET, {"macs": 2, "speedup": 1.4}, "half"),
        ("latency", BUDGET, {"speedup": 2}, None),
        ("latency", Budget("0.1pp", 0.001), {}, None),
    ],
)
def test_the_best_is_the_cheapest_within_the_budget_or_loses_least_for_a_target(
    minimize: Any, budget: Budget, target: Any, name: str | None
):
    best_artifact = select_best(ALL, budget, target, minimize)
    assert (best_artifact.name if best_artifact else None) == name


def test_what_may_be_as_slow_as_the_original_is_not_faster():
    unsure = make_artifact("unsure", 0.0, 10, 10, 1.05, half=0.1)
    assert select_best([ORIGINAL, unsure], BUDGET, {}, "latency") is None
    assert select_best([ORIGINAL, unsure], BUDGET, {}, "size") is unsure
    assert list_remarks(unsure, ORIGINAL) == ["not faster"]
    assert not reaches_target(unsure, ORIGINAL, {"speedup": 1.01})
    assert guaranteed_gains(unsure, ORIGINAL) == {"speedup": pytest.approx(0.95), "size": 10, "macs": 10}


def test_of_two_as_small_the_one_that_lost_less_is_the_best():
    first, second = make_artifact("one", 0.004, 50, 50, 1.5), make_artifact("other", 0.002, 50, 50, 1.5)
    assert select_best([ORIGINAL, first, second], BUDGET, {}, "size") is second


def test_of_those_that_may_be_as_fast_as_the_fastest_the_one_that_lost_least_is_the_best():
    fastest, as_fast = make_artifact("fastest", 0.004, 50, 50, 1.51), make_artifact("as fast", 0.002, 60, 60, 1.495)
    slower = make_artifact("slower", 0.0, 40, 40, 1.4)
    assert select_best([ORIGINAL, fastest, as_fast, slower], BUDGET, {}, "latency") is as_fast


@pytest.mark.parametrize(
    ("artifact", "others", "name"),
    [
        (ORIGINAL, [INT8, HALF, FAST, SLOW], None),
        (INT8, [ORIGINAL, HALF, FAST, SLOW], None),
        (HALF, [ORIGINAL, INT8, FAST], None),
        (make_artifact("worse", 0.006, 55, 50, 1.5), [HALF], "half"),
        (make_artifact("twin", 0.005, 55, 50, 1.5), [HALF], None),
        (make_artifact("slower twin", 0.005, 55, 50, 1.2), [HALF], "half"),
        (make_artifact("as fast", 0.005, 60, 50, 1.515), [HALF], "half"),
        (make_artifact("faster", 0.005, 60, 50, 1.6), [HALF], None),
    ],
    ids=lambda value: value.name if isinstance(value, Artifact) else None,
)
def test_beaten_is_what_another_is_nowhere_worse_than_and_somewhere_better(
    artifact: Artifact, others: list[Artifact], name: str | None
):
    assert find_dominating(artifact, others) == name


def test_what_is_neither_faster_nor_smaller_is_said_to_be_so():
    assert list_remarks(make_artifact("no", 0.0, 120, 100, 0.9), ORIGINAL) == ["not faster", "not smaller"]
    assert list_remarks(INT8, ORIGINAL) == []
    assert list_remarks(ORIGINAL, ORIGINAL) == []
