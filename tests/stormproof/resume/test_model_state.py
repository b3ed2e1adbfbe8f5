from types import SimpleNamespace
from typing import Any

import torch

from stormproof.resume.model_state import forget_steps, without_a_step


def test_forget_steps_clears_only_the_given_optimizers():
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    trainer: Any = SimpleNamespace(optimizers=[torch.optim.Adam([parameter]) for parameter in parameters])
    for parameter, optimizer in zip(parameters, trainer.optimizers, strict=True):
        parameter.grad = torch.ones(2)
        optimizer.step()
    forget_steps(trainer, [1])
    assert without_a_step(trainer) == [1]
