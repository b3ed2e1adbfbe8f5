"""The verdict names what an imaginary program did not restore."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stormproof.replay.comparison.history import History
from stormproof.replay.comparison.verdict import Outcome, Verdict, VerdictKind, judge
from stormproof.replay.ledger import Load, Step
from tests.stormproof.replay.synthetic_runs import STEPS, digest, history

LOST = {
    # lost field: the component that is named first, at a resume inside an epoch
    "parameters": "before/parameters",
    "optimizer": "before/optimizer/AdamW",
    "scheduler": "scheduler/StepLR",
    "scaler": "scaler",
    "buffers": "buffers",
    "averaged": "averaged",
    "frozen": "frozen",
    "python": "rng/python",
    "numpy": "rng/numpy",
    "torch": "rng/torch",
    "position": "data/indices",
    "best": "variables/main.best",
    "level": "variables/main.level",
}


def _judge(killed_after: int = 14, resumed_from: int = 12, lost: tuple[str, ...] = (), **options: Any) -> Verdict:
    names = ("draws_order", "augments_in_workers", "loss_input", "has_loader")
    program = {name: options.pop(name) for name in names if name in options}
    restarted = history(resumed_from=resumed_from, lost=lost, **program)
    attempt = history(killed_after, ends=False, **program)
    return judge(Outcome({0: history(**program)}, {0: attempt}, {0: restarted}, exit_code=0, **options))


@pytest.mark.parametrize("lost", LOST)
def test_the_lost_component_is_named_first_and_nothing_else_is(lost: str):
    verdict = _judge(lost=(lost,))
    assert (verdict.kind, verdict.step, verdict.component) == (VerdictKind.DIFFERS, 13, LOST[lost])
    assert verdict.others in {(), ("learning_rate",)}


def test_two_lost_components_are_both_named():
    verdict = _judge(lost=("position", "optimizer", "frozen"))
    assert (verdict.component, verdict.others) == ("frozen", ("before/optimizer/AdamW", "data/indices"))
    assert set(verdict.restored) >= {"parameters", "learning_rate", "rng/python", "scaler"}


def test_an_order_that_a_lost_generator_draws_is_explained_by_the_generator():
    verdict = _judge(17, 15, ("torch",), draws_order=True)
    assert (verdict.step, verdict.component) == (16, "rng/torch")
    options = {"draws_order": True}
    restarted = history(resumed_from=16, lost=("torch",), **options)
    attempt = history(17, ends=False, **options)
    verdict = judge(Outcome({0: history(**options)}, {0: attempt}, {0: restarted}, exit_code=0))
    assert (verdict.step, verdict.component, verdict.others) == (17, "rng/torch", ())


def test_seeds_of_workers_are_named_if_the_order_is_right():
    verdict = _judge(lost=("workers",), augments_in_workers=True)
    assert (verdict.component, verdict.others) == ("rng/workers", ())


@pytest.mark.parametrize("lost", ["averaged", "buffers"])
@pytest.mark.parametrize("has_loader", [True, False])
def test_state_that_the_loss_depends_on_explains_the_loss(lost: str, has_loader: bool):
    verdict = _judge(lost=(lost,), loss_input=lost, has_loader=has_loader)
    assert (verdict.step, verdict.component, verdict.others) == (13, f"before/{lost}", ())


def test_without_a_loader_equal_buffers_before_the_step_imply_lost_data():
    verdict = _judge(lost=("position",), has_loader=False)
    assert (verdict.component, verdict.others) == ("data/batches", ())


@pytest.mark.parametrize(
    ("name", "values", "is_named"),
    [
        ("variables/main.queue", lambda step: step // 4, True),
        ("variables/Mixture.offset", lambda step: step % 7, True),
        ("variables/main.total", lambda step: step % 7, False),
        ("variables/Mixture.size", lambda _: 3, False),
        ("variables/main.hidden", lambda step: step, True),
    ],
)
@pytest.mark.parametrize("differs_before", [True, False])
def test_a_variable_that_the_program_keeps_explains_a_loss_that_nothing_else_explains(
    name: str, values: Callable[[int], int], is_named: bool, differs_before: bool
):
    options = {"has_loader": False, "loss_input": "scaler"}

    def with_variable(run: History, offset: int = 0, lost: int = 0) -> History:
        """Adds a variable, and hides the components that explain the loss."""
        hidden = dict.fromkeys(("scaler", "buffers", "averaged"), "")
        texts = {} if "hidden" in name else {name: "value"}
        steps = tuple(
            replace(
                step,
                components=step.components | hidden | {name: digest(values(offset + step.n) + lost)},
                values=step.values | texts,
            )
            for step in run.steps
        )
        before = run.before[0].components | {name: digest(values(offset) + lost * differs_before)} | hidden
        return replace(run, steps=steps, before=(replace(run.before[0], components=before),))

    reference, attempt = with_variable(history(**options)), with_variable(history(14, ends=False, **options))
    restarted = with_variable(history(resumed_from=12, lost=("scaler",), **options), 12, 99)
    verdict = judge(Outcome({0: reference}, {0: attempt}, {0: restarted}, exit_code=0))
    assert (verdict.step, verdict.component) == (13, name if is_named and differs_before else "loss")


@pytest.mark.parametrize(
    ("name", "uninterrupted", "restarted", "is_exact"),
    [
        ("main.best", lambda n: 9 - n // 4, lambda n: 9 if n < 15 else 9 - n // 4, True),  # a better value follows
        ("main.best", lambda n: 9 - n // 4, lambda _: 9, False),
        ("callback EarlyStopping.best", lambda n: 9 - n // 4, lambda n: 9 if n < 15 else 9 - n // 4, False),
        ("callback EarlyStopping.wait", lambda n: n // 2 % 5, lambda n: max(n // 2 % 5 - 1, 0), False),
        ("callback EarlyStopping.losses", lambda n: [0.5] * n, lambda n: [0.5] * (n - 12), True),
        ("main.start", lambda n: 40 if n < 8 else 0, lambda _: 12, True),
        ("main.running", lambda n: n * n % 7, lambda n: n % 5, True),
        ("main.losses", lambda n: [0.5] * n, lambda n: [0.5] * (n - 12), True),
        ("main.rest", lambda n: [[n // 8, 1], [2, 3]], lambda n: [[n // 8, 1]], True),
        ("Accuracy.correct", lambda n: n * n % 7, lambda n: n % 5, False),
    ],
)
def test_a_variable_alone_counts_if_it_is_reset_and_stays_different_or_belongs_to_a_metric(
    name: str, uninterrupted: Callable[[int], Any], restarted: Callable[[int], Any], is_exact: bool
):
    component = f"variables/{name}"

    def with_variable(run: History, values: Callable[[int], Any], offset: int = 0) -> History:
        steps = tuple(
            replace(
                step,
                components=step.components
                | {"variables/Accuracy._update_count": "1", component: digest(values(offset + step.n))},
                values=step.values | {component: repr(values(offset + step.n))},
            )
            for step in run.steps
        )
        return replace(run, steps=steps)

    reference, attempt = (with_variable(run, uninterrupted) for run in (history(), history(14, ends=False)))
    resumed = with_variable(history(resumed_from=12), restarted, 12)
    verdict = judge(Outcome({0: reference}, {0: attempt}, {0: resumed}, exit_code=0))
    assert (verdict.is_exact, verdict.component) == (is_exact, "" if is_exact else component)


def test_a_difference_in_a_later_epoch_is_found_there():
    verdict = _judge(lost=("sampler_epoch",))
    assert (verdict.step, verdict.component) == (17, "data/indices")


def test_a_batch_that_was_fetched_one_step_ahead_is_compared():
    """Transformers fetches the last batch of an epoch during the second-to-last step, so the last step has none."""

    def fetch_ahead(run: History, step: int) -> History:
        first, second = run.steps[step - 2 : step]
        ahead = replace(first, batches=first.batches + second.batches, indices=first.indices + second.indices)
        none = {name: value for name, value in second.components.items() if not name.startswith("data/")}
        last = replace(second, batches=(), indices=(), components=none)
        return replace(run, steps=(*run.steps[: step - 2], ahead, last, *run.steps[step:]))

    reference, attempt = fetch_ahead(history(), 16), fetch_ahead(history(16, ends=False), 16)
    restarted = history(resumed_from=15, lost=("numpy",))
    equal = {"rng/numpy": attempt.steps[-1].components["rng/numpy"]}
    first = replace(restarted.steps[0], components=restarted.steps[0].components | equal)
    restarted = replace(restarted, steps=(first, *restarted.steps[1:]))
    verdict = judge(Outcome({0: reference}, {0: attempt}, {0: restarted}, exit_code=0))
    assert (verdict.step, verdict.component, verdict.others) == (16, "data/batches", ())
    exact = judge(Outcome({0: reference}, {0: attempt}, {0: history(resumed_from=15)}, exit_code=0))
    assert exact.is_exact


def test_everything_restored_is_exact():
    verdict = _judge()
    assert verdict.is_exact
    assert (verdict.resumed_step, verdict.compared_steps, verdict.without_effect) == (12, 12, ())
    assert {"parameters", "optimizer/AdamW", "data/indices", "rng/torch"} <= set(verdict.restored)


def test_an_unused_generator_that_differs_is_exact():
    verdict = _judge(lost=("numpy",), augments_in_workers=True)
    assert verdict.is_exact


def test_a_counter_that_restarts_is_exact_if_nothing_else_differs():
    restarted = history(resumed_from=12)
    steps = tuple(
        replace(
            step,
            components={**step.components, "variables/main.step": f"other {step.n}"},
            values={**step.values, "variables/main.step": str(step.n)},
        )
        for step in restarted.steps
    )
    outcome = Outcome({0: history()}, {0: history(14, ends=False)}, {0: replace(restarted, steps=steps)}, exit_code=0)
    verdict = judge(outcome)
    assert verdict.is_exact
    assert verdict.without_effect == ("variables/main.step",)


def test_a_start_from_scratch_is_exact_only_before_the_first_checkpoint():
    assert _judge(2, 0).is_exact
    assert _judge(14, 0).kind is VerdictKind.FROM_SCRATCH


def test_work_is_lost_if_a_newer_checkpoint_was_complete():
    attempt = history(14, ends=False)
    saves = tuple(replace(save, path=f"step{save.after_step}.pt") for save in attempt.saves)
    restarted = replace(history(resumed_from=9), loads=(Load("step9.pt", 0, 0.0),))
    outcome = Outcome({0: history()}, {0: replace(attempt, saves=saves)}, {0: restarted}, exit_code=0)
    verdict = judge(outcome)
    assert (verdict.kind, verdict.lost_steps) == (VerdictKind.LOST_WORK, 3)
    assert judge(replace(outcome, damaged=("step12.pt",))).is_exact


def test_a_checkpoint_that_may_not_be_committed_is_not_lost_work():
    attempt = history(12, ends=False)
    saves = tuple(replace(save, path=f"step{save.after_step}.pt") for save in history(12).saves)  # complete just now
    restarted = replace(history(resumed_from=9), loads=(Load("step9.pt", 0, 0.0),))
    assert judge(Outcome({0: history()}, {0: replace(attempt, saves=saves)}, {0: restarted}, exit_code=0)).is_exact


def test_a_save_in_the_background_may_begin_after_the_copy_of_the_state():
    attempt = history(14, ends=False)
    saves = tuple(replace(save, after_step=save.after_step + 1) for save in attempt.saves)
    outcome = Outcome({0: history()}, {0: replace(attempt, saves=saves)}, {0: history(resumed_from=12)}, exit_code=0)
    verdict = judge(outcome)
    assert (verdict.kind, verdict.resumed_step) == (VerdictKind.EXACT, 12)


def test_a_checkpoint_that_is_incomplete_is_not_lost_work():
    attempt = history(12, ends=False)
    saves = tuple(replace(save, path=f"step{save.after_step}.pt") for save in history(12).saves)[:-1]
    restarted = replace(history(resumed_from=9), loads=(Load("step9.pt", 0, 0.0),))
    verdict = judge(Outcome({0: history()}, {0: replace(attempt, saves=saves)}, {0: restarted}, exit_code=0))
    assert verdict.is_exact


@pytest.mark.parametrize(
    ("last", "exit_code", "hung", "kind"),
    [
        (12, 1, False, VerdictKind.REFUSED),
        (12, 0, False, VerdictKind.REFUSED),
        (12, None, True, VerdictKind.HUNG),
        (15, 1, False, VerdictKind.FAILED),
        (20, 0, False, VerdictKind.DIFFERS),
        (20, None, False, VerdictKind.EXACT),
    ],
)
def test_the_end_of_the_restarted_command_decides(last: int, exit_code: int | None, hung: bool, kind: VerdictKind):
    restarted = history(last, resumed_from=12)
    outcome = Outcome({0: history()}, {0: history(14, ends=False)}, {0: restarted}, exit_code=exit_code, hung=hung)
    assert judge(outcome).kind is kind


def test_a_damaged_checkpoint_that_is_used_is_reported():
    outcome = Outcome(
        {0: history()},
        {0: history(14, ends=False)},
        {0: history(resumed_from=12, lost=("parameters",))},
        exit_code=0,
        damaged=("last.pt",),
    )
    assert judge(outcome).kind is VerdictKind.CORRUPT_ACCEPTED


def test_the_rank_that_differs_first_is_named():
    reference = {rank: history(rank=rank) for rank in (0, 1)}
    attempt = {rank: history(14, ends=False, rank=rank) for rank in (0, 1)}
    restarted = {0: history(resumed_from=12), 1: history(resumed_from=12, rank=1, lost=("torch",))}
    verdict = judge(Outcome(reference, attempt, restarted, exit_code=0))
    assert (verdict.rank, verdict.component) == (1, "rng/torch")


def test_components_that_are_not_deterministic_are_ignored():
    assert _judge(lost=("best",), ignored=frozenset({"variables/main.best"})).is_exact


def test_a_finished_command_that_makes_no_step_is_exact():
    outcome = Outcome({0: history()}, {0: history()}, {0: history(STEPS, resumed_from=STEPS)}, exit_code=0)
    assert judge(outcome).is_exact


def test_parameters_that_the_program_clips_after_each_step_are_no_difference():
    """The recorder reads them before they are clipped, and a checkpoint contains them clipped."""
    restarted = history(resumed_from=12)
    clipped = tuple(
        replace(before, components={**before.components, "parameters": f"clipped {before.n}"})
        for before in restarted.before
    )
    attempt = history(14, ends=False)
    outcome = Outcome({0: history()}, {0: attempt}, {0: replace(restarted, before=clipped)}, exit_code=0)
    assert judge(outcome).is_exact


def test_steps_that_are_not_hashed_are_no_difference():
    reference, cheap = history(), {"learning_rate", "data/count", "loss"}

    def drop_hashes(step: Step) -> Step:
        components = {name: value for name, value in step.components.items() if name in cheap}
        return replace(step, hashed=False, components=components, batches=(), indices=())

    steps = tuple(step if step.n % 5 == 0 else drop_hashes(step) for step in reference.steps)
    sampled = replace(reference, steps=steps)
    verdict = judge(Outcome({0: sampled}, {0: history(14, ends=False)}, {0: history(resumed_from=12)}, exit_code=0))
    assert (verdict.kind, verdict.resumed_step) == (VerdictKind.EXACT, 12)
    lost = history(resumed_from=12, lost=("optimizer",))
    assert (
        judge(Outcome({0: sampled}, {0: history(14, ends=False)}, {0: lost}, exit_code=0)).kind is VerdictKind.DIFFERS
    )
