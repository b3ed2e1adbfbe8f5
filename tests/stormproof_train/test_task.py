import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error, r2_score
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from stormproof_train import losses
from stormproof_train.data.diabetes import Diabetes
from stormproof_train.data.digits import Digits
from stormproof_train.data.in_memory import InMemory
from stormproof_train.data.spec import DataSpec
from stormproof_train.errors import UserError
from stormproof_train.losses import facts_of
from stormproof_train.metrics import HEADLINE
from stormproof_train.models import MLP
from stormproof_train.schedulers import none, warmup_cosine
from stormproof_train.task import Task, length_comes_from_the_run

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*treespec, LeafSpec.*",
    "ignore:.*does not have many workers.*",
    "ignore:.*number of training batches.*smaller than the logging interval.*",
)


class _Recorder(Logger):
    """Keeps every logged value with its step."""

    name, version = "recorder", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, list[tuple[int, float]]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        for name, value in metrics.items():
            self.rows.setdefault(name, []).append((step, value))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def last(self, name: str) -> float:
        return self.rows[name][-1][1]


def _task(spec: DataSpec, **changed: Any) -> Task:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "network": MLP(spec.input_shape, spec.num_outputs, nn.Tanh, width=16, depth=1),
        "loss": nn.CrossEntropyLoss() if spec.num_classes else nn.MSELoss(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        "scheduler": lambda **offered: None,
        "counts_steps": False,
    }
    return Task(spec=spec, **{**arguments, **changed})


def _trainer(folder: Path, **options: Any) -> tuple[pl.Trainer, _Recorder]:
    recorder = _Recorder()
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": recorder,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return pl.Trainer(**{**defaults, **options}), recorder


def _whole(loader: DataLoader) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def _predictions(task: Task, loader: DataLoader) -> tuple[torch.Tensor, np.ndarray]:
    inputs, targets = _whole(loader)
    with torch.no_grad():
        return task(inputs), targets.numpy()


# ---------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("split", ["val", "test"])
def test_classification_metrics_are_scikit_learns(split: str, tmp_path: Path):
    data = Digits(batch_size=100)
    task = _task(data.spec)
    trainer, _ = _trainer(tmp_path)
    ours = (trainer.validate if split == "val" else trainer.test)(task, datamodule=data, verbose=False)[0]
    logits, labels = _predictions(task, data.val_dataloader() if split == "val" else data.test_dataloader())
    chosen = logits.argmax(dim=1).numpy()
    assert len(labels) % 100 != 0  # the last batch is a smaller one
    assert ours == {
        f"{split}/loss": pytest.approx(float(nn.functional.cross_entropy(logits, torch.as_tensor(labels))), rel=1e-5),
        f"{split}/accuracy": pytest.approx(accuracy_score(labels, chosen), rel=1e-6),
        f"{split}/f1": pytest.approx(f1_score(labels, chosen, average="macro", zero_division=0), rel=1e-5),
    }


def test_regression_metrics_are_scikit_learns_in_the_targets_own_unit(tmp_path: Path):
    data = Diabetes(batch_size=32)
    task = _task(data.spec)
    trainer, _ = _trainer(tmp_path)
    ours = trainer.test(task, datamodule=data, verbose=False)[0]
    outputs, target = _predictions(task, data.test_dataloader())
    predicted = outputs.numpy()
    assert ours == {
        "test/loss": pytest.approx(mean_squared_error(target, predicted) / data.spec.target_std**2, rel=1e-5),
        "test/rmse": pytest.approx(math.sqrt(mean_squared_error(target, predicted)), rel=1e-5),
        "test/mae": pytest.approx(mean_absolute_error(target, predicted), rel=1e-5),
        "test/r2": pytest.approx(r2_score(target, predicted), rel=1e-4, abs=1e-5),
    }
    assert 40 < ours["test/rmse"] < 200  # of targets from 25 to 346


def test_a_network_that_says_zero_predicts_the_mean_of_the_training_targets(tmp_path: Path):
    data = Diabetes()
    network = nn.Linear(10, 1)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    task = _task(data.spec, network=network)
    assert task(torch.randn(3, 10)).flatten().tolist() == pytest.approx([data.spec.target_mean] * 3)
    trainer, recorder = _trainer(tmp_path)
    trainer.fit(task, datamodule=data)
    _, targets = _whole(data.train_dataloader())
    assert recorder.last("train/rmse") == pytest.approx(float((targets - data.spec.target_mean).square().mean().sqrt()))
    assert recorder.last("train/epoch_loss") == pytest.approx(1.0, abs=0.01)  # the targets' own variance


PREDICTIONS = {  # of a network that says zero, in the target's own unit
    "the mean, of what is standardized": (losses.MSE(), 10.0),
    "the mean, of two outputs a target": (losses.GaussianNLL(), 10.0),
    "the mean, of its logarithm": (losses.Poisson(), 10.0),
    "a rate of e of a foreign loss": (SimpleNamespace(prediction=lambda outputs: outputs + math.e), 10 + 2 * math.e),
}


@pytest.mark.parametrize(("loss", "expected"), PREDICTIONS.values(), ids=PREDICTIONS.keys())
def test_a_prediction_is_in_the_targets_own_unit_whatever_the_loss(loss: Any, expected: float):
    spec = DataSpec((4,), None, 3, target_mean=10.0, target_std=2.0, target_min=1.0)
    network = nn.Linear(4, 3 * facts_of(loss).outputs_per_target)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    assert _task(spec, network=network, loss=loss)(torch.randn(5, 4)).tolist() == [[pytest.approx(expected)] * 3] * 5


SCALED = {
    "standardized": (losses.MSE(), [[-4.5], [0.0]]),
    "two outputs a target": (losses.GaussianNLL(), [[-4.5], [0.0]]),
    "divided by the mean": (losses.Poisson(), [[0.1], [1.0]]),
}


@pytest.mark.parametrize(("loss", "expected"), SCALED.values(), ids=SCALED.keys())
def test_targets_are_scaled_as_the_loss_wants_them(loss: Any, expected: list[list[float]]):
    spec = DataSpec((4,), None, 1, target_mean=10.0, target_std=2.0, target_min=1.0)
    network = nn.Linear(4, facts_of(loss).outputs_per_target)
    task = _task(spec, network=network, loss=loss)
    inputs, target = torch.randn(2, 4), torch.tensor([1.0, 10.0])
    assert task._step((inputs, target), task.val_loss, task.val_metrics) == loss(
        network(inputs), torch.tensor(expected)
    )
    predicted, target = task(inputs).detach(), target.unsqueeze(1)
    assert float(task.val_metrics.compute()["mae"]) == pytest.approx(float((predicted - target).abs().mean()))


def test_the_headline_is_a_metric_of_its_task():
    for spec in (Digits.spec, Diabetes.spec):
        assert HEADLINE[spec.task].name in _task(spec).train_metrics
        assert HEADLINE[spec.task].name in _task(spec).val_metrics
    assert HEADLINE["classification"].higher_is_better
    assert not HEADLINE["regression"].higher_is_better


# ---------------------------------------------------------------------------------------------------- logging


@pytest.mark.parametrize(("drop_last", "samples"), [(False, 1257), (True, 1200)])
def test_the_mean_loss_of_an_epoch_weights_each_sample_alike(drop_last: bool, samples: int, tmp_path: Path):
    data = Digits(batch_size=400, drop_last=drop_last)  # 400, 400, 400 and 57; the weights stand still
    task = _task(data.spec)
    trainer, recorder = _trainer(tmp_path)
    trainer.fit(task, datamodule=data)
    inputs, labels = (torch.cat(parts) for parts in zip(*data.train_dataloader(), strict=True))  # the same first pass
    assert len(labels) == samples
    with torch.no_grad():
        losses = nn.functional.cross_entropy(task(inputs), labels, reduction="none")
    assert recorder.last("train/epoch_loss") == pytest.approx(float(losses.mean()), rel=1e-5)
    assert len(recorder.rows["train/epoch_loss"]) == 1
    batches = [value for _, value in recorder.rows["train/loss"]]
    assert batches == pytest.approx([float(part.mean()) for part in losses.split(400)], rel=1e-5)


def test_each_epoch_is_reported_alone(tmp_path: Path):
    data = Digits(batch_size=300)
    task = _task(data.spec, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5))
    trainer, recorder = _trainer(tmp_path, max_epochs=2)
    trainer.fit(task, datamodule=data)
    losses = [value for _, value in recorder.rows["train/loss"]]
    assert len(losses) == 10
    weights = [300, 300, 300, 300, 57]
    expected = [float(np.average(epoch, weights=weights)) for epoch in (losses[:5], losses[5:])]
    assert [value for _, value in recorder.rows["train/epoch_loss"]] == pytest.approx(expected, rel=1e-4)
    assert len(recorder.rows["val/loss"]) == 2
    assert set(recorder.rows) == {
        "epoch", "optimizer/lr", "train/loss", "train/epoch_loss", "train/accuracy",
        "val/loss", "val/accuracy", "val/f1",
    }  # fmt: skip


def test_only_logging_steps_are_logged(tmp_path: Path):
    data = Digits(batch_size=100)
    trainer, recorder = _trainer(tmp_path, log_every_n_steps=5)
    trainer.fit(_task(data.spec), datamodule=data)
    assert [step + 1 for step, _ in recorder.rows["train/loss"]] == [5, 10]
    assert [step + 1 for step, _ in recorder.rows["optimizer/lr"]] == [5, 10]


def test_a_loss_that_is_no_number_is_not_left_out_of_the_mean():
    task = _task(Digits.spec, loss=lambda output, target: output.sum() * float("nan"))
    task._step((torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)), task.val_loss, task.val_metrics)
    task._step((torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)), task.val_loss, task.val_metrics)
    assert math.isnan(task.val_loss.compute())


def test_targets_without_a_column_are_trained_like_those_with_one(tmp_path: Path):
    inputs, targets = torch.randn(12, 10), torch.randn(12)
    spec = DataSpec((10,), None, 1)  # what a foreign module with such targets gets
    losses = []
    for target in (targets, targets.unsqueeze(1)):
        trainer, recorder = _trainer(tmp_path)
        loader = DataLoader(TensorDataset(inputs, target), batch_size=4)
        trainer.fit(_task(spec), loader, loader)
        losses.append(recorder.last("train/epoch_loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# -------------------------------------------------------------------------------------- optimizer and schedule


def test_only_what_is_to_be_trained_is_given_to_the_optimizer(tmp_path: Path):
    network = MLP((1, 8, 8), 10, nn.ReLU, width=4, depth=1)
    network[1].requires_grad_(False)
    given: list[Any] = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        given.extend(parameters)
        return torch.optim.SGD(parameters, lr=0.1)

    frozen = network[1].weight.clone()
    trainer, _ = _trainer(tmp_path)
    trainer.fit(_task(Digits.spec, network=network, optimizer=optimizer), datamodule=Digits(batch_size=600))
    assert [id(parameter) for parameter in given] == [id(parameter) for parameter in network[3].parameters()]
    assert torch.equal(network[1].weight, frozen)


LENGTHS = {
    "cosine": (lr_scheduler.CosineAnnealingLR, {}, True),
    "cosine with its own length": (lr_scheduler.CosineAnnealingLR, {"T_max": 5}, False),
    "one cycle": (lr_scheduler.OneCycleLR, {}, True),
    "one cycle with its own length": (lr_scheduler.OneCycleLR, {"total_steps": 100}, False),
    "warm-up and cosine": (warmup_cosine, {"warmup_fraction": 0.1}, True),
    "steps": (lr_scheduler.StepLR, {"step_size": 3}, False),
    "plateau": (lr_scheduler.ReduceLROnPlateau, {}, False),
    "exponential": (lr_scheduler.ExponentialLR, {"gamma": 0.9}, False),
    "none": (none, {}, False),
}


@pytest.mark.parametrize(("scheduler", "given", "expected"), LENGTHS.values(), ids=LENGTHS.keys())
def test_a_schedule_counts_steps_when_the_run_gives_its_length(
    scheduler: Callable[..., Any], given: dict[str, Any], expected: bool
):
    assert length_comes_from_the_run(scheduler, given) is expected


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def _rates(folder: Path, scheduler: Callable[..., Any], counts_steps: bool, **options: Any) -> list[float]:
    """The logged learning rate of each of the 3 epochs x 4 optimizer steps."""
    trainer, recorder = _trainer(folder, max_epochs=3, **options)
    task = _task(Digits.spec, optimizer=_sgd, scheduler=scheduler, counts_steps=counts_steps)
    trainer.fit(task, datamodule=Digits(batch_size=400))
    return [value for _, value in recorder.rows["optimizer/lr"]]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_schedule_over_the_run_ends_with_the_run(accumulated: int, tmp_path: Path):
    def cosine(optimizer: Any, T_max: int, **offered: Any) -> Any:  # noqa: N803 (torch's name)
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max)

    rates = _rates(tmp_path, cosine, counts_steps=True, accumulate_grad_batches=accumulated)
    expected = [0.1 * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    assert rates == pytest.approx(expected, abs=1e-7)


def test_one_cycle_climbs_to_the_optimizers_rate(tmp_path: Path):
    def one_cycle(optimizer: Any, total_steps: int, max_lr: float, **offered: Any) -> Any:
        return lr_scheduler.OneCycleLR(optimizer, max_lr=max_lr, total_steps=total_steps)

    rates = _rates(tmp_path, one_cycle, counts_steps=True)
    assert rates[0] == pytest.approx(0.1 / 25)
    assert max(rates) == pytest.approx(0.1, rel=0.05)
    assert rates[-1] < 1e-5


def test_a_schedule_of_its_own_length_counts_epochs(tmp_path: Path):
    def step(optimizer: Any, **offered: Any) -> Any:
        return lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    assert _rates(tmp_path, step, counts_steps=False) == pytest.approx([0.1] * 4 + [0.05] * 4 + [0.025] * 4)


def test_a_plateau_is_judged_by_the_validation_loss(tmp_path: Path):
    def plateau(optimizer: Any, **offered: Any) -> Any:
        return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=10, threshold_mode="abs")

    rates = _rates(tmp_path, plateau, counts_steps=False)
    assert rates == pytest.approx([0.1] * 8 + [0.01] * 4)  # ten better than the first epoch is what no other can be


def test_no_schedule_is_a_constant_rate(tmp_path: Path):
    assert _rates(tmp_path, lambda **offered: None, counts_steps=False) == pytest.approx([0.1] * 12)


def test_a_schedule_over_a_run_without_an_end_is_a_sentence():
    task: Any = _task(Digits.spec, scheduler=lambda optimizer, T_max, **_: None, counts_steps=True)  # noqa: N803
    task._trainer = SimpleNamespace(estimated_stepping_batches=float("inf"))
    with pytest.raises(UserError, match=r"max_epochs|max_steps"):
        task.configure_optimizers()


# ------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize(
    ("data", "metric", "better"),
    [(Digits(batch_size=64), "accuracy", lambda value: value > 0.9), (Diabetes(), "r2", lambda value: value > 0.3)],
    ids=["digits", "diabetes"],
)
def test_it_learns(data: InMemory, metric: str, better: Callable[[float], bool], tmp_path: Path):
    task = _task(data.spec, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01))
    trainer, recorder = _trainer(tmp_path, max_epochs=5, log_every_n_steps=0)
    trainer.fit(task, datamodule=data)
    assert better(recorder.last(f"val/{metric}"))


def test_two_runs_of_a_seed_end_with_the_same_bits(tmp_path: Path):
    weights = []
    for _ in range(2):
        task = _task(Digits.spec, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        trainer, _ = _trainer(tmp_path, deterministic=True)
        trainer.fit(task, datamodule=Digits(batch_size=200))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in task.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_predictions_of_large_numbers_keep_their_digits(precision: str):
    task = Task(
        torch.nn.Linear(2, 1), torch.nn.MSELoss(),
        DataSpec((2,), None, 1, target_mean=300_000.0, target_std=80_000.0),
        optimizer=torch.optim.SGD, scheduler=lambda **_: None, counts_steps=False,
    )  # fmt: skip
    x = torch.randn(50, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
        predicted = task(x)
    torch.testing.assert_close(predicted, 300_000 + 80_000 * task.network(x), rtol=2e-3, atol=500)
    assert predicted.dtype == torch.float32
    assert len(predicted.unique()) > 40
