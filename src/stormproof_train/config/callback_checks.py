"""Checks that callbacks are compatible with each other, the metrics and the length of the run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning import Callback
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging

from stormproof import CheckpointRecovery
from stormproof_train.config.signature_binding import Target
from stormproof_train.data.spec import DataSpec
from stormproof_train.errors import UserError
from stormproof_train.generalization import GeneralizationGap
from stormproof_train.metric_direction import higher_is_better
from stormproof_train.metrics import evaluation_metrics

OWN_PACKAGES = ("stormproof.", "stormproof_train.", "pytorch_lightning.", "lightning.")
"""Packages whose callbacks do not log validation metrics."""


def check_callbacks(callbacks: Sequence[Target], trainer: Mapping[str, Any]) -> None:
    """Rejects callbacks that would silently test other weights than intended.

    Args:
        callbacks: Callbacks of the run, not built yet.
        trainer: Effective arguments of the Trainer.

    Raises:
        UserError: If a callback has the wrong ``mode`` for its metric, StochasticWeightAveraging would average
            untrained weights or no weights, or its weights would not be tested. Also if sharded weights cannot be
            averaged, or if GeneralizationGap follows a callback that averages weights.
    """
    _check_directions(callbacks)
    _check_order(callbacks)
    strategy = trainer.get("strategy")
    if isinstance(strategy, Mapping) and str(strategy.get("_target_")).endswith(".FullySharded"):
        _check_sharded(callbacks)
    for callback in callbacks:
        if _builds_subclass(callback, StochasticWeightAveraging):
            _check_length(callback, trainer)
            _check_conflicts(callback, callbacks)


def check_monitors(callbacks: Sequence[Target], spec: DataSpec) -> None:
    """Rejects callbacks that monitor a validation metric that is not logged.

    Args:
        callbacks: Callbacks of the run. Not checked if any is user-defined, because it may log metrics.
        spec: Data specification, which determines the metrics.

    Raises:
        UserError: If a metric is not logged.
    """
    if not all(callback.path.startswith(OWN_PACKAGES) for callback in callbacks):
        return
    logged_metrics = [f"val/{name}" for name in (*evaluation_metrics(spec), "loss")]
    monitors = {f"{callback.config_key}.monitor": callback.arguments().get("monitor") for callback in callbacks}
    for metric in dict.fromkeys(monitors.values()):
        if isinstance(metric, str) and metric.startswith("val/") and metric not in logged_metrics:
            keys = " and ".join(name for name, monitor in monitors.items() if monitor == metric)
            raise UserError(f"{keys}={metric} is not logged. Metrics: {', '.join(logged_metrics)}")


def _check_directions(callbacks: Sequence[Target]) -> None:
    messages, fixes = [], []
    for callback in callbacks:
        arguments = callback.arguments()
        metric, mode = arguments.get("monitor"), arguments.get("mode")
        is_higher_better = higher_is_better(str(metric))
        if is_higher_better is not None and mode == ("min" if is_higher_better else "max"):
            messages.append(
                f"{callback.config_key}.mode={mode} is wrong for {metric}, for which "
                f"{'higher' if is_higher_better else 'lower'} is better"
            )
            fixes.append(f"{callback.config_key}.mode={'max' if is_higher_better else 'min'}")
    if messages:
        raise UserError(f"{messages[0]}. Set {' '.join(fixes)}.")


def _check_order(callbacks: Sequence[Target]) -> None:
    """Checks the order of callbacks, because Lightning calls them in turn, and averaging restores the raw weights."""
    averaging_callback = None
    for callback in callbacks:
        averaging_callback = callback if _builds_subclass(callback, WeightAveraging) else averaging_callback
        if averaging_callback is not None and _builds_subclass(callback, GeneralizationGap):
            raise UserError(
                f"{callback.config_key} measures the validated weights, so it must precede "
                f"{averaging_callback.config_key}"
            )


def _check_sharded(callbacks: Sequence[Target]) -> None:
    """Checks that sharded weights can be averaged: CheckpointRecovery must precede the averaging callback."""
    has_recovery = False
    for callback in callbacks:
        has_recovery |= _builds_subclass(callback, CheckpointRecovery)
        if _builds_subclass(callback, StochasticWeightAveraging):
            raise UserError(
                f"{callback.config_key} does not support the sharded weights of trainer=fsdp. Use callbacks=ema."
            )
        if _builds_subclass(callback, WeightAveraging) and not has_recovery:
            raise UserError(
                f"{callback.config_key} can average the sharded weights of trainer=fsdp only after "
                "stormproof.CheckpointRecovery: put CheckpointRecovery before it"
            )


def _check_length(swa: Target, trainer: Mapping[str, Any]) -> None:
    """Checks the length. Lightning averages weights at epoch starts, from the epoch before ``swa_epoch_start`` on."""
    if trainer.get("max_steps", -1) != -1:
        raise UserError(
            f"{swa.config_key} counts epochs, and trainer.max_steps may end the run before averaging starts. Set only "
            "trainer.max_epochs."
        )
    start, epochs = swa.arguments()["swa_epoch_start"], trainer.get("max_epochs")
    length = epochs if isinstance(epochs, int) and epochs > 0 else math.inf
    first_epoch = int(start * length) if isinstance(start, float) and length < math.inf else start
    if first_epoch > length:
        raise UserError(f"{swa.config_key}.swa_epoch_start={start} must not exceed the {length} epochs of the run")
    if first_epoch < 2:
        raise UserError(
            f"{swa.config_key} averages the weights at epoch starts, which include the untrained weights with "
            f"trainer.max_epochs={epochs} and swa_epoch_start={start}. Set more epochs, or a later start."
        )


def _check_conflicts(swa: Target, callbacks: Sequence[Target]) -> None:
    for callback in callbacks:
        if _builds_subclass(callback, WeightAveraging):
            raise UserError(
                f"{swa.config_key} and {callback.config_key} both set the tested weights. Remove one of them."
            )
        if callback.arguments().get("monitor") is not None:
            raise UserError(
                f"{swa.config_key} averages weights until the end, but {callback.config_key}.monitor selects the "
                "weights of an earlier epoch for the test. Remove one of them."
            )


def _builds_subclass(callback: Target, callback_class: type[Callback]) -> bool:
    return inspect.isclass(callback.function) and issubclass(callback.function, callback_class)
