from types import SimpleNamespace
from typing import Any

import torch

from stormproof.resume.model_state import clear_optimizer_states, find_unstepped_optimizers


def test_forget_steps_clears_only_the_given_optimizers():
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    trainer: Any = SimpleNamespace(optimizers=[torch.optim.Adam([parameter]) for parameter in parameters])
    for parameter, optimizer in zip(parameters, trainer.optimizers, strict=True):
        parameter.grad = torch.ones(2)
        optimizer.step()
    clear_optimizer_states(trainer, [1])
    assert find_unstepped_optimizers(trainer) == [1]
