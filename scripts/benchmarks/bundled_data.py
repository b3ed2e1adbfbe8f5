"""Compares default runs on the bundled data sets with linear models and constants on the same split.

    python scripts/benchmarks/bundled_data.py choose [--seeds 10 11 …]
    python scripts/benchmarks/bundled_data.py compare [--seeds 0 1 …] [--data diabetes digits mnist1d]
    python scripts/benchmarks/bundled_data.py cost

``choose`` trains the candidates for the default settings of ``data=diabetes`` and prints their R² on validation. It
leaves the test split unread (``test=false``). ``compare`` trains the runs of ``python train.py data=…`` and prints the
mean scores (R² or accuracy) over the seeds on validation and test. A seed fixes the split and the initial weights. The
linear model is ridge or logistic regression of scikit-learn with the penalty that is best on validation. The constant
is the mean or the most common class of the training split. ``cost`` prints the CPU time of the baselines and of the
evaluation of a run, for tables of random numbers.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import numpy as np
import torch
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression, Ridge

from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.overrides import normalize_overrides
from stormproof_train.data.diabetes import Diabetes
from stormproof_train.data.digits import Digits
from stormproof_train.data.in_memory import InMemoryDataModule, Split
from stormproof_train.data.mnist1d import MNIST1D
from stormproof_train.data.spec import DataSpec
from stormproof_train.evaluation.baselines import PENALTIES, add_baselines
from stormproof_train.evaluation.evaluate import evaluate
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.main import run

CANDIDATES = [
    "optimizer.weight_decay=0.01", "optimizer.weight_decay=1", "optimizer.weight_decay=2", "optimizer.weight_decay=5",
    "optimizer.weight_decay=10", "optimizer.weight_decay=0.01 trainer.max_epochs=10",
    "optimizer.weight_decay=0.01 callbacks=early_stopping", "optimizer.weight_decay=0.01 model.width=16",
    "optimizer.weight_decay=0.01 model.depth=1", "optimizer.weight_decay=0.01 model.dropout=0.5",
    "optimizer.weight_decay=5 model.depth=1", "optimizer.weight_decay=5 model.width=32",
    "optimizer.weight_decay=5 callbacks=early_stopping",
]  # fmt: skip
"""0.01 is the default of AdamW. The candidates are the former defaults of ``data=diabetes`` and changes of them."""
MODULES: dict[str, Any] = {"diabetes": Diabetes, "digits": Digits, "mnist1d": MNIST1D}
RUNS = {
    "diabetes": {"old default": ["optimizer.weight_decay=0.01"], "default": []},
    "digits": {"default": []},
    "mnist1d": {"default": []},
}

TABLES = [
    (266, 10, 1, 88), (1_000, 30, 3, 200), (100_000, 50, 1, 1_000), (100_000, 50, 10, 1_000), (100_000, 500, 1, 1_000),
    (100_000, 500, 2, 1_000), (20_000, 100, 20, 1_000), (100_000, 20, 1, 20_000), (100_000, 2_000, 1, 1_000),
]  # fmt: skip
"""Training rows, inputs, outputs and test samples."""

Score = tuple[float, float]
"""Validation score and test score."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["choose", "compare", "cost"])
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--data", nargs="+", choices=MODULES, default=list(MODULES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.what == "choose":
        choose_models(arguments.seeds or range(10, 20))
    elif arguments.what == "cost":
        measure_cost()
    else:
        compare(arguments.data, arguments.seeds or range(10))


def choose_models(seeds: Sequence[int]) -> None:
    for candidate in CANDIDATES:
        overrides = ["data=diabetes", *candidate.split(), "test=false"]
        scores = [train_run(overrides, seed)["validation"]["r2"] for seed in seeds]
        print(f"{candidate:<55} validation {mean_and_range(scores)}", flush=True)


def compare(data: Sequence[str], seeds: Sequence[int]) -> None:
    for name in data:
        scores_by_kind: dict[str, list[Score]] = {kind: [] for kind in (*RUNS[name], "linear", "constant")}
        for seed in seeds:
            for kind, overrides in RUNS[name].items():
                summary = train_run([f"data={name}", *overrides], seed)
                metric = "r2" if "r2" in summary["test"] else "accuracy"
                scores_by_kind[kind].append((summary["validation"][metric], summary["test"][metric]))
            scores_by_kind["linear"].append(fit_linear(name, seed))
            scores_by_kind["constant"].append(fit_constant(name, seed))
        for kind, scores in scores_by_kind.items():
            validation, test = zip(*scores, strict=True)
            print(
                f"{name:<10} {kind:<12} validation {mean_and_range(validation)}  test {mean_and_range(test)}",
                flush=True,
            )


class RandomTable(InMemoryDataModule):
    """A table of random numbers with noisy linear targets. One output means regression."""

    def __init__(self, rows: int, inputs: int, outputs: int, tested: int) -> None:
        super().__init__(batch_size=32, num_workers=0, drop_last=False, seed=0)
        self.spec = DataSpec((inputs,), outputs if outputs > 1 else None, outputs)
        self._rows, self._samples_to_test = rows, tested
        self._weights = torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(0)) / inputs**0.5

    def load(self) -> tuple[Split, Split]:
        return self._part(self._rows), self._part(self._rows // 5)

    def load_test(self) -> Split:
        return self._part(self._samples_to_test)

    def _part(self, rows: int) -> Split:
        generator = torch.Generator().manual_seed(rows)
        inputs = torch.randn(rows, len(self._weights), generator=generator)
        scores = inputs @ self._weights
        scores += torch.randn(scores.shape, generator=generator)
        return inputs, scores.argmax(1) if self.spec.num_classes else scores


def measure_cost() -> None:
    for rows, inputs, outputs, tested in TABLES:
        data = RandomTable(rows, inputs, outputs, tested)
        data.setup("fit")
        data.setup("test")
        target, random = data.get_split("test")[1].numpy(), np.random.default_rng(0)
        model_outputs = (
            random.dirichlet(np.ones(outputs), tested) if outputs > 1 else target + random.random(target.shape)
        )
        predictions = Predictions(
            "probabilities" if outputs > 1 else "values", model_outputs, target, np.arange(tested)
        )
        start = time.process_time()
        evaluation = evaluate(predictions) or {}
        evaluated = time.process_time()
        used = add_baselines(evaluation, predictions, data)["baselines"]["linear"]["rows"]
        print(
            f"{rows:>7,} rows, {inputs:>5,} inputs, {outputs:>2} outputs, {tested:>6,} tested: {used:>6,} rows used, "
            f"evaluation {evaluated - start:.2f} s, baselines {time.process_time() - evaluated:.2f} s",
            flush=True,
        )


def train_run(overrides: Sequence[str], seed: int) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        fixed_overrides = [
            "logger=none",
            "trainer=cpu",
            "report=false",
            f"runs_dir={Path(folder) / 'runs'}",
            f"seed={seed}",
        ]
        with hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE), redirect_stdout(io.StringIO()):
            return run(hydra.compose("config", normalize_overrides([*overrides, *fixed_overrides])))


def fit_linear(name: str, seed: int) -> Score:
    train, validation, test = load_splits(name, seed)
    models = [
        Ridge(alpha=penalty) if name == "diabetes" else LogisticRegression(C=1 / penalty) for penalty in PENALTIES
    ]
    best = max((model.fit(*train) for model in models), key=lambda model: model.score(*validation))
    return best.score(*validation), best.score(*test)


def fit_constant(name: str, seed: int) -> Score:
    train, validation, test = load_splits(name, seed)
    model = (DummyRegressor() if name == "diabetes" else DummyClassifier()).fit(*train)
    return model.score(*validation), model.score(*test)


def load_splits(name: str, seed: int) -> list[Any]:
    data = MODULES[name](seed=seed)
    return [(inputs.flatten(1).numpy(), targets.numpy()) for inputs, targets in (*data.load(), data.load_test())]


def mean_and_range(scores: Sequence[float]) -> str:
    return f"{statistics.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"


if __name__ == "__main__":
    main()
