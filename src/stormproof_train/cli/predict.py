"""Subcommand ``predict``: predicts on files with an artifact only, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stormproof.checkpoint.atomic import atomic_write
from stormproof_train.console import print_line, print_table
from stormproof_train.errors import ExitCode, UserError, rank_by_similarity
from stormproof_train.predict.artifact import ArtifactSession, NamedPredictions, preview_table, to_csv
from stormproof_train.predict.samples import read_samples

_PATH_OPTIONS = ("model", "input", "output")
_TABLE_OPTIONS = ("data.separator", "data.encoding", "data.decimal")
PREVIEW_ROWS = 20
"""Number of printed rows."""


def run(argv: Sequence[str]) -> int:
    """Predicts on files, and prints or writes the predictions.

    Args:
        argv: Arguments ``model=… input=…`` and others, as listed in
            :data:`stormproof_train.cli.predict_help.USAGE`.

    Returns:
        Exit code.

    Raises:
        UserError: If an argument is invalid, or a file cannot be read or written.
    """
    paths, csv_format = _parse_args(argv)
    output = paths.get("output")
    if output is not None and output.absolute() in {paths["input"].absolute(), paths["model"].absolute()}:
        raise UserError(f"output={output} is an input of the command. Choose another file.")
    if output is not None:
        _check_output(output)
    artifact = ArtifactSession(paths["model"])
    predictions = _predict(artifact, paths["input"], csv_format)
    if output is None:
        print_table(artifact.metadata.run, *preview_table(artifact.metadata, predictions, PREVIEW_ROWS))
        if len(predictions.names) > PREVIEW_ROWS:
            print_line(f"and {len(predictions.names) - PREVIEW_ROWS:,} more; output=predictions.csv saves all")
        return ExitCode.FINISHED
    try:
        with atomic_write(output) as file:
            file.write(to_csv(artifact.metadata, predictions).encode())
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror}") from error
    print_line(f"{len(predictions.names):,} predictions: {output}")
    return ExitCode.FINISHED


def _parse_args(argv: Sequence[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Returns the paths, and the format of a table if it differs from that of the training data."""
    paths: dict[str, Path] = {}
    csv_format: dict[str, str] = {}
    for arg in argv:
        key, equals, value = arg.partition("=")
        if not equals or key not in _PATH_OPTIONS + _TABLE_OPTIONS:
            suggestion = rank_by_similarity(key, _PATH_OPTIONS + _TABLE_OPTIONS)[0]
            raise UserError(f"{arg} is not an option of predict. Did you mean {suggestion}=…?")
        if key in _TABLE_OPTIONS:
            csv_format[key.removeprefix("data.")] = value.strip("'\"")
        elif value:
            paths[key] = Path(value).expanduser()
    for key, description in (("model", "an artifact or its folder"), ("input", "images, a table or arrays")):
        if key not in paths:
            raise UserError(f"predict needs {key}=…: {description}")
    return paths, csv_format


def _check_output(output: Path) -> None:
    """Checks the output path before computing predictions."""
    if output.is_dir() or not output.parent.is_dir():
        reason = "is a folder" if output.is_dir() else f"cannot be written: the folder {output.parent} does not exist"
        raise UserError(f"output={output} {reason}. Choose a file in an existing folder.")


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
