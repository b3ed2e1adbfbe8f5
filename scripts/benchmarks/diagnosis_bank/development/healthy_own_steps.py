"""Healthy runs with custom steps: two losses or passes, teachers, averages, rewards, alternation."""

from __future__ import annotations

import copy
from typing import Any

import torch
from diagnosis_bank.development.datasets import digit_images, digit_rows, make_generator, make_loader, split
from diagnosis_bank.development.healthy_kinds import adam, falls, healthy, mlp, sgd
from diagnosis_bank.development.measures import step_output
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from torch import nn
from torch.nn import functional as F  # noqa: N812 (conventional name)


class Variational(Supervised):
    """Two terms in one loss, and random noise in the network."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images = (batch[0] + 1) / 2
        mean, log_variance = self.network[0](images.flatten(1)).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        logits = self.network[1](code)
        fits = F.binary_cross_entropy_with_logits(logits, images.flatten(1), reduction="sum") / len(images)
        apart = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        return step_output(self.return_dict, fits + apart, logits.sigmoid(), images.flatten(1))


def variational(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.ModuleList([mlp(64, 16), mlp(8, 64)])
    module = Variational(network, nn.Identity(), return_dict, adam(2e-3))
    return TrainingSetup(module, make_loader(*digit_images(), size=32, seed=seed))


class Distilled(Supervised):
    """A student with a frozen teacher, whose weights require gradients but receive none."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        with torch.no_grad():
            soft = self.network[1](inputs).softmax(1)
        preds = self.network[0](inputs)
        loss = 0.5 * F.cross_entropy(preds, target) + 0.5 * F.kl_div(preds.log_softmax(1), soft, reduction="batchmean")
        return step_output(self.return_dict, loss, preds, target)


def distilled(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    module = Distilled(nn.ModuleList([mlp(64, 10), mlp(64, 10)]), nn.Identity(), return_dict, adam(2e-3))
    return TrainingSetup(module, make_loader(*digit_rows(), size=32, seed=seed))


class Bootstrapped(Supervised):
    """An online network follows a moving average of itself, on two views (Grill et al. 2020)."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.target = copy.deepcopy(self.network)
        self.predictor = nn.Linear(16, 16)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        first_view, second_view = (batch[0] + 0.3 * torch.randn_like(batch[0]) for _ in range(2))
        with torch.no_grad():
            follows = F.normalize(self.target(second_view), dim=1)
        return 2 - 2 * (F.normalize(self.predictor(self.network(first_view)), dim=1) * follows).sum(1).mean()

    def on_train_batch_end(self, *_: Any) -> None:
        for target_parameter, online_parameter in zip(self.target.parameters(), self.network.parameters(), strict=True):
            target_parameter.data.mul_(0.98).add_(online_parameter.data, alpha=0.02)


def bootstrapped(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))
    return TrainingSetup(
        Bootstrapped(network, nn.Identity(), return_dict, adam(2e-3)), make_loader(*digit_rows(), size=64, seed=seed)
    )


class Triplets(Supervised):
    """Triplet loss on images of digits. Easy triplets have a loss of zero."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, label = batch
        codes = F.normalize(self.network(inputs), dim=1)
        is_same_class = (label[:, None] == label[None]).float() - torch.eye(len(label))
        far = (torch.cdist(codes, codes) + 1e-6) * is_same_class
        near = torch.cdist(codes, codes) + 10 * (label[:, None] == label[None]).float()
        return F.relu(far.max(1).values - near.min(1).values + 0.3).mean()


def triplets(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    module = Triplets(mlp(64, 8), nn.Identity(), return_dict, adam(2e-3))
    return TrainingSetup(module, make_loader(*digit_rows(), size=64, seed=seed), trainer={"max_epochs": 4})


class Critic(Supervised):
    """A generator and a critic with five critic steps per generator step (Arjovsky et al. 2017)."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        makes, judges = self.optimizers()  # type: ignore[misc]
        generator, critic = self.network
        real = batch[0]
        if batch_idx % 5 < 4:
            judges.zero_grad()
            gap = critic(generator(torch.randn(len(real), 4)).detach()).mean() - critic(real).mean()
            self.manual_backward(gap)
            judges.step()
            for weight in critic.parameters():
                weight.data.clamp_(-0.1, 0.1)
        else:
            makes.zero_grad()
            self.manual_backward(-critic(generator(torch.randn(len(real), 4))).mean())
            makes.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.RMSprop(network.parameters(), lr=1e-3) for network in self.network]


def critic(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    real = torch.randn(1600, 2, generator=make_generator(seed)) * 0.3 + torch.tensor([1.0, -1.0])
    module = Critic(nn.ModuleList([mlp(4, 2), mlp(2, 1)]), nn.Identity(), return_dict, adam())
    return TrainingSetup(module, make_loader(real, size=32, seed=seed))


class Policy(Supervised):
    """Selects one of four arms by the state and learns from rewards (Williams 1992)."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        state, best = batch
        chosen = torch.distributions.Categorical(logits=self.network(state))
        arm = chosen.sample()
        reward = (arm == best).float() - 0.25
        return -(chosen.log_prob(arm) * reward).mean()


def _picks(outcome: Outcome) -> bool:
    state, best = outcome.fit.train.dataset.tensors[:2]  # type: ignore[attr-defined]
    return float((outcome.after(state).argmax(1) == best).float().mean()) > 0.5


def policy(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    state = torch.randn(2000, 6, generator=make_generator(seed))
    module = Policy(mlp(6, 4), nn.Identity(), return_dict, adam(5e-3))
    return TrainingSetup(module, make_loader(state, state[:, :4].argmax(1), size=32, seed=seed))


class Sharpness(Supervised):
    """Two backward passes per step (Foret et al. 2021)."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(self(inputs), target))
        weights = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        norm = (
            torch.stack([parameter.grad.norm() for parameter in weights if parameter.grad is not None]).norm() + 1e-12
        )
        moves = [0.05 * parameter.grad / norm for parameter in weights if parameter.grad is not None]
        with torch.no_grad():
            torch._foreach_add_(weights, moves)
        optimizer.zero_grad()
        loss = self.loss(self(inputs), target)
        self.manual_backward(loss)
        with torch.no_grad():
            torch._foreach_sub_(weights, moves)
        optimizer.step()
        return loss

    def on_train_epoch_end(self) -> None: ...


def sharpness(seed: int, return_dict: bool) -> TrainingSetup:
    torch.manual_seed(seed)
    module = Sharpness(mlp(64, 10), nn.CrossEntropyLoss(), return_dict, sgd(0.05))
    return TrainingSetup(module, *split(digit_rows(), 32, seed))


def mixed(seed: int, return_dict: bool) -> TrainingSetup:
    """Mixes inputs and targets of different samples (Zhang et al. 2018)."""

    class Mixed(Supervised):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            inputs, target = batch
            share = float(torch.distributions.Beta(0.4, 0.4).sample())
            hot = F.one_hot(target, 10).float()
            inputs, hot = share * inputs + (1 - share) * inputs.flip(0), share * hot + (1 - share) * hot.flip(0)
            preds = self(inputs)
            return step_output(self.return_dict, F.cross_entropy(preds, hot), preds, hot)

    torch.manual_seed(seed)
    return TrainingSetup(Mixed(mlp(64, 10), F.cross_entropy, return_dict, adam(2e-3)), *split(digit_rows(), 32, seed))


def turns(seed: int, return_dict: bool) -> TrainingSetup:
    """Trains the trunk in the first epochs and only the head later."""

    class Turns(Supervised):
        def on_train_epoch_start(self) -> None:
            self.network[0].requires_grad_(self.current_epoch < 2)

    torch.manual_seed(seed)
    module = Turns(mlp(64, 10), nn.CrossEntropyLoss(), return_dict, adam(2e-3))
    return TrainingSetup(module, *split(digit_rows(), 32, seed), trainer={"max_epochs": 4})


PROGRAMS: list[Program] = [
    healthy("inputs_and_targets_are_mixed", "dense", mixed, falls(0.8)),
    healthy("student_follows_a_teacher_that_asks_for_gradients", "dense", distilled, falls(0.7)),
    healthy("network_follows_an_average_of_itself", "dense", bootstrapped, falls(0.5)),
    healthy("triplets_come_apart", "dense", triplets, falls(0.6)),
    healthy("critic_takes_four_steps_of_five", "dense", critic, lambda outcome: outcome.error is None),
    healthy("policy_learns_from_rewards", "dense", policy, _picks),
    healthy("two_backward_passes_make_a_step", "dense", sharpness, falls(0.5)),
    healthy("trunk_is_frozen_half_way", "dense", turns, falls(0.5)),
    healthy("two_terms_and_noise_within", "dense", variational, falls(0.7)),
]
