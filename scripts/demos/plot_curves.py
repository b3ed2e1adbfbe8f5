"""Plots logged metrics of several runs, with one panel per run and one line per metric.

    pip install -e ".[train,docs]"
    python scripts/demos/plot_curves.py OUTPUT.svg RUN [RUN …] --names 'units/dead_fraction/*' [--log]

RUN is a run folder, whose ``metrics.csv`` is read. Names can contain wildcards.
"""

from __future__ import annotations

import argparse
import fnmatch
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from stormproof_train.run.metrics_rows import read_metrics

COLOURS = mpl.colormaps["viridis"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--names", nargs="+", required=True)
    parser.add_argument("--log", action="store_true", help="use a logarithmic axis")
    arguments = parser.parse_args()
    figure = Figure(figsize=(3.6 * len(arguments.runs), 3.0), layout="constrained")
    panels = figure.subplots(1, len(arguments.runs), sharey=True, squeeze=False)[0]
    for panel, run in zip(panels, arguments.runs, strict=True):
        logged = read_metrics(run / "metrics.csv")
        lines = [name for name in logged if any(fnmatch.fnmatchcase(name, pattern) for pattern in arguments.names)]
        for number, name in enumerate(lines):
            steps, values = zip(*logged[name], strict=True)
            colour = COLOURS(0.9 * number / max(len(lines) - 1, 1))
            panel.plot([step + 1 for step in steps], values, label=name.rpartition("/")[2], color=colour)
        panel.set(title=run.name, xlabel="step", yscale="log" if arguments.log else "linear")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(arguments.names[0].removesuffix("/*"))
    panels[-1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    mpl.rcParams["svg.hashsalt"] = "stormproof"  # makes SVG ids reproducible
    figure.savefig(arguments.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
