"""Draws a figure with panels from left to right, in colors and strokes for color-blind readers."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from claims.claim import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9")
"""Okabe and Ito (2008)."""
STROKES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))


def draw(figure: Figure, folder: Path) -> Path:
    mpl.rcParams["svg.hashsalt"] = "stormproof"  # the same numbers make the same file
    mpl.rcParams["font.size"] = 9
    canvas = Canvas(figsize=(max(4.6, 3.9 * len(figure.panels)), 4.0), layout="constrained")
    for axes, panel in zip(canvas.subplots(1, len(figure.panels), squeeze=False)[0], figure.panels, strict=True):
        for number, (name, line) in enumerate(panel.lines.items()):
            colour, stroke = COLOURS[number % len(COLOURS)], STROKES[number % len(STROKES)]
            axes.plot(line.x, line.y, label=name, color=colour, linestyle=stroke, linewidth=1.6)
            if line.band:
                axes.fill_between(line.x, *line.band, color=colour, alpha=0.15, linewidth=0)
        axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel, xscale=panel.xscale, yscale=panel.yscale)
        axes.grid(alpha=0.3)
        measured = next(iter(panel.lines.values())).x
        if len(measured) < 8 and panel.xscale == "linear":
            axes.set_xticks(measured)
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    path = folder / f"claims_{figure.name}.svg"
    canvas.savefig(path, metadata={"Date": None})
    return path
