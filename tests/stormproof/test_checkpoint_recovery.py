import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from stormproof import CheckpointRecovery, HangWatch, Preemption, resumable
from stormproof.checkpoint import Lease
from stormproof.errors import DamagedError, NotResumableError, StorageError
from stormproof.resumable_loader import find_loader_caveats
from stormproof.testing import FaultInjector, flip_bit
from tests.support.recovery_fits import BatchEndCallback, FakeClock, checkpoint_steps, fit_with_recovery
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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    return FakeClock(monkeypatch)


OUT_OF_RANGE = [
    ({"every_n_train_steps": 0}, "`every_n_train_steps` must be at least 1 or None, got 0"),
    ({"train_time_interval": 0}, "`train_time_interval` must be above 0 minutes or None, got 0"),
    ({"keep_every_n_train_steps": 0}, "`keep_every_n_train_steps` must be at least 1 or None, got 0"),
    ({"keep_last": 1}, "`keep_last` must be at least 2, .* got 1"),
    ({"monitor": "val/loss", "save_top_k": 0}, "`save_top_k` must be at least 1 with `monitor=val/loss`, got 0"),
    ({"mode": "best"}, "`mode` must be 'min' or 'max', got 'best'"),
]


def _content(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_a_second_fit_does_not_refer_to_the_checkpoint_that_the_first_one_resumed_from(tmp_path: Path):
    fit_with_recovery(CheckpointRecovery(tmp_path), max_epochs=1)
    recovery = CheckpointRecovery(tmp_path)
    fit_with_recovery(recovery, max_epochs=2)
    assert recovery.resumed_from is not None
    newest = recovery.store.latest_checkpoint()
    assert newest is not None
    trainer = make_trainer(callbacks=[recovery], max_epochs=3)
    trainer.fit(make_module(), resumable(make_loader()), ckpt_path=str(newest.path))
    assert recovery.resumed_from is None


@pytest.mark.parametrize(("arguments", "sentence"), OUT_OF_RANGE)
def test_an_argument_out_of_its_range_is_named(arguments: dict[str, Any], sentence: str, tmp_path: Path):
    with pytest.raises(ValueError, match=sentence):
        CheckpointRecovery(tmp_path, **arguments)


def test_a_mirror_requires_a_folder():
    with pytest.raises(ValueError, match=r"requires a folder as `dirpath`, got `dirpath=s3://bucket/run`"):
        CheckpointRecovery("s3://bucket/run", mirror="s3://bucket/copies")


def test_before_a_first_start_there_is_nothing_and_asking_makes_nothing(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path / "checkpoints")
    assert recovery.latest_checkpoint() is None
    assert recovery.best_checkpoint() is None
    assert list(tmp_path.iterdir()) == []


def test_asking_takes_no_lease_and_changes_nothing(tmp_path: Path):
    fit_with_recovery(CheckpointRecovery(tmp_path, every_n_train_steps=2))
    (tmp_path / ".000009-step-9.ckpt.0123456789abcdef.tmp").write_bytes(b"of a crash")
    before = _content(tmp_path)
    with torch.no_grad():
        recoveries = [CheckpointRecovery(tmp_path, monitor="x") for _ in range(2)]  # at the same time
        resume_paths = [recovery.latest_checkpoint() for recovery in recoveries]
        assert [recovery.best_checkpoint() for recovery in recoveries] == [None, None]
    assert resume_paths[0] == resume_paths[1]
    assert str(resume_paths[0]).endswith("-step-6.ckpt")
    assert _content(tmp_path) == before
    assert not Lease.is_active(tmp_path)


def test_bad_ones_are_walked_past_and_only_bad_ones_are_an_error(tmp_path: Path):
    fit_with_recovery(CheckpointRecovery(tmp_path, every_n_train_steps=3, keep_last=3))
    newest, *older = sorted(tmp_path.glob("*.ckpt"), reverse=True)
    flip_bit(newest)
    recovery = CheckpointRecovery(tmp_path)
    expected = rf"Skipping checkpoint .*{newest.name}: its content has changed .*\. The file moves to quarantine/ when"
    with pytest.warns(UserWarning, match=expected):
        assert recovery.latest_checkpoint() == str(older[0])
    assert [bad.name for bad in recovery.skipped_checkpoints] == [newest.stem]
    for file in older:
        flip_bit(file)
    with pytest.raises(DamagedError, match="has no good checkpoint"):
        CheckpointRecovery(tmp_path).latest_checkpoint()
    with pytest.warns(UserWarning, match="Skipping checkpoint"):
        assert CheckpointRecovery(tmp_path).latest_checkpoint(start_over=True) is None


def test_a_folder_may_be_copied_elsewhere_and_goes_on_there(tmp_path: Path):
    fit_with_recovery(CheckpointRecovery(tmp_path / "here", every_n_train_steps=2))
    (tmp_path / "here").rename(tmp_path / "there")
    recovery = CheckpointRecovery(tmp_path / "there")
    assert Path(str(recovery.latest_checkpoint())).parent == tmp_path / "there"
    assert fit_with_recovery(recovery, max_epochs=2).global_step == 12
    assert recovery.last_logged["recovery/restarts"] == 1


def test_a_metric_that_is_not_logged_is_named_beside_those_that_are(tmp_path: Path):
    with pytest.raises(NotResumableError, match=r"monitor=val/los is not logged\. Log it or choose one of: val/loss"):
        fit_with_recovery(CheckpointRecovery(tmp_path, monitor="val/los"), val_check_interval=2)


def test_nothing_is_written_where_nothing_is_trained(tmp_path: Path):
    class _Predicts(ValidatedRegressionModule):
        def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            self.layer(batch)

        def predict_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return self.layer(batch)

    recovery = CheckpointRecovery(tmp_path / "checkpoints", every_n_train_steps=1)
    net = make_module(kind=_Predicts)
    for run in ("validate", "test", "predict"):
        getattr(make_trainer(callbacks=[recovery]), run)(net, make_loader())
    make_trainer(callbacks=[recovery], fast_dev_run=True).fit(net, make_loader(), make_loader())
    assert list(tmp_path.glob("checkpoints/*")) == []


def test_an_exception_gives_the_folder_back_and_leaves_what_was_committed(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=2)
    with pytest.raises(RuntimeError, match="injected fault"):
        fit_with_recovery(recovery, FaultInjector().fail(at="on_train_batch_start", step=5))
    assert not Lease.is_active(tmp_path)
    assert checkpoint_steps(tmp_path) == [2, 4]
    assert fit_with_recovery(CheckpointRecovery(tmp_path, every_n_train_steps=2)).global_step == 6


def test_the_same_trainer_goes_on_in_a_secondfit_with(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=2, keep_last=10)
    fit, net = make_trainer(callbacks=[recovery]), make_module()
    fit.fit(net, resumable(make_loader()))
    fit.fit_loop.max_epochs = 2
    fit.fit(net, resumable(make_loader()))
    assert fit.global_step == 12
    assert [checkpoint.attempt for checkpoint in recovery.store.read_checkpoints()] == [1] * 4 + [2] * 4
    assert not Lease.is_active(tmp_path)


def test_a_finished_run_is_restored_by_another_process_which_saves_nothing(tmp_path: Path, capsys: Any):
    first = fit_with_recovery(CheckpointRecovery(tmp_path / "first", every_n_train_steps=2), val_check_interval=3)
    before = checkpoint_steps(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")  # in which this process has not trained
    second_fit = fit_with_recovery(CheckpointRecovery(tmp_path / "second", every_n_train_steps=2), val_check_interval=3)
    assert (
        "second: training already finished at step 6. To continue the run, raise max_epochs" in capsys.readouterr().out
    )
    assert second_fit.global_step == 6
    assert second_fit.callback_metrics == first.callback_metrics
    assert "val/loss" in second_fit.callback_metrics
    assert checkpoint_steps(tmp_path / "second") == before
    assert not Lease.is_active(tmp_path / "second")


def test_a_second_fit_that_trains_nothing_is_refused_unless_it_may_continue(tmp_path: Path):
    fit_with_recovery(CheckpointRecovery(tmp_path))
    with pytest.raises(NotResumableError, match=r"finished run of 6 steps\. To continue the run, raise max_epochs"):
        fit_with_recovery(CheckpointRecovery(tmp_path))
    assert fit_with_recovery(CheckpointRecovery(tmp_path), max_epochs=2).global_step == 12


@pytest.mark.parametrize("asked", [True, False])
def test_a_run_is_not_begun_again_beside_its_checkpoints(asked: bool, tmp_path: Path):
    fit_with_recovery(CheckpointRecovery(tmp_path, every_n_train_steps=2))
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=2)
    if asked:
        recovery.latest_checkpoint()
    with pytest.raises(NotResumableError, match="contains a checkpoint of step 6, but fit was called without"):
        make_trainer(callbacks=[recovery]).fit(make_module(), resumable(make_loader()))
    assert not Lease.is_active(tmp_path)


def test_what_an_interruption_cost_is_logged_once_to_every_logger_at_the_step_it_went_on_from(
    clock: FakeClock, tmp_path: Path
):
    move = BatchEndCallback(lambda _: setattr(clock, "now", clock.now + 10))
    first = CheckpointRecovery(tmp_path, every_n_train_steps=2)
    with pytest.raises(RuntimeError, match="injected fault"):
        fit_with_recovery(first, move, FaultInjector().fail(at="on_train_batch_start", step=5))
    assert list(first.last_logged) == ["checkpoint/stall_seconds"]
    clock.now += 70  # until it is started again: 120 s since the beginning
    loggers = [RowsLogger(), RowsLogger()]
    second = CheckpointRecovery(tmp_path, every_n_train_steps=2)
    fit_with_recovery(second, move, logger=loggers, log_every_n_steps=1, max_epochs=2)
    cost = {name: value for name, value in second.last_logged.items() if name.startswith("recovery/")}
    assert cost == {
        "recovery/restarts": 1,
        "recovery/lost_steps": 1,  # 5 were done, and 4 of them saved
        "recovery/seconds": 70.0,
        "recovery/effective_time_ratio": pytest.approx(40 / 120),
    }
    for rows in loggers:
        assert [row for row in rows.rows if "recovery/restarts" in row[1]] == [(4, {**cost, "epoch": 0})]


def test_a_first_start_has_nothing_to_report(tmp_path: Path):
    rows = RowsLogger()
    recovery = CheckpointRecovery(tmp_path)
    fit_with_recovery(recovery, logger=rows, log_every_n_steps=1)
    assert rows.logged_steps("recovery/restarts") == []
    assert rows.logged_steps("checkpoint/stall_seconds") == [0]  # the first is in any case saved


def test_the_time_of_two_fits_of_one_process_is_added(clock: FakeClock, tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path)
    fit, net = (
        make_trainer(callbacks=[recovery, BatchEndCallback(lambda _: setattr(clock, "now", clock.now + 10))]),
        make_module(),
    )
    fit.fit(net, resumable(make_loader()))
    clock.now += 30
    fit.fit_loop.max_epochs = 2
    fit.fit(net, resumable(make_loader()))
    assert recovery.state_dict()["time"] == {"began": 1000.0, "counted": 120.0}


def test_a_loader_that_does_not_resume_is_named_in_a_warning(tmp_path: Path):
    with pytest.warns(match="A resume will not be exact: .*DataLoader"):
        make_trainer(callbacks=[CheckpointRecovery(tmp_path)]).fit(make_module(), make_loader())


class Numbers(IterableDataset):
    def __iter__(self) -> Any:
        return iter(torch.ones(4, 2))


def test_data_that_a_resume_repeats_is_said_to_be_uncertain(tmp_path: Path):
    with pytest.warns(match="A resume may not be exact: .* Numbers has no state_dict"):
        make_trainer(callbacks=[CheckpointRecovery(tmp_path)]).fit(make_module(), resumable(DataLoader(Numbers())))


def test_a_loader_of_one_batch_is_exact_without_a_wrapper():
    assert find_loader_caveats(make_loader(batch_size=12, shuffle=True)) == []


def test_a_stock_checkpoint_is_gone_on_from_with_a_warning(tmp_path: Path):
    stock = make_trainer()
    stock.fit(make_module(), make_loader())
    stock.save_checkpoint(tmp_path / "stock.ckpt")
    recovery = CheckpointRecovery(tmp_path / "ours", every_n_train_steps=100, keep_last=10)
    fit = make_trainer(callbacks=[recovery], max_epochs=2)
    with pytest.warns(match="This resume is not exact, because CheckpointRecovery did not save"):
        fit.fit(make_module(), resumable(make_loader()), ckpt_path=tmp_path / "stock.ckpt", weights_only=True)
    assert fit.global_step == 12
    assert checkpoint_steps(tmp_path / "ours") == [6, 12]


def test_what_would_not_load_again_is_said_at_the_first_step(tmp_path: Path):
    class _Odd(pl.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"folder": tmp_path}

    with pytest.raises(
        NotResumableError, match=r"refuse a checkpoint of this run, because of callbacks/\S*_Odd\S*/folder: pathlib"
    ):
        fit_with_recovery(CheckpointRecovery(tmp_path / "checkpoints"), _Odd())
    assert checkpoint_steps(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("name", ["file", "file/checkpoints"])
def test_a_file_in_place_of_the_folder_is_named(name: str, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot be read: Not a directory\. A file has this name\. Pass a folder"):
        CheckpointRecovery(tmp_path / name).latest_checkpoint()


def test_the_first_checkpoint_is_loaded_back_at_once(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=100)
    with pytest.warns(UserWarning, match=r"000001-step-0\.ckpt was just committed but is bad: it has \d+ bytes"):
        fit_with_recovery(recovery, FaultInjector().torn_write(step=0))
    assert checkpoint_steps(tmp_path) == [0, 6]
    assert (tmp_path / "000002-step-0.ckpt").exists()  # written again before the first step
    assert (tmp_path / "quarantine" / "000001-step-0.ckpt").exists()


def test_weights_that_are_not_finite_are_not_committed_and_the_last_good_ones_stay(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=1)
    with pytest.warns(match="state_dict/layer.weight is not finite") as warned:
        fit_with_recovery(recovery, FaultInjector().nan(step=3))
    finite_warnings = [str(warning.message) for warning in warned if "finite" in str(warning.message)]
    assert [sentence[:7] for sentence in finite_warnings] == ["step 4:"]
    assert checkpoint_steps(tmp_path) == [2, 3]


def test_what_was_not_finite_from_the_start_means_it(tmp_path: Path):
    class _Odd(RegressionModule):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))  # type: ignore[attr-defined]

    for epochs in (1, 2):
        recovery = CheckpointRecovery(tmp_path, every_n_train_steps=2)
        fit = make_trainer(callbacks=[recovery], max_epochs=epochs)
        fit.fit(make_module(kind=_Odd), resumable(make_loader()), ckpt_path=recovery.latest_checkpoint())
    assert checkpoint_steps(tmp_path) == [10, 12]


def test_the_identity_is_in_the_manifests(tmp_path: Path):
    fit_with_recovery(CheckpointRecovery(tmp_path, identity="a hash"))
    assert {checkpoint.identity for checkpoint in CheckpointRecovery(tmp_path).store.read_checkpoints()} == {"a hash"}


def test_its_state_is_the_run_s_time_in_plain_numbers(tmp_path: Path):
    recovery, later = CheckpointRecovery(tmp_path), time.time()
    state = recovery.state_dict()
    assert set(state) == {"time"}
    assert 0 < state["time"]["began"] <= later


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_an_uninitialized_parameter_is_refused_before_the_first_batch(tmp_path: Path):
    class Lazy(RegressionModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.LazyLinear(1)  # type: ignore[assignment]

    fitting = make_trainer(callbacks=[CheckpointRecovery(tmp_path)])
    with pytest.raises(NotResumableError, match=r"layer\.weight belongs to a lazy module and is uninitialized"):
        fitting.fit(make_module(kind=Lazy), resumable(make_loader()))


@BOTH_PACKAGES
def test_a_later_test_finds_the_best_and_the_last_checkpoint(lightning: Any, tmp_path: Path):
    class Tested(ValidatedRegressionModule):
        def test_step(self, batch: Any, batch_idx: int) -> None: ...

    def fit(folder: Path, **options: Any) -> tuple[Any, CheckpointRecovery]:
        recovery = CheckpointRecovery(folder, every_n_train_steps=2, **options)
        trainer = make_trainer(lightning, callbacks=[recovery], val_check_interval=3)
        trainer.fit(make_module(lightning, Tested), resumable(make_loader()), make_loader())
        return trainer, recovery

    trainer, recovery = fit(tmp_path / "monitored", monitor="val/loss")
    for name, path in (("best", recovery.best_checkpoint()), ("last", recovery.latest_checkpoint())):
        trainer.test(dataloaders=make_loader(), ckpt_path=name)
        assert trainer.ckpt_path == path
    trainer, _ = fit(tmp_path / "unmonitored")
    with pytest.raises(NotResumableError, match=r"no best checkpoint\. Pass the path of one as ckpt_path, or set `mon"):
        trainer.test(dataloaders=make_loader(), ckpt_path="best")


@pytest.mark.parametrize("kind", [Preemption, HangWatch])
def test_two_callbacks_of_a_kind_are_refused(kind: type, tmp_path: Path):
    trainer = make_trainer(callbacks=[kind(), CheckpointRecovery(tmp_path), kind()])
    with pytest.raises(NotResumableError, match=f"has 2 callbacks of type {kind.__name__}. Keep one"):
        trainer.fit(make_module(), resumable(make_loader()))
