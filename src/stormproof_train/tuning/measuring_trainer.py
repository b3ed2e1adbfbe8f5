"""Builds a Trainer for measurements: it computes like the run's, runs until it is stopped, and saves nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Callback

from stormproof_train.config.plan import Plan
from stormproof_train.errors import UserError

_UNLIMITED_LENGTH: dict[str, Any] = {
    "max_epochs": -1,
    "max_steps": -1,
    "max_time": None,
    "min_epochs": None,
    "min_steps": None,
    "fast_dev_run": False,
}
_NO_VALIDATION: dict[str, Any] = {
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
    "val_check_interval": 1.0,
    "check_val_every_n_epoch": 10**9,  # Lightning's learning-rate finder sets limit_val_batches
}
_NO_OUTPUT: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "profiler": None}


def build_measuring_trainer(
    plan: Plan, folder: str, callbacks: Sequence[Callback] = (), **overrides: Any
) -> pl.Trainer:
    """Builds the Trainer with the run's precision, clipping, accumulation and device.

    Args:
        plan: Plan of the run.
        folder: Folder for Lightning's own files.
        callbacks: All callbacks of the Trainer.
        overrides: Trainer arguments that replace those of the run.

    Raises:
        UserError: If the Trainer has more than one rank.
    """
    arguments = {**plan.trainer.kwargs, **_UNLIMITED_LENGTH, **_NO_VALIDATION, **_NO_OUTPUT, **overrides}
    trainer: pl.Trainer = dataclasses.replace(plan.trainer, kwargs=arguments).build(
        logger=False, callbacks=list(callbacks), enable_checkpointing=False, default_root_dir=folder
    )
    if trainer.world_size > 1:
        raise UserError(
            f"tune={plan.tune} measures on one device, but the Trainer uses {trainer.world_size}: set "
            "trainer.devices=1, without a launcher and without trainer=ddp"
        )
    return trainer
