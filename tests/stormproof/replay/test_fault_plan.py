"""Places of faults, and their distribution over runs."""

from dataclasses import replace
from typing import Any

import pytest

from stormproof.replay.faults.fault import Fault, FaultKind
from stormproof.replay.faults.plan import plan_faults, resumable_steps
from stormproof.replay.faults.schedule import MIN_FAULTS, Timing, make_schedule, measure_timing, steps_to_compare
from stormproof.replay.ledger import Save
from stormproof.replay.pause import PausePoint
from tests.stormproof.replay.synthetic_runs import STEPS, history


def _of_kind(kind: FaultKind, **options: Any) -> Fault | None:
    reference = options.pop("reference", history())
    return next(iter(plan_faults(reference, kinds=[kind], **options)), None)


def test_kills_are_soon_after_different_saves():
    steps = [fault.step for fault in plan_faults(history(), kinds=[FaultKind.KILL], count=5)]
    assert len(set(steps)) == 5
    assert all(any(0 < step - saved <= 3 for saved in resumable_steps(history())) for step in steps)


def test_the_first_faults_differ_in_kind_and_the_number_is_limited():
    faults = plan_faults(history(), count=6)
    assert [fault.kind for fault in faults[:4]] == [
        FaultKind.KILL, FaultKind.EPOCH_END, FaultKind.KILL, FaultKind.TERM,
    ]  # fmt: skip
    assert len(faults) == 6


@pytest.mark.parametrize(
    ("kind", "point"),
    [
        (FaultKind.MID_SAVE, PausePoint("save", 2, "open", dies_at_size_limit=True)),
        (FaultKind.FULL_DISK, PausePoint("save", 2, "open")),
        (FaultKind.EPOCH_END, PausePoint("epoch", 2)),
    ],
)
def test_a_fault_occurs_when_an_older_checkpoint_exists(kind: FaultKind, point: PausePoint):
    fault = _of_kind(kind)
    assert fault is not None
    assert fault.point == point


def test_a_partial_checkpoint_has_half_of_its_size():
    fault = _of_kind(FaultKind.MID_SAVE, sizes={"last.pt": 5000})
    assert fault is not None
    assert fault.size_limit == 2500


def test_one_rank_is_killed_only_if_there_are_several():
    fault = _of_kind(FaultKind.RANK, ranks=3)
    assert fault is not None
    assert fault.point.rank == 2
    assert _of_kind(FaultKind.RANK) is None


def test_a_checkpoint_is_torn_only_if_an_older_file_exists():
    assert _of_kind(FaultKind.TORN) is None
    reference = history()
    saves = tuple(replace(save, path=f"{save.after_step}.pt") for save in reference.saves)
    fault = _of_kind(FaultKind.TORN, reference=replace(reference, saves=saves))
    assert fault is not None
    assert fault.step == 8


def test_a_kill_before_the_rename_needs_a_rename():
    assert _of_kind(FaultKind.BEFORE_RENAME) is None
    reference = history()
    renames = tuple(
        Save("last.pt", "replace", save.after_step, save.time + 0.01, source="last.pt")
        for save in reference.saves
        if save.phase == "close"
    )
    fault = _of_kind(FaultKind.BEFORE_RENAME, reference=replace(reference, saves=reference.saves + renames))
    assert fault is not None
    assert fault.point == PausePoint("save", 2, "close")


def test_comparison_includes_the_start_of_the_next_epoch():
    reference = history()
    assert steps_to_compare(reference, 3, 4) == STEPS - 3
    longer = replace(reference, steps=reference.steps * 10, epochs=(0, 80, 160))
    assert steps_to_compare(longer, 9, 10) == 83 - 9
    assert steps_to_compare(longer, 81, 100) == 163 - 81


def test_times_are_measured_between_steps():
    timing = measure_timing(history(), launched=-4.0, seconds=30.0)
    assert (timing.startup, timing.step, timing.longest_gap) == (5.0, 1.0, 5.0)
    assert timing.run_until(STEPS, STEPS) == 30.0


@pytest.mark.parametrize("lanes", [1, 2])
def test_faults_without_time_are_omitted(lanes: int):
    faults = plan_faults(history(), count=8)
    schedule = make_schedule(faults, history(), Timing(10.0, 5.0, 0.2, 5.0), lanes=lanes, seconds=30.0)
    scheduled = [
        fault
        for lane in schedule.lanes
        for attempt in lane.attempts
        for fault in (*attempt.faults, *([attempt.last] if attempt.last else []))
    ]
    assert len(scheduled) + len(schedule.omitted) == len(faults)
    assert MIN_FAULTS <= len(scheduled) < len(faults)
    assert all(lane.seconds <= 30.0 for lane in schedule.lanes)
    assert schedule.lanes[0].attempts[0].last is None


def test_two_faults_are_injected_even_if_there_is_no_time():
    schedule = make_schedule(plan_faults(history()), history(), Timing(10.0, 5.0, 0.2, 5.0), lanes=1, seconds=0.0)
    assert len(schedule.lanes[0].attempts[0].faults) == MIN_FAULTS


def test_a_second_lane_kills_the_command_at_a_step_if_that_is_faster():
    schedule = make_schedule(plan_faults(history()), history(), Timing(10.0, 9.0, 0.05, 9.0), lanes=2, seconds=0.0)
    assert len(schedule.lanes[0].attempts[0].faults) == 1
    last = schedule.lanes[1].attempts[0].last
    assert last is not None
    assert last.kind is FaultKind.KILL
