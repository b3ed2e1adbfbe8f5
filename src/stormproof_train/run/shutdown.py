"""Converts signals to the message and the exit code of a run.

Blocks Ctrl-C while rank 0 starts further ranks. A terminal sends SIGINT to every process. Rank 0 must record why the
run ended and stop the other ranks. If another rank exits first, Lightning's launcher kills rank 0 before it can do so.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytorch_lightning as pl
from pytorch_lightning import Callback
from pytorch_lightning.trainer.states import TrainerStatus
from pytorch_lightning.utilities.exceptions import SIGTERMException

from stormproof import CheckpointRecovery, Preemption
from stormproof.distributed.rank import is_rank_zero, is_started_by_rank_zero
from stormproof.errors import PreemptedExit
from stormproof.signals.listener import SignalListener
from stormproof_train.errors import ExitCode, PreemptedError, StopError, StoppedBySearchError, StoppedBySearchExit
from stormproof_train.run.resume import describe_resume


class ShutdownHandler:
    """Handles signals outside of callbacks: between the stages of a run, and while a stopped run is closed.

    Args:
        callbacks: Callbacks of the run. Without a :class:`stormproof.Preemption`, signals are not handled and end the
            process immediately.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._listener = SignalListener(raise_on_second_sigint=not is_started_by_rank_zero())
        self._is_enabled = any(isinstance(callback, Preemption) for callback in callbacks)

    def check(self) -> None:
        """Exits if the process received a signal since the first call. Starts listening on the first call.

        Raises:
            PreemptedExit: If a signal was received.
        """
        if self._is_enabled:
            self._listener.listen()
        if self._listener.received_signal is not None:
            raise PreemptedExit(self._listener.received_signal.name, is_rank_zero=is_rank_zero())

    def stop_listening(self, error: BaseException | None = None) -> None:
        """Stops listening, except while the process exits because of a signal."""
        if not isinstance(error, PreemptedError | StoppedBySearchError | PreemptedExit):
            self._listener.stop()

    @contextmanager
    def translate(self, trainer: pl.Trainer, recovery: CheckpointRecovery | None) -> Iterator[None]:
        """Converts the exits of a stopped run to errors with a message and an exit code."""
        try:
            yield
        except PreemptedExit as error:
            self._listener.listen()
            if not is_rank_zero():
                raise
            if isinstance(error, StoppedBySearchExit):
                raise StoppedBySearchError(
                    f"{error.reason} (step {trainer.global_step}; {describe_resume(recovery)})"
                ) from error
            source = "Ctrl-C" if error.signal == "SIGINT" else error.signal
            message = f"stopped by {source} at step {trainer.global_step}; {describe_resume(recovery)}"
            raise PreemptedError(message, signal.Signals[error.signal]) from error
        except SystemExit as error:  # Ctrl-C has status 1, and SIGTERM raises a subclass with status 0
            is_sigterm = isinstance(error, SIGTERMException)
            if not is_sigterm and trainer.state.status is not TrainerStatus.INTERRUPTED:
                raise
            source = "SIGTERM" if is_sigterm else "Ctrl-C"
            code = ExitCode.TERMINATED if is_sigterm else ExitCode.INTERRUPTED
            raise StopError(
                f"stopped by {source} at step {trainer.global_step}; {describe_resume(recovery)}", code
            ) from error


@contextmanager
def block_sigint_during_launch(trainer: pl.Trainer) -> Iterator[None]:
    """Blocks SIGINT until all ranks are launched. Processes started in the block inherit the mask.

    A new process inherits a blocked signal as pending until it unblocks it. Rank 0 unblocks it after all ranks have
    synchronized. Another rank unblocks it after it ignores the signal, at the start of ``cli.main.main``.
    """
    if trainer.world_size == 1:
        yield
        return
    trainer.callbacks.append(_UnblockSigint())  # pyright: ignore[reportAttributeAccessIssue] (set in Trainer.__init__)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        _unblock_sigint()


class _UnblockSigint(Callback):
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Unblocks SIGINT in the first hook after the ranks have synchronized."""
        _unblock_sigint()


def _unblock_sigint() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
