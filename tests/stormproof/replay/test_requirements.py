"""Commands about which no statement is possible, and the reason in one sentence."""

from dataclasses import replace

import pytest

from stormproof.replay.certification import Result
from stormproof.replay.command_run import Ending
from stormproof.replay.comparison.history import History
from stormproof.replay.comparison.verdict import Outcome, Verdict, VerdictKind
from stormproof.replay.faults.fault import Fault, FaultKind
from stormproof.replay.ledger import RecorderError
from stormproof.replay.not_certifiable import NotCertifiable
from stormproof.replay.pause import PausePoint
from stormproof.replay.requirements import check_reference, check_resume, compare_uninterrupted, find_recorder_error
from tests.stormproof.replay.synthetic_runs import history

ENDED = Ending(0, hung=False, seconds=9.0)
KILL = Fault(FaultKind.KILL, 5, PausePoint("step", 5))
RUN = history()

UNSUITABLE = {
    "fails": (RUN, Ending(3, hung=False, seconds=1.0), r"fails without a fault \(exit code 3\): boom"),
    "hangs": (RUN, Ending(None, hung=True, seconds=1.0), "makes no progress, even without a fault"),
    "does not train": (History(), ENDED, "does not train"),
    "never saves": (replace(RUN, saves=()), ENDED, "saves no checkpoint"),
    "saves only at the end": (replace(RUN, saves=RUN.saves[-1:]), ENDED, "between its first and its last step"),
    "is not recorded": (replace(RUN, errors=(RecorderError("step", "KeyError"),)), ENDED, "recorder failed in step"),
}


@pytest.mark.parametrize(("run", "ending", "message"), UNSUITABLE.values(), ids=UNSUITABLE)
def test_an_unsuitable_command_is_refused_with_the_reason(run: History, ending: Ending, message: str):
    with pytest.raises(NotCertifiable, match=message) as refusal:
        check_reference({0: run}, ending, "boom")
    assert refusal.value.exit_code == 2


def test_a_suitable_command_is_accepted():
    check_reference({0: RUN}, ENDED, "")


def test_a_command_that_ignores_its_checkpoints_is_refused():
    scratch = Result(KILL, 5, Verdict(VerdictKind.FROM_SCRATCH, compared_steps=9))
    early = Result(KILL, 1, Verdict(VerdictKind.EXACT, compared_steps=9))
    with pytest.raises(NotCertifiable, match="ignores its checkpoints"):
        check_resume([scratch, early])
    check_resume([scratch, replace(scratch, verdict=replace(scratch.verdict, loaded=("last.pt",)))])
    check_resume([scratch, Result(KILL, 5, Verdict(VerdictKind.EXACT, 3, 9))])
    with pytest.raises(NotCertifiable, match="No fault could be injected"):
        check_resume([])


def test_equal_runs_are_deterministic():
    result = compare_uninterrupted({0: history()}, {0: history()})
    assert result.is_deterministic
    assert result.ignored == frozenset()


def test_a_run_with_other_random_numbers_is_not_deterministic():
    other = history(lost=("numpy",))
    steps = tuple(
        replace(step, components={**step.components, "data/batches": "x"}, batches=("x",)) for step in other.steps
    )
    assert compare_uninterrupted({0: history()}, {0: replace(other, steps=steps)}).is_deterministic  # without an effect
    changed = tuple(replace(step, components={**step.components, "loss": "other"}) for step in steps[4:])
    result = compare_uninterrupted({0: history()}, {0: replace(other, steps=steps[:4] + changed)})
    assert (result.step, result.component) == (5, "data/batches")


def test_variables_that_differ_are_ignored():
    steps = tuple(replace(step, components={**step.components, "variables/main.best": "x"}) for step in RUN.steps)
    result = compare_uninterrupted({0: RUN}, {0: replace(RUN, steps=steps)})
    assert result.is_deterministic
    assert result.ignored == {"variables/main.best"}


def test_runs_of_different_length_are_not_deterministic():
    result = compare_uninterrupted({0: RUN}, {0: history(20)})
    assert (result.step, result.component) == (21, "length")


def test_a_command_whose_restarts_had_no_checkpoint_is_not_called_exact():
    early = Result(KILL, 1, Verdict(VerdictKind.EXACT, compared_steps=9))
    with pytest.raises(NotCertifiable, match="No restart resumed from a checkpoint"):
        check_resume([early])


def test_ledgers_that_cannot_be_compared_give_no_verdict():
    outcome = Outcome({0: RUN}, {0: RUN}, {0: RUN})
    assert find_recorder_error(outcome) == ""
    failed = replace(RUN, errors=(RecorderError("step", "KeyError"),))
    assert find_recorder_error(replace(outcome, restarted={0: failed})) == "the recorder failed in step: KeyError"
    other = replace(RUN, hash_algorithms=frozenset({"blake2b"}))
    assert "hashes cannot be compared" in find_recorder_error(replace(outcome, restarted={0: other}))
