"""What the case says of its networks: their metrics, and the page with its figure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import matplotlib as mpl
import numpy as np
import torch
from case_ladder import BASELINE, SPLITS, Row
from matplotlib.figure import Figure
from scipy import stats
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_calibration_error

from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.overrides import normalize_overrides
from stormproof_train.config.plan import read_plan

TITLES = {"mnist1d": "MNIST-1D", "fashion_mnist": "Fashion-MNIST"}
AIMS = {
    "mnist1d": (0.96, "what people reach (Greydanus & Kobak 2024)"),
    "fashion_mnist": (0.925, "of two convolutional layers with fewer than 100,000 parameters in its authors' table"),
}


@dataclass(frozen=True)
class Measurement:
    """What is told of one trained network; shares, not percent."""

    parameters: int
    seconds: float
    accuracy: dict[str, float]
    nll: dict[str, float]
    ece: dict[str, float]

    @property
    def gap(self) -> float:
        return self.accuracy["train"] - self.accuracy["test"]


def measure(folder: Path) -> Measurement:
    """Accuracy, negative log-likelihood and calibration error of each split.

    The expected calibration error is over 15 bins of confidence (Guo et al. 2017, section 2).
    """
    accuracy, nll, ece = {}, {}, {}
    with np.load(folder / "predictions.npz") as arrays:
        for split in SPLITS:
            logits, labels = (torch.from_numpy(arrays[f"{split}_{part}"]) for part in ("logits", "labels"))
            accuracy[split] = (logits.argmax(dim=1) == labels).double().mean().item()
            nll[split] = cross_entropy(logits.double(), labels).item()
            ece[split] = multiclass_calibration_error(logits.softmax(1), labels, logits.shape[1], n_bins=15).item()
    summary = json.loads((folder / "summary.json").read_text())
    return Measurement(summary["parameters"], summary["seconds"], accuracy, nll, ece)


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with the half-width of its 95% interval, by Student's t."""

    value: float
    half_width: float

    def percent(self, signed: bool = False) -> str:
        return f"{100 * self.value:{'+' if signed else ''}.1f} ± {100 * self.half_width:.1f}"


def mean(values: Sequence[float]) -> Mean:
    error = statistics.stdev(values) / len(values) ** 0.5
    return Mean(statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * error)


def best_sum(rows: Sequence[Row], measured: dict[str, list[Measurement]]) -> str:
    """The sum with the highest mean accuracy on validation."""
    sums = [row.name for row in rows if row.is_sum]
    return max(
        sums, key=lambda name: statistics.fmean(measurement.accuracy["validation"] for measurement in measured[name])
    )


def render(data: str, rows: Sequence[Row], measured: dict[str, list[Measurement]], figure: str, made_by: str) -> str:
    """The page; every number in it is computed here."""
    chosen, baseline = best_sum(rows, measured), measured[BASELINE]
    best, (aim, whose) = measured[chosen], AIMS[data]
    reached = _mean_of(best, "test")
    worst, compared = min(measurement.accuracy["test"] for measurement in best), len(rows) - 1
    overrides = next(row.overrides for row in rows if row.name == chosen)
    return f"""# The case: {TITLES[data]}

`scripts/case.py` writes this page, and measures every number in it: {made_by}.

The baseline learns its training split by heart: it is right on {_mean_of(baseline, "train").percent()}% of it and on
{_mean_of(baseline, "test").percent()}% of the test split, a gap of {_gap(baseline).percent()} points. Then one thing is
changed at a time, and then several at once. Each row is {len(baseline)} networks, one a seed, which fixes the samples
held out for validation and the first weights.

{_table(rows, measured, chosen)}

Means ± the half-width of their 95% interval over the seeds (Student's t): for another seed, not for another test split.
Train is the training split in evaluation mode, without augmentation. NLL is the negative log-likelihood, ECE the
expected calibration error over 15 bins. Each row is compared with the baseline seed by seed; p is of the paired t-test,
and a star marks p < 0.05 / {compared}, which allows for {compared} comparisons.

The sums are trained otherwise, too, than the rows above them: {also_changed(rows)}.

**{chosen}** is the sum with the highest accuracy on validation; nothing was chosen by the test split. With
{best[0].parameters:,} parameters it is right on {reached.percent()}% of the test split (the worst seed:
{100 * worst:.1f}%), with a gap of {_gap(best).percent()} points. The aim was {100 * aim:.1f}%, {whose}:
{"reached" if reached.value >= aim else "not reached"}.

![Accuracy on the training and the test split, by change]({figure})

It is `python train.py {" ".join(overrides)}`.
"""


def also_changed(rows: Sequence[Row]) -> str:
    """What the sums have otherwise than the baseline besides what their names say, read from the configs."""
    first = next(row for row in rows if row.is_sum)
    before, after = (_parse_overrides(row.overrides) for row in (rows[0], first))
    changed = [f"{name} {after[name]} (baseline: {before[name]})" for name in after if after[name] != before[name]]
    return ", ".join(changed)


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The effective arguments of the groups that no row is named for."""
    with hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE):
        plan = read_plan(hydra.compose("config", normalize_overrides(overrides)))
    groups = {"data": plan.data, "optimizer": plan.optimizer, "trainer": plan.trainer}
    return {f"{group}.{name}": value for group, part in groups.items() for name, value in part.arguments().items()}


def _table(rows: Sequence[Row], measured: dict[str, list[Measurement]], chosen: str) -> str:
    head = (
        "change", "parameters", "validation %", "test %", "train %", "gap", "test NLL", "test ECE %",
        "against the baseline", "p",
    )  # fmt: skip
    lines = [head, ("---",) * len(head)]
    for row in rows:
        runs = measured[row.name]
        cells = (
            f"**{row.name}**" if row.name == chosen else row.name,
            f"{runs[0].parameters:,}",
            _mean_of(runs, "validation").percent(),
            _mean_of(runs, "test").percent(),
            _mean_of(runs, "train").percent(),
            _gap(runs).percent(),
            f"{statistics.fmean(measurement.nll['test'] for measurement in runs):.3f}",
            f"{100 * statistics.fmean(measurement.ece['test'] for measurement in runs):.1f}",
        )
        compared = ("", "") if row.name == BASELINE else _compare_with_baseline(runs, measured[BASELINE], len(rows) - 1)
        lines.append((*cells, *compared))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _compare_with_baseline(
    runs: Sequence[Measurement], baseline: Sequence[Measurement], comparisons: int
) -> tuple[str, str]:
    gained = [
        run.accuracy["test"] - baseline_run.accuracy["test"] for run, baseline_run in zip(runs, baseline, strict=True)
    ]
    p = float(stats.ttest_1samp(gained, 0.0).pvalue) if any(gained) else 1.0
    return mean(gained).percent(signed=True), f"{p:.1g}{' *' if p < 0.05 / comparisons else ''}"


def _mean_of(runs: Sequence[Measurement], split: str) -> Mean:
    return mean([measurement.accuracy[split] for measurement in runs])


def _gap(runs: Sequence[Measurement]) -> Mean:
    return mean([measurement.gap for measurement in runs])


def draw(rows: Sequence[Row], measured: dict[str, list[Measurement]], path: Path) -> None:
    """One line a row: the accuracy on both splits, and the gap between them."""
    mpl.rcParams["svg.hashsalt"] = path.stem
    figure = Figure(figsize=(7.5, 0.32 * len(rows) + 1.1), layout="constrained")
    axes = figure.subplots()
    for index, row in enumerate(reversed(rows)):
        ends = {split: _mean_of(measured[row.name], split) for split in ("train", "test")}
        axes.plot([100 * ends[split].value for split in ends], [index, index], color="0.75", zorder=1)
        for (split, end), colour in zip(ends.items(), ("#E69F00", "#0072B2"), strict=True):
            axes.errorbar(
                100 * end.value, index, xerr=100 * end.half_width, fmt="o", color=colour, capsize=2, markersize=5,
                label=split if index == 0 else None,
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    axes.set(xlabel="accuracy, %")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(path, metadata={"Date": None})
