from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.distributed.elastic.utils.distributed import get_free_port

from stormproof import DeadNeuronDetector, GradientNormMonitor
from stormproof.lightning.logged_metrics import add_callback_metrics
from tests.stormproof.units.unit_fits import ValidatedModule, make_loader
from tests.support.ranks import call_on_two_ranks, join_two_ranks
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


def _fit(*callbacks: Any, epochs: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    module = ValidatedModule(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)))
    trainer = make_trainer(callbacks=[*callbacks], max_epochs=epochs, log_every_n_steps=1, **options)
    loader = make_loader(torch.randn(8, 3))
    trainer.fit(module, loader, loader)
    return trainer


def test_monitors_publish_what_they_log():
    monitor, dead = GradientNormMonitor(every_n_steps=1, table=False), DeadNeuronDetector(table=False)
    metrics = _fit(monitor, dead).callback_metrics
    assert {"gradients/norm", "units/dead_fraction", "units/dead_fraction/net.1"} <= {*metrics}
    assert float(metrics["gradients/norm"]) == pytest.approx(monitor.last_norms["total"])


@pytest.mark.parametrize(("threshold", "steps"), [(1e9, 2), (0.0, 6)])
def test_early_stopping_by_the_gradient_norm(threshold: float, steps: int):
    stopping = EarlyStopping("gradients/norm", patience=99, stopping_threshold=threshold)
    trainer = _fit(stopping, GradientNormMonitor(every_n_steps=1, table=False))
    assert trainer.global_step == steps


def test_early_stopping_by_dead_units_listed_before_the_detector():
    stopping = EarlyStopping("units/dead_fraction", mode="max", patience=99, stopping_threshold=-1.0)
    assert _fit(stopping, DeadNeuronDetector(table=False)).global_step == 2


def test_model_checkpoint_by_dead_units(tmp_path: Path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="units/dead_fraction", save_top_k=1)
    _fit(checkpoint, DeadNeuronDetector(table=False), enable_checkpointing=True)
    assert checkpoint.best_model_score is not None
    assert 0.0 <= float(checkpoint.best_model_score) <= 1.0


def _fit_on_a_rank(rank: int, port: int) -> None:
    join_two_ranks(rank, port)
    stopping = EarlyStopping("gradients/norm", patience=99, stopping_threshold=1e9)
    by_dead_units = EarlyStopping("units/dead_fraction", patience=99, divergence_threshold=2.0)
    callbacks = [
        stopping,
        by_dead_units,
        GradientNormMonitor(every_n_steps=1, table=False),
        DeadNeuronDetector(table=False),
    ]
    trainer = _fit(*callbacks, strategy="ddp", devices=2)
    assert trainer.global_step == 1
    assert by_dead_units.best_score < 2


@pytest.mark.slow
def test_every_rank_has_the_metrics():
    call_on_two_ranks(_fit_on_a_rank, get_free_port())


def test_a_metric_is_in_lightning_s_own_dictionary():
    trainer = _fit()
    add_callback_metrics(trainer, {"mine": 0.5})
    assert float(trainer.callback_metrics["mine"]) == 0.5
