"""The best constant prediction, against a search for it."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 (its name everywhere)

from stormproof.health.observers.torch_losses import LOSS_INPUTS, LossRecorder, best_constant

torch.manual_seed(0)
CLASSES = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
NUMBERS = torch.tensor([0.1, 0.5, -1.0, 2.0, 0.3, 0.2, 5.0])[:, None]
SHARES = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])[:, None]
CASES: list[tuple[str, dict[str, Any], torch.Tensor]] = [
    ("cross_entropy", {}, CLASSES),
    ("cross_entropy", {"label_smoothing": 0.2}, CLASSES),
    ("cross_entropy", {"weight": torch.tensor([1.0, 5.0, 0.5])}, CLASSES),
    ("cross_entropy", {"reduction": "sum"}, CLASSES),
    ("cross_entropy", {"ignore_index": 2}, CLASSES),
    ("cross_entropy", {}, F.one_hot(CLASSES).float() * 0.9 + 0.1 / 3),
    ("binary_cross_entropy_with_logits", {}, SHARES),
    ("binary_cross_entropy_with_logits", {"pos_weight": torch.tensor([3.0])}, SHARES),
    ("mse_loss", {}, NUMBERS),
    ("l1_loss", {}, NUMBERS),
    ("poisson_nll_loss", {}, NUMBERS.abs()),
]


@pytest.mark.parametrize(("name", "arguments", "target"), CASES)
def test_no_other_constant_has_a_lower_loss(name: str, arguments: dict[str, Any], target: torch.Tensor):
    classes = 3 if name == "cross_entropy" else 1
    constant = best_constant(name, arguments, target, classes)
    assert constant is not None
    constant_loss = float(
        getattr(F, name)(
            constant.expand(len(target), -1),
            target.to(constant.dtype) if target.is_floating_point() else target,
            **_double(arguments),
        )
    )
    searched = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([searched], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        float_target = target.double() if target.is_floating_point() else target
        loss = getattr(F, name)(searched.expand(len(target), -1), float_target, **_double(arguments))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert constant_loss == pytest.approx(float(closure().detach()), rel=1e-4, abs=1e-6)


def _double(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value.double() if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}


def test_classes_of_many_places_have_one_constant():
    target = torch.tensor([[0, 1, 1], [1, 1, 1]])
    constant = best_constant("cross_entropy", {}, target, 2)
    assert constant is not None
    assert constant.shape == (1, 2, 1)
    torch.testing.assert_close(constant.exp().flatten(), torch.tensor([1 / 6, 5 / 6], dtype=torch.float64))


def test_many_sequences_have_a_constant_for_each_position():
    target = torch.tensor([[0, 1], [1, 1]]).repeat(20, 1)
    constant = best_constant("cross_entropy", {}, target, 2)
    assert constant is not None
    assert constant.shape == (1, 2, 2)
    torch.testing.assert_close(constant.exp()[0], torch.tensor([[0.5, 0.0], [0.5, 1.0]]).double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["kl_div", "multi_margin_loss", "soft_margin_loss"])
def test_where_it_is_not_known_nothing_is_claimed(name: str):
    assert best_constant(name, {}, NUMBERS, 1) is None


def test_values_of_called_losses_are_taken_down():
    called = LossRecorder()
    with called:
        loss = torch.nn.CrossEntropyLoss()(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))
    assert called.values == [("cross_entropy", loss)]


def test_every_standard_loss_is_torchs():
    assert all(hasattr(F, name) for name in LOSS_INPUTS)
