"""Checkpoints that are verified, and from which training goes on bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from stormproof import exact_state, lightning_internals
from stormproof.agreement import everyone, on_rank_zero, share
from stormproof.checkpoint import Resolution, Retention, Store
from stormproof.errors import NotResumableError, RanksDisagreeError
from stormproof.finite import not_finite
from stormproof.hold import Hold, sees_hold
from stormproof.loadable import refused
from stormproof.resumable_loader import inexact
from stormproof.training_time import TrainingTime

DEFAULT_MINUTES = 5.0
AGREEMENT_STEPS = 10
"""How often the ranks ask rank 0's clock: a collective of its own on every step would cost more than it tells."""
PLAIN_STRATEGIES = {"SingleDeviceStrategy", "DDPStrategy"}
"""Those that keep the whole state on every rank, and one file a checkpoint."""


class CheckpointRecovery(Callback):
    """Saves what an exact resume needs, verified, and finds it again.

    A checkpoint is a plain Lightning ``.ckpt`` and a manifest ``.json`` beside it, which is written last and protects
    itself. It is taken between two batches that a step lies between, after every other callback's hooks and after the
    validation and the epoch end that the step brought about. Resumed from it, a run ends with the weights, bit for bit,
    that it would have ended with: parameters, optimizer, schedules, random number generators of every rank, running
    metrics and means, position in the data (of a :func:`stormproof.resumable` loader).

    Adding the callback changes no bit of a run that is not interrupted.

    Args:
        folder: where checkpoints go; made if it is not there. One run, one folder, the same on all ranks.
        every_n_steps: optimizer steps from one checkpoint to the next, at least 1; None for no such rule.
        every_n_minutes: minutes from one checkpoint to the next, above 0, by rank 0's clock; None for no such rule.
            With neither, every 5 minutes. The first step and the end of the training are saved in any case.
        keep_last: checkpoints to keep, at least 2.
        monitor: a logged validation metric; the state behind each of its ``keep_best`` best values is saved and kept.
        mode: whether small (``min``) or large (``max``) values of it are good.
        keep_best: how many of them, at least 1.
        keep_every_n_steps: a checkpoint at or after each multiple of it is kept for ever; None for none.
        identity: what the run is, in words or a hash; written into the manifests.

    Attributes:
        last: what was logged last, by name; empty before.

    Raises:
        ValueError: if a number is out of its range, or ``folder`` is the address of an object store.

    Example:
        >>> recovery = CheckpointRecovery("runs/mine/checkpoints", every_n_steps=50)
        >>> trainer = pl.Trainer(callbacks=[recovery], logger=False)  # doctest: +SKIP
        >>> trainer.fit(module, resumable(loader), ckpt_path=recovery.latest())  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | Path,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
        keep_last: int = 2,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        keep_best: int = 1,
        keep_every_n_steps: int | None = None,
        identity: str | None = None,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be at least 1")
        if every_n_minutes is not None and every_n_minutes <= 0:
            raise ValueError(f"every_n_minutes is {every_n_minutes}; it must be above 0")
        if monitor is not None and keep_best < 1:
            raise ValueError(f"keep_best is {keep_best}; to keep the best by {monitor} it must be at least 1")
        if every_n_steps is None and every_n_minutes is None:
            every_n_minutes = DEFAULT_MINUTES
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.monitor = monitor
        self.retention = Retention(keep_last, keep_best if monitor else 0, mode, keep_every_n_steps)
        self.identity = identity
        self.store = Store(folder)
        self.last: dict[str, float] = {}
        self._time = TrainingTime(time.time())
        self._resolution: Resolution | None = None  # what this process found last
        self._hold: Hold | None = None  # on rank 0, while it trains
        self._active = False
        self._saved: dict[str, Any] | None = None  # of the checkpoint that was loaded, until it is set back
        self._loaded: str | None = None
        self._odd: list[str] = []  # tensors that were not finite when training began, and so mean it
        self._committed: tuple[int, float] | None = None  # step and time of the newest checkpoint of this training
        self._step = 0  # the one that was reached when we last looked
        self._validated = False
        self._fresh_score = False  # a validation has ended, and its weights are still the current ones
        self._stop_calling: Callable[[], None] | None = None

    def latest(self, start_over: bool = False) -> str | None:
        """The newest good checkpoint: verified, its bytes read and its content looked at; None if there is none yet.

        It needs no trainer, takes no lease and changes nothing. Every rank asks for itself; that all found the same is
        checked before training begins.

        Args:
            start_over: begin at step 0 even though there are checkpoints, all of them bad.

        Raises:
            DamagedError: if there are checkpoints and none of them is good.
        """
        self._resolution = self.store.resolve()
        chosen = self.store.choose(self._resolution, start_over=start_over)
        return None if chosen is None else str(chosen.path)

    def best(self) -> str | None:
        """The checkpoint with the best value of ``monitor`` so far; None if there is none yet."""
        scored = [each for each in self.store.checkpoints() if each.score is not None]
        sign = 1 if self.retention.mode == "min" else -1
        return str(min(scored, key=lambda each: sign * (each.score or 0.0)).path) if scored else None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Makes sure that all ranks go on from the same state, and takes the folder."""
        self._active = stage == "fit" and not trainer.fast_dev_run
        if not self._active:
            return
        _refuse_strategy(trainer)
        resolution = self._resolution or self.store.resolve()
        found = resolution.chosen
        _agree("the newest good checkpoint", None if found is None else f"{found.path.name} ({found.sha256[:12]})")
        self._saved = self._loaded = self._committed = None
        self._see_the_same_folder(on_rank_zero(lambda: self._take_folder(resolution)))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Puts this rank's own states in the place of rank 0's."""
        if not self._active or trainer.state.fn != "fit":
            return
        self._loaded = f"epoch {checkpoint['epoch']}, step {checkpoint['global_step']}"
        if exact_state.KEY not in checkpoint:
            rank_zero_warn(
                "this checkpoint was not saved by CheckpointRecovery: random number generators, running means and the "
                "position in the data are not in it, so that this resume is not exact"
            )
            return
        self._saved = exact_state.own_part(checkpoint, trainer.global_rank, trainer.world_size)
        self._loaded += f", {self._saved['id']}"
        self._odd = not_finite(checkpoint)  # what was not finite when it was committed had not been from the start

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses to begin at step 0 beside checkpoints, and to train ranks that loaded different states."""
        if not self._active:
            return
        _agree("the state they loaded", self._loaded)
        found = self._resolution.chosen if self._resolution else None
        if found is not None and self._loaded is None and trainer.global_step == 0:
            raise NotResumableError(
                f"{found.path.parent} holds a checkpoint of step {found.step}, and fit was given none: pass "
                "ckpt_path=recovery.latest(), or use another folder"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on, looks after what lies between two batches."""
        if not self._active:
            return
        if lightning_internals.step_fetches_itself(trainer):
            raise NotResumableError(
                "training_step takes dataloader_iter: CheckpointRecovery needs Lightning to fetch the batches"
            )
        for reason in [reason for loader in exact_state.train_loaders(trainer) for reason in inexact(loader)]:
            rank_zero_warn(f"a resume will not be exact: {reason}")
        if self._saved is not None:
            trainer.should_stop = self._saved["shared"]["should_stop"]
        self._step = trainer.global_step
        self._time.training_begins(time.time())
        self._stop_calling = lightning_internals.call_between_batches(
            trainer, lambda: self._between_batches(trainer, pl_module)
        )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remembers that the validation loaders have been iterated, be it in the sanity check."""
        self._validated = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remembers that there is a new value of the monitored metric."""
        self._fresh_score = not trainer.sanity_checking

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Commits the end of the training, after every callback's ``on_train_end``."""
        if self._active and self._committed is not None:
            self._commit(trainer, pl_module, ended=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the folder back."""
        self._let_go()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Gives the folder back: what was committed is what there is to go on from."""
        self._let_go()

    def state_dict(self) -> dict[str, Any]:
        """The run's time, as plain numbers."""
        return {"time": self._time.state_dict(time.time())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from ``state_dict``."""
        self._time.load_state_dict(state_dict["time"])

    def _between_batches(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        step = trainer.global_step
        if self._saved is not None:
            exact_state.restore(trainer, module, self._saved)
            self._saved = None
            self._committed = (step, time.monotonic())
            self._report_recovery(trainer, step)
        elif self._committed is None:
            self._commit(trainer, module)
        elif step != self._step:  # the batch before ended in an optimizer step
            if self._is_due(trainer, step):
                self._commit(trainer, module)
            self._fresh_score = False
        if step != self._step or self._step == 0:
            self._step = step
            if self._hold is not None:
                self._hold.reached(step)

    def _is_due(self, trainer: pl.Trainer, step: int) -> bool:
        assert self._committed is not None
        before, when = self._committed
        every = self.every_n_steps
        if every is not None and step // every > before // every:
            return True
        kept = self.retention.every_n_steps
        if kept is not None and step // kept > before // kept:
            return True
        if self._fresh_score and self.monitor is not None and share(self._is_among_best(trainer)):
            return True
        if self.every_n_minutes is None or (trainer.world_size > 1 and step % AGREEMENT_STEPS):
            return False
        return share(time.monotonic() - when >= 60 * self.every_n_minutes)

    def _is_among_best(self, trainer: pl.Trainer) -> bool:
        sign = 1 if self.retention.mode == "min" else -1
        score = self._score(trainer)
        if score is None or math.isnan(score):
            return False
        best = sorted(sign * each.score for each in self.store.checkpoints() if each.score is not None)
        return len(best) < self.retention.best or sign * score < best[self.retention.best - 1]

    def _score(self, trainer: pl.Trainer) -> float | None:
        """The monitored metric, if it is that of the weights as they are."""
        if self.monitor is None or not self._fresh_score:
            return None
        logged = trainer.callback_metrics
        if self.monitor not in logged:
            raise NotResumableError(f"monitor={self.monitor} is not logged; there is: {', '.join(sorted(logged))}")
        return float(logged[self.monitor])

    def _look_at_the_start(self, checkpoint: dict[str, Any]) -> None:
        """Before the first commit: what would not load again is said now, not when it is needed."""
        found = refused(checkpoint)
        if found:
            raise NotResumableError(
                f"a checkpoint of this run would not load again, because of {'; '.join(found[:3])}: a state may hold "
                "tensors and plain values only (a type of your own can be allowed by torch.serialization.add_safe_globals)"
            )
        self._odd = not_finite(checkpoint)

    def _commit(self, trainer: pl.Trainer, module: pl.LightningModule, *, ended: bool = False) -> None:
        """Takes the state on all ranks, and writes it on rank 0."""
        checkpoint = exact_state.take(trainer, module, validated=self._validated, ended=ended)
        if on_rank_zero(lambda: self._write(checkpoint, trainer)):
            self._committed = (trainer.global_step, time.monotonic())

    def _write(self, checkpoint: dict[str, Any], trainer: pl.Trainer) -> bool:
        hold = self._hold
        assert hold is not None
        if self._committed is None:
            self._look_at_the_start(checkpoint)
        broken = [name for name in not_finite(checkpoint) if name not in self._odd]
        if broken:
            rank_zero_warn(
                f"step {trainer.global_step}: {broken[0]} is not finite ({len(broken)} such tensors): nothing is "
                "committed while that is so, and the last good checkpoint is kept"
            )
            return False
        self.store.commit(
            lambda file: torch.save(checkpoint, file),
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            world_size=trainer.world_size,
            attempt=hold.attempt,
            score=self._score(trainer),
            identity=self.identity,
            fence=hold.fence,
        )
        self.store.retain(self.retention, fence=hold.fence)
        return True

    def _take_folder(self, resolution: Resolution) -> str:
        """On rank 0: owns the folder from here on; returns what tells this hold from any other."""
        self._hold = Hold(self.store, resolution)
        return self._hold.token

    def _see_the_same_folder(self, token: str) -> None:
        """A rank that looks at another folder would find nothing to resume from, or something else."""
        seen = sees_hold(self.store.folder, token)
        folders = everyone(None if seen else str(self.store.folder.absolute()))
        blind = [f"rank {rank}: {folder}" for rank, folder in enumerate(folders) if folder is not None]
        if blind:
            raise RanksDisagreeError(
                f"{'; '.join(blind[:3])} is not the folder that rank 0 writes to: checkpoints must lie where all ranks "
                "see them"
            )

    def _report_recovery(self, trainer: pl.Trainer, step: int) -> None:
        """Tells the loggers what the interruption cost."""
        hold = self._hold
        if hold is None:
            return
        now = time.time()
        before = hold.before
        self.last = {
            "recovery/restarts": hold.attempt - 1,
            "recovery/lost_steps": max(0, before.step - step) if before else 0,
            "recovery/seconds": now - before.time if before else 0.0,
            "recovery/effective_time_ratio": self._time.ratio(now),
        }
        for logger in trainer.loggers:
            logger.log_metrics({**self.last, "epoch": trainer.current_epoch}, step=step)

    def _let_go(self) -> None:
        if self._stop_calling is not None:
            self._stop_calling()
            self._stop_calling = None
        if self._hold is not None:
            self._hold.release()
            self._hold = None


def _agree(what: str, mine: str | None) -> None:
    """Stops all ranks together if they do not say the same."""
    said = everyone(mine)
    if any(other != said[0] for other in said):
        listed = "; ".join(f"rank {rank}: {each or 'none'}" for rank, each in enumerate(said))
        raise RanksDisagreeError(f"the ranks do not agree on {what} ({listed}): start all of them again")


def _refuse_strategy(trainer: pl.Trainer) -> None:
    name = type(trainer.strategy).__name__
    if name not in PLAIN_STRATEGIES:
        raise NotResumableError(
            f"CheckpointRecovery keeps one file a checkpoint, and {name} does not: use one of "
            f"{', '.join(sorted(PLAIN_STRATEGIES))}"
        )
