from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its name everywhere)

from stormproof_train import generalization
from stormproof_train.averaging import EMA
from stormproof_train.data.diabetes import Diabetes
from stormproof_train.data.digits import Digits
from stormproof_train.data.spec import DataSpec
from stormproof_train.generalization import GeneralizationGap
from stormproof_train.models import MLP
from tests.support.foreign_data import Foreign
from tests.support.task_fits import IGNORE_LIGHTNING_WARNINGS, make_task, make_trainer

pytestmark = IGNORE_LIGHTNING_WARNINGS


def fitted(folder: Path, data: Any, spec: DataSpec, callbacks: bool = True, **options: Any) -> Any:
    torch.manual_seed(0)
    network = MLP(spec.input_shape, spec.num_outputs, nn.Tanh, width=16, depth=1, dropout=0.5)
    task = make_task(
        spec,
        network=network,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        augmentation=lambda inputs, target: (inputs + 10 * torch.randn_like(inputs), target),
    )
    measures = [GeneralizationGap(data)] if callbacks else []
    trainer, recorder = make_trainer(folder, callbacks=measures, max_epochs=2, **options)
    trainer.fit(task, datamodule=data)
    return task, recorder


def evenly(data: Any, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, target = data._train
    picked = torch.linspace(0, len(inputs) - 1, samples, dtype=torch.float64).long()
    return inputs[picked], target[picked]


def test_training_samples_are_measured_as_validation_is(tmp_path: Path):
    data = Digits(seed=0)
    task, logged = fitted(tmp_path, data, data.load_spec())
    inputs, target = evenly(data, 270)
    with torch.no_grad():
        outputs = task.network.eval()(inputs)
    assert logged.last_value("generalization/train_loss") == pytest.approx(
        F.cross_entropy(outputs, target).item(), rel=1e-5
    )
    accuracy = (outputs.argmax(1) == target).float().mean().item()
    assert logged.last_value("generalization/train_accuracy") == pytest.approx(accuracy, abs=1e-6)
    assert logged.last_value("generalization/gap") == pytest.approx(
        accuracy - logged.last_value("val/accuracy"), abs=1e-6
    )
    assert abs(accuracy - logged.last_value("train/accuracy")) > 0.02  # of which dropout and augmentation are a part
    steps = [step for step, _ in logged.rows["val/accuracy"]]
    assert [step for step, _ in logged.rows["generalization/gap"]] == steps
    assert len(steps) == 2


def test_a_validation_after_training_is_measured_too(tmp_path: Path):
    data = Digits(seed=0)
    task = make_task(data.load_spec(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    trainer, logged = make_trainer(tmp_path, callbacks=[GeneralizationGap(data)], max_epochs=2, max_steps=25)
    trainer.fit(task, datamodule=data)
    trainer.validate(task, datamodule=data, verbose=False)
    assert [step for step, _ in logged.rows["generalization/gap"]] == [19, 25]
    inputs, target = evenly(data, 270)
    with torch.no_grad():
        loss = F.cross_entropy(task.network.eval()(inputs), target).item()
    assert logged.last_value("generalization/train_loss") == pytest.approx(loss, rel=1e-5)


def test_of_an_error_the_gap_is_above_zero_where_validation_has_more(tmp_path: Path):
    data = Diabetes(seed=0)
    _, logged = fitted(tmp_path, data, data.load_spec())
    apart = logged.last_value("val/rmse") - logged.last_value("generalization/train_rmse")
    assert logged.last_value("generalization/gap") == pytest.approx(apart, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_no_bit_of_the_training_changes(tmp_path: Path, workers: int):
    with_it, without = (
        fitted(tmp_path, data, data.load_spec(), callbacks=callbacks)[0].state_dict()
        for data, callbacks in ((Digits(seed=0, num_workers=workers), True), (Digits(seed=0), False))
    )
    assert all(torch.equal(with_it[name], without[name]) for name in without)


def test_it_looks_at_as_many_samples_as_validation_does_spread_over_all(tmp_path: Path):
    data = Digits(seed=0)
    task, logged = fitted(tmp_path, data, data.load_spec(), limit_val_batches=2)
    inputs, target = evenly(data, 2 * data.batch_size)
    with torch.no_grad():
        expected = F.cross_entropy(task.network.eval()(inputs), target).item()
    assert logged.last_value("generalization/train_loss") == pytest.approx(expected, rel=1e-5)


def test_it_looks_at_a_thousand_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generalization, "MAX_SAMPLES", 100)
    data = Digits(seed=0)
    task, logged = fitted(tmp_path, data, data.load_spec())
    inputs, target = evenly(data, 100)
    with torch.no_grad():
        expected = F.cross_entropy(task.network.eval()(inputs), target).item()
    assert logged.last_value("generalization/train_loss") == pytest.approx(expected, rel=1e-5)


def test_where_both_splits_are_one_nothing_is_said(tmp_path: Path):
    data = Digits(seed=0)
    _, logged = fitted(tmp_path, data, data.load_spec(), overfit_batches=2)
    assert "val/loss" in logged.rows
    assert "generalization/gap" not in logged.rows


class DrawsAlways(nn.Sequential):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(F.dropout(inputs))  # in evaluation too


@pytest.mark.slow
def test_what_a_network_draws_in_evaluation_is_drawn_as_without_it(tmp_path: Path):
    losses = []
    for callbacks in (True, False):
        data = Digits(seed=0)
        spec = data.load_spec()
        torch.manual_seed(0)
        network = DrawsAlways(nn.Flatten(), nn.Linear(64, 10))
        optimizer = partial(torch.optim.SGD, lr=0.1)
        task = make_task(spec, network=network, optimizer=optimizer)
        trainer, recorder = make_trainer(
            tmp_path, max_epochs=2, callbacks=[GeneralizationGap(data)] if callbacks else []
        )
        trainer.fit(task, datamodule=data)
        losses.append(recorder.rows["val/loss"])
    assert losses[0] == losses[1]


@pytest.mark.filterwarnings("ignore:.*WeightAveraging doesn't support sharding")
def test_averaged_weights_are_measured_where_they_are_validated(tmp_path: Path):
    data = Digits(seed=0)
    spec = data.load_spec()
    torch.manual_seed(0)
    task = make_task(spec, optimizer=partial(torch.optim.SGD, lr=0.1))
    trainer, recorder = make_trainer(tmp_path, max_epochs=2, callbacks=[GeneralizationGap(data), EMA(decay=0.99999)])
    trainer.fit(task, datamodule=data)
    assert recorder.last_value("val/accuracy") < 0.3 < recorder.last_value("train/accuracy")
    assert recorder.last_value("generalization/train_accuracy") < 0.3


def test_of_foreign_data_nothing_is_said(tmp_path: Path):
    inputs, target = torch.randn(8, 4), torch.tensor([0, 1] * 4)
    data, spec = Foreign(inputs, target, num_classes=2), DataSpec((4,), 2, 2)
    _, logged = fitted(tmp_path, data, spec)
    assert "val/loss" in logged.rows
    assert not [name for name in logged.rows if name.startswith("generalization/")]
