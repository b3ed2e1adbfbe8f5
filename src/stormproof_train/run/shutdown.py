"""Somebody stops a run: in which sentence and with which code it ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytorch_lightning as pl
from pytorch_lightning import Callback
from pytorch_lightning.trainer.states import TrainerStatus
from pytorch_lightning.utilities.exceptions import SIGTERMException

from stormproof import CheckpointRecovery, Preemption
from stormproof.distributed.rank import follows_lightnings_rank_zero, is_rank_zero
from stormproof.errors import PreemptedExit
from stormproof.signals.listener import Listener
from stormproof_train.errors import ExitCode, LeaveExit, LeftError, PreemptedError, StopError
from stormproof_train.run.resume import last_words


class Stops:
    """Listens where no callback does: between the stages of a run, and while what was stopped is closed.

    Args:
        callbacks: of the run; without a :class:`stormproof.Preemption` among them nobody listens, and a signal ends the
            process where it is.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._listener = Listener(impatient=not follows_lightnings_rank_zero())
        self._wanted = any(isinstance(callback, Preemption) for callback in callbacks)

    def between_stages(self) -> None:
        """Leaves if the process was told to end since the first time; listens from then on.

        Raises:
            PreemptedExit: if it was.
        """
        if self._wanted:
            self._listener.listen()
        if self._listener.received is not None:
            raise PreemptedExit(self._listener.received.name, leads=is_rank_zero())

    def end(self, error: BaseException | None = None) -> None:
        """Listens no more, unless the process is leaving because it was told to: told again, it leaves the same way."""
        if not isinstance(error, PreemptedError | LeftError | PreemptedExit):
            self._listener.stop()

    @contextmanager
    def told(self, trainer: pl.Trainer, recovery: CheckpointRecovery | None) -> Iterator[None]:
        """Gives the ways in which a training exits when it is stopped a sentence and a code of their own."""
        try:
            yield
        except PreemptedExit as error:
            self._listener.listen()
            if not is_rank_zero():
                raise
            if isinstance(error, LeaveExit):
                raise LeftError(f"{error.reason} (step {trainer.global_step}; {last_words(recovery)})") from error
            what = "Ctrl-C" if error.signal == "SIGINT" else error.signal
            sentence = f"stopped by {what} at step {trainer.global_step}; {last_words(recovery)}"
            raise PreemptedError(sentence, signal.Signals[error.signal]) from error
        except SystemExit as error:  # Ctrl-C becomes status 1, and SIGTERM, an exception of this kind too, status 0
            terminated = isinstance(error, SIGTERMException)
            if not terminated and trainer.state.status is not TrainerStatus.INTERRUPTED:
                raise
            what = "SIGTERM" if terminated else "Ctrl-C"
            code = ExitCode.TERMINATED if terminated else ExitCode.INTERRUPTED
            raise StopError(f"stopped by {what} at step {trainer.global_step}; {last_words(recovery)}", code) from error
