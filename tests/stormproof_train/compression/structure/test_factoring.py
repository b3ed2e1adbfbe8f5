import copy

import pytest
import torch
from torch import nn

from stormproof_train.compression.structure.factoring import choose_ranks, factorize
from stormproof_train.compression.structure.macs import count_macs
from stormproof_train.compression.structure.rebuild import apply_structure
from stormproof_train.compression.structure.shapes import changed_shapes
from stormproof_train.errors import UserError
from tests.stormproof_train.compression.small_networks import MODELS, make_samples, prune, randomize_weights


def test_without_samples_the_weight_is_approximated_best():
    network = randomize_weights(nn.Sequential(nn.Linear(9, 7)))
    weight = network[0].weight.detach().clone()
    factorize(network, {"0": 3})
    first, last = network[0]
    singular = torch.linalg.svdvals(weight)
    assert (last.weight @ first.weight - weight).norm().item() == pytest.approx(singular[3:].norm().item(), rel=1e-5)
    torch.testing.assert_close(first.weight.norm(dim=1), singular[:3].sqrt())
    torch.testing.assert_close(last.weight.norm(dim=0), singular[:3].sqrt())


def test_with_samples_the_outputs_are_approximated_best():
    inputs = make_samples(50, 9) @ torch.diag(torch.logspace(0, -2, 9))
    network = randomize_weights(nn.Sequential(nn.Linear(9, 7, bias=False)))
    by_weight = copy.deepcopy(network)
    outputs = network(inputs)
    factorize(network, {"0": 3}, inputs)
    factorize(by_weight, {"0": 3})
    lost = (network(inputs) - outputs).norm().item()
    assert lost == pytest.approx(torch.linalg.svdvals(outputs)[3:].norm().item(), rel=1e-4)
    assert lost < (by_weight(inputs) - outputs).norm().item()


def test_at_full_rank_the_network_computes_the_same():
    network = randomize_weights(MODELS["transformer"](nn.GELU)).eval()
    expected = network(make_samples())
    factorize(network, {"blocks.0.1.residual.1.wide": 8, "head.1": 4})
    torch.testing.assert_close(network(make_samples()), expected)


@pytest.mark.parametrize("model", ["mlp", "transformer"])
def test_the_ranks_give_at_most_the_macs_asked_for(model: str):
    network = randomize_weights(MODELS[model](nn.GELU)).eval()
    before = count_macs(network, make_samples())
    for share in (0.95, 0.8, 0.7):
        factored = copy.deepcopy(network)
        ranks = choose_ranks(network, make_samples(64), int(share * before))
        assert ranks
        factorize(factored, ranks, make_samples(64))
        assert count_macs(factored, make_samples()) <= share * before


def test_all_layers_keep_the_same_share():
    inputs = make_samples(200, 16)
    network = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.linalg.qr(make_samples(16, 16))[0] @ torch.diag(torch.logspace(0, -3, 16)))
        network[1].weight.copy_(torch.linalg.qr(make_samples(16, 16))[0])
    ranks = choose_ranks(network, inputs, 2 * 256 - 64)
    assert ranks == {"0": ranks["0"]} or ranks["0"] <= ranks["1"]


def test_a_network_that_is_small_enough_is_not_factored():
    network = MODELS["mlp"](nn.ReLU)
    assert choose_ranks(network, make_samples(), count_macs(network, make_samples())) == {}


def test_what_cannot_be_reached_is_refused_with_what_can():
    with pytest.raises(UserError, match=r"CNN cannot be factored to 1 multiply-accumulates per sample: the minimum is"):
        choose_ranks(MODELS["cnn"](nn.ReLU), make_samples(), 1)
    with pytest.raises(UserError, match=r"Sequential cannot be factored to 1 .* the minimum is 2 of 2"):
        choose_ranks(nn.Sequential(nn.Conv1d(1, 2, 1)), torch.randn(2, 1, 1), 1)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"1": 1}, "1 cannot be factored: it is not a linear layer"),
        ({"2": 1}, "2 cannot be factored: it is not a linear layer"),
        ({"0": 0}, "must be from 1 to 4, got 0"),
        ({"0": 5}, "must be from 1 to 4, got 5"),
    ],
)
def test_a_rank_that_cannot_be_is_refused(ranks: dict[str, int], message: str):
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    network[3].weight = network[2].weight
    with pytest.raises(ValueError, match=message):
        factorize(network, ranks)


def test_attention_of_torch_keeps_its_layers():
    network = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    ranks = choose_ranks(network, make_samples(8, 5, 8), 2500)
    assert set(ranks) <= {"linear1", "linear2"}


def test_nothing_is_drawn_and_what_is_frozen_stays_frozen():
    network = nn.Sequential(nn.Linear(6, 4)).eval()
    network[0].weight.requires_grad_(requires_grad=False)
    state = torch.get_rng_state()
    factorize(network, {"0": 2})
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: parameter.requires_grad for name, parameter in network.named_parameters()} == {
        "0.0.weight": False,
        "0.1.weight": False,
        "0.1.bias": True,
    }
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("model", ["mlp_batch", "transformer"])
def test_a_pruned_network_is_factored_and_built_again(model: str):
    network = randomize_weights(MODELS[model](nn.GELU)).eval()
    pruned = prune(network, make_samples(), count_macs(network, make_samples()) * 3 // 4)
    shapes = changed_shapes(pruned, network)
    ranks = choose_ranks(pruned, make_samples(64), count_macs(pruned, make_samples()) * 4 // 5)
    assert ranks
    factorize(pruned, ranks, make_samples(64))
    rebuilt = apply_structure(MODELS[model](nn.GELU), shapes, ranks).eval()
    rebuilt.load_state_dict(pruned.state_dict(), strict=True)
    assert torch.equal(rebuilt(make_samples()), pruned(make_samples()))
