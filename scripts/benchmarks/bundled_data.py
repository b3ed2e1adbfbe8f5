"""How good default runs of the bundled data sets are, next to linear models and constants of the same split.

    python scripts/benchmarks/bundled_data.py choose [--seeds 10 11 …]
    python scripts/benchmarks/bundled_data.py compare [--seeds 0 1 …] [--data diabetes digits mnist1d]

``choose`` trains the candidates for the default settings of ``data=diabetes`` and prints their R² on validation. It
leaves the test split unread (``test=false``). ``compare`` trains what ``python train.py data=…`` trains and prints the
scores (R² or accuracy) on validation and test, means over the seeds. A seed fixes the split and the initial weights.
The linear model is ridge or logistic regression of scikit-learn with the penalty that is best on validation, the
constant is the mean or the most common class of the training split.
"""

from __future__ import annotations

import argparse
import io
import statistics
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import torch
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression, Ridge

from stormproof_train.cli import conf_dir
from stormproof_train.data.diabetes import Diabetes
from stormproof_train.data.digits import Digits
from stormproof_train.data.mnist1d import MNIST1D
from stormproof_train.evaluation.baselines import PENALTIES
from stormproof_train.main import run
from stormproof_train.overrides import plain

CANDIDATES = [
    "optimizer.weight_decay=0.01", "optimizer.weight_decay=1", "optimizer.weight_decay=2", "optimizer.weight_decay=5",
    "optimizer.weight_decay=10", "optimizer.weight_decay=0.01 trainer.max_epochs=10",
    "optimizer.weight_decay=0.01 callbacks=early_stopping", "optimizer.weight_decay=0.01 model.width=16",
    "optimizer.weight_decay=0.01 model.depth=1", "optimizer.weight_decay=0.01 model.dropout=0.5",
    "optimizer.weight_decay=5 model.depth=1", "optimizer.weight_decay=5 model.width=32",
    "optimizer.weight_decay=5 callbacks=early_stopping",
]  # fmt: skip
"""0.01 is the default of AdamW: these candidates are what ``data=diabetes`` was before and single changes of it."""
MODULES: dict[str, Any] = {"diabetes": Diabetes, "digits": Digits, "mnist1d": MNIST1D}
RUNS = {
    "diabetes": {"old default": ["optimizer.weight_decay=0.01"], "default": []},
    "digits": {"default": []},
    "mnist1d": {"default": []},
}

Score = tuple[float, float]
"""Validation and test."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["choose", "compare"])
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--data", nargs="+", choices=MODULES, default=list(MODULES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if asked.what == "choose":
        choose(asked.seeds or range(10, 20))
    else:
        compare(asked.data, asked.seeds or range(10))


def choose(seeds: Sequence[int]) -> None:
    for candidate in CANDIDATES:
        words = ["data=diabetes", *candidate.split(), "test=false"]
        scores = [trained(words, seed)["validation"]["r2"] for seed in seeds]
        print(f"{candidate:<55} validation {told(scores)}", flush=True)


def compare(data: Sequence[str], seeds: Sequence[int]) -> None:
    for name in data:
        found: dict[str, list[Score]] = {kind: [] for kind in (*RUNS[name], "linear", "constant")}
        for seed in seeds:
            for kind, words in RUNS[name].items():
                summary = trained([f"data={name}", *words], seed)
                metric = "r2" if "r2" in summary["test"] else "accuracy"
                found[kind].append((summary["validation"][metric], summary["test"][metric]))
            found["linear"].append(linear(name, seed))
            found["constant"].append(constant(name, seed))
        for kind, scores in found.items():
            validation, test = zip(*scores, strict=True)
            print(f"{name:<10} {kind:<12} validation {told(validation)}  test {told(test)}", flush=True)


def trained(words: Sequence[str], seed: int) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        own = ["logger=none", "trainer=cpu", "report=false", f"runs_dir={Path(folder) / 'runs'}", f"seed={seed}"]
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"), redirect_stdout(io.StringIO()):
            return run(hydra.compose("config", plain([*words, *own])))


def linear(name: str, seed: int) -> Score:
    train, validation, test = splits(name, seed)
    models = [Ridge(alpha=each) if name == "diabetes" else LogisticRegression(C=1 / each) for each in PENALTIES]
    best = max((model.fit(*train) for model in models), key=lambda model: model.score(*validation))
    return best.score(*validation), best.score(*test)


def constant(name: str, seed: int) -> Score:
    train, validation, test = splits(name, seed)
    model = (DummyRegressor() if name == "diabetes" else DummyClassifier()).fit(*train)
    return model.score(*validation), model.score(*test)


def splits(name: str, seed: int) -> list[Any]:
    data = MODULES[name](seed=seed)
    return [(inputs.flatten(1).numpy(), targets.numpy()) for inputs, targets in (*data.load(), data.load_test())]


def told(scores: Sequence[float]) -> str:
    return f"{statistics.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"


if __name__ == "__main__":
    main()
