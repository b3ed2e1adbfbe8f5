"""``compress``: takes a run to artifacts that can be deployed, none of them worse than allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from stormproof_train.compression.answer import Answer
from stormproof_train.compression.budget import read_budget, refuse_unreachable
from stormproof_train.compression.driver import Driver
from stormproof_train.compression.folder import CompressionFolder
from stormproof_train.compression.original import read_original
from stormproof_train.compression.telling import tell
from stormproof_train.compression.words import read_words
from stormproof_train.compression.workshop import Workshop
from stormproof_train.console import say
from stormproof_train.errors import UserError
from stormproof_train.launch import launched
from stormproof_train.quiet import quiet_lightning


def run(words: Sequence[str], conf: Path) -> None:
    """Compresses as the words say, and prints what came of it.

    Args:
        words: after ``compress``.
        conf: the folder of the application's configs.

    Raises:
        RunError: with the sentence for the user.
    """
    if math.prod(launched().values()) > 1:
        raise UserError("a compression starts the ranks of its fine-tuning runs itself: leave torchrun or srun out")
    asked = read_words(words)
    settings = asked.settings
    quiet_lightning()
    original = read_original(Path(settings.run), conf, asked.of_the_runs)
    folder = CompressionFolder(settings, original)
    with folder.held():
        say(f"compression {folder.path} of {original.trained.checkpoint}")
        workshop = Workshop(original, folder.artifacts, settings)
        first = workshop.artifact(workshop.original)
        budget = read_budget(settings.budget, original.headline, first.value.value)
        if original.spec.num_classes:
            refuse_unreachable(budget, len(workshop.validation))
        driver = Driver(original, settings, folder, workshop, budget)
        driver.work()
        answer = Answer(original, settings, folder, workshop, budget, driver)
        numbers = answer.write()
    tell(numbers)
    say(f"report: {folder.path / 'report.html'}")
    if numbers["best"] is None:
        raise UserError(numbers["why_none"])
