"""``compress``: takes a run to artifacts that can be deployed, none of them worse than allowed."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stormproof.signals.listener import ASKING
from stormproof_train.compression.arguments import read_words
from stormproof_train.compression.artifact_builder import Workshop
from stormproof_train.compression.budget import read_budget, refuse_unreachable
from stormproof_train.compression.deployment.int8_cpu import cpu_has_vnni, int8_told
from stormproof_train.compression.driver import Driver
from stormproof_train.compression.fine_tuning import steps_of
from stormproof_train.compression.folder import CompressionFolder
from stormproof_train.compression.original import read_original
from stormproof_train.compression.results import Answer
from stormproof_train.compression.settings import Settings
from stormproof_train.compression.summary import tell
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.console import say
from stormproof_train.counted import counted
from stormproof_train.errors import ExitCode, StopError, UserError
from stormproof_train.launcher import launched
from stormproof_train.lightning_output import quiet_lightning


class _ToldToEnd(BaseException):
    """No Exception: what exports, quantizes or measures would take it for a failure of its own."""


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Ends with a sentence where this process is told to end; nothing is lost that was there.

    Raises:
        StopError: at the end of the block.
    """

    def stop(number: int, _: object) -> None:
        raise _ToldToEnd(signal.Signals(number).name)

    before = {each: signal.signal(each, stop) for each in ASKING}
    try:
        yield
    except _ToldToEnd as told:
        raise StopError(f"stopped by {told}; the same command goes on", ExitCode.START_AGAIN) from None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _say_if_int8_gains_little(settings: Settings) -> None:
    has = cpu_has_vnni()
    if settings.allows("int8") and not has:
        say(f"of this processor: {int8_told(has)}; methods= leaves int8 out")


def run(words: Sequence[str]) -> int:
    """Compresses as the words say, and prints what came of it.

    Args:
        words: after ``compress``.

    Returns:
        The exit code.

    Raises:
        RunError: with the sentence for the user.
    """
    if math.prod(launched().values()) > 1:
        raise UserError("a compression starts the ranks of its fine-tuning runs itself: leave torchrun or srun out")
    asked = read_words(words)
    settings = asked.settings
    quiet_lightning()
    original = read_original(Path(settings.run), conf_dir(), asked.of_the_runs)
    folder = CompressionFolder(settings, original)
    with folder.held(), stopped_by_signals():
        say(f"compression {folder.path} of {original.trained.checkpoint}")
        _say_if_int8_gains_little(settings)
        workshop = Workshop(original, folder.artifacts, settings)
        first = workshop.artifact(workshop.original)
        budget = read_budget(settings.budget, original.headline, first.value.value)
        if original.spec.num_classes:
            refuse_unreachable(budget, len(workshop.validation))
        if settings.allows("prune") or settings.allows("factor"):
            steps = steps_of(original, settings.training)
            say(
                f"each smaller network is trained on for {counted(steps, 'step')}; the run itself took "
                f"{original.steps:,}"
            )
        driver = Driver(original, settings, folder, workshop, budget)
        driver.work()
        answer = Answer(original, settings, folder, workshop, budget, driver)
        numbers = answer.write()
    tell(numbers)
    say(f"report: {folder.path / 'report.html'}")
    if numbers["best"] is None:
        raise UserError(f"nothing is recommended; all that was made is in {folder.artifacts}")
    return ExitCode.FINISHED
