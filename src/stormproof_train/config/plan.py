"""Binds every entry of a config to its signature without building anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stormproof_train.config.callback_arguments import CALLBACK_ARGUMENTS
from stormproof_train.config.callback_checks import check_callbacks
from stormproof_train.config.settings import Resume, TuneTarget, check_settings, read_mirror
from stormproof_train.config.signature_binding import Target, bind
from stormproof_train.errors import UserError
from stormproof_train.launcher import detect_launcher
from stormproof_train.losses import DEFAULT_LOSSES

RECOVERY_TARGET = "stormproof.CheckpointRecovery"
FINGERPRINT_KEY = "fingerprint"
"""Key for the hash of the files, next to the data arguments in the settings of a run."""

RUN_ARGUMENTS: Mapping[str, frozenset[str]] = {
    "augmentation": frozenset({"input_shape", "num_classes", "loss"}),
    "callbacks": CALLBACK_ARGUMENTS,
    "data": frozenset({"seed"}),
    "initialization": frozenset({"network", "activation", "input_shape", "inputs"}),
    "logger": frozenset({"folder", "settings", "name", "run_id", "resume_step"}),
    "loss": frozenset({"class_counts"}),
    "model": frozenset({"input_shape", "num_outputs", "num_classes", "activation"}),
    "optimizer": frozenset({"params"}),
    "scheduler": frozenset({"optimizer", "total_steps", "T_max", "max_lr"}),
    "trainer": frozenset({"callbacks", "logger", "plugins", "enable_checkpointing", "default_root_dir"}),
}
"""Arguments that the run passes, by config group."""


@dataclass(frozen=True)
class Plan:
    """Validated entries of a config, which a run will build."""

    name: str | None
    runs_dir: str
    seed: int
    resume: Resume
    max_restarts_without_progress: int | None
    mirror: str | None
    test: bool
    tune: TuneTarget | None
    report: bool
    debug: bool
    data: Target
    augmentation: Mapping[str, Target]
    model: Target
    activation: Target
    initialization: Target
    loss: Mapping[str, Any]  # without a _target_ these are arguments of the default loss of the task
    optimizer: Target
    scheduler: Target
    callbacks: Mapping[str, Target]
    logger: Target
    trainer: Target

    def bind_loss(self, task: str) -> Target:
        """Returns the configured loss, a class or a function of (output, target), or else the default of the task."""
        return bind(
            {"_target_": DEFAULT_LOSSES.get(task), **self.loss}, "loss", RUN_ARGUMENTS["loss"], num_tensor_args=2
        )

    def settings(self, loss: Target | None, fingerprint: str | None = None) -> dict[str, Any]:
        """Returns all effective arguments as plain values, including the defaults of signatures.

        Args:
            loss: Loss of the run. If None, because the task is unknown, the loss settings are returned as configured.
            fingerprint: Hash of the content of the data files, if the data arguments do not determine it.
        """
        fingerprint_entry = {} if fingerprint is None else {FINGERPRINT_KEY: fingerprint}
        return {
            "name": self.name,
            "runs_dir": self.runs_dir,
            "seed": self.seed,
            "resume": self.resume,
            "max_restarts_without_progress": self.max_restarts_without_progress,
            "checkpoints": {"mirror": self.mirror},
            "test": self.test,
            "report": self.report,
            "debug": self.debug,
            "data": self.data.arguments() | fingerprint_entry,
            "augmentation": {  # numbered, because the order matters
                str(position): {"name": name, **augmentation_target.arguments()}
                for position, (name, augmentation_target) in enumerate(self.augmentation.items(), start=1)
            },
            "model": self.model.arguments(),
            "activation": self.activation.arguments(),
            "initialization": self.initialization.arguments(),
            "loss": dict(self.loss) if loss is None else loss.arguments(),
            "optimizer": self.optimizer.arguments(),
            "scheduler": self.scheduler.arguments(),
            "callbacks": {name: target.arguments() for name, target in self.callbacks.items()},
            "logger": self.logger.arguments(),
            "trainer": self.trainer.arguments(),
        }


def read_plan(cfg: DictConfig | Mapping[str, Any], complete: bool = True) -> Plan:
    """Reads a composed config.

    Args:
        cfg: Config with the structure of ``conf/config.yaml``. Interpolations are resolved only in a DictConfig.
        complete: If False, data arguments without a default may be missing and the number of processes of a launcher is
            ignored, as for ``--help``.

    Raises:
        UserError: If a setting is unknown, a value has the wrong type, or an entry does not match its signature.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg
    check_settings(config)
    callbacks = config.get("callbacks") or {}
    augmentation = config.get("augmentation") or {}
    loss = config.get("loss") or {}
    for group, entry in (("callbacks", callbacks), ("augmentation", augmentation), ("loss", loss)):
        if not isinstance(entry, Mapping):
            raise UserError(f"{group} must be a choice, or have a _target_, got {group}={entry}")
    name = config["name"]
    trainer = bind(config.get("trainer"), "trainer", RUN_ARGUMENTS["trainer"])
    plan = Plan(
        name=None if name is None else str(name),
        runs_dir=config["runs_dir"],
        seed=config["seed"],
        resume=config["resume"],
        max_restarts_without_progress=config["max_restarts_without_progress"],
        mirror=read_mirror(config.get("checkpoints")),
        test=config["test"],
        tune=config["tune"],
        report=config["report"],
        debug=config["debug"],
        data=bind(config.get("data"), "data", RUN_ARGUMENTS["data"], complete=complete),
        augmentation={
            key: bind(entry, f"augmentation.{key}", RUN_ARGUMENTS["augmentation"], num_tensor_args=2)
            for key, entry in augmentation.items()
            if entry is not None
        },
        model=bind(config.get("model"), "model", RUN_ARGUMENTS["model"]),
        activation=bind(config.get("activation"), "activation", num_tensor_args=1),
        initialization=bind(
            config.get("initialization"), "initialization", RUN_ARGUMENTS["initialization"], complete=complete
        ),
        loss=loss,
        optimizer=bind(config.get("optimizer"), "optimizer", RUN_ARGUMENTS["optimizer"]),
        scheduler=bind(config.get("scheduler"), "scheduler", RUN_ARGUMENTS["scheduler"]),
        callbacks={
            key: bind(entry, f"callbacks.{key}", RUN_ARGUMENTS["callbacks"])
            for key, entry in callbacks.items()
            if entry is not None
        },
        logger=bind(config.get("logger"), "logger", RUN_ARGUMENTS["logger"]),
        trainer=match_launcher(trainer) if complete else trainer,
    )
    check_callbacks(list(plan.callbacks.values()), plan.trainer.arguments())
    return plan


def match_launcher(trainer: Target, environ: Mapping[str, str] = os.environ) -> Target:
    """Returns the Trainer with the launcher's number of processes, if its ``devices`` are ``auto``.

    Args:
        trainer: Trainer, not built yet.
        environ: Environment variables.

    Raises:
        UserError: If ``devices`` or ``num_nodes`` differ from the launcher's.
    """
    launcher_counts = detect_launcher(environ)
    devices, nodes = trainer.kwargs.get("devices", 1), trainer.kwargs.get("num_nodes", 1)
    if not launcher_counts:
        return trainer
    if devices == "auto":
        return replace(trainer, kwargs={**trainer.kwargs, **launcher_counts})
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 0
    if not count:  # all devices, or a list as text, which Lightning parses
        return trainer
    if (count, nodes) != (launcher_counts["devices"], launcher_counts["num_nodes"]):
        raise UserError(
            f"the launcher started {launcher_counts['devices']} on each of {launcher_counts['num_nodes']} nodes, but "
            f"trainer.devices={devices} and trainer.num_nodes={nodes}. Use trainer=ddp, which takes the numbers of the "
            "launcher."
        )
    return trainer
