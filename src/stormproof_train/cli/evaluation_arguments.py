"""Arguments of the subcommand ``evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stormproof_train.data.split_name import SplitName


@dataclass(frozen=True)
class EvaluationArguments:
    """Parsed arguments of the subcommand ``evaluate``.

    Attributes:
        checkpoint: Folder or checkpoint of a run.
        against: Folder or checkpoint of the run to compare with. None for no comparison.
        split: Split to evaluate.
        output: Output folder. None selects a folder of the run.
        overrides: Overrides of the settings of the run.
    """

    checkpoint: Path
    against: Path | None
    split: SplitName
    output: Path | None
    overrides: Sequence[str]
