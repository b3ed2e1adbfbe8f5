"""Names and valid values of the settings of a run.

This module imports neither torch nor Hydra, so the command line can reject a misspelled name before it imports them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from stormproof_train.errors import UserError

Resume = Literal["auto", "must", "never"]
TuneTarget = Literal["lr", "batch_size"]
"""Settings that can be measured before a run."""

SETTING_HELP = {
    "name": "name of the run folder in runs_dir; null: <data>-<model>-<activation>-<8 hex digits of its identity>",
    "runs_dir": "folder of all runs",
    "seed": "seed of the split, initial weights, data order and all other random numbers",
    "resume": "auto: resume or start; must: resume or fail; never: start or fail",
    "max_restarts_without_progress": "restarts in a row without a new checkpoint before exit code 77; null: no limit",
    "checkpoints": "mirror: URL such as s3://bucket/runs, to which each run copies its checkpoints; extra [remote]",
    "test": "false trains and validates, but does not read the test split",
    "tune": "lr or batch_size: measures a value to use, without starting the run",
    "report": "false writes no report.html at the end of the run",
    "debug": "true shows the traceback of an error",
}
"""Settings that belong to no group."""

GROUPS = (
    "data", "augmentation", "model", "activation", "initialization", "loss", "optimizer", "scheduler", "callbacks",
    "logger", "trainer",
)  # fmt: skip
"""Config groups of a run."""
CONFIG_KEYS = (*SETTING_HELP, *GROUPS)
"""Top-level keys of a config."""
LENGTH_KEYS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.min_epochs", "trainer.min_steps")
"""Settings that determine the length of a run."""
_SETTING_BY_TRAINER_ARG = {"callbacks": "callbacks", "logger": "logger", "default_root_dir": "runs_dir"}
"""Arguments that the run passes to the Trainer, and the settings that determine them."""


def check_settings(config: Mapping[str, Any]) -> None:
    """Rejects unknown keys, invalid values of settings, and Trainer arguments that a run cannot have.

    Args:
        config: Plain values with the structure of ``conf/config.yaml``.

    Raises:
        UserError: If a key or a value is invalid.
    """
    for key in config:
        if key not in CONFIG_KEYS:
            raise UserError(unknown_key_message(key))
    if config["resume"] not in get_args(Resume):
        raise UserError(f"resume must be one of {', '.join(get_args(Resume))}, got {config['resume']}")
    if config["tune"] not in (None, *get_args(TuneTarget)):
        raise UserError(f"tune must be one of {', '.join(get_args(TuneTarget))}, or null, got {config['tune']}")
    seed = config["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"seed must be a whole number from 0 to 4294967295, got {seed}")
    restarts = config["max_restarts_without_progress"]
    if restarts is not None and (isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 1):
        raise UserError(
            f"max_restarts_without_progress must be a whole number of at least 1, or null for no limit, got {restarts}"
        )
    read_mirror(config.get("checkpoints"))
    for switch in ("test", "report", "debug"):
        if not isinstance(config[switch], bool):
            raise UserError(f"{switch} must be true or false, got {config[switch]}")
    if not isinstance(config["runs_dir"], str) or not config["runs_dir"]:
        raise UserError(f"runs_dir must be a folder, got {config['runs_dir']!r}")
    _check_url("runs_dir", config["runs_dir"])
    _check_trainer(config.get("trainer") or {})


def read_mirror(checkpoints: Any) -> str | None:
    """Returns the normalized URL of the mirror, or None without one.

    Raises:
        UserError: If ``checkpoints`` has an unknown key, or ``mirror`` is not the URL of an object store.
    """
    if checkpoints is None:
        return None
    if not isinstance(checkpoints, Mapping) or set(checkpoints) - {"mirror"}:
        raise UserError(f"checkpoints accepts only the key mirror, got {checkpoints}")
    mirror = checkpoints.get("mirror")
    if mirror is None:
        return None
    if not isinstance(mirror, str) or "://" not in mirror:
        raise UserError(f"checkpoints.mirror must be a URL such as s3://bucket/runs, or null, got {mirror}")
    from stormproof.checkpoint.storage.url import normalize_url  # noqa: PLC0415 (rarely needed)

    try:
        return normalize_url(mirror)
    except ValueError as error:
        raise UserError(f"checkpoints.mirror: {error}") from error


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    """Rejects Trainer arguments that the run sets, and useless values that Lightning accepts."""
    for name, setting in _SETTING_BY_TRAINER_ARG.items():
        if name in trainer:
            raise UserError(f"trainer.{name} is set by the run. Set {setting} instead.")
    for length in ("max_epochs", "max_steps"):
        if trainer.get(length) == 0:
            raise UserError(f"trainer.{length} must not be 0, because nothing would be trained")
    accumulate_grad_batches = trainer.get("accumulate_grad_batches")
    if isinstance(accumulate_grad_batches, int) and accumulate_grad_batches < 1:
        raise UserError(f"trainer.accumulate_grad_batches must be at least 1, got {accumulate_grad_batches}")
    clip = trainer.get("gradient_clip_val")
    if isinstance(clip, int | float) and clip <= 0:
        raise UserError(f"trainer.gradient_clip_val must be above 0, or null for no clipping, got {clip}")


def unknown_key_message(key: str) -> str:
    """Returns the message for a key that is not one of :data:`CONFIG_KEYS`."""
    valid_keys = [*CONFIG_KEYS, "experiment"]
    suggestions = difflib.get_close_matches(key, valid_keys, n=1)
    hint = f"Did you mean {suggestions[0]}?" if suggestions else f"Valid names: {', '.join(valid_keys)}"
    return f"unknown setting or group {key}. {hint} (--help lists all)"


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PATH_SETTINGS = frozenset({
    "runs_dir", "search.folder", "folder", "run", "checkpoint", "against", "input", "output", "data.path", "data.root",
    "data.packaged", "data.validation_path", "data.test_path", "initialization.path",
})  # fmt: skip
"""Settings of all subcommands that are paths."""


def check_urls(argv: Iterable[str]) -> None:
    """Raises UserError if an argument sets a path to a URL.

    Example:
        >>> check_urls(["runs_dir=runs", "search.storage=postgresql://host/database"])
        >>> check_urls(["runs_dir=s3://bucket/runs"])
        Traceback (most recent call last):
        stormproof_train.errors.UserError: runs_dir=s3://bucket/runs is a URL; only local or mounted paths are supported
    """
    for arg in argv:
        name, _, value = arg.lstrip("+").partition("=")
        if name in _PATH_SETTINGS:
            _check_url(name, value.strip("'\""))


def _check_url(name: str, value: object) -> None:
    """Raises UserError if a value is a URL."""
    if isinstance(value, str) and _URL.match(value):
        raise UserError(f"{name}={value} is a URL; only local or mounted paths are supported")
