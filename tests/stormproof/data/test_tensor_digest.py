import pytest
import torch

from stormproof.data.fingerprint import digest_tensor

MAKE = {
    "dense": lambda: torch.arange(6.0).view(2, 3),
    "of other bits": lambda: torch.arange(6.0).view(2, 3) + 1e-6,
    "of another shape": lambda: torch.arange(6.0),
    "of another dtype": lambda: torch.arange(6.0).view(2, 3).double(),
    "bfloat16": lambda: torch.arange(6).view(2, 3).bfloat16(),
    "bool": lambda: torch.ones(2, 3, dtype=torch.bool),
    "empty": lambda: torch.zeros(0),
    "a number": lambda: torch.tensor(0.0),
    "conjugate": lambda: torch.tensor([1 + 2j]).conj(),
    "complex": lambda: torch.tensor([1 + 2j]),
    "COO": lambda: torch.eye(2).to_sparse(),
    "COO of other values": lambda: torch.eye(2).to_sparse() * 2,
    "CSR": lambda: torch.eye(2).to_sparse_csr(),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_digests_are_equal_for_equal_tensors_only():
    assert [digest_tensor(make()) for make in MAKE.values()] == [digest_tensor(make()) for make in MAKE.values()]
    assert len({digest_tensor(make()) for make in MAKE.values()}) == len(MAKE)


def test_a_tensor_that_is_not_contiguous_has_the_digest_of_its_copy():
    tensor = torch.arange(6.0).view(2, 3).T
    assert digest_tensor(tensor) == digest_tensor(tensor.contiguous())


def test_a_tensor_whose_digest_was_computed_can_be_resized():
    tensor = torch.zeros(4)
    digest_tensor(tensor)
    assert tensor.resize_(8).shape == (8,)
