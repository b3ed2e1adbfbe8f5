"""Evaluates weights for the subcommand ``evaluate``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from stormproof.checkpoint import atomic_write
from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit
from stormproof.distributed.rank import is_rank_zero
from stormproof_train.build_task import build_task
from stormproof_train.cli.evaluate import EvaluationArguments
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.plan import FINGERPRINT_KEY, Plan
from stormproof_train.config.redaction import redact_override, redact_settings
from stormproof_train.console import format_value, print_line, print_table
from stormproof_train.data.content_sketch import check_files_unchanged
from stormproof_train.data.spec import get_fingerprint, infer_spec
from stormproof_train.data.split_data import SplitDataModule
from stormproof_train.errors import UserError, first_line
from stormproof_train.evaluation.comparison import compare
from stormproof_train.evaluation.evaluation_files import save_test_results
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.evaluation.records import Comparison
from stormproof_train.initialization.checkpoint import read_checkpoint
from stormproof_train.lightning_output import suppress_lightning_output
from stormproof_train.path_errors import create_folders
from stormproof_train.run.folder import RunFolder
from stormproof_train.run.trained_weights import TrainedWeights, read_run_plan, resolve_weights
from stormproof_train.task import Task

IGNORED_DATA_ARGUMENTS = {"batch_size", "num_workers", "drop_last"}
"""Data arguments that do not change the samples."""


def evaluate_weights(args: EvaluationArguments) -> None:
    """Evaluates weights, prints the metrics and saves predictions and evaluation.

    Raises:
        UserError: If an override is invalid, or there is nothing to evaluate.
    """
    suppress_lightning_output()
    first = resolve_weights(args.checkpoint)
    second = None if args.against is None else resolve_weights(args.against)
    folder = args.output or first.run / "evaluations" / _folder_name(first, second, args)
    _make_output_folder(folder if second is None else folder / "against")
    _evaluate(first, args, conf_dir(), folder)
    if second is None:
        return
    _evaluate(second, args, conf_dir(), folder / "against")
    if is_rank_zero():
        first_predictions, second_predictions = (
            Predictions.load(predictions_folder / "predictions.npz")
            for predictions_folder in (folder, folder / "against")
        )
        checkpoints = {"first": str(first.checkpoint), "second": str(second.checkpoint)}
        comparison = compare(first_predictions, second_predictions)
        with atomic_write(folder / "comparison.json") as file:
            file.write(f"{json.dumps({**checkpoints, **comparison}, allow_nan=False)}\n".encode())
        _print_comparison(comparison, first, second)


def _evaluate(trained_weights: TrainedWeights, args: EvaluationArguments, conf: Path, folder: Path) -> None:
    """Tests the weights, saves predictions and evaluation in the folder, and prints the metrics."""
    plan = read_run_plan(trained_weights.run, conf, args.overrides)
    pl.seed_everything(plan.seed, workers=True, verbose=False)
    data = plan.data.build(seed=plan.seed)
    _check_data_unchanged(data, plan, trained_weights.run)
    if isinstance(data, SplitDataModule):
        data.test_split_name = args.split
    elif args.split != "test":
        raise UserError(f"split={args.split}: {plan.data.path} provides only the test split in order")
    spec = infer_spec(data)
    task = build_task(plan, data, spec, plan.bind_loss(spec.task))
    print_line(f"{trained_weights.checkpoint} on the {args.split} split of {plan.data.function.__name__}")
    metrics = _run_test(plan, task, data, trained_weights.checkpoint)
    if not is_rank_zero():
        return
    data_settings = redact_settings(plan.data.arguments())
    metadata = {"checkpoint": str(trained_weights.checkpoint), "split": args.split, "data": data_settings}
    metadata |= {"class_names": task.classes} if task.classes else {}
    evaluation = save_test_results(task.test_predictions, folder, metadata)
    if evaluation is None:
        raise UserError(f"{trained_weights.checkpoint} could not be evaluated. Its metrics: {metrics}")
    _print_metrics(trained_weights.run.name, {"loss": {"value": metrics["loss"]}, **evaluation["headline"]})
    print_line(f"predictions and evaluation: {folder}")


def _make_output_folder(folder: Path) -> None:
    """Creates the folder on all ranks before the evaluation, so that errors occur early."""
    if (folder / "run.json").exists() or (folder / "config.yaml").exists():
        raise UserError(f"output={folder} is the folder of a run. Choose another folder.")
    create_folders(f"output={folder}: the folder cannot be created", folder)
    if not os.access(folder, os.W_OK):
        raise UserError(f"output={folder} is not writable. Choose another folder.")


def _run_test(plan: Plan, task: Task, data: pl.LightningDataModule, checkpoint: Path) -> dict[str, float]:
    destroy_gloo_before_exit()
    trainer: pl.Trainer = plan.trainer.build(logger=False, callbacks=[], enable_checkpointing=False)
    if getattr(trainer, "limit_test_batches", 1) == 0:
        raise UserError("trainer.limit_test_batches must not be 0 for an evaluation. Omit it, or set it above 0.")
    is_sharded = checkpoint.is_dir()
    try:
        if is_sharded:  # which Lightning loads only if the strategy shards parameters
            task.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
        (results,) = trainer.test(
            task, datamodule=data, ckpt_path=None if is_sharded else str(checkpoint), weights_only=True, verbose=False
        )
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning exits this way after Ctrl-C
            raise KeyboardInterrupt from error
        raise
    except RuntimeError as error:
        if "Error(s) in loading state_dict" not in str(error):
            raise
        reason = first_line(error).partition(":\n")[0]
        raise UserError(f"{checkpoint} does not fit the network for this data ({reason})") from error
    return {name.partition("/")[2]: float(value) for name, value in results.items()}


def _check_data_unchanged(data: pl.LightningDataModule, plan: Plan, run: Path) -> None:
    """Checks that the files have not changed, because another split may put training samples into the test split."""
    trained_settings = RunFolder(run.parent, run.name).read_settings()["data"]
    trained_fingerprint = trained_settings.pop(FINGERPRINT_KEY, None)
    current_settings = redact_settings(plan.data.arguments())
    changed_keys = {
        key
        for key in current_settings.keys() | trained_settings.keys()
        if current_settings.get(key) != trained_settings.get(key)
    } - IGNORED_DATA_ARGUMENTS
    if changed_keys:
        print_line(
            "warning: this is not the data of the training run. Inputs are scaled with its own training split, and it "
            "may contain training samples of the run."
        )
    elif get_fingerprint(data) != trained_fingerprint:
        raise UserError(
            f"the data has changed since {run} was trained, or its labels are read differently, so the evaluated split "
            "may contain its training samples. Use another path (data.path=…, data.test_path=…), or restore the "
            "previous files."
        )
    else:
        check_files_unchanged(run, data)


def _folder_name(first: TrainedWeights, second: TrainedWeights | None, args: EvaluationArguments) -> str:
    """Returns a name that is the same for the same evaluation."""
    against_parts = [] if second is None else ["against", second.run.name[:80], second.checkpoint.stem]
    overrides = "\n".join(sorted(map(redact_override, args.overrides)))
    digest = [hashlib.sha256(overrides.encode()).hexdigest()[:8]] if overrides else []
    return "-".join([args.split, first.checkpoint.stem, *digest, *against_parts])


def _print_comparison(comparison: Comparison, first: TrainedWeights, second: TrainedWeights) -> None:
    print_line(f"{first.run.name} minus {second.run.name}, on the same {comparison['samples']:,} samples")
    _print_metrics("difference", comparison["differences"])
    if "mcnemar" in comparison:
        test = comparison["mcnemar"]
        print_line(
            f"only one correct: the first {test['only_first_correct']:,}, the second {test['only_second_correct']:,} "
            f"times "
            f"(McNemar's exact test: p = {test['p_value']:.2g})"
        )


def _print_metrics(title: str, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints one row per metric, with its interval if it has one."""
    rows = [
        (
            name,
            format_value(metric["value"]),
            "" if metric.get("low") is None else f"{format_value(metric['low'])} to {format_value(metric['high'])}",
        )
        for name, metric in metrics.items()
    ]
    print_table(title, ("metric", "value", "95% interval"), rows)
