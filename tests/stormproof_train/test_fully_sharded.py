from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from stormproof_train.fully_sharded import shard
from stormproof_train.models import MLP


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[DeviceMesh]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    distributed.destroy_process_group()


def wrapped(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, FSDPModule)]


def test_what_a_sequence_holds_is_gathered_part_by_part_where_it_has_parameters(mesh: DeviceMesh):
    network = MLP((4,), 3, nn.ReLU, width=8, depth=2)
    shard(network, mesh)
    assert wrapped(network) == ["", "1", "3", "5"]
    assert all(isinstance(each, DTensor) for each in network.parameters())


def test_a_network_that_is_spread_already_is_left_alone(mesh: DeviceMesh):
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    shard(network, mesh)
    parameters = list(network.parameters())
    shard(network, mesh)
    assert [id(each) for each in network.parameters()] == [id(each) for each in parameters]


def test_it_computes_what_the_whole_network_does(mesh: DeviceMesh):
    network, inputs = MLP((4,), 3, nn.ReLU, width=8, depth=2), torch.randn(5, 4)
    whole = network(inputs)
    shard(network, mesh)
    assert torch.equal(network(inputs), whole)
