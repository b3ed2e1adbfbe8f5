"""State of a loaded checkpoint until training restores it."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.checkpoint.loadable import restore_pickled
from stormproof.distributed.collectives import assert_equal
from stormproof.lightning import internals, sharded_averaging
from stormproof.lightning.layout import Layout
from stormproof.resume import refused_state, script_settings, snapshot
from stormproof.resume.compatibility import check_loaders


class LoadedState:
    """State of a loaded checkpoint, from ``on_load_checkpoint`` until training restores it between two batches.

    Args:
        layout: Layout of the run that resumes.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._rank_snapshot: snapshot.RankSnapshot | None = None  # until it is restored
        self._description: str | None = None
        self._settings: script_settings.Settings | None = None

    @property
    def is_loaded(self) -> bool:
        """True after a checkpoint was loaded in this fit."""
        return self._description is not None

    @property
    def is_pending(self) -> bool:
        """True while a loaded checkpoint waits to be restored."""
        return self._rank_snapshot is not None

    def read(self, trainer: pl.Trainer, checkpoint: dict[str, Any]) -> bool:
        """Replaces rank 0's states in the checkpoint with those of this rank.

        Returns:
            False, after a warning, if CheckpointRecovery did not save the checkpoint.
        """
        self._description = f"epoch {checkpoint['epoch']}, step {checkpoint['global_step']}"
        if snapshot.KEY not in checkpoint:
            rank_zero_warn(
                "This resume is not exact, because CheckpointRecovery did not save the checkpoint. It does not contain "
                "random number generators, epoch means and the position in the data."
            )
            return False
        self._rank_snapshot = snapshot.select_rank(
            checkpoint, self._layout, trainer.accumulate_grad_batches, collects_dtypes=not self._layout.is_sharded
        )
        self._description += f", {self._rank_snapshot.snapshot.id}"
        self._settings = script_settings.read(checkpoint, self._layout.world_size)
        internals.restore_tuned(trainer, self._rank_snapshot.snapshot.job_state.tuned)
        return True

    def compare_settings(self, settings: script_settings.Settings) -> script_settings.Settings:
        """Checks that all ranks loaded the same state, and logs how the settings of the script differ from its own.

        Returns:
            Settings for the next checkpoints.

        Raises:
            RanksDisagreeError: On every rank, if the ranks loaded different states.
        """
        assert_equal("the loaded state", self._description)
        return settings if self._settings is None else script_settings.compare(settings, self._settings)

    def check_loaders(self, trainer: pl.Trainer, *, warns: bool = False) -> None:
        """Checks that the training loaders can continue from the loaded state."""
        if self._rank_snapshot is not None:
            check_loaders(trainer, self._rank_snapshot.rank_state.train_loaders, warns=warns)

    def prepare_training(self, trainer: pl.Trainer) -> None:
        """Checks the loaded state against the trainer, and loads the positions of the loaders."""
        if self._rank_snapshot is None:
            return
        snapshot.check_layout(trainer, self._rank_snapshot)
        trainer.should_stop = self._rank_snapshot.snapshot.job_state.should_stop
        self.check_loaders(trainer, warns=True)
        internals.load_pending_loader_states(trainer)

    def restore(self, trainer: pl.Trainer, module: pl.LightningModule) -> bool:
        """Restores the state before the first batch. Returns whether the validation loaders have been iterated."""
        assert self._rank_snapshot is not None
        rank_snapshot, self._rank_snapshot = self._rank_snapshot, None
        snapshot.restore(trainer, module, rank_snapshot)
        return rank_snapshot.rank_state.validated

    def restore_final(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Restores the state of a run that had already ended."""
        assert self._rank_snapshot is not None
        rank_snapshot, self._rank_snapshot = self._rank_snapshot, None
        snapshot.restore_final(trainer, module, rank_snapshot)


def prepare_checkpoint(
    trainer: pl.Trainer, layout: Layout, checkpoint: dict[str, Any], weights_only: bool | None
) -> None:
    """Prepares a checkpoint, and the module for it, before any ``on_load_checkpoint`` hook."""
    restore_pickled(checkpoint, weights_only)
    refused_state.restore(trainer, checkpoint)
    snapshot.restore_entries(checkpoint, layout)
    internals.ensure_double_precision(trainer)
    sharded_averaging.shard_averaged_state(trainer, trainer.lightning_module, checkpoint)
