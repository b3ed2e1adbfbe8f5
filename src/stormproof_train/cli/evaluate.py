"""Subcommand ``evaluate``: evaluates the weights of a run, and compares them with those of another run.

Example:
    >>> print_help([])  # doctest: +ELLIPSIS
    Evaluates the weights of a run...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from stormproof_train.cli.collection_pause import paused_collection
from stormproof_train.data.split_name import SplitName
from stormproof_train.errors import ExitCode, UserError, rank_by_similarity


@dataclass(frozen=True)
class EvaluationArguments:
    """Parsed arguments of the subcommand ``evaluate``.

    Attributes:
        checkpoint: Folder or checkpoint of a run.
        against: Folder or checkpoint of the run to compare with. None for no comparison.
        split: Split to evaluate.
        output: Output folder. None selects a folder of the run.
        overrides: Overrides of the settings of the run.
    """

    checkpoint: Path
    against: Path | None
    split: SplitName
    output: Path | None
    overrides: Sequence[str]


USAGE = """Evaluates the weights of a run. Results are in runs/<name>/evaluations/.

  stormproof-train evaluate checkpoint=runs/<name>                  the final weights, or the newest checkpoint
  stormproof-train evaluate checkpoint=runs/<name>/checkpoints/….ckpt split=validation
  stormproof-train evaluate checkpoint=runs/<name> data.test_path=new.csv
  stormproof-train evaluate checkpoint=runs/<name> against=runs/<other>     also tests if one of them is better

  checkpoint=   a run's folder, or a checkpoint of a run  (required)
  against=      another run or checkpoint, evaluated on the same samples
  split=test    or validation, or train: without augmentation, in order
  output=       folder for predictions.npz and evaluation.json
  data…=        other data, or other arguments of the run's data
  trainer…=     such as trainer=gpu; one device by default"""

_OPTIONS = ("checkpoint", "against", "split", "output")


def print_help(_: Sequence[str]) -> None:
    """Prints the help of the subcommand ``evaluate``."""
    print(USAGE)


def run(argv: Sequence[str]) -> int:
    """Evaluates weights, prints the metrics and saves predictions and evaluation.

    Args:
        argv: Arguments ``checkpoint=…`` and others, as listed in :data:`USAGE`.

    Returns:
        Exit code.

    Raises:
        UserError: If an argument is invalid, or there is nothing to evaluate.
    """
    args = _parse_args(argv)
    with paused_collection():
        from stormproof_train.cli.evaluate_weights import evaluate_weights  # noqa: PLC0415 (imports torch)

    evaluate_weights(args)
    return ExitCode.FINISHED


def _parse_args(argv: Sequence[str]) -> EvaluationArguments:
    options: dict[str, str] = {}
    overrides = []
    for arg in argv:
        key, equals, value = arg.partition("=")
        if not equals:
            raise UserError(f"{arg} is not an option. Use {'=…, '.join(_OPTIONS)}=…, data…=… or trainer…=….")
        if key in _OPTIONS:
            options[key] = value
        elif "." in key or key in {"data", "trainer"}:
            overrides.append(arg)
        else:
            suggestion = rank_by_similarity(key, [*_OPTIONS, "data", "trainer"])[0]
            raise UserError(f"{key}= is not an option of evaluate. Did you mean {suggestion}?")
    if not options.get("checkpoint"):
        raise UserError("evaluate needs checkpoint=…: a run's folder, or a checkpoint of a run")
    split: Any = options.get("split", "test")
    if split not in get_args(SplitName):
        raise UserError(f"split must be one of {', '.join(get_args(SplitName))}, got {split}")
    against, output = (Path(options[key]) if options.get(key) else None for key in ("against", "output"))
    return EvaluationArguments(Path(options["checkpoint"]), against, split, output, overrides)
