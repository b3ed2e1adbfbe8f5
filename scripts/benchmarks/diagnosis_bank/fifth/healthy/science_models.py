"""Healthy but unusual programs on molecules, graphs, point clouds, Bayesian methods, flows and quantization."""

from __future__ import annotations

import math
from typing import Any, cast

import pytorch_lightning as pl
import torch
from diagnosis_bank.fifth.science_support import (
    ATOMS,
    REFERENCE_ENERGIES,
    MessagePassing,
    generator,
    last_validation,
    loader,
    mlp,
    molecules,
    noisy_curve,
    point_clouds,
    result,
)
from diagnosis_bank.program import Domain, Program, Supervised, TrainingSetup
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional


class _TotalEnergies(pl.LightningModule):
    """Total energies and forces: frozen energies of single atoms and a network for the interaction."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        references = torch.tensor(REFERENCE_ENERGIES)[:, None]
        self.references = nn.Embedding.from_pretrained(references, freeze=True)
        self.interaction = MessagePassing()
        self.return_dict = return_dict

    def predict(self, species: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions = positions.clone().requires_grad_()
        interaction = self.interaction(species, positions).squeeze(-1)
        forces = -torch.autograd.grad(interaction.sum(), positions, create_graph=True)[0]
        return interaction + self.references(species).sum((1, 2)), forces

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        species, positions, energy, forces = batch
        predicted_energy, predicted_forces = self.predict(species, positions)
        loss = functional.mse_loss(predicted_energy, energy) / ATOMS + 100 * functional.mse_loss(
            predicted_forces, forces
        )
        return result(loss, predicted_energy, energy, self.return_dict)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        with torch.enable_grad():
            _, forces = self.predict(batch[0], batch[1])
        self.log("val_loss", functional.mse_loss(forces.detach(), batch[3]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def frozen_references(seed: int, return_dict: bool) -> TrainingSetup:
    """Targets are thousands of eV, but frozen reference energies account for nearly all of them."""
    species, positions, energy, forces = molecules(768, seed)
    energy = energy + torch.tensor(REFERENCE_ENERGIES)[species].sum(-1)
    return TrainingSetup(
        _TotalEnergies(return_dict),
        loader(species[:640], positions[:640], energy[:640], forces[:640], batch_size=16, seed=seed),
        loader(species[640:], positions[640:], energy[640:], forces[640:], batch_size=64),
        {"inference_mode": False},
    )


class _GraphIsomorphism(nn.Module):
    """Sums over neighbors of a graph whose nodes all have the same feature."""

    def __init__(self) -> None:
        super().__init__()
        self.first = mlp([1, 32, 32], nn.ReLU)
        self.second = mlp([32, 32, 32], nn.ReLU)
        self.head = nn.Linear(64, 1)

    def forward(self, adjacency: torch.Tensor) -> torch.Tensor:
        n_graphs, n_nodes, _ = adjacency.shape
        graph, receiver, sender = adjacency.nonzero(as_tuple=True)
        receiver, sender = graph * n_nodes + receiver, graph * n_nodes + sender
        nodes = torch.ones(n_graphs * n_nodes, 1)
        first = self.first(nodes + torch.zeros_like(nodes).index_add(0, receiver, nodes[sender]))
        second = self.second(first + torch.zeros_like(first).index_add(0, receiver, first[sender]))
        owner = torch.arange(n_graphs).repeat_interleave(n_nodes)
        pooled = torch.zeros(n_graphs, 64).index_add(0, owner, torch.cat([first, second], -1) / n_nodes)
        return self.head(pooled).squeeze(-1)


def path_counts(seed: int, return_dict: bool) -> TrainingSetup:
    """A graph network with constant node features and sparse graphs predicts the number of paths of two edges."""
    numbers = generator(seed)
    density = 0.05 + 0.35 * torch.rand(1792, 1, 1, generator=numbers)
    adjacency = (torch.rand(1792, 12, 12, generator=numbers) < density).float().triu(1)
    adjacency = adjacency + adjacency.transpose(1, 2)
    degree = adjacency.sum(-1)
    target = torch.log1p((degree * (degree - 1) / 2).sum(-1))
    return TrainingSetup(
        Supervised(_GraphIsomorphism(), functional.huber_loss, return_dict, lambda p: torch.optim.Adam(p, lr=3e-3)),
        loader(adjacency[:1536], target[:1536], batch_size=32, seed=seed),
        loader(adjacency[1536:], target[1536:], batch_size=256),
    )


class _TransformedPointNet(pl.LightningModule):
    """PointNet with an input transformation that starts as the identity, and a maximum over points."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.pose = nn.Sequential(nn.Conv1d(3, 32, 1), nn.ReLU())
        self.transformation = nn.Linear(32, 9)
        nn.init.zeros_(self.transformation.weight)
        nn.init.zeros_(self.transformation.bias)
        self.points = nn.Sequential(nn.Conv1d(3, 48, 1), nn.BatchNorm1d(48), nn.ReLU(), nn.Conv1d(48, 96, 1))
        self.head = nn.Sequential(nn.BatchNorm1d(96), nn.ReLU(), nn.Dropout(0.3), nn.Linear(96, 4))
        self.return_dict = return_dict

    def forward(self, clouds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        identity = torch.eye(3)
        matrix = self.transformation(self.pose(clouds).amax(-1)).view(-1, 3, 3) + identity
        penalty = (matrix @ matrix.transpose(1, 2) - identity).pow(2).sum((1, 2)).mean()
        return self.head(self.points(matrix @ clouds).amax(-1)), penalty

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits, penalty = self(batch[0])
        loss = functional.cross_entropy(logits, batch[1], label_smoothing=0.1) + 0.001 * penalty
        return result(loss, logits, batch[1], self.return_dict)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self(batch[0])[0], batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def transformed_point_net(seed: int, return_dict: bool) -> TrainingSetup:
    """PointNet with an identity transformation, an orthogonality penalty, label smoothing and dropout."""
    clouds, shape = point_clouds(1536, seed)
    return TrainingSetup(
        _TransformedPointNet(return_dict),
        loader(clouds[:1280], shape[:1280], batch_size=32, seed=seed),
        loader(clouds[1280:], shape[1280:], batch_size=128),
    )


class _DeepKernel(pl.LightningModule):
    """Exact Gaussian process on the features of a network, trained by the marginal likelihood of each batch."""

    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.features = mlp([4, 48, 2])
        self.log_amplitude = nn.Parameter(torch.zeros(()))
        self.log_noise = nn.Parameter(torch.tensor(-1.0))
        self.return_dict = return_dict

    def loss(self, features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        squares = (features[:, None] - features).pow(2).sum(-1)
        covariance = self.log_amplitude.exp() * torch.exp(-0.5 * squares)
        covariance = covariance + (self.log_noise.exp() ** 2 + 1e-4) * torch.eye(len(features))
        process = torch.distributions.MultivariateNormal(torch.zeros(len(features)), covariance)
        return -process.log_prob(target) / len(features)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        features = self.features(batch[0])
        return result(self.loss(features, batch[1]), features, batch[1], self.return_dict)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(self.features(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        hyperparameters = [self.log_amplitude, self.log_noise]
        return torch.optim.Adam([{"params": self.features.parameters()}, {"params": hyperparameters, "lr": 2e-2}], 5e-3)


def deep_kernel(seed: int, return_dict: bool) -> TrainingSetup:
    """A Gaussian process with a deep kernel is trained on the marginal likelihood of batches of 64 samples."""
    numbers = generator(seed)
    inputs = torch.rand(4096, 4, generator=numbers)
    target = torch.sin(4 * inputs[:, 0] + 2 * inputs[:, 1]) + 0.05 * torch.randn(4096, generator=numbers)
    return TrainingSetup(
        _DeepKernel(return_dict),
        loader(inputs[:3584], target[:3584], batch_size=64, seed=seed),
        loader(inputs[3584:], target[3584:], batch_size=128),
    )


def _gaussian_likelihood(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    mean, log_variance = preds.unbind(-1)
    return (0.5 * log_variance + 0.5 * (target - mean) ** 2 / log_variance.exp()).mean()


class _SharedEnsemble(nn.Module):
    """Batch ensemble: four networks that share all weights but have their own factors, plus or minus one at first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, 2)])
        self.signs = nn.ParameterList([2.0 * torch.randint(0, 2, (4, 1, n)) - 1 for n in (4, 64, 64)])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = inputs.expand(4, -1, -1)
        for position, (layer, sign) in enumerate(zip(self.layers, self.signs, strict=True)):
            outputs = layer(outputs * sign)
            if position < 2:
                outputs = functional.silu(outputs)
        return outputs.transpose(0, 1)


def shared_ensemble(seed: int, return_dict: bool) -> TrainingSetup:
    """An ensemble with shared weights predicts mean and variance, with a likelihood below zero."""
    inputs, _ = noisy_curve(2816, seed)
    level = 0.02 + 0.1 * torch.sigmoid(3 * inputs[:, 3:])
    target = torch.sin(inputs[:, :1]) + level * torch.randn(2816, 1, generator=generator(seed + 1))
    return TrainingSetup(
        Supervised(_SharedEnsemble(), _gaussian_likelihood, return_dict, lambda p: torch.optim.NAdam(p, lr=2e-3)),
        loader(inputs[:2560], target[:2560], batch_size=32, seed=seed),
        loader(inputs[2560:], target[2560:], batch_size=256),
    )


class _QuantizedConv(nn.Conv2d):
    """Convolution with weights of four bits and activations of three bits, with a straight-through estimator."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale = float(self.weight.detach().abs().max()) / 7
        weight = torch.fake_quantize_per_tensor_affine(self.weight, scale, 0, -8, 7)
        outputs = functional.conv2d(inputs, weight, self.bias, self.stride, self.padding)
        return torch.fake_quantize_per_tensor_affine(functional.relu6(outputs), 6 / 7, 0, 0, 7)


def quantized_convolutions(seed: int, return_dict: bool) -> TrainingSetup:
    """Quantization-aware training where most activations are exactly zero or one of seven levels."""
    digits: Any = load_digits()
    order = torch.randperm(len(digits.target), generator=generator(seed))
    images = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 4
    target = torch.tensor(digits.target)[order]
    network = nn.Sequential(
        _QuantizedConv(1, 16, 3, padding=1), _QuantizedConv(16, 32, 3, stride=2), nn.Flatten(), nn.Linear(288, 10)
    )
    return TrainingSetup(
        Supervised(network, functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=3e-3)),
        loader(images[:1440], target[:1440], batch_size=32, seed=seed),
        loader(images[1440:], target[1440:], batch_size=357),
    )


def _flow_likelihood(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Negative log density of a flow of two dimensions: affine, then a sinh-arcsinh transformation."""
    location, log_scale, skewness = preds.unbind(-1)
    standard = (target - location) * torch.exp(-log_scale)
    latent = torch.sinh(torch.asinh(standard) + skewness)
    log_slope = torch.log(torch.cosh(torch.asinh(standard) + skewness)) - 0.5 * torch.log1p(standard**2)
    log_density = -0.5 * latent**2 - 0.5 * math.log(2 * math.pi) + log_slope - log_scale
    return -log_density.sum(-1).mean()


def posterior_estimation(seed: int, return_dict: bool) -> TrainingSetup:
    """A conditional flow estimates the posterior of two parameters of a simulator, with a loss below zero."""
    numbers = generator(seed)
    parameters = 0.2 * torch.rand(4352, 2, generator=numbers) + 0.1
    time = torch.linspace(0, 5, 12)
    signal = torch.exp(-5 * parameters[:, :1] * time) * torch.cos(10 * parameters[:, 1:] * time)
    observed = signal + 0.05 * torch.randn(4352, 12, generator=numbers)
    network = nn.Sequential(*mlp([12, 64, 64, 6], nn.SiLU), nn.Unflatten(-1, (2, 3)))

    def optimizer(weights: Any) -> Any:
        adam = torch.optim.Adam(weights, lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 320)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return TrainingSetup(
        Supervised(network, _flow_likelihood, return_dict, optimizer),
        loader(observed[:4096], parameters[:4096], batch_size=64, seed=seed),
        loader(observed[4096:], parameters[4096:], batch_size=256),
        {"max_epochs": 5},
    )


PROGRAMS = [
    Program(name, cast("Domain", domain), build, frozenset(), took_effect, source)
    for name, domain, build, took_effect, source in [
        (
            "total_energies_with_frozen_reference_energies",
            "regression",
            frozen_references,
            lambda outcome: last_validation(outcome) < 0.5,
            "https://github.com/torchmd/torchmd-net/pull/279",
        ),
        (
            "graph_network_with_constant_node_features",
            "regression",
            path_counts,
            lambda outcome: last_validation(outcome) < 0.15,
            "Xu et al., How Powerful are Graph Neural Networks?, arXiv:1810.00826 (from memory)",
        ),
        (
            "point_net_with_identity_transformation_and_orthogonality_penalty",
            "convolutional",
            transformed_point_net,
            lambda outcome: last_validation(outcome) < 0.5,
            "Qi et al., PointNet, arXiv:1612.00593 (from memory)",
        ),
        (
            "deep_kernel_with_marginal_likelihood_of_batches",
            "regression",
            deep_kernel,
            lambda outcome: last_validation(outcome) < -0.5,
            "Wilson et al., Deep Kernel Learning, arXiv:1511.02222 (from memory)",
        ),
        (
            "batch_ensemble_of_means_and_variances",
            "regression",
            shared_ensemble,
            lambda outcome: last_validation(outcome) < -1.2,
            "Wen et al., BatchEnsemble, arXiv:2002.06715 (from memory)",
        ),
        (
            "quantization_aware_convolutions_with_clipped_activations",
            "convolutional",
            quantized_convolutions,
            lambda outcome: last_validation(outcome) < 0.5,
            "https://discuss.pytorch.org/t/how-does-fake-quantize-per-tensor-works/169913",
        ),
        (
            "conditional_flow_for_posterior_of_simulator",
            "regression",
            posterior_estimation,
            lambda outcome: last_validation(outcome) < -4.0,
            "Papamakarios & Murray, Fast epsilon-free Inference of Simulation Models, arXiv:1605.06376 (from memory)",
        ),
    ]
]
