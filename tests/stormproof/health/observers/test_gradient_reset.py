"""Missing calls of zero_grad are detected."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from stormproof.health.observers.optimization import MAX_STEPS, ZeroGradCheck

Loop = Callable[[nn.Module, torch.optim.Optimizer], None]


def _backward(module: nn.Module) -> None:
    module(torch.randn(4, 3)).square().mean().backward()


def never_cleared(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    _backward(module)
    optimizer.step()


def cleared_before(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    _backward(module)
    optimizer.step()


def cleared_after(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    _backward(module)
    optimizer.step()
    optimizer.zero_grad()


def cleared_to_zeros(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=False)
    _backward(module)
    optimizer.step()


def accumulated(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    for _ in range(4):
        _backward(module)
    optimizer.step()


def zero_grad_bypassed(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Another optimizer's loss goes through these weights before they are cleared, as in a GAN."""
    _backward(module)
    optimizer.zero_grad()
    _backward(module)
    optimizer.step()


def assigned(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Gradients are computed by torch.autograd.grad and replaced, as in multi-task methods such as PCGrad."""
    weights = list(module.parameters())
    gradients = torch.autograd.grad(module(torch.randn(4, 3)).square().mean(), weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimizer.step()


def accumulated_on_old(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(3):
        _backward(module)
    optimizer.step()


@pytest.mark.parametrize(
    "clears", [cleared_before, cleared_after, cleared_to_zeros, accumulated, zero_grad_bypassed, assigned]
)
def test_a_loop_that_clears_is_no_fault(clears: Loop):
    assert _run_watched(clears).stale_steps == 0


@pytest.mark.parametrize("keeps", [never_cleared, accumulated_on_old])
def test_a_loop_that_never_clears_is_seen_in_every_step(keeps: Loop):
    watched = _run_watched(keeps)
    assert watched.stale_steps == watched.checked_steps == MAX_STEPS


def _run_watched(loop: Loop) -> ZeroGradCheck:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    watched = ZeroGradCheck(optimizer)
    for _ in range(MAX_STEPS + 3):
        loop(module, optimizer)
    assert watched.is_done
    watched.stop()
    return watched
