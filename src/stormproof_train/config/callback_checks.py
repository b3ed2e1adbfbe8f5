"""Which callbacks fit each other, the metrics and the length of the run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning import Callback
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging

from stormproof_train.config.signature_binding import Target
from stormproof_train.data.spec import DataSpec
from stormproof_train.errors import UserError
from stormproof_train.generalization import GeneralizationGap
from stormproof_train.metrics import evaluation_metrics, higher_is_better

OWN_PACKAGES = ("stormproof.", "stormproof_train.", "pytorch_lightning.", "lightning.")
"""Packages whose callbacks do not log validation metrics."""


def check_callbacks(callbacks: Sequence[Target], trainer: Mapping[str, Any]) -> None:
    """Refuses what would test other weights than the user means, without a word.

    Args:
        callbacks: of the run, not yet built.
        trainer: the effective arguments of the Trainer.

    Raises:
        UserError: if a callback takes the worst values of a metric for the best, or the weights that
            StochasticWeightAveraging puts in at the end would be untrained ones, or none, or not those that are tested;
            or if weights are to be averaged that are spread over the ranks; or if the generalization gap would be
            measured once an average has been taken out again.
    """
    _check_directions(callbacks)
    _check_order(callbacks)
    strategy = trainer.get("strategy")
    spread = isinstance(strategy, Mapping) and str(strategy.get("_target_")).endswith(".FullySharded")
    for callback in callbacks:
        if spread and (_is(callback, WeightAveraging) or _is(callback, StochasticWeightAveraging)):
            raise UserError(
                f"{callback.where} averages weights that each rank has whole, and trainer=fsdp spreads them"
            )
        if _is(callback, StochasticWeightAveraging):
            _check_length(callback, trainer)
            _check_others(callback, callbacks)


def check_monitors(callbacks: Sequence[Target], spec: DataSpec) -> None:
    """Refuses callbacks that monitor a validation metric that is not logged.

    Args:
        callbacks: Callbacks of the run. Not checked if any is user-defined, because it may log metrics.
        spec: Data specification, which determines the metrics.

    Raises:
        UserError: If a metric is not logged.
    """
    if not all(callback.path.startswith(OWN_PACKAGES) for callback in callbacks):
        return
    logged = [f"val/{name}" for name in (*evaluation_metrics(spec), "loss")]
    monitored = {f"{callback.where}.monitor": callback.arguments().get("monitor") for callback in callbacks}
    for metric in dict.fromkeys(monitored.values()):
        if isinstance(metric, str) and metric.startswith("val/") and metric not in logged:
            where = " and ".join(name for name, each in monitored.items() if each == metric)
            raise UserError(f"{where}={metric} is not logged; there is: {', '.join(logged)}")


def _check_directions(callbacks: Sequence[Target]) -> None:
    wrong, cure = [], []
    for callback in callbacks:
        arguments = callback.arguments()
        metric, mode = arguments.get("monitor"), arguments.get("mode")
        higher = higher_is_better(str(metric))
        if higher is not None and mode == ("min" if higher else "max"):
            wrong.append(
                f"{callback.where}.mode={mode} takes {metric} for the better, the {'lower' if higher else 'higher'}"
            )
            cure.append(f"{callback.where}.mode={'max' if higher else 'min'}")
    if wrong:
        raise UserError(f"{wrong[0]} it is: set {' '.join(cure)}")


def _check_order(callbacks: Sequence[Target]) -> None:
    """Lightning calls them in turn; one that averages sets the raw weights back when its own turn comes."""
    averaging = None
    for callback in callbacks:
        averaging = callback if _is(callback, WeightAveraging) else averaging
        if averaging is not None and _is(callback, GeneralizationGap):
            raise UserError(
                f"{callback.where} measures the validated weights, and has to come before {averaging.where}"
            )


def _check_length(swa: Target, trainer: Mapping[str, Any]) -> None:
    """Lightning averages the weights with which epochs begin, from the one before ``swa_epoch_start`` on."""
    if trainer.get("max_steps", -1) != -1:
        raise UserError(
            f"{swa.where}: it counts epochs, and trainer.max_steps may end the run before it has averaged: set "
            "trainer.max_epochs alone"
        )
    start, epochs = swa.arguments()["swa_epoch_start"], trainer.get("max_epochs")
    length = epochs if isinstance(epochs, int) and epochs > 0 else math.inf
    first = int(start * length) if isinstance(start, float) and length < math.inf else start
    if first > length:
        raise UserError(f"{swa.where}.swa_epoch_start={start} is behind the last of {length} epochs: set a smaller one")
    if first < 2:
        raise UserError(
            f"{swa.where}: it averages the weights with which epochs begin, and with trainer.max_epochs={epochs} and "
            f"swa_epoch_start={start} the untrained ones are among them: set more epochs, or a later start"
        )


def _check_others(swa: Target, callbacks: Sequence[Target]) -> None:
    for other in callbacks:
        if _is(other, WeightAveraging):
            raise UserError(f"{swa.where} and {other.where} both set the weights that are tested: choose one of them")
        if other.arguments().get("monitor") is not None:
            raise UserError(
                f"{swa.where} averages weights up to the end, and with {other.where}.monitor those of an earlier epoch "
                "are tested: choose one of them"
            )


def _is(callback: Target, kind: type[Callback]) -> bool:
    return inspect.isclass(callback.function) and issubclass(callback.function, kind)
