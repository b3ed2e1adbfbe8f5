"""Finds the checkpoint from which a run resumes."""

from __future__ import annotations

import errno
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint import Checkpoint, Resolution, Retention, Store
from stormproof.checkpoint.resolution import BadCheckpoint
from stormproof.checkpoint.tiers.tier import Ranks, Tier
from stormproof.distributed.collectives import assert_equal
from stormproof.errors import NotResumableError, StorageError
from stormproof.lightning.inactive_copies import InactiveCopies

_ADVICE = dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "A file has this name. Pass a folder as `dirpath`.")


class CheckpointFinder(InactiveCopies):
    """Finds the newest good checkpoint of a store and its tiers, and the best one.

    Args:
        store: Store of the checkpoints.
        tiers: Copies of the state outside the store.
        retention: Retention policy, which orders checkpoints by score.
        identity: Identity of the run. Not compared if None.

    Attributes:
        resolution: Resolution of the last search. None before the first.
        resumed_from: Checkpoint that was found. None before the search and if there is no checkpoint.
        skipped_checkpoints: Newer checkpoints that were skipped with a warning.
        start_over: Last argument of :meth:`find_newest`.
    """

    def __init__(self, store: Store, tiers: Sequence[Tier], retention: Retention, identity: str | None) -> None:
        self._store, self._tiers, self._retention, self._identity = store, tiers, retention, identity
        self._kept_copies: set[str] = set()  # names of checkpoints whose local copies the user may load
        self.resolution: Resolution | None = None
        self.resumed_from: Checkpoint | None = None
        self.skipped_checkpoints: Sequence[BadCheckpoint] = ()
        self.start_over = self._is_fitting = False

    def find_newest(self, *, start_over: bool) -> str | None:
        """Returns the path of the newest good checkpoint. See ``CheckpointRecovery.latest_checkpoint``."""
        self.start_over = start_over
        resolution = self._resolve(fetch=True)
        for tier in self._tiers:
            with explain_storage_errors(self._store, "read"):
                has_newer = tier.commit_newest(self._store, resolution, self._identity)
            if has_newer:
                resolution = self._resolve(fetch=True)
        self.resolution, self.skipped_checkpoints = resolution, resolution.skipped_checkpoints
        checkpoint = self._store.choose_checkpoint(resolution, start_over=start_over)
        for bad_checkpoint in self.skipped_checkpoints:
            outcome = "stays in place" if bad_checkpoint.is_unreadable else "moves to quarantine/ when training starts"
            path = self._store.storage.locate(f"{bad_checkpoint.name}.ckpt")
            rank_zero_warn(f"Skipping checkpoint {path}: {bad_checkpoint.reason}. The file {outcome}.")
        if checkpoint is not None and self._identity is not None and checkpoint.identity not in {None, self._identity}:
            if checkpoint.step > 0:
                location = self._store.storage.locate(checkpoint.path.name)
                raise NotResumableError(
                    f"{location} belongs to another run (its identity is {checkpoint.identity}, not {self._identity}). "
                    "Use another folder."
                )
            checkpoint = None  # the other run did no step, so that no work is lost
        self.resumed_from = checkpoint
        return None if checkpoint is None else self._fetch(checkpoint)

    def find_best(self) -> str | None:
        """Returns the path of the best good checkpoint. None if no good checkpoint has a score."""
        for checkpoint in self._retention.sort_by_score(self._store.read_checkpoints()):
            if self._store.verify(checkpoint) is None:
                self._kept_copies.add(checkpoint.name)
                return self._fetch(checkpoint)
        return None

    def find(self, name: str) -> str:
        """Returns the path of the checkpoint ``"best"`` or ``"last"``.

        Raises:
            NotResumableError: If there is no such checkpoint.
        """
        if name == "best":
            path, advice = self.find_best(), "set `monitor` to a metric of the validation"
        else:
            last = self._resolve(fetch=True).chosen_checkpoint
            path, advice = last and self._fetch(last), "train first"
        if path is None:
            raise NotResumableError(
                f"{self._store.location} contains no {name} checkpoint. Pass the path of one as ckpt_path, or {advice}."
            )
        return path

    def begin_fit(self) -> None:
        """Forgets the checkpoint of an earlier fit."""
        self._is_fitting = True
        if self.resolution is None:
            self.resumed_from = None

    def agree_on_newest(self, ranks: Ranks) -> tuple[Resolution, dict[Path, str]]:
        """Checks that all ranks found the same checkpoint, after committing a newer copy of any node.

        All ranks call it together.

        Returns:
            Resolution of the store, and the path to load instead of the one that this rank found. Empty if they agree.

        Raises:
            RanksDisagreeError: On every rank, if the ranks found different checkpoints.
        """
        older = self.resumed_from
        if self.resolution is not None and older is not None:
            self._fetch(older)  # another process may have deleted the local copy
        resolution = self.resolution or self._resolve()
        for tier in self._tiers:
            resolution = tier.commit_newest_of_all_nodes(
                self._store, resolution, partial(self._resolve, fetch=True), ranks
            )
        self.resolution, newest = resolution, resolution.chosen_checkpoint
        replacement: dict[Path, str] = {}
        if older is not None and newest is not None and older != newest:
            replacement[Path(self._fetch(older)).resolve()] = self._fetch(newest)
            self._store.catalog.discard_copy(older)
            self.resumed_from = newest
        assert_equal("the newest good checkpoint", newest and f"{newest.path.name} ({newest.digest})")
        return resolution, replacement

    def check_loaded(self, *, has_loaded: bool, global_step: int, is_resume_set: bool) -> None:
        """Deletes the local copy that all ranks have loaded, and checks that a run with checkpoints has loaded one.

        Args:
            has_loaded: Whether this fit has loaded a checkpoint.
            global_step: Optimizer steps done.
            is_resume_set: Whether ``fit`` resumes on its own.

        Raises:
            NotResumableError: If the run would start again at step 0.
        """
        if self.resumed_from is not None and self.resumed_from.name not in self._kept_copies:
            self._store.catalog.discard_copy(self.resumed_from)
        checkpoint = self.resolution.chosen_checkpoint if self.resolution else None
        if checkpoint is None or checkpoint.step == 0 or has_loaded or global_step > 0:
            return
        location = self._store.location
        if is_resume_set:
            raise NotResumableError(
                f"{location} contains a finished run of {checkpoint.step} steps. Use another folder for each fit."
            )
        raise NotResumableError(
            f"{location} contains a checkpoint of step {checkpoint.step}, but fit was called without ckpt_path. "
            "Pass ckpt_path=recovery.latest_checkpoint() or use another folder."
        )

    def end_fit(self) -> None:
        """Forgets the resolution, because the next fit searches again."""
        self.resolution, self._is_fitting = None, False

    def _resolve(self, *, fetch: bool = False) -> Resolution:
        with explain_storage_errors(self._store, "read"):
            return self._store.resolve(fetch=fetch)

    def _fetch(self, checkpoint: Checkpoint) -> str:
        """Returns the path of a file from which the checkpoint can be loaded."""
        with explain_storage_errors(self._store, "read"):
            return str(self._store.fetch(checkpoint))

    def _inactive_state(self) -> dict[str, Any]:
        return {"resolution": None, "_is_fitting": False} if self._is_fitting else {}


@contextmanager
def explain_storage_errors(store: Store, participle: str) -> Generator[None]:
    """Converts an OSError of the storage into a StorageError.

    Args:
        store: Store of the checkpoints.
        participle: What cannot be done to the storage, for the message: ``read`` or ``used``.
    """
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "Restart the run when storage is available.")
        raise StorageError(f"{store.location} cannot be {participle}: {error.strerror or error}. {advice}") from error
