"""Faults that only a trace of the training step shows, in small runs."""

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its name everywhere)
from torch.utils.data import DataLoader, TensorDataset

from stormproof import TrainingHealth
from stormproof.finding import Problem, Severity
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS

pytestmark = [
    *LIGHTNING_WARNING_FILTERS,
    pytest.mark.filterwarnings("ignore:no gradient was measured"),
    pytest.mark.filterwarnings("ignore:softmax after gate"),
]
INPUTS = torch.randn(320, 8, generator=torch.Generator().manual_seed(0))
Loss = Callable[["_Module", torch.Tensor], torch.Tensor]


class _Module(pl.LightningModule):
    """A body and a head of 4 outputs, with a loss that is a function of the module and the inputs."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ELU())
        self.head = nn.Linear(16, 4)
        self.gate = nn.Linear(16, 1)
        self.compute_loss = loss

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(inputs))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.compute_loss(self, batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class _TwoOptimizers(_Module):
    """Two optimizers. With ``detaches``, the loss does not reach the parameters of the first one."""

    def __init__(self, *, detaches: bool) -> None:
        super().__init__(lambda _, inputs: inputs.sum())
        self.automatic_optimization = False
        self.detaches = detaches

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        hidden = self.body(batch[0])
        first.zero_grad()
        second.zero_grad()
        loss = F.softplus(self.head(hidden.detach() if self.detaches else hidden)).mean()
        self.manual_backward(loss)
        first.step()
        second.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.body.parameters(), lr=1e-3), torch.optim.Adam(self.head.parameters(), lr=1e-3)]


def _targets(inputs: torch.Tensor) -> torch.Tensor:
    return inputs[:, :4] * inputs[:, 4:]


def _focal(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    errors = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
    return ((1 - torch.exp(-errors)).square() * errors).mean()


def _ctc(module: _Module, inputs: torch.Tensor, activation: Callable[..., torch.Tensor]) -> torch.Tensor:
    frames = torch.stack([inputs, inputs.flip(1), -inputs, inputs.roll(1, 1)])
    letters = 1 + (inputs[:, :2] > 0).long()
    lengths = torch.full((len(inputs),), 4), torch.full((len(inputs),), 2)
    return F.ctc_loss(activation(module(frames), dim=-1), letters, *lengths, zero_infinity=True)


def _pairs(module: _Module, inputs: torch.Tensor, low: float) -> torch.Tensor:
    signs = torch.where(inputs[:, 0] > 0, 1.0, low)
    return F.cosine_embedding_loss(module(inputs), module(inputs.flip(1)), signs)


def _counts(inputs: torch.Tensor) -> torch.Tensor:
    return inputs[:, :4].abs().round()


def _detached_prediction(module: _Module, inputs: torch.Tensor) -> torch.Tensor:
    places = module(inputs).argmax(1).float()
    return F.mse_loss(places, inputs[:, 0]) + module.gate(module.body(inputs)).square().mean()


def _detached_target(module: _Module, inputs: torch.Tensor) -> torch.Tensor:
    """Predicts the detached outputs of a layer."""
    target = module.gate(inputs.repeat(1, 2)).detach()
    return F.mse_loss(module(inputs)[:, :1], target)


def _closed_gate(module: _Module, inputs: torch.Tensor) -> torch.Tensor:
    gate = module.gate(module.body(inputs)).softmax(1)  # of a single score
    return F.mse_loss(gate * module(inputs), _targets(inputs))


def _delayed_loss(module: _Module, inputs: torch.Tensor) -> torch.Tensor:
    weight = 0.0 if module.global_step < 15 else 1.0
    return F.mse_loss(module(inputs), _targets(inputs)) + weight * module.gate(module.body(inputs)).square().mean()


def _distill(module: _Module, inputs: torch.Tensor, activation: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Returns the divergence from the outputs of a teacher, which depend on a layer."""
    with torch.no_grad():
        teacher = module.gate(module.body(inputs)) * inputs[:, :4]
    return F.kl_div(activation(module(inputs), dim=1), teacher.softmax(1), reduction="batchmean")


def _route(module: _Module, inputs: torch.Tensor, *, uses_scores: bool) -> torch.Tensor:
    """Selects one of four outputs by the score of another layer."""
    scores, chosen = (module.gate(module.body(inputs)) * inputs[:, :4]).topk(1, dim=1)
    outputs = module(inputs).gather(1, chosen)
    return F.mse_loss(outputs * scores.sigmoid() if uses_scores else outputs, _targets(inputs)[:, :1])


FAULTS: dict[str, tuple[Loss, Problem, str]] = {
    "probabilities for a focal loss": (
        lambda module, inputs: _focal(module(inputs).sigmoid(), (_targets(inputs) > 0).float()),
        Problem.LOSS_INPUT_MISMATCH,
        "head",
    ),
    "probabilities for the CTC loss": (
        lambda module, inputs: _ctc(module, inputs, torch.softmax), Problem.LOSS_INPUT_MISMATCH, "head"
    ),
    "probabilities for a loss of several labels": (
        lambda module, inputs: F.multilabel_soft_margin_loss(module(inputs).sigmoid(), (_targets(inputs) > 0).float()),
        Problem.LOSS_INPUT_MISMATCH,
        "head",
    ),
    "targets of zero for pairs": (
        lambda module, inputs: _pairs(module, inputs, 0.0), Problem.LOSS_INPUT_MISMATCH, "head"
    ),
    "rates for their logarithms": (
        lambda module, inputs: F.poisson_nll_loss(F.softplus(module(inputs)), _counts(inputs)),
        Problem.LOSS_INPUT_MISMATCH,
        "head",
    ),
    "several classes for a cross-entropy": (
        lambda module, inputs: F.cross_entropy(module(inputs), (inputs[:, :4] > 0).float()),
        Problem.LOSS_INPUT_MISMATCH,
        "head",
    ),
    "targets outside the range of a scaled sigmoid": (
        lambda module, inputs: F.mse_loss(2 * module(inputs).sigmoid() - 1, 3 * _targets(inputs)),
        Problem.UNREACHABLE_TARGETS,
        "head",
    ),
    "probabilities of a student": (
        lambda module, inputs: _distill(module, inputs, torch.softmax), Problem.LOSS_INPUT_MISMATCH, "head"
    ),
    "scores that only select": (
        lambda module, inputs: _route(module, inputs, uses_scores=False), Problem.NO_GRADIENT, "gate"
    ),
    "predictions by argmax": (_detached_prediction, Problem.NO_GRADIENT, "head"),
    "softmax of a single score": (_closed_gate, Problem.NO_GRADIENT, "gate"),
    "loss without a slope": (
        lambda module, inputs: F.relu(-module(inputs).exp() - module.gate(module.body(inputs)).exp()).mean(),
        Problem.NO_GRADIENT,
        "body.0, head, gate",
    ),
}  # fmt: skip
HEALTHY: dict[str, Loss] = {
    "logits for a focal loss": lambda module, inputs: _focal(module(inputs), (_targets(inputs) > 0).float()),
    "log-probabilities for the CTC loss": lambda module, inputs: _ctc(module, inputs, torch.log_softmax),
    "targets of both signs for pairs": lambda module, inputs: _pairs(module, inputs, -1.0),
    "rates for a loss of rates": lambda module, inputs: F.poisson_nll_loss(
        F.softplus(module(inputs)), _counts(inputs), log_input=False
    ),
    "probabilities of classes": lambda module, inputs: F.cross_entropy(module(inputs), inputs[:, :4].softmax(1)),
    "limits of normalized pixels": lambda module, inputs: F.mse_loss(
        (module(inputs).sigmoid() - 0.1307) / 0.3081, ((inputs[:, :4] > 0).float() - 0.1307) / 0.3081
    ),
    "range of a scaled sigmoid": lambda module, inputs: F.mse_loss(
        2 * module(inputs).sigmoid() - 1, inputs[:, :4].tanh()
    ),
    "samples by vmap": lambda module, inputs: F.mse_loss(torch.vmap(module)(inputs), _targets(inputs)),
    "detached target": _detached_target,
    "log-probabilities of a student": lambda module, inputs: _distill(module, inputs, torch.log_softmax),
    "scores that select and weight": lambda module, inputs: _route(module, inputs, uses_scores=True),
    "loss that is used later": _delayed_loss,
}


def _train(module: pl.LightningModule, epochs: int) -> TrainingHealth:
    health = TrainingHealth(every_n_steps=1)
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[health], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(INPUTS), batch_size=32))
    return health


@pytest.mark.parametrize(("loss", "problem", "where"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_of_the_loss_is_found(loss: Loss, problem: Problem, where: str):
    finding = _train(_Module(loss), epochs=3).findings[0]
    assert (finding.problem, finding.where) == (problem, where)
    assert finding.severity != Severity.INFO


@pytest.mark.parametrize("loss", HEALTHY.values(), ids=HEALTHY.keys())
def test_a_healthy_loss_has_no_finding(loss: Loss):
    problems = {
        finding.problem for finding in _train(_Module(loss), epochs=3).findings if finding.severity != Severity.INFO
    }
    assert problems.isdisjoint({Problem.LOSS_INPUT_MISMATCH, Problem.UNREACHABLE_TARGETS, Problem.NO_GRADIENT})


def test_an_optimizer_whose_parameters_have_no_gradient_is_found():
    finding = _train(_TwoOptimizers(detaches=True), epochs=1).findings[0]
    assert (finding.problem, finding.where) == (Problem.NO_GRADIENT, "body.0")
    assert finding.evidence == {"steps_of_optimizer_without_a_gradient": 5.0}
    assert _train(_TwoOptimizers(detaches=False), epochs=1).findings == []


def test_a_contrastive_loss_is_compared_with_chance():
    """The two views of a sample are unrelated, so a contrastive loss stays at the logarithm of the batch size."""

    def contrast(module: _Module, inputs: torch.Tensor) -> torch.Tensor:
        others = torch.randn(len(inputs), 8)
        scores = F.normalize(module(inputs), dim=1) @ F.normalize(module(others), dim=1).T
        return F.cross_entropy(scores, torch.arange(len(inputs)))

    health = _train(_Module(contrast), epochs=3)
    assert Problem.NO_BETTER_THAN_CONSTANT in [finding.problem for finding in health.findings]


def test_similarities_without_those_of_a_sample_to_itself_are_compared_with_chance():
    """Labels leave out some classes, as in the NT-Xent loss, but a constant prediction cannot know which."""

    def contrast(module: _Module, inputs: torch.Tensor) -> torch.Tensor:
        codes = F.normalize(module(torch.cat([inputs, inputs + 0.05 * torch.randn_like(inputs)])), dim=1)
        count = len(codes)
        others = ~torch.eye(count, dtype=torch.bool)
        similarities = (codes @ codes.T)[others].view(count, count - 1)
        return F.cross_entropy(3 * similarities, torch.arange(count // 2).repeat(2))

    health = _train(_Module(contrast), epochs=3)
    assert Problem.NO_BETTER_THAN_CONSTANT not in [finding.problem for finding in health.findings]


class _Table(_Module):
    """Concatenates the codes of two categories with unscaled numbers."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__(lambda module, inputs: F.mse_loss(module(inputs), _targets(inputs)))
        self.embeddings = nn.ModuleList(nn.Embedding(2, 2) for _ in range(2))
        self.body = nn.Sequential(first, nn.Linear(12, 16), nn.ELU())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        codes = [embedding((inputs[:, index] > 0).long()) for index, embedding in enumerate(self.embeddings)]
        return self.head(self.body(torch.cat([*codes, 1e5 * inputs], 1)))


def test_unscaled_numbers_next_to_embeddings_are_inputs():
    finding = _train(_Table(nn.Identity()), epochs=3).findings[0]
    assert (finding.problem, finding.where) == (Problem.INPUT_BADLY_SCALED, "input")


def test_unscaled_numbers_before_a_batch_norm_have_no_finding():
    problems = [finding.problem for finding in _train(_Table(nn.BatchNorm1d(12)), epochs=3).findings]
    assert Problem.INPUT_BADLY_SCALED not in problems


def test_a_loss_of_forces_that_is_not_a_number_is_found():
    def loss_of_forces(module: _Module, inputs: torch.Tensor) -> torch.Tensor:
        places = inputs.clone().requires_grad_()
        distances = (places - inputs).square().sum(1).sqrt()  # zero, where the square root has no slope
        (forces,) = torch.autograd.grad((module(places).sum(1) * distances).sum(), places, create_graph=True)
        return forces.square().mean()

    finding = _train(_Module(loss_of_forces), epochs=1).findings[0]
    assert (finding.problem, finding.evidence["tensor"]) == (Problem.NON_FINITE, "output of grad")
