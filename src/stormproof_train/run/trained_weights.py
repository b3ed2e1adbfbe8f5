"""What a run has trained: its weights, and the config that builds the network around them."""

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
from stormproof_train.run.folder import RunFolder

_NETWORK_GROUPS = ("model", "activation", "loss")
_RUN_GROUPS = ("data", *_NETWORK_GROUPS)
"""The groups whose choices are the run's, unless others are given."""
_TRAINING_GROUPS = ("optimizer", "scheduler", "augmentation", "logger")
"""The groups by which it was trained and logged, which are its own where it is trained on."""
_TRAINER_ARGS = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")
"""The Trainer's arguments by which it was."""
SMALLER_TARGET = "stormproof_train.compression.structure.rebuild.apply_structure"
TEACHER_TARGET = "stormproof_train.compression.teacher.Teacher"
"""What compression builds: they stand in configs of ours, and are no choices."""


@dataclass(frozen=True)
class TrainedWeights:
    """A run's weights.

    Attributes:
        run: its folder.
        checkpoint: one of its checkpoints.
    """

    run: Path
    checkpoint: Path


def resolve_weights(path: Path) -> TrainedWeights:
    """The weights that a path names.

    Args:
        path: a ``.ckpt`` file of a run; or a run's folder, for the weights that the run itself has validated
            and tested, or its newest where it has not come that far.

    Raises:
        UserError: if there are none.
        DamagedError: if there are, and what is named, or all, is damaged.
    """
    if (path / "run.json").is_file():
        run = path if path.name else path.resolve()
        return TrainedWeights(run, _resolve_checkpoint(run))
    if not path.is_file():
        raise UserError(f"{path} is no run's folder and no checkpoint")
    run = path.absolute().parent.parent
    if not (run / "run.json").is_file():
        raise UserError(f"{path} lies in no run's folder, whose config.yaml would say what network it is of")
    _check_undamaged(path)
    return TrainedWeights(run, path)


def read_run_plan(run: Path, conf: Path, overrides: Sequence[str]) -> Plan:
    """What builds a run's network and data, and a Trainer of one device, without callbacks and loggers.

    Args:
        run: its folder.
        conf: the folder of the application's configs.
        overrides: overrides of the data or the Trainer (``data.path=…``, ``trainer=gpu``); what was secret, repeated;
            and ``<group>._target_=``, which in the groups of the network only allows what a config names.

    Raises:
        UserError: if one of ``overrides`` is none of these, or what the run's config names is none of ours.
    """
    fixed_overrides = ["logger=none", "callbacks=none"]
    return read_plan(
        _compose_config(run, conf, overrides, _RUN_GROUPS, ("data", "trainer"), ("precision",), fixed_overrides)
    )


def compose_training_config(run: Path, conf: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The config of a run like another: its data, network, logger and way of training, but the default callbacks.

    Args:
        run: the other's folder.
        conf: the folder of the application's configs.
        overrides: overrides of how it is trained (``optimizer.lr=…``, ``trainer=ddp``, ``logger=none``) and of where
            the data are; the rest as for :func:`read_run_plan`.

    Returns:
        Plain values, as ``conf/config.yaml`` lays them out.

    Raises:
        UserError: as :func:`read_run_plan`.
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
    """A composed config in which the choices of some groups, and some arguments of the Trainer, are the run's.

    A config that lies in a folder is data: what it names is built only if this application's own configs name it for
    the same group, or ``override_args`` repeat it; and nothing in it is taken for an interpolation.
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
            raise UserError(f"{key} was secret, and is written nowhere: repeat {key}=…")
    return config


@cache
def shipped_targets(conf: Path) -> Mapping[str, set[str]]:
    """By group, every ``_target_`` in the application's own configs."""
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
        raise UserError(f"{run / 'config.yaml'} is damaged: it does not say what was trained, and on what")
    return settings


def _resolve_checkpoint(run: Path) -> Path:
    """The checkpoint that the run has validated and tested, or its newest good one."""
    summary = RunFolder(run.parent, run.name).read_summary()
    weights = summary and summary.get("weights")
    if weights:
        tested_checkpoint = run / weights
        if not tested_checkpoint.is_file():
            raise UserError(
                f"{tested_checkpoint}, whose weights the run {run} came to, is gone: name another checkpoint of it"
            )
        _check_undamaged(tested_checkpoint)
        return tested_checkpoint
    newest_checkpoint = Store(run / "checkpoints").latest_checkpoint()
    if newest_checkpoint is not None:
        return newest_checkpoint.path
    last_checkpoint = run / "checkpoints" / "last.ckpt"  # of a run without stormproof.CheckpointRecovery
    if not last_checkpoint.is_file():
        raise UserError(f"the run {run} has no checkpoint yet")
    return last_checkpoint


def _check_undamaged(path: Path) -> None:
    """Raises DamagedError if it is not what was committed; one of another name, if it cannot be loaded."""
    store = Store(path.parent)
    (committed_checkpoint,) = [
        checkpoint for checkpoint in store.read_checkpoints() if checkpoint.path.name == path.name
    ] or [None]
    problem = store.verify(committed_checkpoint) if committed_checkpoint else find_load_problem(path)
    if problem is not None:
        raise DamagedError(f"{path} is damaged: {problem}")


def _check_override(override: Override, redacted_keys: Collection[str], overridable_groups: Sequence[str]) -> None:
    """Raises UserError for what is of none of the groups that may be others, nor was hidden, or is no single value."""
    key, line = override.key_or_group.lstrip("+"), override.input_line
    if override.is_sweep_override() or override.is_delete():
        raise UserError(f"{line}: one value is wanted")
    if key.partition(".")[0] not in overridable_groups and not key.endswith("._target_") and key not in redacted_keys:
        raise UserError(
            f"{line}: {', '.join(overridable_groups[:-1])} and {overridable_groups[-1]} may be others, all else is "
            f"the run's own"
        )


def _repeated_targets(overrides: Sequence[Override], group: str) -> set[str]:
    """What the words say is to be built somewhere in a group: they cannot name a place in a list."""
    keys = [(override.key_or_group.lstrip("+"), str(override.value())) for override in overrides]
    return {path for key, path in keys if key.startswith(f"{group}.") and key.endswith("._target_")}


def _override_values(overrides: Sequence[Override]) -> dict[str, Any]:
    """The arguments among the words; interpolations in these are the user's own."""
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
    """Refuses what is named to be built in a file, which is data.

    Args:
        entry: of a config.
        group: its key there.
        allowed_targets: import paths that may be named.
        file: where it stands.
        fix: how to allow it; empty for a word of the command line.

    Raises:
        UserError: if it names anything else.
    """
    allowed_targets = {*allowed_targets, *([SMALLER_TARGET] if group == "model" else [])}
    for _, path in _iter_targets(entry, group):
        if path not in allowed_targets:
            raise UserError(
                f"{file} names {path}, which is none of this application's own: to have it built, "
                f"{fix or f'repeat {group}._target_={path}'}"
            )


def _iter_targets(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every ``_target_`` in a config, with its dotted key."""
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
    """The config with what was told in the place of what it says."""
    merged_values = {
        key: _merge(config[key], value)
        if isinstance(value, Mapping) and isinstance(config.get(key), Mapping)
        else value
        for key, value in overrides.items()
    }
    return {**config, **merged_values}


def _remove_teacher(augmentations: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Augmentations but the teacher of a run that came from compression: what is trained on from there has its own."""
    return {
        position: augmentation
        for position, augmentation in augmentations.items()
        if augmentation.get("_target_") != TEACHER_TARGET
    }


def _ordered_augmentations(augmentations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Augmentations by name, in their order, which a config keeps by their place."""
    ordered_parts = [dict(augmentations[position]) for position in sorted(augmentations, key=int)]
    return {augmentation.pop("name"): _drop_defaults(augmentation) for augmentation in ordered_parts}


def _drop_defaults(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Without a fingerprint, and without the defaults, some of which a config holds by name only (functions)."""
    defaults = redact_settings(bind({"_target_": entry["_target_"]}, "", complete=False).arguments())
    return {
        name: value
        for name, value in entry.items()
        if name == "_target_" or (name != FINGERPRINT_KEY and defaults.get(name, ...) != value)
    }
