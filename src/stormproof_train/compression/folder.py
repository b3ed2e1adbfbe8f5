"""Manages the folder of a compression and checks its definition."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stormproof.checkpoint import Lease
from stormproof_train.compression.original import OriginalModel
from stormproof_train.compression.settings import Settings
from stormproof_train.config.identity import flatten, result_settings
from stormproof_train.config.plan import FINGERPRINT_KEY
from stormproof_train.config.redaction import redact_settings
from stormproof_train.errors import UserError
from stormproof_train.initialization.checkpoint import compute_digest
from stormproof_train.path_errors import create_folders
from stormproof_train.run.folder import RunFolder, read_with_copy, write_with_copy

COMPRESSION_FILE = "compress.json"


class CompressionFolder:
    """The folder ``<folder>/<name>/`` of a compression.

    It contains compress.json, starts/, fine_tuning/, logs/, runs/, artifacts/, and finally the results.
    """

    def __init__(self, settings: Settings, original: OriginalModel) -> None:
        run = original.trained_weights.run
        self.path = RunFolder(Path(settings.folder), settings.name or run.name).path
        self.start_checkpoints_dir, self.configs_dir, self.logs_dir, self.runs_dir, self.artifacts_dir = (
            self.path / name for name in ("starts", "fine_tuning", "logs", "runs", "artifacts")
        )
        run_settings = result_settings(redact_settings(original.plan.settings(None)))
        self._definition = {
            "checkpoint": compute_digest(original.trained_weights.checkpoint), "compress": settings.result_settings(),
            "runs": {key: value for key, value in run_settings.items() if key != f"data.{FINGERPRINT_KEY}"},
        }  # fmt: skip

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Creates the folder or checks that it belongs to this compression, and locks it.

        Raises:
            UserError: If it belongs to another compression, or cannot be created.
            FolderTakenError: If another process uses it.
        """
        folders = self.start_checkpoints_dir, self.configs_dir, self.logs_dir, self.runs_dir, self.artifacts_dir
        create_folders(f"folder={self.path.parent}: a folder cannot be created there", *folders)
        lease = Lease(self.path)
        try:
            self._check_definition()
            yield
        finally:
            lease.release()

    def _check_definition(self) -> None:
        definition = json.loads(json.dumps(self._definition))
        stored_definition = read_with_copy(self.path / COMPRESSION_FILE, dict.fromkeys(definition, object))
        if stored_definition is None and any(self.artifacts_dir.iterdir()):
            raise UserError(
                f"{self.path / COMPRESSION_FILE}, which describes its artifacts, is missing or damaged. Delete the "
                "folder, or give another name (name=…)."
            )
        if stored_definition is not None:
            stored_definition["compress"], definition["compress"] = (
                _fill_unset(settings, counterpart["compress"])
                for settings, counterpart in (
                    (stored_definition["compress"], definition),
                    (definition["compress"], stored_definition),
                )
            )
            if stored_definition != definition:
                raise UserError(
                    f"{self.path} contains artifacts of another compression: "
                    f"{'; '.join(_format_differences(stored_definition, definition))}. "
                    "Use another folder (name=…), or delete this one"
                )
        write_with_copy(self.path / COMPRESSION_FILE, definition)


def _fill_unset(settings: Mapping[str, Any], fallback: Mapping[str, Any]) -> dict[str, Any]:
    """Takes settings that have not been used yet from the other definition."""
    return {key: fallback.get(key) if value is None else value for key, value in settings.items()}


def _format_differences(old_definition: Mapping[str, Any], new_definition: Mapping[str, Any]) -> list[str]:
    if old_definition["checkpoint"] != new_definition["checkpoint"]:
        return ["the weights differ"]
    old, new = (
        dict(flatten({**definition.pop("runs"), **definition.pop("compress")}))
        for definition in (dict(old_definition), dict(new_definition))
    )
    return [
        f"{key}: {old.get(key, '(not set)')} -> {new.get(key, '(not set)')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
