"""A copy that is independent of the original, is saved as the original would be, and uses its memory again."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from stormproof.checkpoint.host_staging import HostStager


def save_to_bytes(tree: Any) -> Any:
    file = io.BytesIO()
    torch.save(tree, file)
    length = file.tell()
    file.seek(0)
    return torch.load(file, weights_only=True), length


def staged_tensors(copies: HostStager) -> int:
    """Bytes of host memory."""
    return sum(buffer.numel() for buffer in copies._buffers)


def trained_module() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
    net[2].weight = net[0].weight  # tied
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    return net, optimizer


def test_what_changes_afterwards_does_not_change_the_copy():
    net, optimizer = trained_module()
    tree = {"state_dict": net.state_dict(), "optimizer_states": [optimizer.state_dict()], "step": 1}
    expected, length = save_to_bytes(tree)
    copied = HostStager().stage(tree)
    for _ in range(3):
        net(torch.randn(4, 8)).sum().backward()
        optimizer.step()
    tree["step"] = 2
    actual, copied_length = save_to_bytes(copied)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert copied_length == length


def test_containers_that_change_afterwards_do_not_change_the_copy():
    entries = [1, 2]
    copied = HostStager().stage({"callbacks": {"journal": entries, "set": {3}, "pair": (entries, None)}})
    entries.append(3)
    assert copied == {"callbacks": {"journal": [1, 2], "set": {3}, "pair": ([1, 2], None)}}


def test_tensors_that_share_memory_share_it_in_the_copy():
    base = torch.arange(6.0)
    copied = HostStager().stage([base, base[2:4], base.view(2, 3).t()])
    assert len({tensor.untyped_storage().data_ptr() for tensor in copied}) == 1
    assert [tensor.tolist() for tensor in copied] == [base.tolist(), [2.0, 3.0], base.view(2, 3).t().tolist()]
    assert copied[2].stride() == (1, 3)


def test_the_second_copy_takes_no_memory_of_its_own():
    net, optimizer = trained_module()
    copies = HostStager()
    first = copies.stage(net.state_dict())
    before = staged_tensors(copies)
    addresses = {tensor.data_ptr() for tensor in first.values()}
    for _ in range(3):
        net(torch.randn(4, 8)).sum().backward()
        optimizer.step()
        second = copies.stage(net.state_dict())
        assert staged_tensors(copies) == before
        assert {tensor.data_ptr() for tensor in second.values()} == addresses
        torch.testing.assert_close(dict(second), dict(net.state_dict()), rtol=0, atol=0)


def test_memory_of_what_is_gone_is_given_back():
    copies = HostStager()
    copies.stage([torch.zeros(100), torch.zeros(50)])
    copies.stage([torch.zeros(50)])
    assert staged_tensors(copies) == 200


def test_the_default_device_is_of_no_matter():
    tree = [torch.ones(2), torch.zeros(3)]
    with torch.device("meta"):
        copied = HostStager().stage(tree)
    assert [tensor.tolist() for tensor in copied] == [[1.0, 1.0], [0.0, 0.0, 0.0]]


TREES = {
    "numbers of every kind": [
        torch.ones(3, dtype=kind) for kind in (torch.bfloat16, torch.int8, torch.bool, torch.half)
    ],
    "complex": torch.complex(torch.ones(2), torch.ones(2)),
    "a conjugate": torch.complex(torch.ones(2), torch.ones(2)).conj(),
    "a scalar": torch.tensor(3.5),
    "nothing": torch.empty(0, 3),
    "every other": torch.arange(10)[::2],
    "expanded": torch.ones(1).expand(4),
    "sparse": torch.eye(3).to_sparse(),
    "a parameter": nn.Parameter(torch.ones(2), requires_grad=False),
    "an ordered dictionary": OrderedDict(b=torch.ones(1), a=1),
    "plain values": [None, True, 1, 2.5, "text", b"bytes", (1, (2,)), torch.Size([1]), torch.float16],
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # torch 2.14
@pytest.mark.parametrize("case", TREES)
def test_a_copy_is_saved_as_the_original(case: str):
    tree = TREES[case]
    copied = HostStager().stage(tree)
    (actual, length), (expected, expected_length) = save_to_bytes(copied), save_to_bytes(tree)
    assert type(copied) is type(tree)
    assert length == expected_length
    if isinstance(tree, torch.Tensor):
        assert (actual.dtype, actual.stride() if case != "sparse" else 0) == (
            expected.dtype,
            expected.stride() if case != "sparse" else 0,
        )
        assert torch.equal(actual.to_dense(), expected.to_dense())
    elif case == "numbers of every kind":
        assert all(torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in zip(actual, expected, strict=True))
    else:
        assert actual == expected
