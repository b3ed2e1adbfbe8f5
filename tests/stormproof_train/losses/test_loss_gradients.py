import pytest
import torch

from tests.support.loss_references import CLASSIFICATION_CASES, REGRESSION_CASES, LossCase, output_width

LABELS = torch.tensor([0, 2, 1, 2, 0, 0])
MIXED = torch.softmax(torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=1)
NUMBERS = torch.rand(6, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5
# the exponential of such an output is beyond float32: their docstrings say where
EXPONENTIAL = {"poisson", "gamma", "tweedie"}


def _outputs(columns: int) -> torch.Tensor:
    samples = torch.randn(6, columns, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (2 * samples).requires_grad_()


@pytest.mark.parametrize("case", CLASSIFICATION_CASES, ids=str)
def test_the_gradient_for_classes_is_that_of_finite_differences(case: LossCase):
    loss = case.build().double()
    assert torch.autograd.gradcheck(lambda outputs: loss(outputs, LABELS), _outputs(3))
    if case.name != "multi_margin":  # takes no probabilities
        assert torch.autograd.gradcheck(lambda outputs: loss(outputs, MIXED), _outputs(3))


@pytest.mark.parametrize("case", REGRESSION_CASES, ids=str)
def test_the_gradient_for_numbers_is_that_of_finite_differences(case: LossCase):
    loss = case.build().double()
    assert torch.autograd.gradcheck(lambda outputs: loss(outputs, NUMBERS), _outputs(output_width(loss, 2)))


EXTREME = [[0.0, 0.0, 0.0], [1e4, 0.0, -1e4], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4], [-1e4, 1e4, 0.0], [0.0, -1e4, -1e4]]


@pytest.mark.parametrize("case", CLASSIFICATION_CASES, ids=str)
def test_sure_logits_give_a_finite_loss_and_gradient_in_float32(case: LossCase):
    labels = torch.arange(18) % 3  # every label at each of them
    probabilities = 0.9 * torch.nn.functional.one_hot(labels, 3).float() + 0.1 / 3
    for target in [labels] if case.name == "multi_margin" else [labels, probabilities]:
        logits = torch.tensor(EXTREME).repeat_interleave(3, dim=0).requires_grad_()
        loss = case.build()(logits, target)
        loss.backward()
        assert torch.isfinite(loss)
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("case", [case for case in REGRESSION_CASES if case.name not in EXPONENTIAL], ids=str)
def test_far_outputs_give_a_finite_loss_and_gradient_in_float32(case: LossCase):
    loss = case.build()
    outputs = (
        torch.tensor([1e4, -1e4, 0.0, 1e4, -1e4, 1.0]).unsqueeze(1).repeat(1, output_width(loss, 2)).requires_grad_()
    )
    value = loss(outputs, NUMBERS.float())
    value.backward()
    assert torch.isfinite(value)
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()


# who is sure of a wrong class: whether the gradient still tells him
def _saturates(case: LossCase) -> bool:
    return case.name in {"generalized_cross_entropy", "brier"} or case.arguments.get("alpha") == 0


@pytest.mark.parametrize("case", [case for case in CLASSIFICATION_CASES if case.name != "logit_adjustment"], ids=str)
def test_the_gradient_of_a_sure_mistake_vanishes_only_where_the_loss_is_bounded(case: LossCase):
    logits = torch.tensor([[2e3, -2e3, 0.0]]).requires_grad_()
    case.build()(logits, torch.tensor([1])).backward()
    assert logits.grad is not None
    assert (float(logits.grad.abs().max()) > 1e-3) is not _saturates(case)
