"""Finds attributes that change in the worker processes of a loader."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.data.fingerprint import NONE_FINGERPRINT, TimedSearch, has_comparable_part, summarize_paths
from stormproof.data.owned_attributes import EXEMPT_ATTRIBUTE, named_owned_attributes


class WorkerChanges:
    """Warns once, in one of the workers, about attributes of the data set and of ``collate_fn`` that change there.

    A resume in the middle of an epoch starts new workers, in which the attributes have their first values.
    """

    def __init__(self) -> None:
        self._is_reported = torch.zeros(1, dtype=torch.bool).share_memory_()  # by any worker
        self._search = TimedSearch()
        self._first_fingerprints: dict[str, Any] | None = None

    def observe(self, dataset: Any, collate_fn: Any) -> None:
        """Takes the first fingerprints. Call it before a worker fetches its first batch."""
        if self._first_fingerprints is None:
            self._first_fingerprints = self._fingerprint(dataset, collate_fn)

    def check(self, dataset: Any, collate_fn: Any) -> None:
        """Warns if attributes differ from the first ones. Values that are set once do not count."""
        if self._first_fingerprints is None or self._is_reported:
            return
        changed_paths = []
        for path, fingerprint in self._fingerprint(dataset, collate_fn).items():
            first_fingerprint = self._first_fingerprints.get(path, NONE_FINGERPRINT)
            if first_fingerprint == NONE_FINGERPRINT:
                self._first_fingerprints[path] = fingerprint
            elif fingerprint != first_fingerprint and has_comparable_part(fingerprint):
                changed_paths.append(path)
        if changed_paths:
            self._is_reported.fill_(True)
            rank_zero_warn(
                f"These attributes change in the worker processes of a loader: {summarize_paths(changed_paths)}. They "
                "are not in the checkpoint, so a resume in the middle of an epoch may not be exact. If the batches "
                "depend on them, compute them from the index of the sample. Otherwise list them in the class attribute "
                f"{EXEMPT_ATTRIBUTE}."
            )

    def _fingerprint(self, dataset: Any, collate_fn: Any) -> dict[str, Any]:
        roots = [("worker", SimpleNamespace(dataset=dataset, collate_fn=collate_fn))]
        fingerprints = self._search.fingerprint(named_owned_attributes(roots, set()))
        return {path.removeprefix("worker."): fingerprint for path, _, fingerprint in fingerprints}
