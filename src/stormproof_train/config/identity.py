"""Computes the identity of a run from its settings."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from stormproof_train.config.redaction import is_placeholder, redact_settings

# Settings for the place, speed, measurements and outputs of a run, which do not change the weights.
_IGNORED_KEYS = (
    "name", "runs_dir", "resume", "max_restarts_without_progress", "test", "report", "debug", "logger", "logger.*",
    "checkpoints", "checkpoints.*",
    "callbacks",  # a leaf if there are no callbacks
    "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.strategy.*",
    "trainer.log_every_n_steps", "trainer.enable_*",
    "trainer.logger", "trainer.profiler", "trainer.default_root_dir", "trainer.barebones",
)  # fmt: skip

# Settings of the classes of this project that do not change the weights, by import path.
_IGNORED_KEYS_BY_TARGET = {
    "stormproof_train.data.*": (
        "data.num_workers", "data.verify", "data.root", "data.packaged", "data.download",
        "data.path", "data.path.*", "data.validation_path", "data.test_path",  # data.fingerprint covers the content
    ),
    "stormproof.Preemption": ("callbacks.*",),
    "stormproof.HangWatch": ("callbacks.*",),
    "stormproof.StepTimer": ("callbacks.*",),
    "stormproof.GradientNormMonitor": ("callbacks.*",),
    "stormproof.TrainingHealth": ("callbacks.*",),
    "stormproof_train.generalization.*": ("callbacks.*",),
    "stormproof_train.search.*": ("callbacks.*",),
}  # fmt: skip


class SettingRecord(TypedDict):
    """A setting of a run.

    Attributes:
        key: Dotted key.
        value: Value in the run.
        default: Missing if the setting has no default.
    """

    key: str
    value: Any
    default: NotRequired[Any]


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each leaf of a nested mapping with its dotted key.

    Example:
        >>> dict(flatten({"seed": 1, "model": {"width": 8}}))
        {'seed': 1, 'model.width': 8}
    """
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def result_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the effective arguments that change the result of a run, by dotted key."""
    leaves = dict(flatten(settings))
    return {
        key: int(value) if isinstance(value, float) and value.is_integer() else value  # lr=1 equals lr=1.0
        for key, value in leaves.items()
        if not _matches(key, _IGNORED_KEYS)
        and not _is_ignored_for_target(key, leaves)
        and not is_placeholder(value)  # a changed password does not change the result
    }


def _is_ignored_for_target(key: str, leaves: Mapping[str, Any]) -> bool:
    part, _, argument = key.rpartition(".")
    target = str(leaves.get(f"{part}._target_", ""))
    if target == "stormproof.CheckpointRecovery":  # it affects only the choice of the tested weights
        return leaves.get(f"{part}.monitor") is None or argument not in {"monitor", "mode"}
    if target == "stormproof.DeadNeuronDetector":
        return leaves.get(f"{part}.reinit_every_n_steps") is None or argument in {"every_n_steps", "budget", "table"}
    if argument == "path" and leaves.get(f"{part}.sha256") is not None and target.startswith("stormproof_train."):
        return True  # the hash covers the content
    targets = {target, str(leaves.get(f"{key.partition('.')[0]}._target_", ""))}  # a value may have its own _target_
    return any(
        fnmatch.filter(targets, pattern) and _matches(key, keys) for pattern, keys in _IGNORED_KEYS_BY_TARGET.items()
    )


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def compute_identity(settings: Mapping[str, Any]) -> str:
    """Returns eight hex digits of the SHA-256 of the effective arguments that change the result.

    Args:
        settings: All effective arguments as plain values, including the defaults of signatures.
    """
    canonical = json.dumps(result_settings(settings), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class RunSpec:
    """Settings of a run, and the values derived from them. Equal on all ranks.

    Attributes:
        settings: All effective arguments as plain values. Secrets are replaced.
        identity: From :func:`compute_identity`.
        name: Name of the run. If the settings have none, ``<data>-<model>-<activation>-<identity>``.
    """

    settings: Mapping[str, Any]
    identity: str
    name: str

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> RunSpec:
        """Returns the spec of a run with these settings, from ``Plan.settings``."""
        redacted_settings = redact_settings(settings)
        parts = [
            str(redacted_settings[group]["_target_"]).rpartition(".")[2].lower()
            for group in ("data", "model", "activation")
        ]
        own_identity = compute_identity(redacted_settings)
        return cls(redacted_settings, own_identity, settings["name"] or "-".join([*parts, own_identity]))


def list_differences(previous: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Returns the differences that change the result, as ``key: before -> now``."""
    previous_settings, current_settings = result_settings(previous), result_settings(current)
    absent_text = "(not set)"
    return [
        f"{key}: {previous_settings.get(key, absent_text)} -> {current_settings.get(key, absent_text)}"
        for key in sorted(previous_settings.keys() | current_settings.keys())
        if json.dumps(previous_settings.get(key, absent_text))
        != json.dumps(current_settings.get(key, absent_text))  # in Python, True == 1
    ]
