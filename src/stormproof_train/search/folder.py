"""Manages the folder of a search and checks its identity."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from stormproof_train.config.identity import result_settings
from stormproof_train.config.plan import Plan
from stormproof_train.config.redaction import redact_settings, redact_text
from stormproof_train.errors import UserError
from stormproof_train.path_errors import create_folders
from stormproof_train.run.folder import read_with_copy, write_with_copy
from stormproof_train.search.arguments import Arguments

SEARCH_FILE = "search.json"
_SEARCH_KEYS = {"id": str, "identity": str, "storage": object, "definition": dict}
LOCK_SECONDS = 300.0
"""Seconds to wait for the lock while another worker selects or decides on a trial."""


class SearchFolder:
    """The folder ``<folder>/<name>/`` of a search.

    It contains search.json, study.db, trials/, logs/, final/, claims/, answer.json and report.html.
    """

    def __init__(self, arguments: Arguments, default: Plan) -> None:
        self._definition, self._storage = search_definition(arguments, default), arguments.settings.storage
        canonical = json.dumps(self._definition, sort_keys=True, separators=(",", ":"))
        self.identity = hashlib.sha256(canonical.encode()).hexdigest()[:8]
        class_names = [target.path.rpartition(".")[2].lower() for target in (default.data, default.model)]
        self.name = arguments.settings.name or "-".join([*class_names, self.identity])
        self.path = Path(arguments.settings.folder) / self.name
        self.trials_dir, self.final_dir, self.logs_dir = self.path / "trials", self.path / "final", self.path / "logs"
        self.claims_dir = self.path / "claims"

    @property
    def exists(self) -> bool:
        """True if the search has started."""
        return (self.path / SEARCH_FILE).exists()

    def create(self) -> None:
        """Creates the folder, or checks that it belongs to this search.

        Raises:
            UserError: If it belongs to another search, or cannot be created.
        """
        description = f"search.folder={self.path.parent}: the folder of the search cannot be created there"
        create_folders(description, self.trials_dir, self.final_dir, self.logs_dir, self.claims_dir)
        with self.lock():
            stored_search = read_with_copy(self.path / SEARCH_FILE, _SEARCH_KEYS)
            is_different = stored_search is not None and self._is_different(stored_search)
            if stored_search is None or (
                is_different and not any(self.trials_dir.iterdir())
            ):  # no trial has started, so nothing is lost
                content = {"name": self.name, "id": secrets.token_hex(4), "identity": self.identity}
                content |= {"storage": _storage_location(self._storage), "definition": self._definition}
                write_with_copy(self.path / SEARCH_FILE, content)
                return
            write_with_copy(self.path / SEARCH_FILE, stored_search)  # either may be missing or damaged
        if stored_search["identity"] != self.identity:
            differences = "; ".join(_format_differences(stored_search["definition"], self._definition))
            raise UserError(
                f"the folder {self.path} belongs to a search with other settings: {differences}. Choose another name "
                "(search.name=…)"
            )
        if stored_search["storage"] != _storage_location(self._storage):
            old_location, new_location = (
                location or "SQLite in its folder"
                for location in (stored_search["storage"], _storage_location(self._storage))
            )
            raise UserError(
                f"the trials of {self.path} are in {old_location}, not in {new_location}: use the same search.storage "
                "as before"
            )

    def _is_different(self, stored_search: Mapping[str, Any]) -> bool:
        return stored_search["identity"] != self.identity or stored_search["storage"] != _storage_location(
            self._storage
        )

    @property
    def study_name(self) -> str:
        """Name of the study, unique among all searches in a shared storage."""
        stored_search = read_with_copy(self.path / SEARCH_FILE, _SEARCH_KEYS)
        assert stored_search is not None
        return f"{self.name}-{stored_search['id']}"

    @property
    def storage_url(self) -> str:
        """URL of the storage."""
        return self._storage or f"sqlite:///{(self.path / 'study.db').absolute()}"

    def lock(self) -> filelock.BaseFileLock:
        """Returns the lock for selecting and deciding on trials. The system releases it when its process ends."""
        return filelock.FileLock(self.path / ".lock", timeout=LOCK_SECONDS)

    def log_path(self, job: str) -> Path:
        """Returns the path of the log of a run."""
        return self.logs_dir / f"{job}.log"


def search_definition(arguments: Arguments, default: Plan) -> dict[str, Any]:
    """Returns the settings that identify a search: run settings that change a result, the space, and the method."""
    space = {parameter.key: parameter.as_dict() for parameter in arguments.space.parameters}
    definition = {"run": result_settings(redact_settings(default.settings(None))), "space": space}
    return json.loads(json.dumps(definition | {"search": arguments.settings.result_settings()}))


def _storage_location(storage: str | None) -> str | None:
    """Returns the location of a storage without user name and password."""
    if storage is None:
        return None
    kind, _, location = storage.partition("://")
    return f"{kind}://{redact_text(location.rpartition('@')[2])}"


def _format_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns the differences as ``key: before -> now``."""
    differences = []
    for section, prefix, placeholder in (
        ("run", "", "(not set)"),
        ("search", "search.", ""),
        ("space", "", "(not searched)"),
    ):
        old_section, new_section = old.get(section, {}), new[section]
        differences += [
            f"{prefix}{key}: {_format_value(old_section.get(key, placeholder))} -> "
            f"{_format_value(new_section.get(key, placeholder))}"
            for key in sorted(old_section.keys() | new_section.keys())
            if old_section.get(key) != new_section.get(key)
        ]
    return differences


def _format_value(value: Any) -> str:
    if isinstance(value, Mapping) and "kind" in value:
        return ",".join(value["choices"]) if value["choices"] else f"{value['low']:g} to {value['high']:g}"
    return str(value)
