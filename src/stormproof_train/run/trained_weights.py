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
from stormproof.checkpoint.verification import load_problem
from stormproof.errors import DamagedError
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.identity import flat
from stormproof_train.config.overrides import quoted
from stormproof_train.config.plan import FINGERPRINT, Plan, read_plan
from stormproof_train.config.redaction import holds_stand_in, without_secrets
from stormproof_train.config.signature_binding import bind
from stormproof_train.errors import UserError
from stormproof_train.run.folder import RunFolder

_NETWORK = ("model", "activation", "loss")
_OF_THE_RUN = ("data", *_NETWORK)
"""The groups whose choices are the run's, unless others are given."""
_TRAINING = ("optimizer", "scheduler", "augmentation", "logger")
"""The groups by which it was trained and logged, which are its own where it is trained on."""
_OF_THE_TRAINER = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")
"""The Trainer's arguments by which it was."""
SMALLER = "stormproof_train.compression.structure.rebuild.smaller"
TEACHER = "stormproof_train.compression.teacher.Teacher"
"""What compression builds: they stand in configs of ours, and are no choices."""


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

    Args:
        run: its folder.
        conf: the folder of the application's configs.
        words: overrides of the data or the Trainer (``data.path=…``, ``trainer=gpu``); what was secret, repeated; and
            ``<group>._target_=``, which in the groups of the network only allows what a config names.

    Raises:
        UserError: if one of ``words`` is none of these, or what the run's config names is none of ours.
    """
    chosen = ["logger=none", "callbacks=none"]
    return read_plan(_config_of(run, conf, words, _OF_THE_RUN, ("data", "trainer"), ("precision",), chosen))


def config_to_train_on(run: Path, conf: Path, words: Sequence[str]) -> dict[str, Any]:
    """The config of a run like another: its data, network, logger and way of training, but the default callbacks.

    Args:
        run: the other's folder.
        conf: the folder of the application's configs.
        words: overrides of how it is trained (``optimizer.lr=…``, ``trainer=ddp``, ``logger=none``) and of where the
            data are; the rest as for :func:`plan_of`.

    Returns:
        Plain values, as ``conf/config.yaml`` lays them out.

    Raises:
        UserError: as :func:`plan_of`.
    """
    others = ("data", *_TRAINING, "callbacks", "trainer")
    return _config_of(run, conf, words, (*_OF_THE_RUN, *_TRAINING), others, _OF_THE_TRAINER)


def _config_of(
    run: Path,
    conf: Path,
    words: Sequence[str],
    its_own: Sequence[str],
    others: Sequence[str],
    of_the_trainer: Sequence[str],
    chosen: Sequence[str] = (),
) -> dict[str, Any]:
    """A composed config in which the choices of some groups, and some arguments of the Trainer, are the run's.

    A config that lies in a folder is data: what it names is built only if this application's own configs name it for
    the same group, or ``words`` repeat it; and nothing in it is taken for an interpolation.
    """
    settings = _settings_of(run, its_own)
    overrides = OverridesParser.create().parse_overrides([quoted(word) for word in words])
    own = {group: settings[group] for group in its_own}
    if "augmentation" in own:
        own["augmentation"] = _without_teacher(own["augmentation"])
    hidden = {key for key, value in flat(own) if holds_stand_in(value)}
    for each in overrides:
        _check(each, hidden, others)
    choices = {each.key_or_group: str(each.input_line) for each in overrides if "." not in each.key_or_group}
    with hydra.initialize_config_dir(str(conf), **VERSION_BASE):
        cfg = hydra.compose("config", [*choices.values(), *chosen])
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config["seed"] = settings["seed"]
    kept = {name: settings["trainer"].get(name) for name in of_the_trainer}
    config["trainer"] |= {name: value for name, value in kept.items() if value is not None}
    for group, entry in own.items():
        if group not in choices:
            refuse_unknown(entry, group, shipped(conf)[group] | _repeated(overrides, group), run / "config.yaml")
            config[group] = _in_turn(entry) if group == "augmentation" else _chosen_by_the_user(entry)
    config = _merged(config, _told(overrides))
    for key, value in flat({group: config[group] for group in its_own}):
        if holds_stand_in(value):
            raise UserError(f"{key} was secret, and is written nowhere: repeat {key}=…")
    return config


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


def _settings_of(run: Path, groups: Sequence[str]) -> dict[str, Any]:
    settings = RunFolder(run.parent, run.name).settings()
    entries = {group: settings.get(group) for group in (*groups, "trainer")}
    whole = "seed" in settings and all(
        isinstance(entry, dict) and ("_target_" in entry or group == "augmentation") for group, entry in entries.items()
    )
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


def _check(override: Override, hidden: Collection[str], others: Sequence[str]) -> None:
    """Raises UserError for what is of none of the groups that may be others, nor was hidden, or is no single value."""
    key, line = override.key_or_group.lstrip("+"), override.input_line
    if override.is_sweep_override() or override.is_delete():
        raise UserError(f"{line}: one value is wanted")
    if key.partition(".")[0] not in others and not key.endswith("._target_") and key not in hidden:
        raise UserError(f"{line}: {', '.join(others[:-1])} and {others[-1]} may be others, all else is the run's own")


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


def refuse_unknown(entry: Mapping[str, Any], group: str, known: Collection[str], file: Path, way_out: str = "") -> None:
    """Refuses what is named to be built in a file, which is data.

    Args:
        entry: of a config.
        group: its key there.
        known: import paths that may be named.
        file: where it stands.
        way_out: how to allow it; empty for a word of the command line.

    Raises:
        UserError: if it names anything else.
    """
    known = {*known, *([SMALLER] if group == "model" else [])}
    for _, path in _targets(entry, group):
        if path not in known:
            raise UserError(
                f"{file} names {path}, which is none of this application's own: to have it built, "
                f"{way_out or f'repeat {group}._target_={path}'}"
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


def _without_teacher(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Augmentations but the teacher of a run that came from compression: what is trained on from there has its own."""
    return {place: part for place, part in parts.items() if part.get("_target_") != TEACHER}


def _in_turn(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Augmentations by name, in their order, which a config keeps by their place."""
    ordered = [dict(parts[place]) for place in sorted(parts, key=int)]
    return {part.pop("name"): _chosen_by_the_user(part) for part in ordered}


def _chosen_by_the_user(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Without a fingerprint, and without the defaults, some of which a config holds by name only (functions)."""
    defaults = without_secrets(bind({"_target_": entry["_target_"]}, "", complete=False).arguments())
    return {
        name: value
        for name, value in entry.items()
        if name == "_target_" or (name != FINGERPRINT and defaults.get(name, ...) != value)
    }
