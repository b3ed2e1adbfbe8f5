import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from stormproof_train.data.diabetes import Diabetes
from stormproof_train.data.digits import Digits
from stormproof_train.data.in_memory import InMemoryDataModule, Split
from stormproof_train.data.spec import DataSpec
from stormproof_train.evaluation import baselines
from stormproof_train.evaluation.baselines import PENALTIES, add_baselines
from stormproof_train.evaluation.conclusions import conclusions
from stormproof_train.evaluation.evaluate import evaluate
from stormproof_train.evaluation.predictions import OutputKind, Predictions


class Table(InMemoryDataModule):
    """Two features, split into thirds; targets are a function of them."""

    def __init__(self, targets: Any, classes: int | None = None, rows: int = 300) -> None:
        super().__init__(batch_size=32, num_workers=0, drop_last=False, seed=0)
        self.spec = DataSpec((2,), classes, classes or 1)
        inputs = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))
        self._parts = [(part, targets(part)) for part in inputs.split(rows // 3)]

    def load(self) -> tuple[Split, Split]:
        return self._parts[0], self._parts[1]

    def load_test(self) -> Split:
        return self._parts[2]


def signs(inputs: torch.Tensor) -> torch.Tensor:
    return (inputs[:, 0] > 0).long() + 2 * (inputs[:, 1] > 0).long()


def plane(inputs: torch.Tensor) -> torch.Tensor:
    return inputs @ torch.tensor([[3.0], [-2.0]]) + 5


def compare_baselines(data: InMemoryDataModule, outputs: np.ndarray, kind: OutputKind = "values") -> dict[str, Any]:
    data.setup("fit")
    data.setup("test")
    target = data.get_split("test")[1][: len(outputs)].numpy()
    target = target.reshape(outputs.shape) if kind == "values" else target
    predictions = Predictions(kind, outputs, target, np.arange(len(target)))
    evaluation = evaluate(predictions)
    assert evaluation is not None
    return add_baselines(evaluation, predictions, data)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape)


def test_the_linear_model_is_the_ridge_regression_that_validation_chooses():
    data = Diabetes(seed=0)
    linear_baseline = compare_baselines(data, noise(88, 1))["baselines"]["linear"]
    training, validation, test = [[part.numpy() for part in split] for split in (*data.load(), data.load_test())]
    models = [Ridge(alpha=penalty).fit(*training) for penalty in PENALTIES]
    best = max(models, key=lambda model: model.score(*validation))
    assert linear_baseline["model"] == "ridge regression"
    assert linear_baseline["rows"] == linear_baseline["training_rows"] == 266
    assert linear_baseline["headline"]["r2"] == pytest.approx(best.score(*test), abs=1e-4)
    assert linear_baseline["headline"]["r2"] == pytest.approx(0.35, abs=0.01)


def test_targets_of_one_dimension_are_numbers_too():
    comparison = compare_baselines(Table(lambda inputs: plane(inputs).flatten()), noise(100, 1))
    assert comparison["baselines"]["linear"]["headline"]["r2"] > 0.999


def test_the_constant_is_the_mean_of_the_test_targets():
    data = Table(plane)
    constant_headline = compare_baselines(data, noise(100, 1))["baselines"]["constant"]["headline"]
    target = data.get_split("test")[1]
    assert constant_headline["r2"] == 0
    assert constant_headline["rmse"] == pytest.approx(target.std(correction=0).item(), rel=1e-5)
    assert constant_headline["mae"] == pytest.approx((target - target.mean()).abs().mean().item(), rel=1e-5)


def test_classes_are_compared_with_logistic_regression_and_the_most_common_class():
    data = Table(signs, classes=4)
    comparison = compare_baselines(data, noise(100, 4), "scores")["baselines"]
    assert comparison["linear"]["model"] == "logistic regression"
    assert comparison["linear"]["headline"]["accuracy"] > 0.9
    assert comparison["linear"]["difference"]["high"] < -0.3
    assert comparison["constant"]["headline"]["accuracy"] == data.get_split("test")[1].bincount().max().item() / 100


def test_a_class_without_training_rows_is_never_predicted():
    data = Table(lambda inputs: signs(inputs).clamp(max=2), classes=4)
    comparison = compare_baselines(data, noise(100, 4), "probabilities")
    assert comparison["baselines"]["linear"]["headline"]["accuracy"] > 0.9


def test_more_rows_than_the_bound_are_spread_evenly_and_the_sentence_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(baselines, "MAX_ROWS", 50)
    monkeypatch.setattr(baselines, "MAX_COMPARED_SAMPLES", 30)
    comparison = compare_baselines(Table(plane), noise(100, 1))
    linear = comparison["baselines"]["linear"]
    assert (linear["rows"], linear["training_rows"], linear["difference"]["samples"]) == (50, 100, 30)
    assert "ridge regression fitted on 50 of 100 training rows" in conclusions(comparison)[-1]


def test_the_first_test_samples_are_compared_if_only_they_were_tested():
    data = Table(plane)
    exact = plane(data.load_test()[0]).numpy()[:40]
    comparison = compare_baselines(data, exact + 0.1)
    assert comparison["samples"] == comparison["baselines"]["linear"]["difference"]["samples"] == 40
    assert comparison["baselines"]["linear"]["headline"]["r2"] > 0.999


FAILING = {
    "one class in training": (Table(lambda inputs: torch.zeros(len(inputs)).long(), 2), (100, 2), "probabilities"),
    "an input that is not finite": (Table(plane), (100, 1), "values"),
    "too many classes": (Table(signs, classes=4), (100, 4), "probabilities"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_baseline_that_fails_is_one_warning(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    data, shape, kind = FAILING[case]
    data.setup("fit")
    if case == "an input that is not finite":
        data.get_split("validation")[0][0, 0] = torch.nan
    if case == "too many classes":
        monkeypatch.setattr(baselines, "MAX_WORK", 100)
    comparison = compare_baselines(data, noise(*shape), kind)  # type: ignore[arg-type]
    assert "baselines" not in comparison
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: the baselines could not be computed: ")


def test_images_have_no_baselines():
    data = Digits()
    assert "baselines" not in compare_baselines(data, noise(270, 10), "probabilities")


def test_baselines_are_plain_values():
    comparison = compare_baselines(Table(signs, classes=4), noise(100, 4), "probabilities")
    assert json.loads(json.dumps(comparison, allow_nan=False)) == comparison
