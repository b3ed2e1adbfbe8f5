"""Metrics of the case study, and its page and figure."""

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
    "mnist1d": (0.96, "the accuracy of humans (Greydanus & Kobak 2024)"),
    "fashion_mnist": (
        0.925,
        "the accuracy of two convolutional layers with under 100,000 parameters in the table of the data's authors",
    ),
}


@dataclass(frozen=True)
class Measurement:
    """Metrics of one trained network, as shares instead of percentages."""

    parameters: int
    seconds: float
    accuracy: dict[str, float]
    nll: dict[str, float]
    ece: dict[str, float]

    @property
    def gap(self) -> float:
        return self.accuracy["train"] - self.accuracy["test"]


def measure(folder: Path) -> Measurement:
    """Returns accuracy, negative log-likelihood and calibration error of each split.

    The expected calibration error uses 15 bins of confidence (Guo et al. 2017, section 2).
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
    """Returns the combination with the highest mean validation accuracy."""
    sums = [row.name for row in rows if row.is_sum]
    return max(
        sums, key=lambda name: statistics.fmean(measurement.accuracy["validation"] for measurement in measured[name])
    )


def render(data: str, rows: Sequence[Row], measured: dict[str, list[Measurement]], figure: str, made_by: str) -> str:
    """Returns the page with all numbers."""
    chosen, baseline = best_sum(rows, measured), measured[BASELINE]
    best, (aim, whose) = measured[chosen], AIMS[data]
    reached = _mean_of(best, "test")
    worst, compared = min(measurement.accuracy["test"] for measurement in best), len(rows) - 1
    overrides = next(row.overrides for row in rows if row.name == chosen)
    return f"""# Case study: {TITLES[data]}

`scripts/case.py` writes this page and measures all numbers: {made_by}.

The baseline overfits: its accuracy is {_mean_of(baseline, "train").percent()}% on the training split and
{_mean_of(baseline, "test").percent()}% on the test split, a gap of {_gap(baseline).percent()} points.
The rows change one setting at a time, then several. Each row is a mean over {len(baseline)} networks, one per seed.
The seed fixes the validation split and the initial weights.

{_table(rows, measured, chosen)}

Values are means ± half-widths of 95% intervals over the seeds (Student's t). They cover other seeds, not other test
splits. Train is the training split in evaluation mode without augmentation. NLL is the negative log-likelihood, and ECE
the expected calibration error with 15 bins. Each row is compared with the baseline per seed by a paired t-test. A star
marks p < 0.05 / {compared}, a correction for {compared} comparisons.

The combinations (“sum”) also differ in these settings: {also_changed(rows)}.

**{chosen}** is the combination with the highest validation accuracy. The test split was not used for the choice. With
{best[0].parameters:,} parameters, its test accuracy is {reached.percent()}% (worst seed: {100 * worst:.1f}%), with a
gap of {_gap(best).percent()} points. The target was {100 * aim:.1f}%, {whose}:
{"reached" if reached.value >= aim else "not reached"}.

![Accuracy on the training and the test split, by change]({figure})

The command is `python train.py {" ".join(overrides)}`.
"""


def also_changed(rows: Sequence[Row]) -> str:
    """Returns the settings that differ between combinations and baseline but are not part of their names."""
    first = next(row for row in rows if row.is_sum)
    before, after = (_parse_overrides(row.overrides) for row in (rows[0], first))
    changed = [f"{name} {after[name]} (baseline: {before[name]})" for name in after if after[name] != before[name]]
    return ", ".join(changed)


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the effective arguments of the groups that no row is named for."""
    with hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE):
        plan = read_plan(hydra.compose("config", normalize_overrides(overrides)))
    groups = {"data": plan.data, "optimizer": plan.optimizer, "trainer": plan.trainer}
    return {f"{group}.{name}": value for group, part in groups.items() for name, value in part.arguments().items()}


def _table(rows: Sequence[Row], measured: dict[str, list[Measurement]], chosen: str) -> str:
    head = (
        "change", "parameters", "validation %", "test %", "train %", "gap", "test NLL", "test ECE %",
        "difference from baseline", "p",
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
    """Draws one line per row: the accuracy on both splits and the gap between them."""
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
