"""Predictions as a person, or another program, reads them."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from stormproof_train.console import shown
from stormproof_train.predict.facts import Facts

_OF_A_CLASS = {"probabilities": "probability", "scores": "score"}


@dataclass(frozen=True)
class Predicted:
    """Predictions of some samples.

    Attributes:
        unit: what a sample is: ``file`` or ``row``.
        names: of the samples.
        outputs: (N, classes or values).
    """

    unit: str
    names: list[str]
    outputs: NDArray[Any]


def as_csv(facts: Facts, predicted: Predicted) -> str:
    """A row a sample: its name, the predicted class and the probability or score of each; or its values.

    Numbers have the nine digits that tell each float32 from all others.

    Example:
        >>> import numpy as np
        >>> facts = Facts("probabilities", ["cat", "dog"], [2], "small_mouse")
        >>> print(as_csv(facts, Predicted("file", ["a.png"], np.array([[0.25, 0.75]]))), end="")
        file,predicted,probability of cat,probability of dog
        a.png,dog,0.25,0.75
    """
    count = predicted.outputs.shape[1]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if facts.kind == "values":
        writer.writerow([predicted.unit, *_value_names(facts, count)])
    else:
        named = (f"{_OF_A_CLASS[facts.kind]} of {name}" for name in _class_names(facts, count))
        writer.writerow([predicted.unit, "predicted", *named])
    for name, outputs in zip(predicted.names, predicted.outputs, strict=True):
        numbers = [f"{value:.9g}" for value in outputs]
        writer.writerow([name, *([] if facts.kind == "values" else [_class(facts, outputs)]), *numbers])
    return text.getvalue()


def in_short(facts: Facts, predicted: Predicted, most: int) -> tuple[list[str], list[list[str]]]:
    """The columns and the first rows of a table: the predicted class with its probability or score; or the values."""
    first = list(zip(predicted.names, predicted.outputs, strict=True))[:most]
    if facts.kind == "values":
        columns = [predicted.unit, *_value_names(facts, predicted.outputs.shape[1])]
        return columns, [[name, *(shown(float(value)) for value in outputs)] for name, outputs in first]
    columns = [predicted.unit, "predicted", _OF_A_CLASS[facts.kind]]
    return columns, [[name, _class(facts, outputs), shown(float(outputs.max()))] for name, outputs in first]


def _class(facts: Facts, outputs: NDArray[Any]) -> str:
    return _class_names(facts, len(outputs))[outputs.argmax()]


def _class_names(facts: Facts, count: int) -> list[str]:
    return facts.classes or [str(index) for index in range(count)]


def _value_names(facts: Facts, count: int) -> list[str]:
    name = facts.target or "value"
    return [name] if count == 1 else [f"{name} {number}" for number in range(1, count + 1)]
