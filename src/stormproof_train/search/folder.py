"""A search is a folder: what it holds, and whose search it is."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from stormproof.checkpoint import atomic_write
from stormproof_train.broken_links import reason
from stormproof_train.config.identity import result_settings
from stormproof_train.config.plan import Plan
from stormproof_train.config.redaction import without_secrets, without_secrets_in_text
from stormproof_train.errors import STORAGE_FAULTS, UserError
from stormproof_train.mapping_file import read_mapping
from stormproof_train.search.arguments import Asked

FILE = "search.json"
LOCK_SECONDS = 300.0
"""How long a worker waits for another one that is asking for a trial."""


class SearchFolder:
    """``<folder>/<name>/``: search.json, study.db, trials/, logs/, final/, claims/, answer.json, report.html.

    Args:
        asked: what is searched.
        default: the plan of a run without anything searched.
    """

    def __init__(self, asked: Asked, default: Plan) -> None:
        self._told, self._storage = told(asked, default), asked.settings.storage
        canonical = json.dumps(self._told, sort_keys=True, separators=(",", ":"))
        self.identity = hashlib.sha256(canonical.encode()).hexdigest()[:8]
        kinds = [target.path.rpartition(".")[2].lower() for target in (default.data, default.model)]
        self.name = asked.settings.name or "-".join([*kinds, self.identity])
        self.path = Path(asked.settings.folder) / self.name
        self.trials, self.final, self.logs = self.path / "trials", self.path / "final", self.path / "logs"
        self.claims = self.path / "claims"

    @property
    def is_there(self) -> bool:
        """Whether it has begun."""
        return (self.path / FILE).exists()

    def begin(self) -> None:
        """Makes it, or makes sure that it is this search's.

        Raises:
            UserError: if it is another's, or cannot be made.
        """
        try:
            for folder in (self.path, self.trials, self.final, self.logs, self.claims):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in STORAGE_FAULTS:
                raise
            raise UserError(
                f"search.folder={self.path.parent}: the search's folder cannot be made there: "
                f"{reason(self.path, error)}"
            ) from error
        with self.lock():
            before = read_mapping(self.path / FILE, ("id", "identity", "storage", "told"))
            differs = before is not None and self._is_another(before)
            if before is None or (differs and not any(self.trials.iterdir())):  # nothing is lost that never began
                content = {"name": self.name, "id": secrets.token_hex(4), "identity": self.identity}
                content |= {"storage": _place(self._storage), "told": self._told}
                with atomic_write(self.path / FILE) as file:
                    file.write(f"{json.dumps(content, indent=1)}\n".encode())
                return
        if before["identity"] != self.identity:
            changed = "; ".join(_differences(before["told"], self._told))
            raise UserError(
                f"the search {self.path} is another one: {changed}. Give this one another name (search.name=…)"
            )
        if before["storage"] != _place(self._storage):
            was, now = (place or "SQLite in its folder" for place in (before["storage"], _place(self._storage)))
            raise UserError(f"the trials of {self.path} are in {was}, and not in {now}: set search.storage as before")

    def _is_another(self, kept: Mapping[str, Any]) -> bool:
        return kept["identity"] != self.identity or kept["storage"] != _place(self._storage)

    @property
    def study(self) -> str:
        """The name of the study, which no other folder's search has, even where several share a storage."""
        kept = read_mapping(self.path / FILE, ("id",))
        assert kept is not None
        return f"{self.name}-{kept['id']}"

    @property
    def storage(self) -> str:
        """The URL of the storage."""
        return self._storage or f"sqlite:///{(self.path / 'study.db').absolute()}"

    def lock(self) -> filelock.BaseFileLock:
        """Held while somebody asks for a trial, or decides on one; it ends with its process."""
        return filelock.FileLock(self.path / ".lock", timeout=LOCK_SECONDS)

    def log(self, job: str) -> Path:
        """Where what a run prints is kept."""
        return self.logs / f"{job}.log"


def told(asked: Asked, default: Plan) -> dict[str, Any]:
    """What makes another search of it: the settings of a run that change its result, the space, and how it is searched.

    Args:
        asked: what is searched.
        default: the plan of a run without anything searched.
    """
    space = {parameter.key: parameter.as_dict() for parameter in asked.space.parameters}
    whole = {"run": result_settings(without_secrets(default.settings(None))), "space": space}
    return json.loads(json.dumps(whole | {"search": asked.settings.of_the_result()}))


def _place(storage: str | None) -> str | None:
    """Where a storage is, whoever uses it."""
    if storage is None:
        return None
    kind, _, rest = storage.partition("://")
    return f"{kind}://{without_secrets_in_text(rest.rpartition('@')[2])}"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, as ``key: before -> now``."""
    found = []
    for part, prefix, absent in (("run", "", "(not set)"), ("search", "search.", ""), ("space", "", "(not searched)")):
        one, other = before.get(part, {}), now[part]
        found += [
            f"{prefix}{key}: {_shown(one.get(key, absent))} -> {_shown(other.get(key, absent))}"
            for key in sorted(one.keys() | other.keys())
            if one.get(key) != other.get(key)
        ]
    return found


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and "kind" in value:
        return ",".join(value["choices"]) if value["choices"] else f"{value['low']:g} to {value['high']:g}"
    return str(value)
