"""A search is a folder: what it holds, and whose search it is."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from stormproof.checkpoint import atomic_write
from stormproof_train.errors import UserError
from stormproof_train.plan import Plan
from stormproof_train.search.words import Asked
from stormproof_train.secret_values import without_secret, without_secrets_in_text
from stormproof_train.stored_mapping import read_mapping

FILE = "search.json"
LOCK_SECONDS = 600.0
"""How long a worker waits for another one that is asking for a trial."""


class SearchFolder:
    """``<folder>/<name>/``: search.json, study.db, trials/, logs/, final/, claims/, answer.json, report.html.

    Args:
        asked: what is searched.
        default: the plan of a run without anything searched.
    """

    def __init__(self, asked: Asked, default: Plan) -> None:
        self._told = told(asked)
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
            raise UserError(f"search.folder={self.path.parent}: it cannot be made there: {error.strerror}") from error
        with self.lock():
            before = read_mapping(self.path / FILE, ("id", "identity", "search"))
            if before is None:
                content = {
                    "name": self.name,
                    "id": secrets.token_hex(4),
                    "identity": self.identity,
                    "search": self._told,
                }
                with atomic_write(self.path / FILE) as file:
                    file.write(f"{json.dumps(content, indent=1)}\n".encode())
            elif before["identity"] != self.identity:
                changed = "; ".join(_differences(before["search"], self._told))
                raise UserError(
                    f"the search {self.path} is another one: {changed}. Give this one another name (search.name=…)"
                )

    @property
    def study(self) -> str:
        """The name of the study, which no other folder's search has, even where several share a storage."""
        kept = read_mapping(self.path / FILE, ("id",))
        assert kept is not None
        return f"{self.name}-{kept['id']}"

    def storage(self, told_by_user: str | None) -> str:
        """The URL of the storage."""
        return told_by_user or f"sqlite:///{(self.path / 'study.db').absolute()}"

    def lock(self) -> filelock.BaseFileLock:
        """Held while somebody asks for a trial, or decides on one; it ends with its process."""
        return filelock.FileLock(self.path / ".lock", timeout=LOCK_SECONDS)

    def log(self, job: str) -> Path:
        """Where what a run prints is kept."""
        return self.logs / f"{job}.log"


def told(asked: Asked) -> dict[str, Any]:
    """What makes another search of it, without secrets."""
    fixed = sorted(without_secret(word.lstrip("+")) for word in asked.fixed)
    space = [parameter.as_dict() for parameter in asked.space.parameters]
    return json.loads(json.dumps({"fixed": fixed, "space": space, **asked.settings.of_the_result()}))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = []
    for key in sorted(before.keys() | now.keys()):
        one, other = before.get(key), now.get(key)
        if one == other:
            continue
        if isinstance(one, list) and isinstance(other, list):
            gone, new = [each for each in one if each not in other], [each for each in other if each not in one]
            found.append(f"{key}: {_shown(gone)} -> {_shown(new)}")
        else:
            found.append(f"{key}: {one} -> {other}")
    return found


def _shown(values: Sequence[Any]) -> str:
    names = [each["key"] if isinstance(each, Mapping) else str(each) for each in values]
    return without_secrets_in_text(", ".join(names)) or "nothing"
