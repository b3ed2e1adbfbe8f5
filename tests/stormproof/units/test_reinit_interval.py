"""Units that are inactive relative to their layer are dormant. They are reinitialized at an interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from stormproof import DeadNeuronDetector, resumable
from stormproof.units.redo import is_dormant
from tests.stormproof.units.reinit_fits import UNIT
from tests.stormproof.units.unit_fits import (
    OnStep,
    TrainingModule,
    fit,
    make_detector,
    make_inputs,
    make_loader,
    mlp,
    set_unit_weights,
)
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


@pytest.mark.parametrize(
    ("sizes", "share", "expected"),
    [
        ([0.0, 0.01, 1.0], 0.025, [True, False, False]),
        ([0.0, 0.008, 1.0], 0.025, [True, True, False]),
        ([0.0, 0.0], 0.025, [True, True]),
        ([0.0, 1e-9, 1.0], 0.0, [True, False, False]),
        ([float("nan"), 0.0, 1.0], 0.025, [False, False, False]),
    ],
)
def test_a_unit_is_dormant_by_its_share_of_the_layers_mean(sizes: list[float], share: float, expected: list[bool]):
    assert is_dormant(torch.tensor(sizes), share).tolist() == expected


def test_it_is_off_by_default():
    net = mlp(6, 4, 2)
    dead = DeadNeuronDetector(table=False)
    set_unit_weights(net[0], UNIT, bias=-100)
    result = fit(net, make_inputs(16, 6), dead=dead)
    assert dead.reinitialized == {}
    assert result.module.net[0].bias[UNIT] < -99  # type: ignore[index,union-attr,operator]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_it_is_done_at_every_multiple(every: int):
    done_at = []

    class Note(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if pl_module.net[0].bias[UNIT] > -99:
                done_at.append(trainer.global_step)
                set_unit_weights(pl_module.net[0], UNIT, bias=-100.0)

    net, dead = mlp(6, 4, 2), make_detector(reinit_every_n_steps=every, dormant_threshold=0.0)
    kill = OnStep(1, lambda module: set_unit_weights(module.net[0], UNIT, bias=-100.0, weight=0.0))
    pl_trainer = make_trainer(callbacks=[kill, dead, Note()])
    set_unit_weights(net[0], slice(None), bias=3.0)
    pl_trainer.fit(
        TrainingModule(net, lambda parameters: torch.optim.SGD(parameters, lr=0.0)), make_loader(make_inputs(28, 6))
    )
    assert done_at == [step for step in range(2, 8) if step % every == 0]
    assert dead.reinitialized == {"net.1": len(done_at)}


def test_with_accumulated_gradients_a_step_is_a_step():
    kill = OnStep(1, lambda module: set_unit_weights(module.net[0], UNIT, bias=-100.0))
    dead = make_detector(reinit_every_n_steps=2, dormant_threshold=0.0)
    result = fit(mlp(6, 4, 2), make_inputs(16, 6), None, kill, dead=dead, accumulate_grad_batches=2)
    assert result.trainer.global_step == 2
    assert dead.reinitialized == {"net.1": 1}


@pytest.mark.parametrize("every", [4, 5])
def test_two_optimizers_do_not_step_over_it(every: int):
    class Both(TrainingModule):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.zero_grad()
                self.manual_backward(self.net(batch[0]).square().mean())
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.Adam(self.net[0].parameters()), torch.optim.Adam(self.net[2].parameters())]  # type: ignore[index]

    dead = make_detector(reinit_every_n_steps=every, dormant_threshold=0.0)  # all steps are even
    net = mlp(6, 4, 2)
    set_unit_weights(net[0], slice(None), bias=3.0)  # no other one is silent by chance
    kill = OnStep(2, lambda module: set_unit_weights(module.net[0], UNIT, bias=-100.0))
    fit(Both(net), make_inputs(12, 6), None, kill, dead=dead)
    assert dead.reinitialized == {"net.1": 1}


def test_it_goes_on_after_a_resume(tmp_path: Path):
    def run(*after: pl.Callback, ckpt_path: Any = None) -> tuple[DeadNeuronDetector, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        dead = make_detector(reinit_every_n_steps=2, dormant_threshold=0.0)
        kills = [
            OnStep(step, lambda module: set_unit_weights(module.net[0], UNIT, bias=-100.0, weight=1.0))
            for step in (1, 3)
        ]
        pl_trainer = make_trainer(callbacks=[*kills, dead, *after])
        module = TrainingModule(mlp(6, 4, 2), torch.optim.Adam)
        pl_trainer.fit(module, resumable(make_loader(make_inputs(24, 6)), seed=1), ckpt_path=ckpt_path)
        return dead, module.state_dict()

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    expected, weights = run(Save())
    resumed, resumed_weights = run(ckpt_path=tmp_path / "x.ckpt")
    assert expected.reinitialized == resumed.reinitialized == {"net.1": 2}
    assert expected.state_dict() == resumed.state_dict()
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)


@pytest.mark.slow
def test_a_compiled_network_is_revived():
    torch._dynamo.reset()
    net: Any = torch.compile(mlp(6, 4, 2), backend="eager", fullgraph=True)
    kill = OnStep(1, lambda module: set_unit_weights(module.net._orig_mod[0], UNIT, bias=-100.0))
    result = fit(
        net,
        make_inputs(8, 6),
        make_inputs(4, 6),
        kill,
        dead=make_detector(reinit_every_n_steps=2, dormant_threshold=0.0),
        num_sanity_val_steps=1,
    )
    assert result.dead.reinitialized == {"net.1": 1}
    torch._dynamo.reset()
