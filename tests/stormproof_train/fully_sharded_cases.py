"""What `test_fully_sharded.py` runs, in a process of their own."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from stormproof_train.errors import UserError
from stormproof_train.fully_sharded import shard_network
from stormproof_train.models import MLP


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[DeviceMesh]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    distributed.destroy_process_group()


def shard_linear_layers(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, FSDPModule)]


def test_what_a_sequence_holds_is_gathered_part_by_part_where_it_has_parameters(mesh: DeviceMesh):
    network = MLP((4,), 3, nn.ReLU, width=8, depth=2)
    shard_network(network, mesh)
    assert shard_linear_layers(network) == ["", "1", "3", "5"]
    assert all(isinstance(parameter, DTensor) for parameter in network.parameters())


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), nn.Linear(4, 4)])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        (first, second), third = self.stages
        return third(second(first(inputs)))


def test_a_list_in_a_list_is_looked_into(mesh: DeviceMesh):
    network, inputs = Listed(), torch.randn(3, 4)
    unsharded_outputs = network(inputs)
    shard_network(network, mesh)
    assert shard_linear_layers(network) == ["", "stages.0.0", "stages.0.1", "stages.1"]
    assert torch.equal(network(inputs), unsharded_outputs)


def test_a_module_that_comes_twice_is_one_part(mesh: DeviceMesh):
    shared_module = nn.PReLU()
    network = nn.Sequential(nn.Linear(4, 4), shared_module, nn.Linear(4, 4), shared_module)
    shard_network(network, mesh)
    assert shard_linear_layers(network) == ["", "0", "1", "2"]


def test_parts_that_share_a_weight_are_gathered_with_the_whole(mesh: DeviceMesh):
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    shard_network(network, mesh)
    assert shard_linear_layers(network) == ["", "1"]
    assert network[2].weight is network[0].weight


def test_what_cannot_be_spread_is_a_sentence(mesh: DeviceMesh):
    network = nn.Sequential(nn.Linear(4, 4))
    network.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(
        UserError, match=r"model: the parameters cannot be sharded over the ranks \(.*\. Use trainer=ddp"
    ):
        shard_network(network, mesh)


def test_a_network_that_is_spread_already_is_left_alone(mesh: DeviceMesh):
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    shard_network(network, mesh)
    parameters = list(network.parameters())
    shard_network(network, mesh)
    assert [id(parameter) for parameter in network.parameters()] == [id(parameter) for parameter in parameters]


def test_it_computes_what_the_whole_network_does(mesh: DeviceMesh):
    network, inputs = MLP((4,), 3, nn.ReLU, width=8, depth=2), torch.randn(5, 4)
    unsharded_outputs = network(inputs)
    shard_network(network, mesh)
    assert torch.equal(network(inputs), unsharded_outputs)
