"""Implements a run from config to summary."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_warn
from omegaconf import DictConfig
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger

from stormproof import CheckpointRecovery
from stormproof.distributed.rank import global_rank, is_rank_zero
from stormproof_train.build_task import build_task
from stormproof_train.config.advice import add_divergence_hint, make_advisor
from stormproof_train.config.callback_arguments import CallbackArguments
from stormproof_train.config.callback_checks import check_monitors
from stormproof_train.config.changed_settings import find_changed_settings
from stormproof_train.config.identity import RunSpec, SettingRecord
from stormproof_train.config.plan import Plan, read_plan
from stormproof_train.config.settings import Resume
from stormproof_train.console import print_line
from stormproof_train.data.batch_limits import check_batch_limits
from stormproof_train.data.content_sketch import check_files_unchanged, save_sketch
from stormproof_train.data.spec import DataSpec, get_fingerprint, infer_spec
from stormproof_train.data.split_data import SplitDataModule
from stormproof_train.error_messages import describe_error
from stormproof_train.errors import PreemptedError, StopError, StoppedBySearchError, UserError
from stormproof_train.lightning_output import suppress_lightning_output
from stormproof_train.loggers import close_loggers
from stormproof_train.mapping_file import read_mapping, read_unless_damaged
from stormproof_train.metric_direction import HEADLINE
from stormproof_train.report.output_files import is_report_current
from stormproof_train.run.batch_sharding import adjust_accumulation
from stormproof_train.run.checkpoint_io import AtomicCheckpointIO, locate_mirror
from stormproof_train.run.folder import RunFolder
from stormproof_train.run.metrics_file import MetricsFile
from stormproof_train.run.metrics_rows import HEADER
from stormproof_train.run.progress_bar import ProgressLines, RunProgressBar
from stormproof_train.run.records import EvaluationSummary, RunSummary
from stormproof_train.run.resume import (
    TrainingStartRecorder,
    find_recovery,
    find_resume_checkpoint,
    print_resume_step,
)
from stormproof_train.run.shutdown import ShutdownHandler, block_sigint_during_launch
from stormproof_train.task import Task

RANK_SEED_STRIDE = 1_000_003
"""Difference between the seeds of two ranks. Users who increase the seed do not reach the seed of another rank."""
_EMPTY_TEST_RESULTS: EvaluationSummary = {"intervals": {}, "baselines": {}, "conclusions": []}
"""Part of the summary if the test split was not evaluated."""


def run(cfg: DictConfig, show_progress: bool = False, should_train: bool = True) -> RunSummary:
    """Trains the network of a config and tests it once. A finished run is not trained again.

    Args:
        cfg: Composed config with the structure of ``conf/config.yaml``.
        show_progress: If True, shows a progress bar. If False, prints lines of text.
        should_train: If False, returns the summary of a finished run and raises an error for other runs.

    Returns:
        Summary of the run.

    Raises:
        RunError: With the message for the user and the exit code.
    """
    plan = read_plan(cfg)
    suppress_lightning_output()
    pl.seed_everything(plan.seed, workers=True, verbose=False)
    data = plan.data.build(seed=plan.seed)
    spec = infer_spec(data)
    loss_target = plan.bind_loss(spec.task)
    run_spec = RunSpec.from_settings(plan.settings(loss_target, get_fingerprint(data)))
    folder = RunFolder(Path(plan.runs_dir), run_spec.name)
    summary = folder.read_summary()
    # when Lightning starts the other ranks, the folder of rank 0 exists, and `never` would reject their own run
    resume = plan.resume if is_rank_zero() else "auto"
    _check_run_matches(folder, run_spec, resume, data)
    if summary is not None and not folder.reopen_if_incomplete(summary):
        return _print_finished(plan, folder, summary)
    if not should_train:
        raise UserError(f"the run {folder.path} has not finished")

    task = build_task(plan, data, spec, loss_target)
    callbacks = _build_callbacks(plan, data, folder, run_spec.identity)
    recovery = find_recovery(callbacks)
    _validate_arguments(plan, folder, data, spec)
    checkpoint = find_resume_checkpoint(recovery, folder, plan.resume, plan.max_restarts_without_progress)
    if is_rank_zero():
        _begin(folder, run_spec, resume, data)
    trainer: pl.Trainer | None = None
    loggers: list[Logger] = []
    shutdown = ShutdownHandler(callbacks)
    try:
        print_line(
            f"{folder.name}: {spec.task} on {plan.data.function.__name__}, {_count_parameters(task):,} parameters"
        )
        print_resume_step(checkpoint)
        settings = {**run_spec.settings, "size": _model_size(task)}
        loggers = _build_loggers(plan, folder, settings, checkpoint.step if checkpoint else 0)
        callbacks += [
            TrainingStartRecorder(folder, _get_batch_size(data)),
            (RunProgressBar if show_progress else ProgressLines)(HEADLINE[spec.task].name),
        ]
        trainer = _build_trainer(plan, folder, callbacks, loggers, _get_batch_size(data))
        with add_divergence_hint(plan):
            summary = _train_and_test(trainer, task, data, folder, recovery, shutdown, plan)
    except BaseException as error:
        try:
            if is_rank_zero():
                folder.record_end(_status(error), *describe_error(error), trainer.global_step if trainer else None)
        finally:
            close_loggers(loggers, failed=True)
        shutdown.stop_listening(error)
        raise
    else:
        if is_rank_zero():
            summary = _finish(plan, folder, run_spec, summary)
        close_loggers(loggers, failed=False, recovery=recovery, folder=folder.path)
        shutdown.stop_listening()
    return summary


def _status(error: BaseException) -> str:
    if isinstance(error, PreemptedError | StoppedBySearchError):
        return "preempted"
    return "interrupted" if isinstance(error, StopError | KeyboardInterrupt) else "failed"


def _check_run_matches(folder: RunFolder, run_spec: RunSpec, resume: Resume, data: pl.LightningDataModule) -> None:
    folder.check_startable(run_spec, resume)
    if folder.has_trained:
        check_files_unchanged(folder.path, data)


def _begin(folder: RunFolder, run_spec: RunSpec, resume: Resume, data: pl.LightningDataModule) -> None:
    folder.begin_attempt(run_spec, resume)
    if not folder.has_trained:
        save_sketch(folder.path, data)


def _finish(plan: Plan, folder: RunFolder, run_spec: RunSpec, summary: RunSummary) -> RunSummary:
    """Records the results, writes the report, and returns the complete summary."""
    seconds = round(folder.previous_seconds + summary["seconds"], 3)
    summary.update({"attempts": folder.attempt, "seconds": seconds})
    changed = _find_changed_settings(run_spec) if plan.report else None
    folder.record_finish(summary, summary["steps"], changed)
    _write_lost_report(plan, folder)
    return summary


def _print_finished(plan: Plan, folder: RunFolder, summary: RunSummary) -> RunSummary:
    settings = read_unless_damaged(lambda: read_mapping(folder.path / "config.yaml")) or {}
    if settings.get("trainer") != plan.trainer.arguments():  # devices and strategy do not distinguish runs
        _build_bare_trainer(plan, folder)
    print_line(f"{folder.name} has already finished")
    _write_lost_report(plan, folder)
    return summary


def _write_lost_report(plan: Plan, folder: RunFolder) -> None:
    if plan.report and is_rank_zero() and not is_report_current(folder.path):
        from stormproof_train.report.write import write_report  # noqa: PLC0415 (only rank 0 needs it)

        write_report(folder.path)
        folder.remove_temporary_files()


def _find_changed_settings(run_spec: RunSpec) -> list[SettingRecord] | None:
    """Returns the settings that differ from the defaults. None if they cannot be found or written as JSON."""
    try:
        changed = find_changed_settings(run_spec.settings)
        json.dumps(changed)
    except Exception:  # noqa: BLE001 (a finished run must not fail because of its report, which tries again and prints the error)
        return None
    return changed


def _build_callbacks(plan: Plan, data: pl.LightningDataModule, folder: RunFolder, run_identity: str) -> list[Callback]:
    arguments = CallbackArguments(
        run_folder=folder.path.absolute(),
        dirpath=folder.checkpoints.absolute(),
        mirror=locate_mirror(plan.mirror, folder.name, plan.callbacks.values()),
        identity=run_identity,
        datamodule=data,
        advise=make_advisor(plan),
        on_hang=folder.record_hang if is_rank_zero() else None,
    )
    callbacks = [target.build(**vars(arguments)) for target in plan.callbacks.values()]
    for target, callback in zip(plan.callbacks.values(), callbacks, strict=True):
        if not hasattr(callback, "on_train_batch_end"):
            raise UserError(
                f"{target.config_key}: {target.path} returns {type(callback).__name__}, not a Lightning callback"
            )
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder.checkpoints.absolute())
    return callbacks


def _build_loggers(plan: Plan, folder: RunFolder, settings: dict[str, Any], resume_step: int) -> list[Logger]:
    """Returns the metrics file and the configured logger, which is built first because it may restore that file."""
    run_id, attempt = (folder.run_id, folder.attempt) if is_rank_zero() else (None, 0)
    chosen_logger = plan.logger.build(
        folder=folder.path, settings=settings, name=folder.name, run_id=run_id, resume_step=resume_step
    )
    metrics_path = folder.path / "metrics.csv"
    if resume_step > 0 and not (metrics_path.is_file() and metrics_path.read_bytes().startswith(HEADER)):
        rank_zero_warn(
            f"{metrics_path} is missing or damaged. Values logged in the first {resume_step} steps may be lost."
        )
    metrics_file = MetricsFile(metrics_path, attempt)
    return [metrics_file] if chosen_logger is None else [metrics_file, chosen_logger]


def _get_batch_size(data: pl.LightningDataModule) -> int | None:
    """Returns the samples per step over all ranks, or None for user-defined data modules."""
    return data.batch_size if isinstance(data, SplitDataModule) else None


def _build_trainer(
    plan: Plan, folder: RunFolder, callbacks: list[Callback], loggers: list[Logger], batch_size: int | None
) -> pl.Trainer:
    trainer: pl.Trainer = plan.trainer.build(
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        default_root_dir=str(folder.path),
    )
    adjust_accumulation(trainer, folder.initial_sharding, batch_size)
    return trainer


def _build_bare_trainer(plan: Plan, folder: RunFolder) -> pl.Trainer:
    return plan.trainer.build(
        callbacks=[], logger=False, plugins=[], enable_checkpointing=False, default_root_dir=str(folder.path)
    )


def _validate_arguments(plan: Plan, folder: RunFolder, data: pl.LightningDataModule, spec: DataSpec) -> None:
    """Validates trainer, data and callback arguments before the run folder and the logger are created."""
    check_monitors(list(plan.callbacks.values()), spec)
    if plan.trainer.arguments().get("fast_dev_run"):
        raise UserError(
            "trainer.fast_dev_run skips most batches, and the run would count as finished. Set trainer.max_steps and "
            "trainer.limit_val_batches instead."
        )
    trainer = _build_bare_trainer(plan, folder)
    for limit in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        if getattr(trainer, limit) == 0:
            raise UserError(f"trainer.{limit} must not be 0 in a run. Omit it, or set it above 0.")
    if isinstance(data, SplitDataModule):
        data.check_batch_size(trainer.world_size * trainer.accumulate_grad_batches)
    if folder.initial_sharding is None:  # otherwise the number of ranks may have changed, and the folder exists
        check_batch_limits(trainer, data, plan.test)


def _train_and_test(
    trainer: pl.Trainer,
    task: Task,
    data: pl.LightningDataModule,
    folder: RunFolder,
    recovery: CheckpointRecovery | None,
    shutdown: ShutdownHandler,
    plan: Plan,
) -> RunSummary:
    started = time.monotonic()
    # Training starts from the same state after any setup, and each rank draws its own dropout and augmentation.
    pl.seed_everything((plan.seed + global_rank() * RANK_SEED_STRIDE) % 2**32, workers=True, verbose=False)
    resume_checkpoint = recovery.resumed_from if recovery else None
    with shutdown.translate(trainer, recovery):
        with block_sigint_during_launch(trainer):
            trainer.fit(
                task, datamodule=data, ckpt_path=resume_checkpoint and str(resume_checkpoint.path), weights_only=True
            )
        shutdown.check()
        steps, epochs = trainer.global_step, trainer.current_epoch
        if recovery is None:
            trainer.save_checkpoint(folder.checkpoints / "last.ckpt")
        best = _best_weights(trainer, recovery)
        validation = _evaluate(trainer.validate, task, data, best)
        test: dict[str, float] = {}
        if plan.test:
            shutdown.check()
            test = _evaluate(trainer.test, task, data, best)
    headline = HEADLINE[task.spec.task]
    return {
        "name": folder.name,
        "test": test,
        **(_save_test_results(folder, task, data) if plan.test and is_rank_zero() else _EMPTY_TEST_RESULTS),
        "validation": validation,
        "headline": headline.name,
        "higher_is_better": headline.higher_is_better,
        "weights": best and os.path.relpath(best, folder.path),
        "parameters": _count_parameters(task),
        "steps": steps,
        "epochs": epochs,
        "seconds": time.monotonic() - started,
    }


def _best_weights(trainer: pl.Trainer, recovery: CheckpointRecovery | None) -> str | None:
    """Returns the checkpoint to validate and test if a metric selects the best one, or None for the current weights."""
    best = recovery.best_checkpoint() if recovery is not None and recovery.monitored_metric.name else None
    return best or getattr(trainer.checkpoint_callback, "best_model_path", "") or None


def _evaluate(
    run_pass: Callable[..., Any], task: Task, data: pl.LightningDataModule, weights: str | None
) -> dict[str, float]:
    """Runs one pass over a split and returns metrics without the prefix, the headline first and the loss last."""
    results = run_pass(task, datamodule=data, ckpt_path=weights, verbose=False, weights_only=True)
    values = {name.split("/", 1)[1]: float(value) for name, value in results[0].items()}
    headline = HEADLINE[task.spec.task].name
    order = sorted(values, key=lambda name: (name != headline, name == "loss", name))
    return {name: values[name] for name in order}


def _save_test_results(folder: RunFolder, task: Task, data: pl.LightningDataModule) -> EvaluationSummary:
    """Saves predictions and evaluation of the test split and returns their part of the summary."""
    from stormproof_train.evaluation import evaluation_files  # noqa: PLC0415 (imports scikit-learn, on rank 0 only)
    from stormproof_train.evaluation.conclusions import conclusions  # noqa: PLC0415 (only needed here)

    metadata = {"class_names": task.classes} if task.classes else {}
    evaluation = evaluation_files.save_test_results(task.test_predictions, folder.path, metadata, data)
    if evaluation is None:
        return _EMPTY_TEST_RESULTS
    return {
        "intervals": evaluation_files.extract_intervals(evaluation),
        "baselines": evaluation_files.extract_baselines(evaluation),
        "conclusions": conclusions(evaluation),
    }


def _model_size(task: Task) -> dict[str, int]:
    """Returns the size of the network, for comparisons between runs."""
    return {
        "parameters": _count_parameters(task),
        "bytes": sum(parameter.nbytes for parameter in task.network.parameters()),
    }


def _count_parameters(task: Task) -> int:
    return sum(parameter.numel() for parameter in task.network.parameters())
