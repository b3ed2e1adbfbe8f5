"""Decides which checkpoint a trainer loads, how it is read, and what happens to it before any hook.

Lightning calls ``resume_start(ckpt_path, weights_only)`` of its checkpoint connector, which calls the strategy's
``load_checkpoint``. A plan replaces both methods once, and reads its fields when Lightning calls them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from stormproof.lightning.method_replacement import replace, undo_together

Load = Callable[[Path, bool, Callable[[], dict[str, Any]]], dict[str, Any]]
"""Function ``(path, weights_only, load_original)`` that returns a checkpoint."""


@dataclass
class LoadPlan:
    """Describes which checkpoint a trainer loads, and how. Fields may change until Lightning loads the checkpoint.

    Attributes:
        folder: Folder of the checkpoints that ``load`` reads. Lightning reads all others.
        load: Called as ``load(path, weights_only, load_original)``. Returns the checkpoint. ``load_original()`` returns
            it as Lightning would. ``weights_only`` is True unless the caller of ``fit`` passed a value: without it,
            torch would unpickle if the environment variable ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`` is set.
        after_loading: Called as ``after_loading(checkpoint, weights_only)`` for each loaded checkpoint, before any
            ``on_load_checkpoint`` hook.
        default_path: Checkpoint to load if ``fit`` is called without ``ckpt_path``. Disabled if None.
        default_weights_only: Argument ``weights_only`` of ``Trainer.fit`` for ``default_path``.
        replacements: Checkpoints to load instead of others, by the resolved paths of the others.

    Example:
        >>> plan = LoadPlan(Path("checkpoints"), load, after_loading=prepare)  # doctest: +SKIP
        >>> undo = plan.install(trainer)  # doctest: +SKIP
        >>> plan.default_path = "checkpoints/000001-step-10.ckpt"  # doctest: +SKIP
    """

    folder: Path
    load: Load
    after_loading: Callable[[dict[str, Any], bool | None], None]
    default_path: str | None = None
    default_weights_only: bool | None = None
    replacements: dict[Path, str] = field(default_factory=dict[Path, str])

    def install(self, trainer: pl.Trainer) -> Callable[[], None]:
        """Makes the trainer load checkpoints by this plan, in any stage.

        Returns:
            Function that undoes this.
        """
        connector, strategy = trainer._checkpoint_connector, trainer.strategy
        start_original, load_original = connector.resume_start, strategy.load_checkpoint

        def resume_start(checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
            if not checkpoint_path:
                checkpoint_path, weights_only = self.default_path, self.default_weights_only
            if checkpoint_path:
                checkpoint_path = self.replacements.get(Path(checkpoint_path).resolve(), checkpoint_path)
            start_original(checkpoint_path, weights_only)

        def load_checkpoint(checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
            path = Path(checkpoint_path)
            if path.parent.resolve() != self.folder.resolve():
                checkpoint = load_original(checkpoint_path, weights_only)
            else:
                weights_only = True if weights_only is None else weights_only
                checkpoint = self.load(path, weights_only, lambda: load_original(checkpoint_path, weights_only))
            self.after_loading(checkpoint, weights_only)
            return checkpoint

        return undo_together(
            replace(connector, "resume_start", resume_start), replace(strategy, "load_checkpoint", load_checkpoint)
        )
