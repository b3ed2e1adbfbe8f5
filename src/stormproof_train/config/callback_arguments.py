"""Arguments that a run passes to callbacks by parameter name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl

from stormproof.finding import Finding


@dataclass(frozen=True)
class CallbackArguments:
    """Values that every callback of a run can request by naming a parameter like a field of this class.

    A value from the config takes precedence. ``**kwargs`` receives none of them. They do not affect the identity of a
    run. A name must be specific: a callback with a parameter of the same name and another meaning would get the value.

    Attributes:
        run_folder: Folder of the run, an absolute path.
        dirpath: Folder for checkpoints below the run folder, an absolute path.
        identity: Eight hex digits, a hash of every setting that changes the result of the run.
        datamodule: Data module of the run.
        advise: Returns overrides for the command line that may solve a finding, or None.
        on_hang: Records in ``run.json`` that the run hangs, given a reason and the step. None except on rank 0.
        mirror: URL of the object store to which the run copies its checkpoints. None without one.
    """

    run_folder: Path
    dirpath: Path
    identity: str
    datamodule: pl.LightningDataModule
    advise: Callable[[Finding], str | None]
    on_hang: Callable[[str, int], None] | None
    mirror: str | None = None


CALLBACK_ARGUMENTS = frozenset(field.name for field in dataclasses.fields(CallbackArguments))
"""Names of the parameters that a run binds in callbacks."""
