"""``predict``: what a network says of files, from its artifact alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stormproof.checkpoint.atomic import atomic_write
from stormproof_train.console import print_table, say
from stormproof_train.errors import ExitCode, UserError, nearest
from stormproof_train.predict.artifact import Artifact
from stormproof_train.predict.predicted import Predicted, as_csv, in_short
from stormproof_train.predict.samples import read_samples

_PATHS = ("model", "input", "output")
_OF_TABLES = ("data.separator", "data.encoding", "data.decimal")
SHOWN = 20
"""Rows that are printed."""


def run(words: Sequence[str]) -> int:
    """Predicts as the words say, and prints or writes what came of it.

    Args:
        words: ``model=… input=…`` and more, as :data:`stormproof_train.cli.predict_help.USAGE` lists them.

    Returns:
        The exit code.

    Raises:
        UserError: if they do not fit, or something cannot be read or written.
    """
    asked, written = _read(words)
    output = asked.get("output")
    if output is not None and output.absolute() in {asked["input"].absolute(), asked["model"].absolute()}:
        raise UserError(f"output={output} would be written over what is read: give another file")
    if output is not None:
        _refuse_elsewhere(output)
    artifact = Artifact(asked["model"])
    predicted = _predicted(artifact, asked["input"], written)
    if output is None:
        print_table(artifact.facts.run, *in_short(artifact.facts, predicted, SHOWN))
        if len(predicted.names) > SHOWN:
            say(f"and {len(predicted.names) - SHOWN:,} more: output=predictions.csv keeps all")
        return ExitCode.FINISHED
    try:
        with atomic_write(output) as file:
            file.write(as_csv(artifact.facts, predicted).encode())
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror}") from error
    say(f"{len(predicted.names):,} predictions: {output}")
    return ExitCode.FINISHED


def _read(words: Sequence[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """The paths, and how a table is written where it is not as that of the training."""
    asked: dict[str, Path] = {}
    written: dict[str, str] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or key not in _PATHS + _OF_TABLES:
            close = nearest(key, _PATHS + _OF_TABLES)[0]
            raise UserError(f"{word} is nothing that predict takes; did you mean {close}=…?")
        if key in _OF_TABLES:
            written[key.removeprefix("data.")] = value.strip("'\"")
        elif value:
            asked[key] = Path(value).expanduser()
    for key, what in (("model", "an artifact, or its folder"), ("input", "images, a table or arrays")):
        if key not in asked:
            raise UserError(f"predict needs {key}=…: {what}")
    return asked, written


def _refuse_elsewhere(output: Path) -> None:
    """Before anything is computed."""
    if output.is_dir() or not output.parent.is_dir():
        reason = "is a folder" if output.is_dir() else f"cannot be written: there is no folder {output.parent}"
        raise UserError(f"output={output} {reason}: give a file in a folder that is there")


def _predicted(artifact: Artifact, path: Path, written: Mapping[str, str]) -> Predicted:
    names: list[str] = []
    parts = []
    unit = "row"
    preparation = artifact.facts.preparation
    for part in read_samples(path, None if preparation is None else {**preparation, **written}):
        for sentence in part.warnings:
            say(f"warning: {sentence}")
        unit = part.unit
        names += part.names
        parts.append(artifact.predict(f"input={path}", part.inputs))
    return Predicted(unit, names, np.concatenate(parts))
