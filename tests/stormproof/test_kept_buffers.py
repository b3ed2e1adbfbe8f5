"""The buffers of a module, put back as they were before a step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stormproof.kept_buffers import COUNTED, KeptBuffers


class Odd(nn.Module):
    """A buffer that is replaced, one that is none, a large one, and one of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("nothing", None)
        self.register_buffer("queue", torch.zeros(COUNTED))
        self.register_buffer("empty", torch.zeros(0))


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, lambda n: nn.SyncBatchNorm(n).eval().train(), nn.InstanceNorm1d])
def test_running_statistics_go_back_to_before_the_step(kind):
    norm = nn.Sequential(nn.Linear(4, 4), kind(4))
    if isinstance(norm[1], nn.InstanceNorm1d):
        norm[1] = nn.InstanceNorm1d(4, track_running_stats=True)
    if isinstance(norm[1], nn.SyncBatchNorm):
        norm[1] = nn.BatchNorm1d(4, momentum=None)
    kept = KeptBuffers(norm)
    inputs = torch.randn(3, 4, 5).transpose(1, 2) if isinstance(norm[1], nn.InstanceNorm1d) else torch.randn(8, 4)
    for _ in range(3):
        kept.take()
        before = values(norm)
        norm[1](inputs if inputs.dim() == 2 else inputs.transpose(1, 2))
        kept.restore()
        assert_equal(values(norm), before)
        norm[1](inputs if inputs.dim() == 2 else inputs.transpose(1, 2))


def test_whatever_else_changes_goes_back_too():
    module = Odd()
    kept = KeptBuffers(module)
    for step in range(3):
        kept.take()
        before = values(module)
        module.count = module.count + 1
        module.queue[step] = 1.0
        kept.restore()
        assert_equal(values(module), before)
        module.count = module.count + 1
        module.queue[step] = 2.0
    assert module.count == 3


def test_a_buffer_that_means_its_infinity_is_not_broken():
    module = nn.Module()
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    module.register_buffer("mean", torch.zeros(2))
    kept = KeptBuffers(module)
    kept.take()
    assert not kept.any_broken()
    module.get_buffer("mean").fill_(torch.nan)
    assert kept.any_broken()


def test_a_module_without_buffers_has_nothing_to_keep():
    kept = KeptBuffers(nn.Linear(2, 2))
    kept.take()
    kept.restore()
    assert not kept.any_broken()
