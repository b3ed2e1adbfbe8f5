import json
from pathlib import Path

import pytest
import torch

from stormproof_train.evaluation import evaluation_files
from stormproof_train.evaluation.evaluation_files import extract_intervals, save_test_results
from stormproof_train.evaluation.prediction_store import PredictionStore
from stormproof_train.evaluation.predictions import OutputKind, Predictions

OUTPUTS = torch.eye(2)[[0, 1] * 10] * 0.6 + 0.2
TARGET = torch.tensor([0, 1] * 9 + [1, 1])


def collect_pass(
    outputs: torch.Tensor = OUTPUTS, target: torch.Tensor = TARGET, kind: OutputKind = "probabilities"
) -> PredictionStore:
    collected = PredictionStore(kind)
    collected.append(outputs, outputs, target)
    collected.gather(loader=None)
    return collected


def test_it_keeps_both_files_and_gives_the_intervals(tmp_path: Path):
    evaluation = save_test_results(collect_pass(), tmp_path)
    assert evaluation is not None
    assert evaluation == json.loads((tmp_path / "evaluation.json").read_text())
    assert len(Predictions.load(tmp_path / "predictions.npz")) == evaluation["samples"] == 20
    accuracy = evaluation["headline"]["accuracy"]
    assert accuracy["value"] == 0.95
    assert extract_intervals(evaluation)["accuracy"] == [accuracy["low"], accuracy["high"]]


def test_what_was_evaluated_is_written_with_it(tmp_path: Path):
    save_test_results(collect_pass(), tmp_path, metadata={"split": "train"})
    assert json.loads((tmp_path / "evaluation.json").read_text())["split"] == "train"


def test_an_evaluation_that_fails_does_not_cost_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fails(predictions: Predictions) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(evaluation_files, "evaluate", fails)
    assert save_test_results(collect_pass(), tmp_path) is None
    assert "could not be evaluated: ZeroDivisionError('a mistake of ours')" in capsys.readouterr().out
    assert len(Predictions.load(tmp_path / "predictions.npz")) == 20


SILENT = {
    "not finite": (collect_pass(torch.tensor([[torch.nan], [1.0]]), torch.ones(2, 1), "values"), "are not finite"),
    "a label that is no class": (
        collect_pass(target=torch.full((20,), -100)),
        "predictions and intervals were not saved: ",
    ),
    "nothing tested": (
        PredictionStore("values"),
        "predictions and intervals were not saved: there is not exactly one prediction per sample",
    ),
}


@pytest.mark.parametrize(("made", "told"), SILENT.values(), ids=SILENT.keys())
def test_where_there_is_nothing_to_evaluate_it_says_so(
    made: PredictionStore, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert save_test_results(made, tmp_path) is None
    assert told in capsys.readouterr().out
    assert not (tmp_path / "evaluation.json").exists()
