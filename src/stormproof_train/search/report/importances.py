"""Which parameters an objective depends on."""

from __future__ import annotations

from collections.abc import Mapping

from stormproof_train.report.kit.chart import Chart, Line, Table
from stormproof_train.report.kit.json_numbers import finite

ROW_HEIGHT = 24
MOST_BARS = 25


def importance_chart(name: str, importances: Mapping[str, float]) -> Chart:
    """Draws shares of the spread of an objective as bars.

    Args:
        name: of the objective.
        importances: by key of the parameter, its share from 0 to 1; at least one.
    """
    title = f"What {name} depends on"
    shares = sorted_shares(importances)
    rows = [(key, f"{share:.1%}") for key, share in shares.items()]
    drawn = dict(list(shares.items())[:MOST_BARS])
    return Chart(
        title=title,
        text=f"{title}, the most important first: {', '.join(f'{key} {share}' for key, share in rows)}.",
        spec={
            "width": "container",
            "height": len(drawn) * ROW_HEIGHT,  # with a step, Vega warns of fit-x
            "autosize": {"type": "fit-x", "contains": "padding"},
            "data": {"name": "bars"},
            "mark": {"type": "bar", "color": Line("", 0).colour},
            "encoding": {
                "y": {
                    "field": "key", "type": "nominal", "title": None, "sort": None,
                    "axis": {"labelLimit": 140, "ticks": False, "domain": False},
                },
                "x": {
                    "field": "share", "type": "quantitative", "title": "share of its spread",
                    "axis": {"format": ".0%", "tickCount": 4}, "scale": {"domainMin": 0},
                },
                "tooltip": [{"field": "key", "title": "parameter"}, {"field": "share", "format": ".1%"}],
            },
        },
        data={"bars": {"key": list(drawn), "share": [round(share, 6) for share in drawn.values()]}},
        note=f"Drawn are the first {MOST_BARS}." if len(shares) > MOST_BARS else "",
        table=Table(("parameter", "share"), rows),
    )  # fmt: skip


def sorted_shares(importances: Mapping[str, float]) -> dict[str, float]:
    """The shares, the largest first."""
    finite_ones = {key: finite(share) or 0.0 for key, share in importances.items()}
    return dict(sorted(finite_ones.items(), key=lambda item: -item[1]))
