"""Compares the settings of a script with those of the checkpoint that it resumes from.

Lightning restores the hyperparameters of the optimizers and takes all other settings from the script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.errors import NotResumableError
from stormproof.lightning.internals import callbacks
from stormproof.resume.snapshot_state import CHECKPOINT_KEY

MAX_NAMES = 8
"""Maximum number of differing settings that the warning names."""
Settings = dict[str, Any]
"""Plain values by name. The names of hyperparameters contain "of optimizer"."""
_CONSTANT = ("lr", "weight_decay")
"""Hyperparameters that an earlier release did not save, but that are equal in its optimizers during the whole run."""


def describe(trainer: pl.Trainer) -> Settings:
    """Returns the settings of the script. Call it when the strategy has just created the optimizers."""
    clip_algorithm = trainer.gradient_clip_algorithm
    is_scheduled = any("GradientAccumulationScheduler" in str(type(item).__mro__) for item in callbacks(trainer))
    return {
        "precision": str(trainer.precision),
        **({} if is_scheduled else {"accumulate_grad_batches": trainer.accumulate_grad_batches}),
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": None if clip_algorithm is None else str(clip_algorithm.value),
        "schedulers": ", ".join(type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs),
        "optimizers": ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers),
        **_describe_hyperparameters([optimizer.param_groups for optimizer in trainer.optimizers]),
    }


def read(checkpoint: Mapping[str, Any], world_size: int) -> Settings:
    """Returns the settings of the script that saved a checkpoint. An earlier release saved only a part of them."""
    job_state, groups = checkpoint[CHECKPOINT_KEY]["shared"], []
    settings = job_state.get("settings") or {}
    if not settings and not job_state.get("is_sharded"):
        groups = [state["param_groups"] for state in checkpoint["optimizer_states"]]
    if checkpoint["lr_schedulers"] and not all("initial_lr" in group for optimizer in groups for group in optimizer):
        groups = []  # the learning rate of the script is unknown
    accumulated = {"accumulate_grad_batches": job_state.get("accumulated")}
    settings = {**accumulated, **_describe_hyperparameters(groups), **settings, "step": checkpoint["global_step"]}
    if len(checkpoint[CHECKPOINT_KEY]["ranks"]) != world_size or settings["accumulate_grad_batches"] is None:
        del settings["accumulate_grad_batches"]  # unknown, or changed with the world size
    if job_state.get("tuned"):  # the learning rate may be from Lightning's LearningRateFinder
        return {name: value for name, value in settings.items() if not name.startswith("lr of")}
    return settings


def compare(script: Settings, saved: Settings) -> Settings:
    """Warns about settings that differ, and returns the settings of the resumed run.

    Raises:
        NotResumableError: If the checkpoint belongs to other optimizers, so that their states cannot be loaded.
    """
    names, saved_names = ({name for name in settings if "of optimizer" in name} for settings in (script, saved))
    step, optimizers = saved["step"], saved.get("optimizers", "other optimizers")
    kinds, saved_kinds = ({name.partition(",")[0] for name in group} for group in (names, saved_names))
    has_other_names = bool(kinds - saved_kinds and saved_kinds - kinds)  # an earlier release saved only these names
    if "optimizers" not in saved:
        saved = {name: saved[name] for name in saved if name not in saved_names or name.split()[0] in _CONSTANT}
    if has_other_names if "optimizers" not in saved else optimizers != script["optimizers"]:
        raise NotResumableError(
            f"The checkpoint of step {step} belongs to {optimizers}, but the script creates {script['optimizers']}. "
            "Use the same optimizers, or begin a new run in another folder."
        )
    differences = [
        f"{name} (checkpoint: {saved[name]}, script: {value})"
        for name, value in script.items()
        if name in saved and saved[name] != value
    ]
    if differences:
        rest = [f"and {len(differences) - MAX_NAMES} more"] if len(differences) > MAX_NAMES else []
        rank_zero_warn(
            f"The script differs from the checkpoint of step {step}: {', '.join(differences[:MAX_NAMES] + rest)}. "
            "Optimizer hyperparameters are restored from the checkpoint. Other settings come from the script. To use "
            "all settings of the script, begin a new run in another folder."
        )
    return {**script, **{name: saved[name] for name in names & saved.keys()}}


def _describe_hyperparameters(optimizers: Sequence[Sequence[Mapping[str, Any]]]) -> Settings:
    return {
        f"{name} of optimizer {index}" + (f", group {group_index}" if len(groups) > 1 else ""): _to_plain(value)
        for index, groups in enumerate(optimizers)
        for group_index, group in enumerate(groups)
        for name, value in {**group, **({"lr": group["initial_lr"]} if "initial_lr" in group else {})}.items()
        if name not in {"params", "param_names", "initial_lr"}
    }


def _to_plain(value: Any) -> Any:
    """Returns a value that ``torch.load(weights_only=True)`` accepts. The type of a value that is no plain one."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, list | tuple):
        return str(tuple(map(_to_plain, value)))
    return value if isinstance(value, bool | int | float | str | None) else type(value).__name__
