import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error, r2_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stormproof_train import losses
from stormproof_train.data.diabetes import Diabetes
from stormproof_train.data.digits import Digits
from stormproof_train.data.in_memory import InMemoryDataModule
from stormproof_train.data.spec import DataSpec
from stormproof_train.losses import loss_properties
from stormproof_train.metric_direction import HEADLINE
from stormproof_train.task import Task
from tests.support.task_fits import IGNORE_LIGHTNING_WARNINGS, make_task, make_trainer

pytestmark = IGNORE_LIGHTNING_WARNINGS


def _concatenate_batches(loader: DataLoader) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def _predictions(task: Task, loader: DataLoader) -> tuple[torch.Tensor, np.ndarray]:
    inputs, targets = _concatenate_batches(loader)
    with torch.no_grad():
        return task(inputs), targets.numpy()


# ---------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("split", ["val", "test"])
def test_classification_metrics_are_scikit_learns(split: str, tmp_path: Path):
    data = Digits(batch_size=100)
    task = make_task(data.spec)
    trainer, _ = make_trainer(tmp_path)
    metrics = (trainer.validate if split == "val" else trainer.test)(task, datamodule=data, verbose=False)[0]
    logits, labels = _predictions(task, data.val_dataloader() if split == "val" else data.test_dataloader())
    chosen = logits.argmax(dim=1).numpy()
    assert len(labels) % 100 != 0  # the last batch is a smaller one
    assert metrics == {
        f"{split}/loss": pytest.approx(float(nn.functional.cross_entropy(logits, torch.as_tensor(labels))), rel=1e-5),
        f"{split}/accuracy": pytest.approx(accuracy_score(labels, chosen), rel=1e-6),
        f"{split}/f1": pytest.approx(f1_score(labels, chosen, average="macro", zero_division=0), rel=1e-5),
    }


def test_regression_metrics_are_scikit_learns_in_the_targets_own_unit(tmp_path: Path):
    data = Diabetes(batch_size=32)
    task = make_task(data.spec)
    trainer, _ = make_trainer(tmp_path)
    metrics = trainer.test(task, datamodule=data, verbose=False)[0]
    outputs, target = _predictions(task, data.test_dataloader())
    predicted = outputs.numpy()
    assert metrics == {
        "test/loss": pytest.approx(mean_squared_error(target, predicted) / data.spec.target_std**2, rel=1e-5),
        "test/rmse": pytest.approx(math.sqrt(mean_squared_error(target, predicted)), rel=1e-5),
        "test/mae": pytest.approx(mean_absolute_error(target, predicted), rel=1e-5),
        "test/r2": pytest.approx(r2_score(target, predicted), rel=1e-4, abs=1e-5),
    }
    assert 40 < metrics["test/rmse"] < 200  # of targets from 25 to 346


def test_a_network_that_says_zero_predicts_the_mean_of_the_training_targets(tmp_path: Path):
    data = Diabetes()
    network = nn.Linear(10, 1)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    task = make_task(data.spec, network=network)
    assert task(torch.randn(3, 10)).flatten().tolist() == pytest.approx([data.spec.target_mean] * 3)
    trainer, recorder = make_trainer(tmp_path)
    trainer.fit(task, datamodule=data)
    _, targets = _concatenate_batches(data.train_dataloader())
    assert recorder.last_value("train/rmse") == pytest.approx(
        float((targets - data.spec.target_mean).square().mean().sqrt())
    )
    assert recorder.last_value("train/epoch_loss") == pytest.approx(1.0, abs=0.01)  # the targets' own variance


PREDICTIONS = {  # of a network that says zero, in the target's own unit
    "the mean, of what is standardized": (losses.MSE(), 10.0),
    "the mean, of two outputs a target": (losses.GaussianNLL(), 10.0),
    "the mean, of its logarithm": (losses.Poisson(), 10.0),
    "a rate of e of a foreign loss": (SimpleNamespace(prediction=lambda outputs: outputs + math.e), 10 + 2 * math.e),
}


@pytest.mark.parametrize(("loss", "expected"), PREDICTIONS.values(), ids=PREDICTIONS.keys())
def test_a_prediction_is_in_the_targets_own_unit_whatever_the_loss(loss: Any, expected: float):
    spec = DataSpec((4,), None, 3, target_mean=10.0, target_std=2.0, target_min=1.0)
    network = nn.Linear(4, 3 * loss_properties(loss).outputs_per_target)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    assert (
        make_task(spec, network=network, loss=loss)(torch.randn(5, 4)).tolist() == [[pytest.approx(expected)] * 3] * 5
    )


SCALED = {
    "standardized": (losses.MSE(), [[-4.5], [0.0]]),
    "two outputs a target": (losses.GaussianNLL(), [[-4.5], [0.0]]),
    "divided by the mean": (losses.Poisson(), [[0.1], [1.0]]),
}


@pytest.mark.parametrize(("loss", "expected"), SCALED.values(), ids=SCALED.keys())
def test_targets_are_scaled_as_the_loss_wants_them(loss: Any, expected: list[list[float]]):
    spec = DataSpec((4,), None, 1, target_mean=10.0, target_std=2.0, target_min=1.0)
    network = nn.Linear(4, loss_properties(loss).outputs_per_target)
    task = make_task(spec, network=network, loss=loss)
    inputs, target = torch.randn(2, 4), torch.tensor([1.0, 10.0])
    scaled_loss = task._compute_step((inputs, target), task.val_loss, task.val_metrics)
    assert scaled_loss["loss"] == loss(network(inputs), torch.tensor(expected))
    assert torch.equal(scaled_loss["preds"], network(inputs))
    assert torch.equal(scaled_loss["target"], torch.tensor(expected))
    predicted, target = task(inputs).detach(), target.unsqueeze(1)
    assert float(task.val_metrics.compute()["mae"]) == pytest.approx(float((predicted - target).abs().mean()))


def test_the_headline_is_a_metric_of_itstask_of():
    for spec in (Digits.spec, Diabetes.spec):
        assert HEADLINE[spec.task].name in make_task(spec).train_metrics
        assert HEADLINE[spec.task].name in make_task(spec).val_metrics
    assert HEADLINE["classification"].higher_is_better
    assert not HEADLINE["regression"].higher_is_better


# ---------------------------------------------------------------------------------------------------- logging


@pytest.mark.parametrize(("drop_last", "samples"), [(False, 1257), (True, 1200)])
def test_the_mean_loss_of_an_epoch_weights_each_sample_alike(drop_last: bool, samples: int, tmp_path: Path):
    data = Digits(batch_size=400, drop_last=drop_last)  # 400, 400, 400 and 57; the weights stand still
    task = make_task(data.spec)
    trainer, recorder = make_trainer(tmp_path)
    trainer.fit(task, datamodule=data)
    inputs, labels = (torch.cat(parts) for parts in zip(*data.train_dataloader(), strict=True))  # the same first pass
    assert len(labels) == samples
    with torch.no_grad():
        losses = nn.functional.cross_entropy(task(inputs), labels, reduction="none")
    assert recorder.last_value("train/epoch_loss") == pytest.approx(float(losses.mean()), rel=1e-5)
    assert len(recorder.rows["train/epoch_loss"]) == 1
    batches = [value for _, value in recorder.rows["train/loss"]]
    assert batches == pytest.approx([float(part.mean()) for part in losses.split(400)], rel=1e-5)


def test_each_epoch_is_reported_alone(tmp_path: Path):
    data = Digits(batch_size=300)
    task = make_task(data.spec, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5))
    trainer, recorder = make_trainer(tmp_path, max_epochs=2)
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
    trainer, recorder = make_trainer(tmp_path, log_every_n_steps=5)
    trainer.fit(make_task(data.spec), datamodule=data)
    assert [step + 1 for step, _ in recorder.rows["train/loss"]] == [5, 10]
    assert [step + 1 for step, _ in recorder.rows["optimizer/lr"]] == [5, 10]


def test_a_loss_that_is_no_number_is_not_left_out_of_the_mean():
    task = make_task(Digits.spec, loss=lambda output, target: output.sum() * float("nan"))
    task._compute_step((torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)), task.val_loss, task.val_metrics)
    task._compute_step((torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)), task.val_loss, task.val_metrics)
    assert math.isnan(task.val_loss.compute())


def test_targets_without_a_column_are_trained_like_those_with_one(tmp_path: Path):
    inputs, targets = torch.randn(12, 10), torch.randn(12)
    spec = DataSpec((10,), None, 1)  # what a foreign module with such targets gets
    losses = []
    for target in (targets, targets.unsqueeze(1)):
        trainer, recorder = make_trainer(tmp_path)
        loader = DataLoader(TensorDataset(inputs, target), batch_size=4)
        trainer.fit(make_task(spec), loader, loader)
        losses.append(recorder.last_value("train/epoch_loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# ------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize(
    ("data", "metric", "better"),
    [(Digits(batch_size=64), "accuracy", lambda value: value > 0.9), (Diabetes(), "r2", lambda value: value > 0.3)],
    ids=["digits", "diabetes"],
)
def test_it_learns(data: InMemoryDataModule, metric: str, better: Callable[[float], bool], tmp_path: Path):
    task = make_task(data.spec, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01))
    trainer, recorder = make_trainer(tmp_path, max_epochs=5, log_every_n_steps=0)
    trainer.fit(task, datamodule=data)
    assert better(recorder.last_value(f"val/{metric}"))


def test_two_runs_of_a_seed_end_with_the_same_bits(tmp_path: Path):
    weights = []
    for _ in range(2):
        task = make_task(Digits.spec, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        trainer, _ = make_trainer(tmp_path, deterministic=True)
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


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.int64], ids=str)
def test_labels_may_be_integers_of_any_kind(kind: torch.dtype):
    task = make_task(DataSpec((4,), num_classes=3, num_outputs=3))
    inputs, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 2, 1, 0])
    for mean, step in ((task.val_loss, task.validation_step), (task.test_loss, task.test_step)):
        step((inputs, labels.to(kind)), 0)
        expected = nn.functional.cross_entropy(task.network(inputs), labels).item()
        assert mean.compute().item() == pytest.approx(expected)
