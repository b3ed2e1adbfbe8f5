import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import nn

from stormproof import CheckpointRecovery, GradientNormMonitor, resumable
from tests.support.small_fits import (
    LIGHTNING_WARNING_FILTERS,
    RegressionModule,
    RowsLogger,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = [*LIGHTNING_WARNING_FILTERS, pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`.*")]


def fit(monitor: GradientNormMonitor, kind: type = RegressionModule, count: int = 48, **options: Any) -> Any:
    """24 steps of two samples, by default."""
    pl_trainer = make_trainer(callbacks=[monitor], **options)
    pl_trainer.fit(make_module(kind=kind), make_loader(count))
    return pl_trainer


def half(**scaler: Any) -> Any:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", **scaler))


class Fused(RegressionModule):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), fused=True)  # type: ignore[attr-defined]


class Sometimes(RegressionModule):
    """Skips every second batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


class ByClosure(RegressionModule):
    """An optimizer that asks for the gradient several times a step."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)  # type: ignore[attr-defined]


class Freezing(RegressionModule):
    """A layer that gets its last gradient in the first epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)

    def on_train_epoch_start(self) -> None:
        self.body.requires_grad_(self.current_epoch == 0)  # type: ignore[attr-defined]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(self.body(batch), batch_idx)


class Adversaries(RegressionModule):
    """Two optimizers in manual optimization, the second of which steps at every third batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for number, (optimizer, layer) in enumerate(zip(self.optimizers(), (self.layer, self.other), strict=True)):  # type: ignore[attr-defined]
            if batch_idx % (1, 3)[number] == 0:
                optimizer.zero_grad()
                self.manual_backward(layer(batch).square().mean())  # type: ignore[attr-defined]
                optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.layer, self.other)]


class Thawing(RegressionModule):
    """A layer that gets its first gradient in the second epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2).requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        self.body.requires_grad_(self.current_epoch > 0)  # type: ignore[attr-defined]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(self.body(batch), batch_idx)


def test_the_first_step_and_every_tenth_are_measured():
    monitor = GradientNormMonitor(every_n_steps=10)
    fit(monitor, max_epochs=2)
    assert [record.step for record in monitor.history] == [1, 10, 20, 30, 40]
    assert monitor.last_norms.keys() == {"total", "layer"}


def test_the_total_is_that_of_the_layers():
    monitor = GradientNormMonitor(every_n_steps=5)
    fit(monitor, Adversaries)
    layers = {layer: norm for layer, norm in monitor.last_norms.items() if layer != "total"}
    assert layers.keys() == {"layer", "other"}
    assert monitor.last_norms["total"] == pytest.approx(math.hypot(*layers.values()))


def test_the_history_is_bounded_and_the_first_norm_is_kept():
    long, short = GradientNormMonitor(every_n_steps=1), GradientNormMonitor(every_n_steps=1, history=3)
    fit(long)
    fit(short)
    assert short.history == long.history[-3:]
    assert len(long.history) == 24
    assert short.table_entries().first_norms == long.history[0].norms


def test_each_optimizer_is_measured_at_every_nth_of_its_own_steps():
    monitor = GradientNormMonitor(every_n_steps=4)
    fit(monitor, Adversaries)
    steps = [[record.step for record in monitor.history if record.optimizer == number] for number in (0, 1)]
    assert steps == [[1, 4, 8, 12, 16, 20, 24], [1, 4, 8]]


def test_a_step_that_asks_for_several_gradients_is_one_step():
    monitor = GradientNormMonitor(every_n_steps=2)
    fit(monitor, ByClosure)
    assert [record.step for record in monitor.history] == [1, *range(2, 25, 2)]


def test_accumulated_batches_are_one_step():
    monitor = GradientNormMonitor(every_n_steps=2)
    fit(monitor, accumulate_grad_batches=4)
    assert [record.step for record in monitor.history] == [1, 2, 4, 6]


def test_a_layer_is_measured_from_its_first_gradient_on():
    monitor = GradientNormMonitor(every_n_steps=1)
    fit(monitor, Thawing, max_epochs=2)
    assert monitor.history[23].norms.keys() == {"layer"}
    assert monitor.history[24].norms.keys() == {"layer", "body"}
    assert monitor.table_entries().first_norms["body"] == monitor.history[24].norms["body"]


def test_a_layer_without_a_gradient_is_not_part_of_the_last_step():
    rows, monitor = RowsLogger(), GradientNormMonitor(every_n_steps=10)
    fit(monitor, Freezing, max_epochs=2, logger=rows, log_every_n_steps=10)
    assert monitor.last_norms == {
        "total": pytest.approx(monitor.history[-1].norms["layer"]),
        **monitor.history[-1].norms,
    }
    logged = [row["gradients/norm"] for _, row in rows.rows if "gradients/norm" in row]
    assert logged == pytest.approx([record.total for record in monitor.history[1:]])
    assert monitor.table_entries().last_norms.keys() == {"layer", "body"}


class Fails(pl.Callback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError(f"at step {self.step}")


class Weights(pl.Callback):
    """Remembers the weights before and after each step."""

    def __init__(self) -> None:
        self.recorded: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.recorded.append(nn.utils.parameters_to_vector(pl_module.parameters()).detach().clone())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.on_train_batch_start(trainer, pl_module, None, 0)


@pytest.mark.parametrize("kind", [RegressionModule, Fused, ByClosure])
def test_the_update_ratio_is_that_of_the_weights(kind: type):
    monitor, weights = GradientNormMonitor(every_n_steps=1), Weights()
    make_trainer(callbacks=[monitor, weights]).fit(make_module(kind=kind), make_loader())
    before, after = weights.recorded[:-1], weights.recorded[1:]
    true = [float((b.double() - a.double()).norm() / a.double().norm()) for a, b in zip(before, after, strict=True)]
    ratios = [record.updates["total"] for record in monitor.history]
    assert [ratio and ratio.value for ratio in ratios] == pytest.approx(true, rel=1e-6)
    assert [ratio and ratio.half_width for ratio in ratios] == [0.0] * 6
    assert monitor.history[0].updates["layer"] == monitor.history[0].updates["total"]


@pytest.mark.parametrize(
    ("clip", "algorithm", "share"), [(1e-6, "norm", 1.0), (1e6, "norm", 0.0), (1e-6, "value", 1.0)]
)
def test_the_share_of_clipped_steps_is_logged(clip: float, algorithm: str, share: float):
    rows = RowsLogger()
    fit(
        GradientNormMonitor(),
        gradient_clip_val=clip,
        gradient_clip_algorithm=algorithm,
        logger=rows,
        log_every_n_steps=10,
    )
    assert [row["gradients/clipped_fraction"] for _, row in rows.rows if "gradients/norm" in row] == [share, share]


def test_where_nothing_clips_there_is_no_such_share():
    rows = RowsLogger()
    monitor = GradientNormMonitor()
    fit(monitor, logger=rows, log_every_n_steps=10)
    assert monitor.history[0].clipped is None
    assert not rows.logged_steps("gradients/clipped_fraction")
    assert not rows.logged_steps("gradients/skipped_fraction")


@pytest.mark.parametrize("kind", [RegressionModule, Fused])
def test_steps_that_the_scaler_skips_are_counted(kind: type):
    """From 2^26 the scale is halved until the gradient is finite."""
    rows, monitor, weights = RowsLogger(), GradientNormMonitor(every_n_steps=1), Weights()
    options = {"plugins": half(init_scale=2.0**26, growth_interval=1000), "logger": rows, "log_every_n_steps": 24}
    make_trainer(callbacks=[monitor, weights], **options).fit(make_module(kind=kind), make_loader(48))
    moved = [not torch.equal(a, b) for a, b in zip(weights.recorded, weights.recorded[1:], strict=False)]
    assert [not record.skipped for record in monitor.history] == moved
    assert 0 < sum(moved) < 24
    share = 1 - sum(moved) / 24
    assert [row["gradients/skipped_fraction"] for _, row in rows.rows if "gradients/norm" in row] == [
        pytest.approx(share)
    ]
    assert all(not record.updates for record in monitor.history if record.skipped)


def test_a_step_without_a_gradient_is_skipped_and_its_norms_are_those_before():
    monitor = GradientNormMonitor(every_n_steps=1)
    fit(monitor, Sometimes)
    assert [record.skipped for record in monitor.history] == [False, True] * 12
    assert monitor.last_norms["layer"] == monitor.history[-2].norms["layer"]


def test_only_logging_steps_log_and_under_the_names_of_the_table():
    rows = RowsLogger()
    monitor = GradientNormMonitor(every_n_steps=5)
    fit(monitor, logger=rows, log_every_n_steps=10)
    logged = [(step, row) for step, row in rows.rows if "gradients/norm" in row]
    assert [step for step, _ in logged] == [9, 19]
    assert set(logged[0][1]) == {
        "gradients/norm",
        "gradients/norm/layer",
        "updates/ratio",
        "updates/ratio/layer",
        "epoch",
    }
    assert logged[0][1]["gradients/norm"] == pytest.approx(monitor.history[2].total)


def test_without_a_new_measurement_nothing_is_logged():
    rows = RowsLogger()
    fit(GradientNormMonitor(every_n_steps=20), logger=rows, log_every_n_steps=4)
    assert rows.logged_steps("gradients/norm") == [3, 19]


def test_it_goes_on_after_a_resume_as_if_nothing_had_been(tmp_path: Path):
    def attempt(folder: str, fails_at: int | None) -> GradientNormMonitor:
        monitor = GradientNormMonitor(every_n_steps=3)
        recovery = CheckpointRecovery(tmp_path / folder, every_n_train_steps=5)
        pl_trainer = make_trainer(callbacks=[monitor, recovery, Fails(fails_at)])
        pl_trainer.fit(make_module(), resumable(make_loader(48)), ckpt_path=recovery.latest_checkpoint())
        return monitor

    with pytest.raises(RuntimeError, match="at step 13"):
        attempt("resumed", 13)
    whole, resumed = attempt("whole", None), attempt("resumed", None)
    assert resumed.history == whole.history
    assert resumed.state_dict() == whole.state_dict() == json.loads(json.dumps(whole.state_dict()))


@pytest.mark.parametrize("fails_at", [None, 3])
def test_it_leaves_no_hook_behind(fails_at: int | None):
    pl_trainer = make_trainer(callbacks=[GradientNormMonitor(), Fails(fails_at)])
    with pytest.raises(RuntimeError, match="at step 3") if fails_at else nullcontext():
        pl_trainer.fit(make_module(), make_loader())
    assert "clip_gradients" not in vars(pl_trainer.precision_plugin)
    assert not pl_trainer.optimizers[0]._optimizer_step_post_hooks


def test_another_training_begins_anew_and_one_that_goes_on_does_not():
    monitor = GradientNormMonitor(every_n_steps=1)
    fit(monitor, Adversaries)
    running = fit(monitor)
    assert monitor.last_norms.keys() == {"total", "layer"}
    assert [record.step for record in monitor.history] == list(range(1, 25))
    running.fit_loop.max_epochs = 2
    running.fit(running.lightning_module, make_loader(48))
    assert [record.step for record in monitor.history] == list(range(1, 49))


def test_layers_whose_norms_are_large_together_have_a_total():
    """The square of each is within single precision, and that of the total is not."""

    class Large(RegressionModule):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(2, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return 5e18 * (self.layer(batch).sum() + self.other(batch).sum())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)  # type: ignore[attr-defined]

    monitor = GradientNormMonitor(every_n_steps=1)
    fit(monitor, Large, count=2)
    norms = monitor.history[0].norms
    assert sum(norm**2 for norm in norms.values()) > torch.finfo(torch.float32).max
    assert monitor.last_norms["total"] == pytest.approx(math.hypot(*norms.values()))


def test_a_training_of_which_nothing_was_measured_says_so():
    class Alone(RegressionModule):
        """Steps an optimizer of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.own: Any = None

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.own = self.own or torch.optim.SGD(self.parameters(), lr=0.1)  # type: ignore[attr-defined]
            self.layer(batch).sum().backward()
            self.own.step()

    with pytest.warns(UserWarning, match="No gradient was measured"):
        fit(GradientNormMonitor(), Alone)


def test_the_table_shows_each_layer(capsys: pytest.CaptureFixture[str]):
    monitor = GradientNormMonitor()
    fit(monitor)
    first, last = monitor.history[0].total, monitor.history[-1].total
    assert capsys.readouterr().out.splitlines() == ["layer  gradient norm", f"layer  {first:.3g} → {last:.3g}"]
    fit(GradientNormMonitor(table=False))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("arguments", [{"every_n_steps": 0}, {"history": 0}])
def test_numbers_out_of_range_are_refused(arguments: dict[str, int]):
    with pytest.raises(ValueError, match=r"must be at least 1.*, got 0"):
        GradientNormMonitor(**arguments)


def test_a_measurement_that_waits_for_a_logging_step_is_logged_after_a_resume(tmp_path: Path):
    def train(steps: int, checkpoint: Path | None = None) -> tuple[Any, list[tuple[int, float]]]:
        rows = RowsLogger()
        trainer = make_trainer(
            callbacks=[GradientNormMonitor(every_n_steps=30, table=False)], logger=rows, log_every_n_steps=5,
            max_epochs=2, max_steps=steps,
        )  # fmt: skip
        trainer.fit(make_module(), make_loader(40), ckpt_path=checkpoint)
        return trainer, [(step, row["gradients/norm"]) for step, row in rows.rows if "gradients/norm" in row]

    interrupted, _ = train(3)
    interrupted.save_checkpoint(tmp_path / "x.ckpt")
    _, resumed = train(8, tmp_path / "x.ckpt")
    assert [step for step, _ in resumed] == [4]
    assert resumed == train(8)[1]
