import pytest
import torch
from torch import nn

from stormproof.gradients.norms import GradientNorms, largest_entry, local_norms, norm_for_clipping
from stormproof.lightning.layer_names import get_layer_name, get_layer_names, strip_wrappers

SHAPES = [(), (3,), (4, 5), (2, 3, 4), (0,)]
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]


def gradients(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_norms_are_those_in_double_precision_of_every_type(dtype: torch.dtype):
    tensors = gradients(dtype)
    exact = [float(tensor.to(torch.complex128).abs().square().sum()) for tensor in tensors]
    assert local_norms(tensors).square().tolist() == pytest.approx(exact, rel=1e-6)


def test_types_may_be_mixed():
    tensors = [gradients(dtype)[2] for dtype in TYPES]
    exact = [float(tensor.to(torch.complex128).abs().square().sum()) for tensor in tensors]
    assert local_norms(tensors).square().tolist() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_many_small_numbers_of_half_precision_are_not_lost(dtype: torch.dtype):
    assert float(local_norms([torch.full((100_000,), 0.01, dtype=dtype)])) == pytest.approx(10**0.5, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", [[1], [0, 3], [17, 1, 1000], [100_003, 5, 64 * 64, 7]], ids=str)
def test_the_norm_for_clipping_has_the_bits_of_torch(sizes: list[int], dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]
    tensors[-1] = tensors[-1].expand(3, -1).T  # not contiguous
    norm = norm_for_clipping(tensors, GradientNorms(tensors))
    assert norm is not None
    assert torch.equal(norm, torch.nn.utils.get_total_norm(tensors))


@pytest.mark.parametrize(
    "tensors",
    [
        gradients(torch.bfloat16),
        gradients(torch.complex64),
        [torch.ones(2), torch.ones(2, dtype=torch.float64)],
        [torch.ones(2, 2).to_sparse()],
    ],
    ids=["bfloat16", "complex", "two types", "sparse"],
)
def test_there_is_no_norm_for_clipping_if_torch_computes_it_in_another_way(tensors: list[torch.Tensor]):
    assert norm_for_clipping(tensors, GradientNorms(tensors)) is None


def test_a_sparse_gradient_counts_what_came_twice_once_added_up():
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1, 2])).sum().backward()
    assert embedding.weight.grad is not None
    assert local_norms([embedding.weight.grad]).square().tolist() == pytest.approx([2 * 2**2 + 2 * 1**2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_with_its_tensor(bad: float):
    norms = local_norms([torch.tensor([bad, 1.0]), torch.tensor([2.0])])
    assert not torch.isfinite(norms[0])
    assert norms[1] == 2


def test_the_largest_entry_is_that_of_all():
    assert largest_entry([torch.tensor([1.0, -7.0]), torch.tensor([[3.0]])]) == 7
    assert largest_entry([torch.tensor([1.0]), torch.zeros(0)]) == 1  # the part of a rank may be empty


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("net.0.weight", "net.0"),
        ("net._orig_mod.0.weight", "net.0"),
        ("_orig_mod.net.0.bias", "net.0"),
        ("blocks.1._checkpoint_wrapped_module.mlp.weight", "blocks.1.mlp"),
        ("class_token", "class_token"),
        ("net.weight_ih_l0", "net"),
    ],
)
def test_a_layer_is_called_by_its_owner_without_wrappers(parameter: str, layer: str):
    assert get_layer_name(parameter) == layer


def test_a_module_of_no_wrapper_keeps_its_name():
    assert strip_wrappers("net.orig_mod.0") == "net.orig_mod.0"


def test_a_shared_weight_is_the_first_ones_and_a_stranger_has_no_name():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    assert get_layer_names(net, [net[1].weight, net[1].bias, torch.zeros(1)]) == ["0", "1", "unnamed"]
