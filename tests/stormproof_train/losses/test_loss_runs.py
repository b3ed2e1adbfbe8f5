"""Every ``loss=`` with data of every kind: it trains, or the sentence comes before training."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest

from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.overrides import normalize_overrides
from stormproof_train.errors import UserError
from stormproof_train.main import run
from tests.support.fashion_files import write_dataset
from tests.support.loss_references import CLASSIFICATION_LOSSES, REGRESSION_LOSSES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:.*treespec, LeafSpec.*",
        "ignore:.*does not have many workers.*",
        "ignore:.*number of training batches.*smaller than the logging interval.*",
    ),
]
Train = Callable[..., dict[str, Any]]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Three steps in this process; the summary."""
    monkeypatch.chdir(tmp_path)
    return _three_steps


def _three_steps(*overrides: str) -> dict[str, Any]:
    short = ["trainer.max_steps=3", "logger=none", "callbacks=none", "model.width=8", "name=run"]
    with hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE):
        cfg = hydra.compose("config", normalize_overrides([*overrides, *short]))
    return run(cfg)


def _assert_it_trained(summary: dict[str, Any]) -> None:
    assert summary["steps"] == 3
    assert all(math.isfinite(value) for split in ("validation", "test") for value in summary[split].values())


@pytest.mark.parametrize("word", CLASSIFICATION_LOSSES)
def test_a_loss_for_classes_trains_on_images_of_few_and_of_imbalanced_classes(word: str, train: Train, tmp_path: Path):
    _assert_it_trained(train("data=digits", f"loss={word}"))
    write_dataset(tmp_path / "debian", np.array([0] * 30 + list(range(10)) * 3))
    fashion = ["data=fashion_mnist", "data.packaged=debian", "data.batch_size=8", "data.validation_fraction=0.3"]
    _assert_it_trained(train(*fashion, f"loss={word}", "runs_dir=other"))


@pytest.mark.parametrize("word", REGRESSION_LOSSES)
def test_a_loss_for_numbers_trains_on_diabetes(word: str, train: Train):
    _assert_it_trained(train("data=diabetes", f"loss={word}"))


@pytest.mark.parametrize(
    ("data", "word"),
    [("diabetes", word) for word in CLASSIFICATION_LOSSES] + [("digits", word) for word in REGRESSION_LOSSES],
)
def test_a_loss_for_the_other_task_is_refused_before_anything_is_written(
    data: str, word: str, train: Train, tmp_path: Path
):
    with pytest.raises(UserError, match=r"loss: \w+ is for (classification|regression), but this data is ") as excinfo:
        train(f"data={data}", f"loss={word}")
    assert "\n" not in str(excinfo.value)
    assert not list(tmp_path.iterdir())
