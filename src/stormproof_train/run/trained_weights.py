"""Finds the trained weights of a run and composes configs that build its network."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from stormproof.checkpoint import Store
from stormproof.checkpoint.verification import find_load_problem
from stormproof.errors import DamagedError
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.identity import flatten
from stormproof_train.config.overrides import quote_values
from stormproof_train.config.plan import FINGERPRINT_KEY, Plan, read_plan
from stormproof_train.config.redaction import contains_placeholder, redact_settings
from stormproof_train.config.signature_binding import bind
from stormproof_train.errors import UserError
from stormproof_train.run.folder import RunFolder, read_record

_NETWORK_GROUPS = ("model", "activation", "loss")
_RUN_GROUPS = ("data", *_NETWORK_GROUPS)
"""Groups whose choices come from the run, unless they are overridden."""
_TRAINING_GROUPS = ("optimizer", "scheduler", "augmentation", "logger")
"""Groups that determine training and logging, used if the network is trained again."""
_TRAINER_ARGS = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")
"""Arguments of the Trainer that are taken from the run."""
SMALLER_TARGET = "stormproof_train.compression.structure.rebuild.apply_structure"
TEACHER_TARGET = "stormproof_train.compression.teacher.Teacher"
"""Targets that compression writes to configs and that are not choices."""


@dataclass(frozen=True)
class TrainedWeights:
    """Weights of a run."""

    run: Path
    checkpoint: Path


def resolve_weights(path: Path) -> TrainedWeights:
    """Returns the weights for a path.

    Args:
        path: A checkpoint of a run (``.ckpt``), or the folder of a run. For the latter, these are the weights that the
            run has validated and tested, or its newest checkpoint if it has not finished.

    Raises:
        UserError: If there are no weights.
        DamagedError: If the checkpoint, or every checkpoint of the run, is damaged.
    """
    is_checkpoint = path.is_file() or path.suffix == ".ckpt"
    if not is_checkpoint and read_record(path) is not None:
        run = path if path.name else path.resolve()
        return TrainedWeights(run, _resolve_checkpoint(run))
    if not path.exists() or not is_checkpoint:
        raise UserError(f"{path} is neither the folder of a run nor a checkpoint")
    run = path.absolute().parent.parent
    if read_record(run) is None:
        raise UserError(f"{path} is not in the folder of a run, whose config.yaml describes the network")
    _check_undamaged(path)
    return TrainedWeights(run, path)


def read_run_plan(run: Path, conf: Path, overrides: Sequence[str]) -> Plan:
    """Returns a plan with the network and data of a run, and a Trainer with one device, without callbacks and loggers.

    Args:
        run: Folder of the run.
        conf: Folder of the application's configs.
        overrides: Overrides of the data or the Trainer (``data.path=…``, ``trainer=gpu``), repeated secrets, and
            ``<group>._target_=…``, which in groups of the network only permits a target that the config contains.

    Raises:
        UserError: If an override is invalid, or the run's config contains a target that is not permitted.
    """
    fixed_overrides = ["logger=none", "callbacks=none"]
    return read_plan(
        _compose_config(run, conf, overrides, _RUN_GROUPS, ("data", "trainer"), ("precision",), fixed_overrides)
    )


def compose_training_config(run: Path, conf: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the config of a run with the data, network, logger and training settings of another run.

    The callbacks are the default ones.

    Args:
        run: Folder of the other run.
        conf: Folder of the application's configs.
        overrides: Overrides of the training settings (``optimizer.lr=…``, ``trainer=ddp``, ``logger=none``) and of the
            location of the data. Others as in :func:`read_run_plan`.

    Returns:
        Plain values with the structure of ``conf/config.yaml``.

    Raises:
        UserError: As in :func:`read_run_plan`.
    """
    overridable_groups = ("data", *_TRAINING_GROUPS, "callbacks", "trainer")
    return _compose_config(run, conf, overrides, (*_RUN_GROUPS, *_TRAINING_GROUPS), overridable_groups, _TRAINER_ARGS)


def _compose_config(
    run: Path,
    conf: Path,
    override_args: Sequence[str],
    run_groups: Sequence[str],
    overridable_groups: Sequence[str],
    trainer_args: Sequence[str],
    fixed_overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Composes a config with the run's choices for some groups and the run's values of some Trainer arguments.

    The config file in a run folder is untrusted data. Its targets are built only if the application's configs contain
    them for the same group, or ``override_args`` repeat them. Interpolations in it are not resolved.
    """
    settings = _read_run_settings(run, run_groups)
    overrides = OverridesParser.create().parse_overrides([quote_values(arg) for arg in override_args])
    run_entries = {group: settings[group] for group in run_groups}
    if "augmentation" in run_entries:
        run_entries["augmentation"] = _remove_teacher(run_entries["augmentation"])
    redacted_keys = {key for key, value in flatten(run_entries) if contains_placeholder(value)}
    for override in overrides:
        _check_override(override, redacted_keys, overridable_groups)
    choices = {
        override.key_or_group: str(override.input_line) for override in overrides if "." not in override.key_or_group
    }
    with hydra.initialize_config_dir(str(conf), **VERSION_BASE):
        cfg = hydra.compose("config", [*choices.values(), *fixed_overrides])
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config["seed"] = settings["seed"]
    trainer_values = {name: settings["trainer"].get(name) for name in trainer_args}
    config["trainer"] |= {name: value for name, value in trainer_values.items() if value is not None}
    for group, entry in run_entries.items():
        if group not in choices:
            check_targets(
                entry, group, shipped_targets(conf)[group] | _repeated_targets(overrides, group), run / "config.yaml"
            )
            config[group] = _ordered_augmentations(entry) if group == "augmentation" else _drop_defaults(entry)
    config = _merge(config, _override_values(overrides))
    for key, value in flatten({group: config[group] for group in run_groups}):
        if contains_placeholder(value):
            raise UserError(f"{key} is a secret that was not saved. Repeat {key}=….")
    return config


@cache
def shipped_targets(conf: Path) -> Mapping[str, set[str]]:
    """Returns all values of ``_target_`` in the application's configs, by group."""
    targets_by_group: dict[str, set[str]] = {group: set() for group in _RUN_GROUPS}
    for file in sorted(conf.rglob("*.yaml")):
        folder = file.relative_to(conf).parts[0]
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for key, path in _iter_targets(content if folder == "experiment" else {folder: content}):
            targets_by_group.setdefault(key.partition(".")[0], set()).add(path)
    return targets_by_group


def _read_run_settings(run: Path, groups: Sequence[str]) -> dict[str, Any]:
    settings = RunFolder(run.parent, run.name).read_settings()
    entries = {group: settings.get(group) for group in (*groups, "trainer")}
    is_complete = "seed" in settings and all(
        isinstance(entry, dict) and ("_target_" in entry or group == "augmentation") for group, entry in entries.items()
    )
    if not is_complete or not isinstance(settings["trainer"].get("precision"), str | int | None):
        raise UserError(f"{run / 'config.yaml'} is damaged: it does not describe the network and its data")
    return settings


def _resolve_checkpoint(run: Path) -> Path:
    """Returns the checkpoint that the run has validated and tested, or its newest valid one."""
    summary = RunFolder(run.parent, run.name).read_summary()
    weights = summary and summary.get("weights")
    if weights:
        tested_checkpoint = run / weights
        if not tested_checkpoint.exists():
            raise UserError(
                f"{tested_checkpoint}, which the run {run} tested, is missing. Choose another checkpoint of the run."
            )
        _check_undamaged(tested_checkpoint)
        return tested_checkpoint
    newest_checkpoint = Store(run / "checkpoints").latest_checkpoint()
    if newest_checkpoint is not None:
        return newest_checkpoint.path
    last_checkpoint = run / "checkpoints" / "last.ckpt"  # written by runs without stormproof.CheckpointRecovery
    if not last_checkpoint.exists():
        raise UserError(f"the run {run} has no checkpoint yet")
    return last_checkpoint


def _check_undamaged(path: Path) -> None:
    """Raises DamagedError if a checkpoint does not match its manifest, or cannot be loaded if it has none."""
    store = Store(path.parent)
    (committed_checkpoint,) = [
        checkpoint for checkpoint in store.read_checkpoints() if checkpoint.path.name == path.name
    ] or [None]
    problem = store.verify(committed_checkpoint) if committed_checkpoint else find_load_problem(path)
    if problem is not None:
        raise DamagedError(f"{path} is damaged: {problem}")


def _check_override(override: Override, redacted_keys: Collection[str], overridable_groups: Sequence[str]) -> None:
    """Raises UserError for an override that is not a single value of an overridable group or a redacted setting."""
    key, line = override.key_or_group.lstrip("+"), override.input_line
    if override.is_sweep_override() or override.is_delete():
        raise UserError(f"{line}: must be a single value")
    if key.partition(".")[0] not in overridable_groups and not key.endswith("._target_") and key not in redacted_keys:
        raise UserError(
            f"{line}: only {', '.join(overridable_groups[:-1])} and {overridable_groups[-1]} can be overridden. Other "
            "settings are those of the run."
        )


def _repeated_targets(overrides: Sequence[Override], group: str) -> set[str]:
    """Returns the targets in the overrides of a group at any position, because overrides cannot address lists."""
    keys = [(override.key_or_group.lstrip("+"), str(override.value())) for override in overrides]
    return {path for key, path in keys if key.startswith(f"{group}.") and key.endswith("._target_")}


def _override_values(overrides: Sequence[Override]) -> dict[str, Any]:
    """Returns the arguments in the overrides. Their interpolations are resolved, because they come from the user."""
    values = OmegaConf.create()
    for override in overrides:
        key = override.key_or_group.lstrip("+")
        if "." in key and not (key.endswith("._target_") and key.partition(".")[0] in _NETWORK_GROUPS):
            OmegaConf.update(values, key, override.value(), force_add=True)
    container: Any = OmegaConf.to_container(values, resolve=True)
    return container


def check_targets(
    entry: Mapping[str, Any], group: str, allowed_targets: Collection[str], file: Path, fix: str = ""
) -> None:
    """Rejects targets in a file, which is untrusted data, that are not permitted.

    Args:
        entry: Entry of a config.
        group: Key of the entry.
        allowed_targets: Permitted import paths.
        file: File that contains the entry.
        fix: How to permit the target. The default is an override.

    Raises:
        UserError: If the entry contains another target.
    """
    allowed_targets = {*allowed_targets, *([SMALLER_TARGET] if group == "model" else [])}
    for _, path in _iter_targets(entry, group):
        if path not in allowed_targets:
            raise UserError(
                f"{file} contains the target {path}, which is built only if you confirm it. To confirm, "
                f"{fix or f'repeat {group}._target_={path}'}."
            )


def _iter_targets(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields each ``_target_`` in a config with its dotted key."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            key = f"{prefix}.{name}" if prefix else str(name)
            if name == "_target_":
                yield key, str(value)
            else:
                yield from _iter_targets(value, key)
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from _iter_targets(value, f"{prefix}[{index}]")


def _merge(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config with values replaced by the overrides."""
    merged_values = {
        key: _merge(config[key], value)
        if isinstance(value, Mapping) and isinstance(config.get(key), Mapping)
        else value
        for key, value in overrides.items()
    }
    return {**config, **merged_values}


def _remove_teacher(augmentations: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Removes the teacher from the augmentations of a compressed run, because further training sets its own teacher."""
    return {
        position: augmentation
        for position, augmentation in augmentations.items()
        if augmentation.get("_target_") != TEACHER_TARGET
    }


def _ordered_augmentations(augmentations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns augmentations by name in their order, which run configs encode as numbers."""
    ordered_parts = [dict(augmentations[position]) for position in sorted(augmentations, key=int)]
    return {augmentation.pop("name"): _drop_defaults(augmentation) for augmentation in ordered_parts}


def _drop_defaults(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the fingerprint and default values, because functions are written by name and could not be read."""
    defaults = redact_settings(bind({"_target_": entry["_target_"]}, "", complete=False).arguments())
    return {
        name: value
        for name, value in entry.items()
        if name == "_target_" or (name != FINGERPRINT_KEY and defaults.get(name, ...) != value)
    }
