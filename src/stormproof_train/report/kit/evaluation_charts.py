"""Draws confusion matrices, reliability diagrams, ROC curves, precision-recall curves and residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stormproof_train.console import format_value
from stormproof_train.evaluation.records import Evaluation
from stormproof_train.report.evaluation_plots import ClassCurve, PlottedEvaluation, Points
from stormproof_train.report.kit.chart import HOVER, Chart, Line, Table, hover_tooltip, line_scales

MAX_CLASSES = 40
"""Maximum number of classes for which a confusion matrix is readable."""
MAX_CLASSES_WITH_COUNTS = 15
"""Maximum number of classes for which the cells have room for counts."""
MAX_CONFUSIONS = 10

BLUE = "var(--series-1)"


def evaluation_charts(evaluation: PlottedEvaluation) -> list[Chart]:
    """Returns the charts of an ``evaluation.json`` for which it has data."""
    charts = []
    names = class_names(evaluation)
    classes = evaluation.get("classes", [])
    confusion = evaluation.get("confusion", [])
    if 0 < len(confusion) <= MAX_CLASSES:
        charts.append(_confusion_chart(confusion, names))
    if bins := evaluation.get("reliability"):
        error = evaluation["calibration_error"]  # pyright: ignore[reportTypedDictNotRequiredAccess] (present with reliability)
        charts.append(_reliability_chart(bins, error))
    if residuals := evaluation.get("residuals_by_prediction"):
        charts.append(_residual_chart(residuals))
    if curves := evaluation.get("roc"):
        areas = {class_index: class_metrics["roc_auc"] for class_index, class_metrics in enumerate(classes)}
        charts.append(
            _class_curves_chart("ROC curves", curves, names, areas, "false positive rate", "true positive rate", "area")
        )
    if curves := evaluation.get("precision_recall"):
        areas = {class_index: class_metrics["average_precision"] for class_index, class_metrics in enumerate(classes)}
        charts.append(
            _class_curves_chart(
                "Precision and recall", curves, names, areas, "recall", "precision", "average precision"
            )
        )
    return charts


def class_names(evaluation: Evaluation) -> list[str]:
    """Returns the names of the classes, or their indices if unknown."""
    return evaluation.get("class_names") or [str(number) for number in range(len(evaluation.get("classes", ())))]


def _confusion_chart(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Chart:
    classes = range(len(confusion))
    cells = [(row, column, confusion[row][column]) for row in classes for column in classes]
    confusions = sorted((cell for cell in cells if cell[0] != cell[1] and cell[2]), key=lambda cell: -cell[2])[
        :MAX_CONFUSIONS
    ]
    rows = [(names[row], names[column], f"{count:,}") for row, column, count in confusions]
    title = "Confusion matrix"
    worst_text = (
        f" The most common error is class {rows[0][0]} predicted as class {rows[0][1]}: {rows[0][2]} times."
        if rows
        else ""
    )
    encoding = {
        "x": {"field": "predicted", "type": "ordinal", "sort": None, "axis": {"labelAngle": 0, "labelOverlap": True}},
        "y": {"field": "true", "type": "ordinal", "sort": None, "axis": {"labelOverlap": True}},
        "tooltip": [
            {"field": "true", "title": "true"}, {"field": "predicted", "title": "predicted"},
            {"field": "count", "title": "samples", "format": ",d"},
            {"field": "share", "title": "of the class", "format": ".1%"},
        ],
    }  # fmt: skip
    counts = {
        "transform": [{"filter": "datum.count > 0"}],
        "mark": {"type": "text", "fontSize": 10},
        "encoding": {
            "text": {"field": "count", "format": ",d"},
            "color": {"condition": {"test": "datum.share > 0.5", "value": "var(--paper)"}, "value": "var(--ink)"},
        },
    }
    rect = {
        "mark": {"type": "rect", "color": BLUE},
        "encoding": {"opacity": {
            "field": "share", "type": "quantitative", "legend": None, "scale": {"domain": [0, 1], "range": [0, 1]},
        }},
    }  # fmt: skip
    return Chart(
        title=title,
        text=f"{title}: {len(confusion)} true classes in rows, predicted classes in columns.{worst_text}",
        spec={
            "width": "container", "height": 300, "data": {"name": "cells"}, "encoding": encoding,
            "layer": [rect, counts] if len(confusion) <= MAX_CLASSES_WITH_COUNTS else [rect],
        },
        data={"cells": {
            "true": [names[row] for row, _, _ in cells],
            "predicted": [names[column] for _, column, _ in cells],
            "count": [count for _, _, count in cells],
            "share": [count / max(1, sum(confusion[row])) for row, _, count in cells],
        }},
        note="Rows are true classes. Colors are shares of the row.",
        table=Table(("true", "predicted", "samples"), rows),
    )  # fmt: skip


def _reliability_chart(bins: Sequence[Mapping[str, Any]], error: float) -> Chart:
    title = "Reliability of the probabilities"
    share_encoding = {"type": "quantitative", "scale": {"domain": [0, 1]}}
    return Chart(
        title=title,
        text=f"{title}: accuracy by predicted probability. Expected calibration error: {format_value(error)}.",
        spec={
            "width": "container", "height": 300,
            "layer": [
                {
                    "data": {"name": "ideal"}, "mark": {"type": "line", "color": "var(--muted)", "strokeDash": [4, 4]},
                    "encoding": {"x": {"field": "at", **share_encoding}, "y": {"field": "at", **share_encoding}},
                },
                {
                    "data": {"name": "bins"},
                    "encoding": {
                        "x": {"field": "confidence", "title": "probability of the predicted class", **share_encoding},
                        "y": {"field": "accuracy", "title": "accuracy", **share_encoding},
                        "tooltip": [
                            {"field": "confidence", "title": "probability", "format": ".3f"},
                            {"field": "accuracy", "title": "accuracy", "format": ".3f"},
                            {"field": "samples", "title": "samples", "format": ",d"},
                        ],
                    },
                    "layer": [
                        {"mark": {"type": "line", "color": BLUE}},
                        {
                            "mark": {"type": "point", "filled": True, "color": BLUE, "opacity": 1},
                            "encoding": {"size": {
                                "field": "samples", "type": "quantitative", "legend": None,
                                "scale": {"type": "sqrt", "range": [20, 300]},
                            }},
                        },
                    ],
                },
            ],
        },
        data={
            "ideal": {"at": [0, 1]},
            "bins": {
                key: [reliability_bin[key] for reliability_bin in bins]
                for key in ("confidence", "accuracy", "samples")
            },
        },
        note=f"Expected calibration error {format_value(error)}. The dashed line shows perfect calibration. Larger "
        "points have more samples.",
        table=Table(
            ("probability", "accuracy", "samples"),
            [(format_value(reliability_bin["confidence"]), format_value(reliability_bin["accuracy"]),
            f"{reliability_bin['samples']:,}") for reliability_bin in bins],
        ),
    )  # fmt: skip


def _residual_chart(outputs: Sequence[Points]) -> Chart:
    title = "Residuals by prediction"
    lines = [Line(f"output {number_encoding}", number_encoding) for number_encoding in range(len(outputs))]
    data: dict[str, list[Any]] = {"line": [], "of": [], "x": [], "y": []}
    for line, output in zip(lines, outputs, strict=True):
        data["line"] += [line.number] * len(output["x"])
        data["of"] += [line.label] * len(output["x"])
        data["x"] += output["x"]
        data["y"] += output["y"]
    number_encoding = {"type": "quantitative", "scale": {"zero": False}, "axis": {"format": ",.6~g"}}
    return Chart(
        title=title,
        text=f"{title}: target minus prediction of {len(outputs[0]['x']):,} samples.",
        spec={
            "width": "container", "height": 300,
            "layer": [
                {
                    "data": {"name": "none left"},
                    "mark": {"type": "rule", "color": "var(--muted)", "strokeDash": [4, 4]},
                    "encoding": {"y": {"field": "y", "type": "quantitative"}},
                },
                {
                    "data": {"name": "points"}, "mark": {"type": "point", "filled": True, "size": 24, "opacity": 0.6},
                    "encoding": {
                        "x": {"field": "x", "title": "prediction", **number_encoding},
                        "y": {"field": "y", "title": "target minus prediction", **number_encoding},
                        "color": line_scales(lines)["color"],
                        "tooltip": [
                            {"field": "of", "title": " "}, {"field": "x", "title": "prediction", "format": ",.6~g"},
                            {"field": "y", "title": "residual", "format": ",.6~g"},
                        ],
                    },
                },
            ],
        },
        data={"points": data, "none left": {"y": [0]}},
        legend=lines if len(lines) > 1 else (),
        note="If predictions are equally good everywhere, the points are spread evenly around the dashed line.",
    )  # fmt: skip


def _class_curves_chart(
    title: str,
    curves: Sequence[ClassCurve],
    names: Sequence[str],
    areas: Mapping[int, float | None],
    x: str,
    y: str,
    area: str,
) -> Chart:
    lines = [Line(f"class {names[curve['of_class']]}", number) for number, curve in enumerate(curves)]
    data: dict[str, list[Any]] = {"line": [], "of": [], "place": [], "x": [], "y": []}
    for line, curve in zip(lines, curves, strict=True):
        data["line"] += [line.number] * len(curve["x"])
        data["of"] += [line.label] * len(curve["x"])
        data["place"] += range(len(curve["x"]))
        data["x"] += curve["x"]
        data["y"] += curve["y"]
    rows = [
        (line.label, "" if (value := areas[curve["of_class"]]) is None else format_value(value))
        for line, curve in zip(lines, curves, strict=True)
    ]
    share_encoding = {"type": "quantitative", "scale": {"domain": [0, 1]}}
    scales = line_scales(lines)
    return Chart(
        title=title,
        text=f"{title} of {len(curves)} classes, each against all others. {area}: "
        + ", ".join(f"{label} {value}" for label, value in rows),
        spec={
            "width": "container", "height": 300, "data": {"name": "points"},
            "encoding": {"x": {"field": "x", "title": x, **share_encoding}, "y": {"field": "y", "title": y,
            **share_encoding}},
            "layer": [
                {"mark": "line", "encoding": {"order": {"field": "place"}, **scales}},
                {
                    "mark": {"type": "point", "filled": True, "size": 36}, "params": [HOVER],
                    "encoding": {
                        "color": scales["color"],
                        "opacity": {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0},
                        "tooltip": hover_tooltip(of="", x=".3f", y=".3f"),
                    },
                },
            ],
        },
        data={"points": data},
        legend=lines,
        table=Table(("", area), rows),
    )  # fmt: skip
