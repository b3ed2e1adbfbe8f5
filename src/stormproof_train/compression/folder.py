"""A compression is a folder: what it holds, and whose compression it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stormproof.checkpoint import Lease, atomic_write
from stormproof_train.broken_links import reason
from stormproof_train.compression.original import Original
from stormproof_train.compression.settings import Settings
from stormproof_train.config.identity import flat, result_settings
from stormproof_train.config.plan import FINGERPRINT
from stormproof_train.config.redaction import without_secrets
from stormproof_train.errors import STORAGE_FAULTS, UserError
from stormproof_train.initialization.checkpoint import digest_of
from stormproof_train.mapping_file import read_mapping
from stormproof_train.run.folder import RunFolder

FILE = "compress.json"


class CompressionFolder:
    """``<folder>/<name>/``: compress.json, starts/, fine_tuning/, logs/, runs/, artifacts/; in the end the answer.

    Args:
        settings: of the compression.
        original: what is compressed.
    """

    def __init__(self, settings: Settings, original: Original) -> None:
        run = original.trained.run
        self.path = RunFolder(Path(settings.folder), settings.name or run.name).path
        self.starts, self.configs, self.logs, self.runs, self.artifacts = (
            self.path / name for name in ("starts", "fine_tuning", "logs", "runs", "artifacts")
        )
        fine_tuning = result_settings(without_secrets(original.plan.settings(None)))
        self._told = {
            "checkpoint": digest_of(original.trained.checkpoint), "compress": settings.of_the_result(),
            "runs": {key: value for key, value in fine_tuning.items() if key != f"data.{FINGERPRINT}"},
        }  # fmt: skip

    @contextmanager
    def held(self) -> Iterator[None]:
        """Makes it, or makes sure that it is this compression's; nobody else works in it meanwhile.

        Raises:
            UserError: if it is another's, or cannot be made.
            FolderTakenError: if somebody works in it.
        """
        try:
            for folder in (self.path, self.starts, self.configs, self.logs, self.runs, self.artifacts):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in STORAGE_FAULTS:
                raise
            raise UserError(
                f"folder={self.path.parent}: no folder can be made there: {reason(self.path, error)}"
            ) from error
        lease = Lease(self.path)
        try:
            self._begin()
            yield
        finally:
            lease.release()

    def _begin(self) -> None:
        told = json.loads(json.dumps(self._told))
        before = read_mapping(self.path / FILE, tuple(told), "delete that folder, or give another name (name=…)")
        if before is not None:
            before["compress"], told["compress"] = (
                _filled(one, other["compress"])
                for one, other in ((before["compress"], told), (told["compress"], before))
            )
            if before != told:
                raise UserError(
                    f"the artifacts in {self.path} are others: {'; '.join(_differences(before, told))}. Give these "
                    "another name (name=…), or delete that folder"
                )
        with atomic_write(self.path / FILE) as file:
            file.write(f"{json.dumps(told, indent=1)}\n".encode())


def _filled(settings: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """With those of others where they have had no part in anything yet."""
    return {key: others.get(key) if value is None else value for key, value in settings.items()}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if before["checkpoint"] != now["checkpoint"]:
        return ["they were made of other weights"]
    old, new = (dict(flat({**told.pop("runs"), **told.pop("compress")})) for told in (dict(before), dict(now)))
    return [
        f"{key}: {old.get(key, '(not set)')} -> {new.get(key, '(not set)')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
