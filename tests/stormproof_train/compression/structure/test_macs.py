import pytest
import torch
from torch import nn

from stormproof_train.compression.structure.macs import count_macs
from stormproof_train.models import Transformer
from tests.stormproof_train.compression.small_networks import MODELS, make_samples


def test_convolutions_are_counted_by_their_positions_and_groups():
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8))
    assert count_macs(network, torch.zeros(2, 4, 5, 5)) == 25 * 4 * 8 * 9 + 9 * 8 * 9


def test_attention_is_counted_by_its_products():
    network = Transformer((1, 8, 8), 4, nn.GELU, width=8, depth=1, heads=2, patch_size=4)
    tokens, width = 4, 8
    attention = tokens * width * 3 * width + 2 * tokens * tokens * width + tokens * width * width
    assert (
        count_macs(network, make_samples())
        == 16 * width * tokens + attention + 2 * tokens * width * 2 * width + width * 4
    )


def test_the_fused_layers_of_torch_are_counted_too():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert count_macs(layer, torch.zeros(3, 5, 8)) == 5 * 8 * 24 + 2 * 25 * 8 + 5 * 64 + 2 * 5 * 8 * 16
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("training", [True, False])
def test_the_network_stays_as_it_was(training: bool):
    network = MODELS["cnn_batch"](nn.ReLU).train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    count_macs(network, make_samples())
    assert all(module.training == training for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
