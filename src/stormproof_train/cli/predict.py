"""``predict``: what a network says of files, from its artifact alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stormproof.checkpoint.atomic import atomic_write
from stormproof_train.console import print_line, print_table
from stormproof_train.errors import ExitCode, UserError, rank_by_similarity
from stormproof_train.predict.artifact import ArtifactSession
from stormproof_train.predict.named_predictions import NamedPredictions, preview_table, to_csv
from stormproof_train.predict.samples import read_samples

_PATH_OPTIONS = ("model", "input", "output")
_TABLE_OPTIONS = ("data.separator", "data.encoding", "data.decimal")
PREVIEW_ROWS = 20
"""Rows that are printed."""


def run(argv: Sequence[str]) -> int:
    """Predicts as the words say, and prints or writes what came of it.

    Args:
        argv: ``model=… input=…`` and more, as :data:`stormproof_train.cli.predict_help.USAGE` lists them.

    Returns:
        The exit code.

    Raises:
        UserError: if they do not fit, or something cannot be read or written.
    """
    paths, csv_format = _parse_args(argv)
    output = paths.get("output")
    if output is not None and output.absolute() in {paths["input"].absolute(), paths["model"].absolute()}:
        raise UserError(f"output={output} would be written over what is read: give another file")
    if output is not None:
        _check_output(output)
    artifact = ArtifactSession(paths["model"])
    predictions = _predict(artifact, paths["input"], csv_format)
    if output is None:
        print_table(artifact.metadata.run, *preview_table(artifact.metadata, predictions, PREVIEW_ROWS))
        if len(predictions.names) > PREVIEW_ROWS:
            print_line(f"and {len(predictions.names) - PREVIEW_ROWS:,} more: output=predictions.csv keeps all")
        return ExitCode.FINISHED
    try:
        with atomic_write(output) as file:
            file.write(to_csv(artifact.metadata, predictions).encode())
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror}") from error
    print_line(f"{len(predictions.names):,} predictions: {output}")
    return ExitCode.FINISHED


def _parse_args(argv: Sequence[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """The paths, and how a table is written where it is not as that of the training."""
    paths: dict[str, Path] = {}
    csv_format: dict[str, str] = {}
    for arg in argv:
        key, equals, value = arg.partition("=")
        if not equals or key not in _PATH_OPTIONS + _TABLE_OPTIONS:
            suggestion = rank_by_similarity(key, _PATH_OPTIONS + _TABLE_OPTIONS)[0]
            raise UserError(f"{arg} is nothing that predict takes; did you mean {suggestion}=…?")
        if key in _TABLE_OPTIONS:
            csv_format[key.removeprefix("data.")] = value.strip("'\"")
        elif value:
            paths[key] = Path(value).expanduser()
    for key, description in (("model", "an artifact, or its folder"), ("input", "images, a table or arrays")):
        if key not in paths:
            raise UserError(f"predict needs {key}=…: {description}")
    return paths, csv_format


def _check_output(output: Path) -> None:
    """Before anything is computed."""
    if output.is_dir() or not output.parent.is_dir():
        reason = "is a folder" if output.is_dir() else f"cannot be written: there is no folder {output.parent}"
        raise UserError(f"output={output} {reason}: give a file in a folder that is there")


def _predict(artifact: ArtifactSession, path: Path, csv_format: Mapping[str, str]) -> NamedPredictions:
    names: list[str] = []
    outputs = []
    unit = "row"
    preparation = artifact.metadata.preparation
    for samples in read_samples(path, None if preparation is None else {**preparation, **csv_format}):
        for message in samples.warnings:
            print_line(f"warning: {message}")
        unit = samples.unit
        names += samples.names
        outputs.append(artifact.predict(f"input={path}", samples.inputs))
    return NamedPredictions(unit, names, np.concatenate(outputs))
