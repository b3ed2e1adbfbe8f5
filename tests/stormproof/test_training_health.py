"""TrainingHealth reports single faults and does not change the run."""

import gc
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its name everywhere)
from torch.utils.data import DataLoader, TensorDataset

from stormproof import (
    DeadNeuronDetector,
    DivergenceGuard,
    GradientNormMonitor,
    NotEnoughEvidence,
    Rule,
    TrainingHealth,
    default_rules,
)
from stormproof.errors import DivergedError, NotResumableError
from stormproof.finding import Finding, Problem, Severity
from stormproof.health.observers.observer import EARLY_STEPS, TrainingObserver
from stormproof.health.record import Record
from stormproof.health.rule_set import RuleSet
from stormproof.probe.probe import Probe
from tests.support.cases import slow_except

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:no gradient was measured"),
]


class Classifier(pl.LightningModule):
    """Four classes by the largest of four sums, with dropout and a batch norm within."""

    def __init__(self, rate: float = 5e-3, head: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 4), head or nn.Identity()
        )
        self.rate = rate

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", F.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.rate)


def loader(
    change: Callable[[torch.Tensor, torch.Tensor], Any] = lambda x, y: (x, y), count: int = 640, shuffle: bool = True
) -> Any:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 8, generator=generator)
    pair = change(inputs, (inputs @ torch.randn(8, 4, generator=generator)).argmax(1))
    return DataLoader(TensorDataset(*pair), batch_size=16, shuffle=shuffle, generator=torch.Generator().manual_seed(2))


def fit(module: Any, train: Any, *callbacks: pl.Callback, **trainer: Any) -> pl.Trainer:
    torch.manual_seed(3)
    arguments: dict[str, Any] = {
        "max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    pl_trainer = pl.Trainer(**{**arguments, **trainer}, callbacks=list(callbacks))
    pl_trainer.fit(module, train, loader(count=96, shuffle=False))
    return pl_trainer


def find_problems(module: Any, train: Any = None, **trainer: Any) -> list[Problem]:
    health = TrainingHealth()
    fit(module, loader() if train is None else train, health, **trainer)
    return [finding.problem for finding in health.findings]


def test_a_healthy_training_is_not_talked_about(capsys: pytest.CaptureFixture[str]):
    assert find_problems(Classifier()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_what_callbacks_take_between_two_batches_is_no_waiting_for_data():
    class Busy(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            time.sleep(0.01)

    class Slow(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            time.sleep(0.0005)
            return super().__getitem__(index)

    health, inputs = TrainingHealth(), torch.randn(640, 8)
    slow = Slow(inputs, (inputs[:, 0] > 0).long())
    fit(Classifier(), DataLoader(slow, batch_size=16), health, Busy())
    assert Problem.DATA_STARVATION not in [finding.problem for finding in health.findings]
    second_health = TrainingHealth()
    fit(Classifier(), DataLoader(slow, batch_size=16), second_health)  # the same waits, and less besides
    assert Problem.DATA_STARVATION in [finding.problem for finding in second_health.findings]


def test_a_finding_is_logged_once_with_a_link_to_its_page(capsys: pytest.CaptureFixture[str]):
    fit(Classifier(rate=0.0), loader(), TrainingHealth())
    output_lines = capsys.readouterr().out.splitlines()
    assert len(output_lines) == 1
    assert output_lines[0].endswith(f"See {Problem.LEARNING_RATE_ZERO.url}")
    sentence = "critical: LEARNING_RATE_ZERO  optimizer 0: the learning rate has been 0 for 20 steps, since step 0. "
    assert output_lines[0].startswith(f"{sentence}Set lr above 0")


def test_other_advice_can_be_given():
    health = TrainingHealth(advise=lambda finding: f"{finding.problem}!" if "rate" in finding.problem else None)
    fit(Classifier(rate=0.0), loader(), health)
    assert health.findings[0].advice == "learning_rate_zero!"


def test_it_changes_no_bit():
    with_it, without = Classifier(), Classifier()
    fit(with_it, loader(), TrainingHealth())
    fit(without, loader())
    state, expected_state = with_it.state_dict(), without.state_dict()
    assert all(torch.equal(state[name], expected_state[name]) for name in state)
    assert set(vars(with_it)) == set(vars(without))  # no method is left changed


def test_softmax_before_cross_entropy_is_reported_with_its_layer():
    health = TrainingHealth()
    fit(Classifier(head=nn.Softmax(1)), loader(), health)
    first = health.findings[0]
    assert (first.problem, first.where, first.step) == (Problem.LOSS_INPUT_MISMATCH, "network.4", 2)
    assert first.evidence["gets"] == "probabilities"


def test_a_rate_of_zero_is_critical():
    health = TrainingHealth()
    fit(Classifier(rate=0.0), loader(), health)
    assert (health.findings[0].problem, health.findings[0].severity) == (Problem.LEARNING_RATE_ZERO, Severity.CRITICAL)


def test_a_rate_that_is_far_too_high_explains_what_follows():
    health = TrainingHealth()
    fit(Classifier(rate=30.0), loader(), health)
    assert health.findings[0].problem == Problem.LEARNING_RATE_TOO_HIGH


def test_shuffled_targets_are_unrelated_to_the_inputs():
    shuffled = loader(lambda x, y: (x, y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]))
    assert find_problems(Classifier(rate=1e-3), shuffled) == [Problem.TARGETS_UNRELATED_TO_INPUTS]


def test_one_class_is_a_degenerate_target():
    assert find_problems(Classifier(), loader(lambda x, y: (x, torch.zeros_like(y))))[0] == Problem.DEGENERATE_TARGETS


def test_nan_in_the_data_differs_from_nan_in_the_network():
    def break_one(inputs: torch.Tensor, target: torch.Tensor) -> Any:
        inputs[100, 3] = torch.nan
        return inputs, target

    assert find_problems(Classifier(), loader(break_one))[0] == Problem.NON_FINITE_DATA


def test_the_function_and_layer_of_a_nan_are_named():
    class Logarithm(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.log(inputs)

    health = TrainingHealth()
    fit(Classifier(head=Logarithm()), loader(), health)
    finding = health.findings[0]
    assert (finding.problem, finding.where, finding.since_step) == (Problem.NON_FINITE, "network.4", 0)
    assert finding.evidence["tensor"] == "output of log"


def test_a_detached_layer_is_reported_with_the_function_that_cut_the_graph():
    class Detached(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            hidden = self.network[:4](batch[0]).detach()
            return F.cross_entropy(self.network[4](hidden), batch[1])

    health = TrainingHealth()
    fit(Detached(), loader(), health)
    assert (health.findings[0].problem, health.findings[0].evidence["cut_by"]) == (Problem.NO_GRADIENT, "detach")


def test_an_unused_head_may_be_meant_so():
    module = Classifier()
    module.later = nn.Linear(3, 3)
    health = TrainingHealth()
    fit(module, loader(), health)
    assert [(finding.problem, finding.severity, finding.where) for finding in health.findings] == [
        (Problem.NO_GRADIENT, Severity.INFO, "later")
    ]


def test_a_frozen_part_may_be_meant_so():
    module = Classifier()
    module.network[0].requires_grad_(False)
    health = TrainingHealth()
    fit(module, loader(), health)
    assert [(finding.problem, finding.severity, finding.where) for finding in health.findings] == [
        (Problem.NO_GRADIENT, Severity.INFO, "network.0")
    ]


def test_a_column_against_a_row_is_stretched():
    class Regression(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return (self.network(batch[0])[:, :1] - batch[1].float()).square().mean()

    assert find_problems(Regression())[0] == Problem.BROADCAST_MISMATCH


def test_monitors_that_are_there_are_used():
    norms, dead = GradientNormMonitor(table=False), DeadNeuronDetector(table=False)
    pl_trainer = fit(Classifier(), loader(), TrainingHealth(), norms, dead)
    monitors = (GradientNormMonitor, DeadNeuronDetector)
    assert [type(callback) for callback in pl_trainer.callbacks if isinstance(callback, monitors)] == [
        GradientNormMonitor, DeadNeuronDetector,
    ]  # fmt: skip


def test_findings_are_lines_of_a_file(tmp_path: Path):
    fit(Classifier(rate=0.0), loader(), TrainingHealth(run_folder=tmp_path / "run"))
    lines = (tmp_path / "run" / "findings.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["problem"] == "learning_rate_zero"


def test_it_resumes_from_a_checkpoint_with_its_findings(tmp_path: Path):
    first, second = TrainingHealth(), TrainingHealth()
    pl_trainer = fit(Classifier(rate=0.0), loader(), first, max_epochs=1)
    pl_trainer.save_checkpoint(tmp_path / "x.ckpt")
    resumed = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[second],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="be aware that when using .ckpt_path.*")
        resumed.fit(
            Classifier(rate=0.0),
            loader(),
            loader(count=96, shuffle=False),
            ckpt_path=tmp_path / "x.ckpt",
            weights_only=True,
        )
    assert second.findings[0].step == first.findings[0].step == 20


@pytest.mark.slow
def test_a_loss_of_ones_own_with_a_best_constant_is_compared_with_it():
    class Own:
        def __call__(self, preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (F.one_hot(target, 4) - preds.softmax(1)).abs().sum(1).mean()

        def best_constant(self, target: torch.Tensor) -> float:
            return 0.0  # no training will be better than that

    class WithPredictions(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            preds = self.network(batch[0])
            return {"loss": module(preds, batch[1]), "preds": preds, "target": batch[1]}

    module = Own()
    health = TrainingHealth(loss=module)
    fit(WithPredictions(rate=1e-5), loader(), health)
    assert health.findings[0].problem in {Problem.NO_BETTER_THAN_CONSTANT, Problem.LEARNING_RATE_TOO_LOW}


WRITTEN_OUT: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "an index": lambda scores, target: -F.log_softmax(scores, 1)[torch.arange(len(target)), target].mean(),
    "a gathered entry": lambda scores, target: -scores.log_softmax(1).gather(1, target[:, None]).mean(),
    "losses of samples": lambda scores, target: F.cross_entropy(scores, target, reduction="none").mean(),
    "their sum": lambda scores, target: F.cross_entropy(scores, target, reduction="none").sum(),
    "a difference": lambda scores, target: ((scores[:, 0] - target.float()) ** 2).mean(),
    "an absolute difference": lambda scores, target: (target.float() - scores[:, 0]).abs().mean(),
    "with a penalty": lambda scores, target: F.cross_entropy(scores, target) + 1e-3 * scores.square().mean(),
    "scaled": lambda scores, target: 0.5 * F.cross_entropy(scores, target),
}


@pytest.mark.parametrize("way", slow_except(WRITTEN_OUT, list(WRITTEN_OUT)[:1]))
def test_a_loss_that_is_written_out_is_known_too(way: str):
    class WrittenOut(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return WRITTEN_OUT[way](self.network(batch[0]), batch[1])

    def shuffle(inputs: torch.Tensor, target: torch.Tensor) -> Any:
        return inputs, target[torch.randperm(len(target), generator=torch.Generator().manual_seed(5))]

    assert find_problems(WrittenOut(), loader(shuffle), max_epochs=3)[0] == Problem.TARGETS_UNRELATED_TO_INPUTS


def test_a_loss_that_nothing_gives_is_left_out_with_a_word(capsys: pytest.CaptureFixture[str]):
    class Own(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return (F.one_hot(batch[1], 4) - self.network(batch[0])).square().mean().sqrt()

    assert find_problems(Own()) == []
    assert capsys.readouterr().out.count("TrainingHealth cannot identify the loss function") == 1


def test_of_two_losses_each_is_looked_at():
    class Two(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Linear(8, 4)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            scores = self.network(batch[0])
            softmax = torch.softmax(self.second(batch[0]), 1)
            return F.cross_entropy(scores, batch[1]) + F.cross_entropy(softmax, batch[1])

    health = TrainingHealth()
    fit(Two(), loader(), health)
    assert [(finding.problem, finding.where) for finding in health.findings] == [
        (Problem.LOSS_INPUT_MISMATCH, "second")
    ]


def test_a_loss_that_is_not_the_one_of_the_step_is_left_out_with_a_word():
    health = TrainingHealth(loss=F.mse_loss)
    with pytest.warns(UserWarning, match="loss returned by training_step is not TrainingHealth"):
        fit(Classifier(), loader(), health)
    assert health.findings == []


def test_a_validation_that_returns_something_else_is_no_trouble():
    class OwnValidation(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return {"preds": self.network(batch[0]).argmax(1), "target": batch[1]}  # classes, not logits

    assert find_problems(OwnValidation()) == []


def test_after_a_nan_it_diagnoses_no_more_often_than_before(monkeypatch: pytest.MonkeyPatch):
    def break_one(inputs: torch.Tensor, target: torch.Tensor) -> Any:
        inputs[100, 3] = torch.nan
        return inputs, target

    times: list[int] = []
    apply = RuleSet.apply
    monkeypatch.setattr(RuleSet, "apply", lambda rules, record: times.append(record.step) or apply(rules, record))
    fit(Classifier(), loader(break_one), TrainingHealth())
    assert len(times) < 30  # of 80 steps


@pytest.mark.slow
def test_no_prediction_is_kept_between_two_steps():
    def of_its_shape() -> list[torch.Tensor]:
        return [
            candidate
            for candidate in gc.get_objects()
            if type(candidate) is torch.Tensor and candidate.shape == (16, 4)
        ]

    class Counts(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            alive.append(len([tensor for tensor in of_its_shape() if id(tensor) not in before]))

    # tensors of other tests may not be collected yet; references keep their ids from being reused
    before = {id(tensor): tensor for tensor in of_its_shape()}
    alive: list[int] = []
    fit(Classifier(), loader(), Counts(), TrainingHealth(), max_epochs=1)
    assert max(alive) == 0


@pytest.mark.slow
def test_overfitting_is_detected_by_a_metric_if_the_loss_is_unknown():
    class Opaque(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * 2 + 0.1

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("score", 1.0 + 0.1 * self.current_epoch)

    health = TrainingHealth(validation_metric="score")
    fit(Opaque(), loader(), health, max_epochs=4)
    assert [finding.problem for finding in health.findings] == [Problem.OVERFITTING]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, as it compiles
def test_a_compiled_loss_is_no_trouble():
    compiled = torch.compile(F.cross_entropy, backend="eager")

    class Compiled(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return compiled(self.network(batch[0]), batch[1])

    torch.compiler.reset()
    assert find_problems(Compiled()) == []


def test_a_guard_that_watches_it_ends_a_useless_training():
    health = TrainingHealth()
    with pytest.raises(DivergedError, match="LEARNING_RATE_ZERO"):
        fit(Classifier(rate=0.0), loader(), health, DivergenceGuard(action="stop", stop_on_critical=health))
    with pytest.raises(DivergedError, match="LEARNING_RATE_ZERO"):
        fit(Classifier(rate=0.0), loader(), TrainingHealth(), DivergenceGuard(action="stop", stop_on_critical=True))


def test_a_guard_has_nothing_to_watch_without_it():
    with pytest.raises(NotResumableError, match="TrainingHealth"):
        fit(Classifier(), loader(), DivergenceGuard(action="stop", stop_on_critical=True))


def test_a_finding_that_becomes_critical_is_reported_again(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    class Nothing(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            F.cross_entropy(self.network(batch[0]), batch[1])  # and no return

    module = Nothing()
    module.network[0].requires_grad_(False)
    with warnings.catch_warnings(action="ignore"):
        fit(module, loader(), TrainingHealth(run_folder=tmp_path), max_epochs=4)
    out = capsys.readouterr().out
    assert out.count("critical: NO_GRADIENT  all layers") == 1
    assert out.count("info: NO_GRADIENT  network.0: ") == 1
    assert len((tmp_path / "findings.jsonl").read_text().splitlines()) == 2


def test_a_run_without_optimizer_steps_is_reported():
    class Forgets(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.manual_backward(F.cross_entropy(self.network(batch[0]), batch[1]))

    health = TrainingHealth()
    fit(Forgets(), loader(count=1200), health)
    assert [(finding.problem, finding.severity) for finding in health.findings] == [
        (Problem.NO_GRADIENT, Severity.CRITICAL)
    ]


class Raw(Classifier):
    """Steps its optimizer past Lightning, which counts none of that."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.network(batch[0]), batch[1]))
        optimizer.step()


@pytest.mark.slow
def test_steps_that_lightning_does_not_count_are_steps():
    health = TrainingHealth()
    pl_trainer = fit(Raw(), loader(count=1200), health)
    assert pl_trainer.global_step == 0
    assert health.findings == []


def test_without_counted_steps_batches_determine_which_steps_are_traced(monkeypatch: pytest.MonkeyPatch):
    looked = []
    begin = TrainingObserver._begin_trace
    monkeypatch.setattr(TrainingObserver, "_begin_trace", lambda self: (looked.append(self.batches), begin(self)))
    fit(Raw(), loader(), TrainingHealth())
    assert looked == [step for step in sorted(EARLY_STEPS) if step < 80]


def test_a_backward_pass_that_goes_past_lightning_is_no_trouble():
    class Plain(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            F.cross_entropy(self.network(batch[0]), batch[1]).backward()
            optimizer.step()

    assert find_problems(Plain()) == []


def test_lazy_layers_are_waited_for():
    class Lazy(Classifier):
        def __init__(self) -> None:
            super().__init__(rate=0.0)
            self.network = nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(4))

    with warnings.catch_warnings(action="ignore"):
        assert find_problems(Lazy()) == [Problem.LEARNING_RATE_ZERO]


def test_a_finding_about_a_slow_start_is_resolved(monkeypatch: pytest.MonkeyPatch):
    early = Finding(Problem.NO_BETTER_THAN_CONSTANT, Severity.WARNING, "", 0, 5, {"loss": 2.0}, "Check.")
    (rule,) = (rule for rule in default_rules() if rule.problem == early.problem)
    health = TrainingHealth(rules=[replace(rule, check=lambda record: [early] if record.step == 5 else [])])
    fit(Classifier(rate=2e-2), loader(), health, max_epochs=4)
    (finding,) = health.findings
    assert (finding.problem, finding.severity, finding.step) == (early.problem, Severity.INFO, 5)
    assert finding.evidence["until_step"] > 5


def test_a_rule_of_the_user_is_reported_with_its_sentence_and_link_and_survives_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def check_first_loss(record: Record) -> Iterator[Finding]:
        if record.losses.first and record.losses.first[0] > 1:
            text = f"the first loss is {record.losses.first[0]:.1f}."
            yield Finding("large_first_loss", Severity.WARNING, step=record.step, text=text, advice="Scale.")

    rule = Rule("large_first_loss", check_first_loss, documentation="https://example.org/large")
    health = TrainingHealth(
        rules=[*default_rules(), rule], disable={"PLATEAU"}, severity={"LARGE_FIRST_LOSS": "critical"},
        run_folder=tmp_path,
    )  # fmt: skip
    fit(Classifier(), loader(), health)
    message = "critical: LARGE_FIRST_LOSS  The first loss is 1.4. Scale."
    assert [str(finding) for finding in health.findings] == [message]
    assert f"{message} See https://example.org/large" in capsys.readouterr().out
    (line,) = (tmp_path / "findings.jsonl").read_text().splitlines()
    assert [Finding.from_dict(json.loads(line))] == health.findings
    missing = "Not enough evidence for 1 of the problems:\n  OVERFITTING needs 3 validation passes with a loss (has 2)"
    assert str(health.summary()) == f"1 critical finding in 80 steps.\n{message}\n{missing}"
    resumed = TrainingHealth(rules=[rule])  # without its severity
    resumed.load_state_dict(health.state_dict())
    assert resumed.findings == [replace(*health.findings, severity=Severity.WARNING)]
    resumed = TrainingHealth()  # without the rule
    resumed.load_state_dict(health.state_dict())
    assert resumed.findings == []


FAILING = {
    "a rule": ("stormproof.health.rule_set.RuleSet", "apply"),
    "what follows the step": ("stormproof.health.observers.tracing.step_trace.StepTrace", "_record_layer_call"),
    "a traced step": ("stormproof.health.observers.loss.baselines", "compute_prediction_stats"),
}


@pytest.mark.slow
@pytest.mark.parametrize("part", FAILING)
def test_the_run_continues_after_an_internal_error(part: str, monkeypatch: pytest.MonkeyPatch):
    bare = Classifier()
    fit(bare, loader())

    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("of its own")

    monkeypatch.setattr(".".join(FAILING[part]), fail)
    diagnosed, health = Classifier(), TrainingHealth()
    with pytest.warns(
        UserWarning, match="TrainingHealth failed with ZeroDivisionError: of its own .*run continues without diagnosis"
    ):
        pl_trainer = fit(diagnosed, loader(), health)
    assert pl_trainer.global_step == 80
    assert health.summary().steps < 80
    assert health.summary().has_failed
    assert all(
        torch.equal(parameter, expected_parameter)
        for parameter, expected_parameter in zip(bare.parameters(), diagnosed.parameters(), strict=True)
    )


def test_the_error_of_a_killed_loader_worker_ends_the_training(monkeypatch: pytest.MonkeyPatch):
    def lose_worker(*_: Any) -> None:
        iterator: Any = iter(DataLoader(range(4), num_workers=1))  # pyright: ignore[reportArgumentType]
        iterator._workers[0].kill()
        time.sleep(10)  # torch raises in its signal handler

    monkeypatch.setattr(RuleSet, "apply", lose_worker)
    with (
        warnings.catch_warnings(record=True, action="always") as caught,  # Python warns of forks if threads run
        pytest.raises(RuntimeError, match=r"DataLoader worker .* is killed by signal"),
    ):
        fit(Classifier(), loader(), TrainingHealth())  # on_exception applies the rules again
    assert not any("TrainingHealth failed" in str(warning.message) for warning in caught)


def test_it_refuses_a_cadence_below_one():
    with pytest.raises(ValueError, match="`every_n_steps` must be at least 1 or None, got 0"):
        TrainingHealth(every_n_steps=0)


def test_all_accumulated_batches_of_a_due_step_are_traced(monkeypatch: pytest.MonkeyPatch):
    steps: list[int] = []

    class Counts(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            steps.append(trainer.global_step)

    begin_trace = TrainingObserver._begin_trace
    traced: list[int] = []

    def count(observer: TrainingObserver) -> None:
        traced.append(len(steps))
        begin_trace(observer)

    monkeypatch.setattr(TrainingObserver, "_begin_trace", count)
    fit(Classifier(), loader(), TrainingHealth(every_n_steps=11), Counts(), accumulate_grad_batches=2, max_epochs=1)
    due_steps = sorted({step for step in EARLY_STEPS if step < 20} | {10})
    assert traced == [2 * step + batch for step in due_steps for batch in (0, 1)]


def test_a_jump_of_the_loss_is_measured_in_the_next_steps():
    class Jumps(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (80 if batch_idx > 130 else 1)

    health = TrainingHealth()  # a step is so short that the budget traces every 1,000th step
    fit(Jumps(), loader(count=170 * 16), health, max_epochs=1, limit_val_batches=0)
    (finding,) = (finding for finding in health.findings if finding.problem == Problem.LOSS_SPIKE)
    assert (finding.since_step, finding.step) == (131, 133)


def test_topics_that_no_rule_needs_are_not_measured(monkeypatch: pytest.MonkeyPatch):
    def check(record: Record) -> Iterator[Finding]:
        if record.losses.first:
            steps.append(record.step)
            yield Finding("high_loss", Severity.WARNING, text="the loss is high.")

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a step is traced")

    steps: list[int] = []
    monkeypatch.setattr(TrainingObserver, "_begin_trace", fail)
    health = TrainingHealth(rules=[Rule("high_loss", check, needs={"losses"})])
    callbacks = fit(Classifier(), loader(), health, max_epochs=1).callbacks  # type: ignore[attr-defined]
    assert not any(isinstance(callback, (GradientNormMonitor, DeadNeuronDetector)) for callback in callbacks)
    assert [finding.code for finding in health.findings] == ["HIGH_LOSS"]
    assert steps[:3] == [1, 2, 3]


def test_topics_of_disabled_rules_are_not_measured():
    needed = {rule.problem for rule in default_rules() if "units" in rule.needs}
    health = TrainingHealth(disable=needed)
    callbacks = fit(Classifier(), loader(), health, max_epochs=1).callbacks  # type: ignore[attr-defined]
    assert not any(isinstance(callback, DeadNeuronDetector) for callback in callbacks)
    assert health.findings == []


class DrawsInLoss(nn.Module):
    """A loss that draws random numbers and counts its calls in a buffer and in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.count = 0

    def forward(self, preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.count += 1
        order = torch.randperm(len(target))
        return F.cross_entropy(preds[order], target[order]) * 0.7 + 0.001 * torch.rand(1).item()


class DrawingClassifier(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = DrawsInLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        preds = self.network(batch[0])
        return {"loss": self.criterion(preds, batch[1]), "preds": preds, "target": batch[1]}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"preds": self.network(batch[0]), "target": batch[1]}


def test_a_loss_that_draws_random_numbers_is_evaluated_without_side_effects():
    modules = [DrawingClassifier(), DrawingClassifier()]
    fit(modules[0], loader())
    fit(modules[1], loader(), TrainingHealth())
    states = [module.state_dict() for module in modules]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert modules[0].criterion.count == modules[1].criterion.count == 80


def test_a_lasting_jump_is_found_after_an_outlier():
    class Jumps(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (5 if batch_idx == 110 else 8 if batch_idx > 170 else 1)

    # the extra steps after the outlier delay later traced steps
    health = TrainingHealth(disable={"LEARNING_RATE_TOO_LOW"})  # it would explain the spike
    requests: list[int] = []
    module = Jumps(rate=1e-4)
    request = TrainingObserver.request_extra_measurements
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            TrainingObserver,
            "request_extra_measurements",
            lambda self: (requests.append(module.trainer.global_step), request(self)),
        )
        fit(module, loader(count=220 * 16), health, max_epochs=1, limit_val_batches=0)
    assert 110 in requests
    (finding,) = (finding for finding in health.findings if finding.problem == Problem.LOSS_SPIKE)
    assert (finding.since_step, finding.step) == (171, 192)


def test_losses_on_a_device_are_checked_at_logging_steps(monkeypatch: pytest.MonkeyPatch):
    class Jumps(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (80 if batch_idx > 130 else 1)

    monkeypatch.setattr(Probe, "batch_loss", lambda _, loss: loss.detach())
    health = TrainingHealth(rules=[rule for rule in default_rules() if rule.problem == Problem.LOSS_SPIKE])
    fit(Jumps(), loader(count=190 * 16), health, max_epochs=1, limit_val_batches=0, log_every_n_steps=10)
    (finding,) = health.findings
    assert (finding.since_step, finding.step) == (131, 160)  # read at step 140, and diagnosed 20 steps later


def test_a_likely_problem_is_diagnosed_soon_although_no_step_is_traced():
    diagnosed: list[int] = []

    def check(record: Record) -> Iterator[NotEnoughEvidence]:
        diagnosed.append(record.step)
        yield NotEnoughEvidence("more", is_likely=record.step >= 200)

    health = TrainingHealth(rules=[Rule("unknown", check, needs={"losses"})])
    fit(Classifier(), loader(count=300 * 16), health, max_epochs=1, limit_val_batches=0)
    assert [step for step in diagnosed if step > 100] == [200, 220, 300, 300, 300]


def test_the_trainer_is_restored_if_no_monitor_was_added():
    health = TrainingHealth(rules=[rule for rule in default_rules() if rule.problem == Problem.LOSS_SPIKE])
    trainer = fit(Classifier(), loader(), health)
    assert not [name for name in vars(trainer) if "stormproof" in name]
    assert "on_advance_end" not in vars(trainer.fit_loop.epoch_loop)


def test_steps_that_lightning_does_not_count_are_in_the_summary():
    health = TrainingHealth()
    fit(Raw(), loader(), health, max_epochs=1)
    assert health.summary().headline == "No problems found in 40 steps."
