"""A write that fails for another reason than storage ends training."""

from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytorch_lightning as pl
from torch.distributed.elastic.utils.distributed import get_free_port

from stormproof import CheckpointRecovery, DivergenceGuard, resumable
from stormproof.checkpoint.async_writer import CheckpointWriter
from tests.stormproof.divergence.diverging_fits import IGNORE_WARNINGS, Classifier, make_loader
from tests.support.ranks import call_on_two_ranks, join_two_ranks
from tests.support.small_fits import make_module, make_trainer

pytestmark = IGNORE_WARNINGS


class EndsWrite(pl.Callback):
    """Lets the second write fail at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step, self.can_end = step, Event()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        recovery = next(callback for callback in trainer.callbacks if isinstance(callback, CheckpointRecovery))
        writer = recovery.save_coordinator.writer
        if trainer.global_step == self.step and writer is not None:
            self.can_end.set()
            assert writer._wait_for_write(60.0)


def _fit(folder: Path, end_step: int, max_steps: int, **options: Any) -> None:
    commit, steps, ends_write = CheckpointWriter._commit, [], EndsWrite(end_step)

    def fail_second(self: Any, checkpoint: Any, info: Any, **kwargs: Any) -> None:
        steps.append(info.step)
        if len(steps) == 2:
            assert ends_write.can_end.wait(60.0)
            raise RuntimeError("no error of storage")
        commit(self, checkpoint, info, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointWriter, "_commit", fail_second)
        callbacks = [CheckpointRecovery(folder, every_n_train_steps=15), DivergenceGuard("stop", every_n_steps=10)]
        trainer = make_trainer(callbacks=[*callbacks, ends_write], max_steps=max_steps, max_epochs=-1, **options)
        trainer.fit(make_module(pl, Classifier), resumable(make_loader()))


def test_a_failure_that_the_guard_could_notice_first_ends_training(tmp_path: Path):
    with pytest.raises(RuntimeError, match="no error of storage"):
        _fit(tmp_path, end_step=20, max_steps=25)


def _fit_rank(rank: int, folder: str, port: int) -> None:
    join_two_ranks(rank, port)
    with pytest.raises(Exception, match="no error of storage"):
        _fit(Path(folder), end_step=25, max_steps=25, strategy="ddp", devices=2)


@pytest.mark.slow
def test_a_failure_in_the_last_step_is_raised_on_both_ranks(tmp_path: Path):
    call_on_two_ranks(_fit_rank, str(tmp_path), get_free_port())
