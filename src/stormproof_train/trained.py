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
from stormproof.checkpoint.content import load_problem
from stormproof.errors import DamagedError
from stormproof_train.errors import UserError
from stormproof_train.identity import flat
from stormproof_train.plan import FINGERPRINT, Plan, read_plan
from stormproof_train.run_folder import RunFolder
from stormproof_train.secret_values import holds_stand_in, without_secrets
from stormproof_train.targets import bind

_NETWORK = ("model", "activation", "loss")
_OF_THE_RUN = ("data", *_NETWORK)
"""The groups whose choices are the run's, unless others are given."""


@dataclass(frozen=True)
class Trained:
    """A run's weights.

    Attributes:
        run: its folder.
        checkpoint: one of its checkpoints.
    """

    run: Path
    checkpoint: Path


def find(path: Path) -> Trained:
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
        return Trained(run, _of_the_run(run))
    if not path.is_file():
        raise UserError(f"{path} is no run's folder and no checkpoint")
    run = path.absolute().parent.parent
    if not (run / "run.json").is_file():
        raise UserError(f"{path} lies in no run's folder, whose config.yaml would say what network it is of")
    _refuse_damaged(path)
    return Trained(run, path)


def plan_of(run: Path, conf: Path, words: Sequence[str]) -> Plan:
    """What builds a run's network and data, and a Trainer of one device, without callbacks and loggers.

    A config that lies in a folder is data: what it names is built only if this application's own configs name it for
    the same group, or ``words`` repeat it; and nothing in it is taken for an interpolation.

    Args:
        run: its folder.
        conf: the folder of the application's configs.
        words: overrides of the data or the Trainer (``data.path=…``, ``trainer=gpu``); what was secret, repeated; and
            ``<group>._target_=``, which in the groups of the network only allows what a config names.

    Raises:
        UserError: if one of ``words`` is none of these, or what the run's config names is none of ours.
    """
    settings = _settings_of(run)
    overrides = OverridesParser.create().parse_overrides(list(words))
    stored = flat({group: settings[group] for group in _OF_THE_RUN})
    hidden = {key for key, value in stored if holds_stand_in(value)}
    for each in overrides:
        _check(each, hidden)
    choices = {each.key_or_group: str(each.input_line) for each in overrides if "." not in each.key_or_group}
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        cfg = hydra.compose("config", [*choices.values(), "logger=none", "callbacks=none"])
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config["seed"], config["trainer"]["precision"] = settings["seed"], settings["trainer"].get("precision")
    for group in _OF_THE_RUN:
        if group not in choices:
            _refuse_unknown(settings[group], group, shipped(conf)[group] | _repeated(overrides, group), run)
            config[group] = _chosen_by_the_user(settings[group])
    config = _merged(config, _told(overrides))
    for key, value in flat({group: config[group] for group in _OF_THE_RUN}):
        if holds_stand_in(value):
            raise UserError(f"{key} was secret, and is written nowhere: repeat {key}=…")
    return read_plan(config)


@cache
def shipped(conf: Path) -> Mapping[str, set[str]]:
    """By group, every ``_target_`` in the application's own configs."""
    found: dict[str, set[str]] = {group: set() for group in _OF_THE_RUN}
    for file in sorted(conf.rglob("*.yaml")):
        folder = file.relative_to(conf).parts[0]
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for key, path in _targets(content if folder == "experiment" else {folder: content}):
            found.setdefault(key.partition(".")[0], set()).add(path)
    return found


def _settings_of(run: Path) -> dict[str, Any]:
    settings = RunFolder(run.parent, run.name).settings()
    groups = [settings.get(group) for group in (*_OF_THE_RUN, "trainer")]
    whole = "seed" in settings and all(isinstance(group, dict) and "_target_" in group for group in groups)
    if not whole or not isinstance(settings["trainer"].get("precision"), str | int | None):
        raise UserError(f"{run / 'config.yaml'} is damaged: it does not say what was trained, and on what")
    return settings


def _of_the_run(run: Path) -> Path:
    """The checkpoint that the run has validated and tested, or its newest good one."""
    summary = RunFolder(run.parent, run.name).finished()
    if summary is not None and summary.get("weights"):
        tested = run / summary["weights"]
        if not tested.is_file():
            raise UserError(f"{tested}, whose weights the run {run} came to, is gone: name another checkpoint of it")
        _refuse_damaged(tested)
        return tested
    newest = Store(run / "checkpoints").latest()
    if newest is not None:
        return newest.path
    last = run / "checkpoints" / "last.ckpt"  # of a run without stormproof.CheckpointRecovery
    if not last.is_file():
        raise UserError(f"the run {run} has no checkpoint yet")
    return last


def _refuse_damaged(path: Path) -> None:
    """Raises DamagedError if it is not what was committed; one of another name, if it cannot be loaded."""
    store = Store(path.parent)
    (committed,) = [each for each in store.checkpoints() if each.path.name == path.name] or [None]
    problem = store.verify(committed) if committed else load_problem(path)
    if problem is not None:
        raise DamagedError(f"{path} is damaged: {problem}")


def _check(override: Override, hidden: Collection[str]) -> None:
    """Raises UserError for what is not the data's or the Trainer's, nor was hidden, or is no single value."""
    key, line = override.key_or_group.lstrip("+"), override.input_line
    if override.is_sweep_override() or override.is_delete():
        raise UserError(f"{line}: one value is wanted")
    if key.partition(".")[0] not in {"data", "trainer"} and not key.endswith("._target_") and key not in hidden:
        raise UserError(f"{line}: data and trainer may be others, all else is the run's own")


def _repeated(overrides: Sequence[Override], group: str) -> set[str]:
    """What the words say is to be built somewhere in a group: they cannot name a place in a list."""
    keys = [(each.key_or_group.lstrip("+"), str(each.value())) for each in overrides]
    return {path for key, path in keys if key.startswith(f"{group}.") and key.endswith("._target_")}


def _told(overrides: Sequence[Override]) -> dict[str, Any]:
    """The arguments among the words; interpolations in these are the user's own."""
    given = OmegaConf.create()
    for each in overrides:
        key = each.key_or_group.lstrip("+")
        if "." in key and not (key.endswith("._target_") and key.partition(".")[0] in _NETWORK):
            OmegaConf.update(given, key, each.value(), force_add=True)
    told: Any = OmegaConf.to_container(given, resolve=True)
    return told


def _refuse_unknown(entry: Mapping[str, Any], group: str, known: Collection[str], run: Path) -> None:
    for _, path in _targets(entry, group):
        if path not in known:
            raise UserError(
                f"{run / 'config.yaml'} names {path}, which is none of this application's own: to have it built, "
                f"repeat {group}._target_={path}"
            )


def _targets(content: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every ``_target_`` in a config, with its dotted key."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            key = f"{where}.{name}" if where else str(name)
            if name == "_target_":
                yield key, str(value)
            else:
                yield from _targets(value, key)
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from _targets(value, f"{where}[{index}]")


def _merged(config: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what was told in the place of what it says."""
    both = {
        key: _merged(config[key], value)
        if isinstance(value, Mapping) and isinstance(config.get(key), Mapping)
        else value
        for key, value in told.items()
    }
    return {**config, **both}


def _chosen_by_the_user(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Without a fingerprint, and without the defaults, some of which a config holds by name only (functions)."""
    defaults = without_secrets(bind({"_target_": entry["_target_"]}, "", complete=False).arguments())
    return {
        name: value
        for name, value in entry.items()
        if name == "_target_" or (name != FINGERPRINT and defaults.get(name, ...) != value)
    }
