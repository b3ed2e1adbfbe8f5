"""The experiments in conf/experiment/broken report the expected finding, and its advice cures them."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from stormproof.checkpoint import Store
from stormproof.finding import Finding, Problem, Severity
from stormproof_train.data.digits import Digits
from stormproof_train.models import MLP
from tests.support.cases import mark_cases
from tests.support.forked_command import ROOT, Command

pytestmark = pytest.mark.slow


def _train_broken(command: Command, folder: Path, *overrides: str) -> tuple[float, nn.Sequential, nn.Sequential]:
    """Test accuracy, and the network before and after training."""
    result = command(*overrides, "name=run")
    assert result.returncode == 0, result.stderr
    run = folder / "runs" / "run"
    model = yaml.safe_load((run / "config.yaml").read_text())
    build: Callable[[], nn.Module] = getattr(nn, model["activation"]["_target_"].rpartition(".")[2])
    networks = []
    for checkpoint in sorted(Store(run / "checkpoints").read_checkpoints(), key=lambda candidate: candidate.step):
        networks.append(MLP((1, 8, 8), 10, build, width=model["model"]["width"], depth=model["model"]["depth"]))
        state: dict[str, Any] = torch.load(checkpoint.path, weights_only=True)["state_dict"]
        networks[-1].load_state_dict(
            {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
        )
    before, after = networks
    return json.loads((run / "summary.json").read_text())["test"]["accuracy"], before, after


def _freeze(network: nn.Sequential) -> float:
    """The share of hidden units whose activation is the same for every image of the validation split."""
    _, (signal, _) = Digits().load()
    still = []
    with torch.no_grad():
        for layer in network:
            signal = layer(signal)
            if not isinstance(layer, nn.Flatten | nn.Linear):
                still.append(signal.amax(0) == signal.amin(0))
    return torch.cat(still).float().mean().item()


def _gradients(network: nn.Sequential) -> list[float]:
    """The norm of the gradient of each layer's weights on the first 64 training images."""
    (images, labels), _ = Digits().load()
    nn.functional.cross_entropy(network(images[:64]), labels[:64]).backward()
    return [layer.weight.grad.norm().item() for layer in network if isinstance(layer, nn.Linear)]


BROKEN = {
    "dying_relu": (
        Problem.DEAD_UNITS,
        "Try optimizer.lr=0.005 or activation=leaky_relu.",
        ["optimizer.lr=0.005"],
    ),
    "vanishing_sigmoid": (
        Problem.VANISHING_GRADIENTS,
        "Try activation=elu initialization=auto.",
        ["activation=elu", "initialization=auto"],
    ),
    "exploding": (Problem.EXPLODING_GRADIENTS, "Try initialization=auto.", ["initialization=auto"]),
    "nan_input": (Problem.NON_FINITE_DATA, "Find the samples with ", ["data.fill_gaps=true"]),
    "shuffled_labels": (
        Problem.TARGETS_UNRELATED_TO_INPUTS,
        "Inspect some inputs together with their targets. ",
        ["data.sorted_as=number"],
    ),
    "overfit": (
        Problem.OVERFITTING,
        "Try callbacks=early_stopping model.dropout=0.3.",
        ["callbacks=early_stopping", "model.dropout=0.3"],
    ),
}


def test_each_broken_experiment_is_in_the_table():
    assert BROKEN.keys() == {path.stem for path in (ROOT / "conf" / "experiment" / "broken").glob("*.yaml")}


@pytest.mark.parametrize("experiment", mark_cases(BROKEN, ["vanishing_sigmoid", "nan_input", "shuffled_labels"]))
def test_the_advice_cures_what_is_broken(experiment: str, command: Command, tmp_path: Path):
    problem, advice, cure = BROKEN[experiment]
    broken = command(f"experiment=broken/{experiment}", "name=broken")
    first = _findings(tmp_path / "runs" / "broken")[0]
    assert (first.problem, first.advice[: len(advice)]) == (problem, advice)
    assert first.severity != Severity.INFO
    assert f"{first} See {problem.url}" in broken.stdout.splitlines()
    assert broken.returncode == (76 if problem is Problem.NON_FINITE_DATA else 0)
    cured = command(f"experiment=broken/{experiment}", *cure, "name=cured")
    assert (cured.returncode, cured.stderr) == (0, "")
    assert not [finding for finding in _findings(tmp_path / "runs" / "cured") if finding.severity != Severity.INFO]
    assert _accuracy(tmp_path / "runs" / "cured") > _accuracy(tmp_path / "runs" / "broken") + 0.02


def _findings(run: Path) -> list[Finding]:
    file = run / "findings.jsonl"
    return [Finding.from_dict(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def _accuracy(run: Path) -> float:
    """On the validation split; none of a run that did not reach its end."""
    file = run / "summary.json"
    return json.loads(file.read_text())["validation"]["accuracy"] if file.exists() else 0.0


def test_dying_relu_kills_half_of_the_units_where_elu_trains(command: Command, tmp_path: Path):
    relu, before, after = _train_broken(command, tmp_path, "experiment=broken/dying_relu")
    assert math.isfinite(relu)
    assert _freeze(before) < 0.1
    assert _freeze(after) > 0.4
    (tmp_path / "runs").rename(tmp_path / "relu")
    elu, before, after = _train_broken(command, tmp_path, "experiment=broken/dying_relu", "activation=elu")
    assert elu > max(0.9, relu + 0.03)
    assert (_freeze(before), _freeze(after)) == (0.0, 0.0)
    figure, runs = tmp_path / "curves.svg", [tmp_path / "relu" / "run", tmp_path / "runs" / "run"]
    drawing = [sys.executable, ROOT / "scripts" / "demos" / "plot_curves.py", figure, *runs]
    subprocess.run([*drawing, "--names", "units/dead_fraction/*"], check=True, timeout=60)
    layers = re.findall(r"<!-- (network\.\d+) -->", figure.read_text())
    assert layers == ["network.2", "network.4", "network.6", "network.8", "network.10"]


@pytest.mark.parametrize(("initialization", "at_most"), [("auto", 1e-2), ("torch", 1e-5)])
def test_vanishing_sigmoid_learns_nothing_where_tanh_does(
    initialization: str, at_most: float, command: Command, tmp_path: Path
):
    overrides = ["experiment=broken/vanishing_sigmoid", f"initialization={initialization}"]
    sigmoid, before, _ = _train_broken(command, tmp_path, *overrides)
    first, *_, last = _gradients(before)
    assert sigmoid < 0.2
    assert first / last < at_most
    (tmp_path / "runs").rename(tmp_path / "sigmoid")
    tanh, before, _ = _train_broken(command, tmp_path, *overrides, "activation=tanh")
    first, *_, last = _gradients(before)
    assert tanh > 0.9
    assert first / last > 0.1
