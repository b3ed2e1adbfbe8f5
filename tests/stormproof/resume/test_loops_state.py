"""The progress of Lightning's loops: what goes into a checkpoint between two batches comes out of it there."""

import io
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from stormproof.lightning import internals
from tests.support.small_fits import (
    BOTH_PACKAGES,
    LIGHTNING_WARNING_FILTERS,
    RegressionModule,
    RowsLogger,
    ValidatedRegressionModule,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = LIGHTNING_WARNING_FILTERS

BATCHES, EPOCHS = 6, 3


def _to_plain(state: Any) -> Any:
    """As a checkpoint gives it back."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


class _States(pl.Callback):
    """Takes the state of the loops between batches, and what can be seen of them from outside."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        internals.call_between_batches(trainer, lambda: self._take(trainer))

    def _take(self, trainer: Any) -> None:
        self.states.append({"loops": _to_plain(internals.capture_loops(trainer)), **_recorded_batches(trainer)})


def _recorded_batches(trainer: Any) -> dict[str, Any]:
    return {"epoch": trainer.current_epoch, "step": trainer.global_step, "batch": trainer.fit_loop.batch_idx}


class _LoopReset(_States):
    """Sets a state in the first of these places, where Lightning has resumed by its own means."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__()
        self.state = state

    def _take(self, trainer: Any) -> None:
        if not self.states:
            internals.restore_loops(trainer, self.state["loops"])
            loop = trainer.fit_loop
            for inner_loop in (loop, loop.epoch_loop, loop.epoch_loop.val_loop, loop.epoch_loop.automatic_optimization):
                assert (inner_loop.restarting, inner_loop.is_resuming, inner_loop._loaded_from_state_dict) == (
                    False,
                    False,
                    False,
                )
            assert {loop._restart_stage, loop.epoch_loop._restart_stage} == {"none"}
        super()._take(trainer)


class _SaveStates(pl.Callback):
    """Saves a checkpoint in each place between batches, as it may be given to a plain trainer; counts the rows."""

    def __init__(self, folder: Path, progress: bool = True) -> None:
        self.folder, self.progress, self.count = folder, progress, 0
        self.rows: list[int] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        internals.call_between_batches(trainer, lambda: self._save(trainer))

    def _save(self, trainer: Any) -> None:
        checkpoint = internals.dump_checkpoint(trainer)
        if self.progress:
            internals.adjust_progress(checkpoint)
        torch.save(checkpoint, self.folder / f"{self.count}.ckpt")
        self.rows.append(len(trainer.logger.rows))
        self.count += 1


class _Logs(ValidatedRegressionModule):
    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)  # type: ignore[attr-defined]
        return loss


OPTIONS = {
    "each epoch": {},
    "each second batch": {"val_check_interval": 2},
    "accumulated": {"accumulate_grad_batches": 2, "val_check_interval": 3},
    "every second epoch": {"check_val_every_n_epoch": 2, "reload_dataloaders_every_n_epochs": 1},
}
SLOW = pytest.mark.slow
by_validation = pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=[SLOW] if n % 2 else [])
        for n, (name, options) in enumerate(OPTIONS.items())
    ],
)


def _straight(lightning: Any, folder: Path, options: dict[str, Any], progress: bool = True) -> tuple[Any, Any]:
    """All states of a run that nothing interrupts, and the rows that it logged from each of them on."""
    saved, states, rows = _SaveStates(folder, progress), _States(), RowsLogger()
    fit = make_trainer(
        lightning, max_epochs=EPOCHS, callbacks=[saved, states], logger=rows, log_every_n_steps=1, **options
    )
    fit.fit(make_module(lightning, _Logs), make_loader(), make_loader(4))
    assert len(states.states) == BATCHES * EPOCHS
    return states.states, [[(step, sorted(names)) for step, names in rows.rows[count:]] for count in saved.rows]


@by_validation
@BOTH_PACKAGES
def test_a_state_set_back_between_batches_is_that_state_and_so_are_all_after_it(
    lightning: Any, options: dict[str, Any], tmp_path: Path
):
    states, _ = _straight(lightning, tmp_path, options)
    for position in (0, 1, 2, 5, 6, 9, 13, 17):
        back = _LoopReset(states[position])
        fit = make_trainer(lightning, max_epochs=EPOCHS, callbacks=[back], **options)
        fit.fit(
            make_module(lightning, _Logs),
            make_loader(),
            make_loader(4),
            ckpt_path=tmp_path / f"{position}.ckpt",
            weights_only=True,
        )
        assert back.states == states[position:], f"resumed before batch {position}"


def _resumed(folder: Path, position: int, options: dict[str, Any]) -> list[Any]:
    """The steps and names that a plain trainer logs from a checkpoint on."""
    rows = RowsLogger()
    fit = make_trainer(max_epochs=EPOCHS, logger=rows, log_every_n_steps=1, **options)
    fit.fit(
        make_module(kind=_Logs), make_loader(), make_loader(4), ckpt_path=folder / f"{position}.ckpt", weights_only=True
    )
    assert fit.global_step == BATCHES * EPOCHS // options.get("accumulate_grad_batches", 1)
    return [(step, sorted(metrics)) for step, metrics in rows.rows]


@by_validation
def test_a_plain_trainer_goes_on_there_with_every_row_and_no_validation_twice(options: dict[str, Any], tmp_path: Path):
    _, rows = _straight(pl, tmp_path, options)
    for position in (2, 4, 8, 14):  # a step lies before each
        assert _resumed(tmp_path, position, options) == rows[position], f"resumed before batch {position}"


def test_without_our_change_lightning_would_still_count_the_steps_wrong(tmp_path: Path):
    """Where this fails, Lightning has learnt of checkpoints between batches: adjust_progress is to go."""
    options = {"val_check_interval": 2}
    _straight(pl, tmp_path, options, progress=False)
    assert _resumed(tmp_path, 8, options)[0] == (9, ["epoch", "loss"])


class _Stateful:
    """A loader with a state, as Lightning knows them."""

    def __init__(self) -> None:
        self.loaded: Any = None

    def __iter__(self) -> Any:
        return iter(make_loader())

    def __len__(self) -> int:
        return BATCHES

    def state_dict(self) -> dict[str, Any]:
        return {"mine": True}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state


def test_a_loader_s_state_comes_to_it_and_to_no_other(tmp_path: Path):
    class _Gives(_SaveStates):
        def _save(self, trainer: Any) -> None:
            checkpoint = internals.dump_checkpoint(trainer)
            internals.set_loader_states(checkpoint, [{"of": "the first"}, {"of": "the second"}])
            torch.save(checkpoint, self.folder / f"{self.count}.ckpt")
            self.count += 1

    class _Many(RegressionModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return super().training_step(batch["a"], batch_idx)

    def loaders() -> dict[str, Any]:
        return {"a": _Stateful(), "plain": make_loader(), "b": _Stateful()}

    make_trainer(callbacks=[_Gives(tmp_path)]).fit(make_module(kind=_Many), loaders())
    resumed = loaders()
    make_trainer().fit(make_module(kind=_Many), resumed, ckpt_path=tmp_path / "3.ckpt", weights_only=True)
    assert (resumed["a"].loaded, resumed["b"].loaded) == ({"of": "the first"}, {"of": "the second"})


def test_the_loaders_own_states_are_not_in_the_progress():
    loader_states: list[dict[str, Any]] = []

    class _Takes(_States):
        def _take(self, trainer: Any) -> None:
            loader_states.append(internals.capture_loops(trainer))

    make_trainer(callbacks=[_Takes()]).fit(make_module(), _Stateful())
    assert "combined_loader" not in loader_states[0]["progress"]["state_dict"]


@pytest.mark.parametrize(("ours", "loaded"), [(True, {"mine": True}), (False, None)], ids=["ours", "Lightning alone"])
def test_at_an_epoch_s_end_the_loaders_get_their_states_by_us_alone(ours: bool, loaded: Any, tmp_path: Path):
    """Where the second fails, Lightning hands them over by itself: load_pending_loader_states is to go."""

    class _Asks(pl.Callback):
        def on_train_start(self, trainer: Any, *args: Any) -> None:
            if ours:
                internals.load_pending_loader_states(trainer)

    first = make_trainer()
    first.fit(make_module(), _Stateful())
    first.save_checkpoint(tmp_path / "x.ckpt")
    data = _Stateful()
    fit = make_trainer(callbacks=[_Asks()], max_epochs=2)
    fit.fit(make_module(), data, ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    assert fit.global_step == 2 * BATCHES
    assert data.loaded == loaded
