"""Units that are inactive relative to their layer are dormant. They are reinitialized at an interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from stormproof import DeadNeuronDetector, resumable
from stormproof.units.redo import dormant
from tests.stormproof.units.reinit_fits import UNIT
from tests.stormproof.units.unit_fits import At, Trained, batches, fit, inputs, mlp, quiet, set_
from tests.support.small_fits import LIGHTNINGS_OWN, trainer

pytestmark = LIGHTNINGS_OWN


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
    assert dormant(torch.tensor(sizes), share).tolist() == expected


def test_it_is_off_by_default():
    net = mlp(6, 4, 2)
    dead = DeadNeuronDetector(table=False)
    set_(net[0], UNIT, bias=-100)
    done = fit(net, inputs(16, 6), dead=dead)
    assert dead.revived == {}
    assert done.module.net[0].bias[UNIT] < -99  # type: ignore[index,union-attr,operator]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_it_is_done_at_every_multiple(every: int):
    done_at = []

    class Note(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if pl_module.net[0].bias[UNIT] > -99:
                done_at.append(trainer.global_step)
                set_(pl_module.net[0], UNIT, bias=-100.0)

    net, dead = mlp(6, 4, 2), quiet(reinit_every_n_steps=every, dormant_threshold=0.0)
    kill = At(1, lambda module: set_(module.net[0], UNIT, bias=-100.0, weight=0.0))
    running = trainer(callbacks=[kill, dead, Note()])
    set_(net[0], slice(None), bias=3.0)
    running.fit(Trained(net, lambda parameters: torch.optim.SGD(parameters, lr=0.0)), batches(inputs(28, 6)))
    assert done_at == [step for step in range(2, 8) if step % every == 0]
    assert dead.revived == {"net.1": len(done_at)}


def test_with_accumulated_gradients_a_step_is_a_step():
    kill = At(1, lambda module: set_(module.net[0], UNIT, bias=-100.0))
    dead = quiet(reinit_every_n_steps=2, dormant_threshold=0.0)
    done = fit(mlp(6, 4, 2), inputs(16, 6), None, kill, dead=dead, accumulate_grad_batches=2)
    assert done.trainer.global_step == 2
    assert dead.revived == {"net.1": 1}


@pytest.mark.parametrize("every", [4, 5])
def test_two_optimizers_do_not_step_over_it(every: int):
    class Both(Trained):
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

    dead = quiet(reinit_every_n_steps=every, dormant_threshold=0.0)  # all steps are even
    net = mlp(6, 4, 2)
    set_(net[0], slice(None), bias=3.0)  # no other one is silent by chance
    kill = At(2, lambda module: set_(module.net[0], UNIT, bias=-100.0))
    fit(Both(net), inputs(12, 6), None, kill, dead=dead)
    assert dead.revived == {"net.1": 1}


def test_it_goes_on_after_a_resume(tmp_path: Path):
    def run(*after: pl.Callback, ckpt_path: Any = None) -> tuple[DeadNeuronDetector, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        dead = quiet(reinit_every_n_steps=2, dormant_threshold=0.0)
        kills = [At(step, lambda module: set_(module.net[0], UNIT, bias=-100.0, weight=1.0)) for step in (1, 3)]
        running = trainer(callbacks=[*kills, dead, *after])
        module = Trained(mlp(6, 4, 2), torch.optim.Adam)
        running.fit(module, resumable(batches(inputs(24, 6)), seed=1), ckpt_path=ckpt_path)
        return dead, module.state_dict()

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    whole, weights = run(Save())
    resumed, resumed_weights = run(ckpt_path=tmp_path / "x.ckpt")
    assert whole.revived == resumed.revived == {"net.1": 2}
    assert whole.state_dict() == resumed.state_dict()
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)


@pytest.mark.slow
def test_a_compiled_network_is_revived():
    torch._dynamo.reset()
    net: Any = torch.compile(mlp(6, 4, 2), backend="eager", fullgraph=True)
    kill = At(1, lambda module: set_(module.net._orig_mod[0], UNIT, bias=-100.0))
    done = fit(
        net,
        inputs(8, 6),
        inputs(4, 6),
        kill,
        dead=quiet(reinit_every_n_steps=2, dormant_threshold=0.0),
        num_sanity_val_steps=1,
    )
    assert done.dead.revived == {"net.1": 1}
    torch._dynamo.reset()
