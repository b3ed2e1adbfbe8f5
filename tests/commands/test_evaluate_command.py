"""``train.py evaluate``: what a run's weights are worth, on its own data and on others."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stormproof_train.cli.evaluate import run
from stormproof_train.evaluation.predictions import Predictions
from tests.support import forked_command

pytestmark = pytest.mark.slow

QUIET = [
    "logger=none",
    "report=false",
    "callbacks=none",
    "trainer.max_epochs=2",
    "+callbacks.recovery._target_=stormproof.CheckpointRecovery",
]
MINE = """
from pathlib import Path
import torch

Path("imported").touch()

class Swish(torch.nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)
"""
DATA = """
from stormproof_train.data.digits import Digits

class Data(Digits):
    def __init__(self, password: str, seed: int = 0):
        super().__init__(seed=seed)
        assert password == "hunter2"
"""


def run_evaluate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return forked_command.run(list(arguments), cwd=folder, env=os.environ, timeout=200)


def write_csv(path: Path, seed: int, shift: float = 0.0) -> None:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(120, 3))
    target = 1000 + 50 * inputs.sum(1) + rng.normal(size=120) + shift
    lines = [",".join(map(str, [*row, value])) for row, value in zip(inputs, target, strict=True)]
    path.write_text("\n".join(["a,b,c,y", *lines]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    write_csv(folder / "table.csv", seed=0)
    for name, classes in {"text": ["yes", "no"], "renamed": ["wrong", "right"]}.items():
        rows = [f"{number % 7},{classes[number % 2]}" for number in range(80)]
        (folder / f"{name}.csv").write_text("\n".join(["x,y", *rows]))
    (folder / "mine.py").write_text(MINE)
    csv = ["data=csv", "data.path=table.csv", "data.target=y", "data.batch_size=16", "optimizer.lr=0.01"]
    for name, overrides in {
        "elu": ["activation=elu"],
        "relu": ["activation=relu"],
        "other_split": ["seed=1"],
        "mine": ["activation._target_=mine.Swish"],
        "table": [*csv, "trainer.max_epochs=20"],
        "text": ["data=csv", "data.path=text.csv", "data.target=y", "data.batch_size=16"],
    }.items():
        result = run_evaluate(folder, f"name={name}", *QUIET, *overrides)
        assert result.returncode == 0, result.stderr
    (folder / "imported").unlink()
    return folder


@pytest.fixture
def folder(runs: Path, tmp_path: Path) -> Path:
    """The runs, to be spoilt."""
    return shutil.copytree(runs, tmp_path / "copy")


def evaluated(folder: Path, *overrides: str) -> Path:
    result = run_evaluate(folder, "evaluate", *overrides, "output=out")
    assert result.returncode == 0, result.stderr
    assert "arning" not in result.stderr
    return folder / "out"


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


def assert_equal(actual: Predictions, expected: Predictions) -> None:
    assert actual.kind == expected.kind
    for name in ("outputs", "target", "samples"):
        assert np.array_equal(getattr(actual, name), getattr(expected, name)), name


@pytest.mark.parametrize("devices", [1, 2])
def test_what_the_run_has_tested_is_evaluated_the_same_by_one_process_and_two(folder: Path, devices: int):
    overrides = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"] if devices == 2 else []
    out = evaluated(folder, "checkpoint=runs/elu", *overrides)
    assert_equal(
        *(Predictions.load(evaluation_folder / "predictions.npz") for evaluation_folder in (out, folder / "runs/elu"))
    )
    evaluation = read_json(out / "evaluation.json")
    run_evaluation = read_json(folder / "runs/elu/evaluation.json")
    assert {name: evaluation[name] for name in run_evaluation} == run_evaluation
    assert evaluation["split"] == "test"
    assert evaluation["checkpoint"].startswith("runs/elu/checkpoints/")


def test_its_ranks_leave_each_other_before_python_ends(folder: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    monkeypatch.setattr("stormproof_train.cli.evaluate_weights.destroy_gloo_before_exit", lambda: calls.append("asked"))
    monkeypatch.chdir(folder)
    run(["checkpoint=runs/elu"])
    assert calls == ["asked"]


@pytest.mark.parametrize(("split", "samples"), [("validation", 270), ("train", 1257)])
def test_other_splits_come_in_order_and_without_augmentation(folder: Path, split: str, samples: int):
    (checkpoint,) = (folder / "runs/elu/checkpoints").glob("*-step-40.ckpt")
    out = evaluated(folder, f"checkpoint={checkpoint}", f"split={split}")
    evaluation = read_json(out / "evaluation.json")
    assert evaluation["samples"] == samples
    if split == "validation":
        accuracy = read_json(folder / "runs/elu/summary.json")["validation"]["accuracy"]
        assert evaluation["headline"]["accuracy"]["value"] == pytest.approx(accuracy, abs=1e-7)


def test_two_runs_on_the_same_samples_are_compared(folder: Path):
    result = run_evaluate(folder, "evaluate", "checkpoint=runs/elu", "against=runs/relu")
    assert result.returncode == 0, result.stderr
    assert "elu minus relu, on the same 270 samples" in result.stdout
    (file,) = (folder / "runs/elu/evaluations").glob("test-*-against-relu-*/comparison.json")
    right = [
        predictions.classes == predictions.target
        for predictions in (Predictions.load(folder / f"runs/{name}/predictions.npz") for name in ("elu", "relu"))
    ]
    comparison = read_json(file)
    assert comparison["second"].startswith("runs/relu/checkpoints/")
    assert comparison["mcnemar"]["only_first_correct"] == (right[0] & ~right[1]).sum()
    assert comparison["differences"]["accuracy"]["value"] == pytest.approx(right[0].mean() - right[1].mean())


def test_a_network_keeps_the_scale_of_the_targets_that_it_was_trained_on(folder: Path):
    write_csv(folder / "far.csv", seed=1, shift=500.0)
    for overrides in (["data.test_path=far.csv"], ["data.path=far.csv"]):
        out = evaluated(folder, "checkpoint=runs/table", *overrides)
        predictions = Predictions.load(out / "predictions.npz")
        assert np.abs(predictions.target - predictions.outputs).mean() == pytest.approx(500, abs=60)
        assert predictions.outputs.mean() == pytest.approx(1000, abs=60)


def test_data_that_have_changed_since_are_evaluated_only_where_they_are_named(folder: Path):
    write_csv(folder / "table.csv", seed=2)
    result = run_evaluate(folder, "evaluate", "checkpoint=runs/table")
    assert result.returncode == 2
    assert "the data has changed since runs/table was trained" in result.stderr
    assert run_evaluate(folder, "evaluate", "checkpoint=runs/table", "data.batch_size=8").returncode == 2
    result = run_evaluate(folder, "evaluate", "checkpoint=runs/table", "data.test_path=table.csv")
    assert result.returncode == 0, result.stderr
    assert "warning: this is not the data of the training run" in result.stdout


def test_code_that_a_runs_config_names_is_built_only_where_the_user_names_it_too(folder: Path):
    result = run_evaluate(folder, "evaluate", "checkpoint=runs/mine")
    assert result.returncode == 2
    assert "contains the target mine.Swish, which is built only if you confirm it" in result.stderr
    assert "repeat activation._target_=mine.Swish" in result.stderr
    assert not (folder / "imported").exists()
    evaluated(folder, "checkpoint=runs/mine", "against=runs/elu", "activation._target_=mine.Swish")
    assert (folder / "imported").exists()


def test_a_secret_that_was_not_written_down_has_to_be_said_again(folder: Path):
    (folder / "mine.py").write_text(DATA)
    run_evaluate(folder, "name=secret", *QUIET, "data._target_=mine.Data", "data.password=hunter2")
    assert "hunter2" not in (folder / "runs/secret/config.yaml").read_text()
    result = run_evaluate(folder, "evaluate", "checkpoint=runs/secret", "data._target_=mine.Data")
    assert result.returncode == 2
    assert "data.password is a secret that was not saved. Repeat data.password=…" in result.stderr
    out = evaluated(folder, "checkpoint=runs/secret", "data._target_=mine.Data", "data.password=hunter2")
    assert not [file for file in out.rglob("*") if b"hunter2" in file.read_bytes()]


HOSTILE = {
    "a precision that is built": ("precision: null", "precision: {_target_: os.mkdir, path: harmed}", "is damaged"),
    "an interpolation": (
        "width: 128", "width: ${oc.create:{_target_:os.mkdir,path:harmed}}", "model.width must be int, got '${oc"
    ),
    "a target in a value": ("width: 128", "width: {_target_: os.mkdir, path: harmed}", "contains the target os.mkdir"),
    "one of ours in another's place": (
        "_target_: torch.nn.ELU", "_target_: stormproof_train.loggers.wandb_logger", "target stormproof_train.loggers.w"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("written", "changed", "told"), HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_that_lies_in_a_runs_config_is_executed(written: str, changed: str, told: str, folder: Path):
    config = folder / "runs/elu/config.yaml"
    text = config.read_text()
    assert written in text
    config.write_text(text.replace(written, changed))
    result = run_evaluate(folder, "evaluate", "checkpoint=runs/elu")
    assert result.returncode == 2, result.stderr
    assert told in result.stderr
    assert not (folder / "harmed").exists()


MISTAKES = {
    "nothing named": ([], "evaluate needs checkpoint=…"),
    "no run": (["checkpoint=runs/nobody"], "runs/nobody is neither the folder of a run nor a checkpoint"),
    "a file elsewhere": (["checkpoint=mine.py"], "mine.py is not in the folder of a run"),
    "a run without a checkpoint": (["checkpoint=runs/empty"], "the run runs/empty has no checkpoint yet"),
    "a word": (["checkpoint=runs/elu", "quick"], "quick is not an option"),
    "an unknown key": (["checkpoint=runs/elu", "splitt=test"], "Did you mean split?"),
    "another split": (["checkpoint=runs/elu", "split=holdout"], "split must be one of train, validation, t"),
    "the run's own": (
        ["checkpoint=runs/elu", "model.width=7"],
        "model.width=7: only data and trainer can be overridden",
    ),
    "several": (["checkpoint=runs/elu", "data.batch_size=1,2"], "data.batch_size=1,2: must be a single value"),
    "other data": (["checkpoint=runs/elu", "data=diabetes"], "loss: CrossEntropy is for classification, but"),
    "data of another shape": (["checkpoint=runs/elu", "data=mnist1d"], "does not fit the network for this data"),
    "a run's own folder": (["checkpoint=runs/elu", "output=runs/relu"], "output=runs/relu is the folder of a run"),
    "nothing tested": (
        ["checkpoint=runs/elu", "trainer.limit_test_batches=0"],
        "trainer.limit_test_batches must not be 0",
    ),
    "other classes": (
        ["checkpoint=runs/text", "data.path=renamed.csv"],
        "trained on the classes no, yes, but this data",
    ),
    "other samples": (
        ["checkpoint=runs/elu", "against=runs/other_split"],
        "the two runs were tested on",
    ),
    "a file for a folder": (["checkpoint=runs/elu", "output=mine.py"], "output=mine.py: the folder cannot be created"),
}


@pytest.fixture(scope="module")
def spoilt(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(runs, tmp_path_factory.mktemp("spoilt") / "copy")
    shutil.copytree(folder / "runs/elu", folder / "runs/empty")
    shutil.rmtree(folder / "runs/empty/checkpoints")
    (folder / "runs/empty/summary.json").unlink()
    record = read_json(folder / "runs/empty/run.json") | {"status": "failed"}
    (folder / "runs/empty/run.json").write_text(json.dumps(record))
    (checkpoint,) = (folder / "runs/relu/checkpoints").glob("*-step-40.ckpt")
    torn = checkpoint.with_name("torn.ckpt")
    checkpoint.rename(torn)
    checkpoint.with_suffix(".json").rename(torn.with_suffix(".json"))
    torn.write_bytes(torn.read_bytes()[:-7])
    for flipped in (folder / "runs/table/checkpoints").glob("*.ckpt"):
        content = bytearray(flipped.read_bytes())
        content[len(content) // 2] ^= 1
        flipped.write_bytes(content)
    return folder


@pytest.mark.parametrize(("words", "told"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_a_sentence(words: list[str], told: str, spoilt: Path):
    result = run_evaluate(spoilt, "evaluate", *words)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("stormproof: ")
    assert result.stderr.count("\n") == 1
    assert told in result.stderr


DAMAGED = {
    "a torn checkpoint": ("runs/relu/checkpoints/torn.ckpt", "torn.ckpt is damaged: it is not a complete zip archive"),
    "a run of which all have a flipped bit": ("runs/table", "its content has changed since it was committed"),
}


@pytest.mark.parametrize(("named", "told"), DAMAGED.values(), ids=DAMAGED.keys())
def test_what_is_damaged_is_not_evaluated(named: str, told: str, spoilt: Path):
    result = run_evaluate(spoilt, "evaluate", f"checkpoint={named}")
    assert result.returncode == 74, result.stderr
    assert told in result.stderr


def test_help_says_what_to_type(tmp_path: Path):
    result = run_evaluate(tmp_path, "evaluate", "--help")
    assert result.returncode == 0
    assert "checkpoint=" in result.stdout
    assert "against=" in result.stdout
