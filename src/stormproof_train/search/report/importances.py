"""Draws the importances of parameters."""

from __future__ import annotations

from collections.abc import Mapping

from stormproof_train.report.kit.chart import Chart, Line, Table
from stormproof_train.report.kit.json_numbers import finite_or_none

MAX_ROW_HEIGHT = 24
MAX_BARS = 25


def importance_chart(name: str, importances: Mapping[str, float]) -> Chart:
    """Draws the shares of the variance of an objective as bars.

    Args:
        name: Name of the objective.
        importances: Shares in [0, 1] by key of the parameter. At least one.
    """
    title = f"Parameter importance for {name}"
    shares = sort_shares(importances)
    rows = [(key, f"{share:.1%}") for key, share in shares.items()]
    drawn_shares = dict(list(shares.items())[:MAX_BARS])
    return Chart(
        title=title,
        text=f"{title}, the most important first: {', '.join(f'{key} {share}' for key, share in rows)}.",
        spec={
            "width": "container",
            "height": len(drawn_shares) * MAX_ROW_HEIGHT,  # with a step size, Vega warns about fit-x
            "autosize": {"type": "fit-x", "contains": "padding"},
            "data": {"name": "bars"},
            "mark": {"type": "bar", "color": Line("", 0).color},
            "encoding": {
                "y": {
                    "field": "key", "type": "nominal", "title": None, "sort": None,
                    "axis": {"labelLimit": 140, "ticks": False, "domain": False},
                },
                "x": {
                    "field": "share", "type": "quantitative", "title": "share of the variance",
                    "axis": {"format": ".0%", "tickCount": 4}, "scale": {"domainMin": 0},
                },
                "tooltip": [{"field": "key", "title": "parameter"}, {"field": "share", "format": ".1%"}],
            },
        },
        data={"bars": {"key": list(drawn_shares), "share": [round(share, 6) for share in drawn_shares.values()]}},
        note=f"Shows the first {MAX_BARS} parameters." if len(shares) > MAX_BARS else "",
        table=Table(("parameter", "share"), rows),
    )  # fmt: skip


def sort_shares(importances: Mapping[str, float]) -> dict[str, float]:
    """Returns the shares in descending order."""
    finite_shares = {key: finite_or_none(share) or 0.0 for key, share in importances.items()}
    return dict(sorted(finite_shares.items(), key=lambda pair: -pair[1]))
