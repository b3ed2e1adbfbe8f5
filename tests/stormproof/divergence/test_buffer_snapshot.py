"""The buffers of a module, put back as they were before a step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stormproof.divergence.step_monitor import BufferSnapshot


class Odd(nn.Module):
    """A buffer that is replaced, one that is none, a large one, and one of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("nothing", None)
        self.register_buffer("queue", torch.zeros(1000))
        self.register_buffer("empty", torch.zeros(0))


def buffer_values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in actual)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, lambda n: nn.SyncBatchNorm(n).eval().train(), nn.InstanceNorm1d])
def test_running_statistics_go_back_to_before_the_step(kind):
    norm = nn.Sequential(nn.Linear(4, 4), kind(4))
    if isinstance(norm[1], nn.InstanceNorm1d):
        norm[1] = nn.InstanceNorm1d(4, track_running_stats=True)
    if isinstance(norm[1], nn.SyncBatchNorm):
        norm[1] = nn.BatchNorm1d(4, momentum=None)
    snapshot = BufferSnapshot(norm)
    inputs = torch.randn(3, 4, 5).transpose(1, 2) if isinstance(norm[1], nn.InstanceNorm1d) else torch.randn(8, 4)
    for _ in range(3):
        snapshot.capture()
        before = buffer_values(norm)
        norm[1](inputs if inputs.dim() == 2 else inputs.transpose(1, 2))
        snapshot.restore()
        assert_equal(buffer_values(norm), before)
        norm[1](inputs if inputs.dim() == 2 else inputs.transpose(1, 2))


def test_whatever_else_changes_goes_back_too():
    module = Odd()
    snapshot = BufferSnapshot(module)
    for step in range(3):
        snapshot.capture()
        before = buffer_values(module)
        module.count = module.count + 1
        module.queue[step] = 1.0
        snapshot.restore()
        assert_equal(buffer_values(module), before)
        module.count = module.count + 1
        module.queue[step] = 2.0
    assert module.count == 3


def test_a_buffer_that_means_its_infinity_is_not_broken():
    module = nn.Module()
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    module.register_buffer("mean", torch.zeros(2))
    snapshot = BufferSnapshot(module)
    snapshot.capture()
    assert not snapshot.has_new_non_finite()
    module.get_buffer("mean").fill_(torch.nan)
    assert snapshot.has_new_non_finite()


def test_a_module_without_buffers_has_nothing_to_keep():
    snapshot = BufferSnapshot(nn.Linear(2, 2))
    snapshot.capture()
    snapshot.restore()
    assert not snapshot.has_new_non_finite()


def test_what_is_changed_behind_torchs_count_goes_back_too():
    module = nn.Module()
    module.register_buffer("codebook", torch.ones(100_000))
    snapshot = BufferSnapshot(module)
    snapshot.capture()
    module.get_buffer("codebook").data.mul_(torch.nan)
    snapshot.restore()
    assert bool((module.get_buffer("codebook") == 1).all())


def test_a_backward_pass_that_is_still_to_come_may_need_a_buffer_that_went_back():
    norm = nn.BatchNorm1d(2).train()
    snapshot = BufferSnapshot(norm)
    snapshot.capture()
    loss = norm(torch.randn(4, 2)).square().sum()
    snapshot.restore()
    loss.backward()


def test_only_broken_ones_are_put_back_where_that_is_asked():
    module = nn.Module()
    module.register_buffer("broken", torch.ones(1))
    module.register_buffer("well", torch.ones(1))
    snapshot = BufferSnapshot(module)
    snapshot.capture()
    module.get_buffer("broken").fill_(torch.nan)
    module.get_buffer("well").fill_(2.0)
    snapshot.restore(non_finite_only=True)
    assert [module.get_buffer(name).item() for name in ("broken", "well")] == [1.0, 2.0]


def test_a_buffer_that_is_taken_away_is_nobodys_business():
    module = nn.Module()
    module.register_buffer("mask", torch.ones(1))
    snapshot = BufferSnapshot(module)
    snapshot.capture()
    del module.mask
    snapshot.capture()
    snapshot.restore()


class Refusing(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func.__name__ in {"clone", "isfinite", "copy_", "detach"}:
            raise RuntimeError(f"no {func.__name__}")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_buffer_of_a_subclass_that_refuses_functions_goes_back_too():
    module = nn.Module()
    module.register_buffer("mean", torch.zeros(3).as_subclass(Refusing), persistent=False)
    snapshot = BufferSnapshot(module)
    snapshot.capture()
    module.mean.fill_(torch.nan)
    assert snapshot.has_new_non_finite()
    snapshot.restore()
    assert module.mean.as_subclass(torch.Tensor).tolist() == [0.0, 0.0, 0.0]
