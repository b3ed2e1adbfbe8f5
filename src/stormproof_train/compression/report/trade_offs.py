"""What is lost over what is gained, with the artifacts that none beats in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stormproof_train.compression.report.artifacts import Artifact, Compression
from stormproof_train.compression.report.marks import LOOKS, legend, look_of
from stormproof_train.compression.report.quantities import ratio, scale_of
from stormproof_train.report.kit.axis import WIDE, Axis, parameter_axis, value_axis
from stormproof_train.report.kit.chart import Chart, Line, Table
from stormproof_train.report.kit.json_numbers import rounded
from stormproof_train.report.kit.marks import in_layers, look_encoding

BUDGET = Line("the budget", 3)
_FIELDS = ("x", "lost", "low", "high", "look", "artifact")


@dataclass(frozen=True)
class _Gain:
    """What is drawn across: a word for it, its name on the axis and its unit, ``of`` an artifact, and its sense."""

    word: str
    name: str
    unit: str
    of: Callable[[Artifact], float | None]
    more_is_better: bool


def trade_off_charts(compression: Compression) -> list[Chart]:
    """Draws what is lost on validation over the speedup, the size and the multiply-accumulates.

    Args:
        compression: whose artifacts they are; nothing is drawn of fewer than two.
    """
    gains = [
        _Gain("size", "size", "B", lambda artifact: artifact.bytes, more_is_better=False),
        _Gain("multiply-accumulates", "MACs", "", lambda artifact: artifact.macs, more_is_better=False),
    ]
    if compression.batches:
        name = f"times faster, batch {compression.batches[0]}"
        gains.insert(
            0, _Gain("speed", name, "", lambda artifact: compression.gain(artifact, "speedup"), more_is_better=True)
        )
    charts = [_chart(compression, gain) for gain in gains]
    return [chart for chart in charts if chart is not None]


def front_of(points: Sequence[tuple[float, float]], *, more_is_better: bool) -> list[tuple[float, float]]:
    """Those points (gain, loss) to which none is as good in one and better in the other, by their gain.

    Example:
        >>> front_of([(1, 0.0), (2, 0.5), (1.5, 0.6), (3, 0.5)], more_is_better=True)
        [(1, 0.0), (3, 0.5)]
    """
    front: list[tuple[float, float]] = []
    for gain, loss in sorted(points, key=lambda point: (-point[0] if more_is_better else point[0], point[1])):
        if not front or loss < front[-1][1]:
            front.append((gain, loss))
    return sorted(front)


def _chart(compression: Compression, gain: _Gain) -> Chart | None:
    known = [(each, value) for each in compression.artifacts if (value := gain.of(each)) is not None]
    prefix, scale = ("", 1.0) if gain.more_is_better else scale_of(max((value for _, value in known), default=0))
    rows = [row for artifact, value in known if (row := _row(compression, artifact, value / scale)) is not None]
    if len(rows) < 2:
        return None
    across, down = _gain_axis([row["x"] for row in rows]), _loss_axis(compression, rows)
    x_title = f"{gain.name}{f' ({prefix}{gain.unit})' if prefix or gain.unit else ''}"
    y_title = compression.metric.lost_title
    front = front_of([(row["x"], row["lost"]) for row in rows], more_is_better=gain.more_is_better)
    allowed = [] if compression.allowed is None else rounded([compression.metric.in_unit(compression.allowed)])
    table = _table(rows, x_title, compression)
    return Chart(
        title=f"{y_title} over {gain.word}",
        text=f"{y_title} on validation over {x_title}: {_in_words(table)}.",
        spec=_spec(across.encoding("x", x_title), down.encoding("lost", y_title)),
        data={
            "points": in_layers(rows, _FIELDS, LOOKS),
            "intervals": in_layers(
                [row for row in rows if row["low"] is not None], ("x", "low", "high", "look"), LOOKS
            ),
            "front": {"x": [x for x, _ in front], "lost": [lost for _, lost in front]},
            "budget": {"level": allowed},
        },
        legend=[*legend({row["look"] for row in rows}, compression), *([BUDGET] if allowed else [])],
        is_filled=True,
        note=" ".join(filter(None, (
            "Bars are 95% intervals; the broken line joins what none beats in both.",
            across.note(gain.name), down.note(y_title),
        ))),
        table=table,
    )  # fmt: skip


def _row(compression: Compression, artifact: Artifact, x: float) -> dict[str, Any] | None:
    lost = artifact.lost
    if lost is None:
        return None
    ends = [None, None] if lost.low is None or lost.high is None else [lost.low, lost.high]
    in_unit = [None if value is None else compression.metric.in_unit(value) for value in (lost.value, *ends)]
    told, low, high = (None if value is None else rounded([value])[0] for value in in_unit)
    return {
        "x": rounded([x])[0], "lost": told, "low": low, "high": high, "look": look_of(artifact, compression),
        "artifact": artifact.name,
    }  # fmt: skip


def _gain_axis(values: Sequence[float]) -> Axis:
    return parameter_axis(values, None, None, is_log=min(values) > 0 and max(values) >= WIDE * min(values))


def _loss_axis(compression: Compression, rows: Sequence[dict[str, Any]]) -> Axis:
    """From the best to the worst near it, with their intervals, nothing lost, and the budget."""
    losses = [row["lost"] for row in rows]
    near = value_axis([*losses, 0.0], higher_is_better=False)
    ends = [row[end] for row in rows if row["lost"] <= near.high for end in ("low", "high") if row[end] is not None]
    allowed = [] if compression.allowed is None else [compression.metric.in_unit(compression.allowed)]
    low, high = min([near.low, *ends]), max([near.high, *ends, *allowed])
    return Axis(low, high, beyond=sum(loss > high for loss in losses))


def _table(rows: Sequence[dict[str, Any]], x_title: str, compression: Compression) -> Table:
    text = "{:.2f}" if compression.metric.is_share else "{:.4g}"
    return Table(
        ("artifact", x_title, compression.metric.lost_title),
        [(row["artifact"], ratio(row["x"]), text.format(row["lost"])) for row in rows],
    )


def _in_words(table: Table) -> str:
    return "; ".join(f"{name} {gain}, lost {loss}" for name, gain, loss in table.rows)


def _spec(x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    looks, number = look_encoding(LOOKS), {"format": ",.4~g"}
    return {
        "width": "container",
        "height": 300,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": [
            {
                "data": {"name": "budget"},
                "mark": {"type": "rule", "color": BUDGET.colour, "strokeDash": [6, 4], "strokeWidth": 1.5},
                "encoding": {"y": {**y, "field": "level"}},
            },
            {
                "data": {"name": "front"},
                "mark": {"type": "line", "color": LOOKS["best"].line.colour, "strokeDash": [4, 3]},
                "encoding": {"x": x, "y": y},
            },
            {
                "data": {"name": "intervals"}, "mark": {"type": "rule", "opacity": 0.6},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": looks["color"]},
            },
            {
                "data": {"name": "points"}, "mark": {"type": "point", "filled": True},
                "encoding": {
                    "x": x, "y": y, **looks,
                    "tooltip": [
                        {"field": "artifact", "title": "artifact"}, {"field": "x", "title": x["title"], **number},
                        {"field": "lost", "title": y["title"], **number},
                        {"field": "low", "title": "at least", **number},
                        {"field": "high", "title": "at most", **number},
                    ],
                },
            },
        ],
    }  # fmt: skip
