"""Parameters in no optimizer or in two, gradients that are cut, and weights that do not change."""

from __future__ import annotations

from typing import Any

import torch
from diagnosis_bank.program import Program, Supervised, TrainingSetup
from diagnosis_bank.third.faulty import datasets, measures
from diagnosis_bank.third.faulty.manual_optimization import OwnLoop
from diagnosis_bank.third.faulty.networks import SmallUNet, Tagger, conv_net, mlp
from torch import nn
from torch.nn import functional

from stormproof.finding import Problem


class _DecayGroups(Supervised):
    """Uses decay for the weights of linear layers, and none for biases and norms."""

    def configure_optimizers(self) -> Any:
        decayed: list[torch.Tensor] = []
        no_decay: list[torch.Tensor] = []
        for module in self.network.modules():
            if isinstance(module, nn.Linear):
                decayed.append(module.weight)
                no_decay += [module.bias]
            elif isinstance(module, nn.LayerNorm):
                no_decay += [module.weight, module.bias]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": no_decay, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=3e-3)


def _recurrent_weights_in_no_group(seed: int, return_dict: bool) -> TrainingSetup:
    """Decay is chosen by the kind of layer, and embeddings and the LSTM are in neither group."""
    train = datasets.make_loader(*datasets.tagged(seed, 1000), size=16)
    return TrainingSetup(_DecayGroups(Tagger(20, 4), nn.CrossEntropyLoss(), return_dict, lambda p: p), train)


class _ByName(Supervised):
    """Selects parameters by a name of an earlier version."""

    def configure_optimizers(self) -> Any:
        chosen = [parameter for name, parameter in self.named_parameters() if "7" in name or "bias" in name]
        return torch.optim.SGD(chosen, lr=0.02, momentum=0.9)


def _chosen_by_name(seed: int, return_dict: bool) -> TrainingSetup:
    """Parameters are selected by name, and the layers were renumbered: no convolution is selected."""
    train, validation = datasets.split(*datasets.pictures(seed, 1160, 8, noise=2.0), size=32, held_out=200)
    return TrainingSetup(
        _ByName(conv_net(8, norm=False, channels=2), functional.cross_entropy, return_dict, lambda p: p),
        train,
        validation,
    )


class _RebuiltInSetup(Supervised):
    """Creates its optimizer with its network, and its network again in setup."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.built_optimizer = self.optimizer(self.network.parameters())

    def setup(self, stage: str) -> None:
        self.network = mlp([12, 32, 32, 2])

    def configure_optimizers(self) -> Any:
        return self.built_optimizer


def _rebuilt(seed: int, return_dict: bool) -> TrainingSetup:
    """The optimizer is created in __init__, and setup builds the network again."""
    train = datasets.make_loader(*datasets.surface(seed, 900, 12, 2), size=32)
    network = mlp([12, 32, 32, 2])
    return TrainingSetup(
        _RebuiltInSetup(network, nn.MSELoss(), return_dict, lambda p: torch.optim.RMSprop(p, lr=1e-3)), train
    )


class _TwoOverAll(OwnLoop):
    """One optimizer for each of two outputs, each with all parameters."""

    def update(self, loss: torch.Tensor, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.parameters(), lr=0.12, momentum=0.9),
            torch.optim.SGD(self.parameters(), lr=0.12, momentum=0.9, weight_decay=1e-3),
            torch.optim.SGD(self.parameters(), lr=0.12, momentum=0.9),
        ]


def _three_over_all(seed: int, return_dict: bool) -> TrainingSetup:
    """Each of three outputs has an optimizer, and each optimizer has all parameters."""
    train = datasets.make_loader(*datasets.surface(seed, 1600, 10, 3), size=32)
    return TrainingSetup(_TwoOverAll(mlp([10, 40, 40, 40, 3]), nn.MSELoss(), return_dict), train)


class _Tied(nn.Module):
    """Predicts the next word with tied input and output embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 32)
        self.gru = nn.GRU(32, 32, batch_first=True)
        self.decoder = nn.Linear(32, 20, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(self.embedding(text))
        return self.decoder(states).transpose(1, 2)


def _tied_weight_twice(seed: int, return_dict: bool) -> TrainingSetup:
    """The lists of parameters of all layers are joined, and the tied matrix is updated twice."""
    source = datasets.make_generator(seed)
    follower = torch.randperm(20, generator=source)
    tokens = [torch.randint(20, (1280,), generator=source)]
    for _ in range(12):
        stray = torch.randint(20, (1280,), generator=source)
        tokens.append(torch.where(torch.rand(1280, generator=source) < 0.2, stray, follower[tokens[-1]]))
    text = torch.stack(tokens, dim=1)
    network = _Tied()

    def optimizer(_: Any) -> Any:
        joined = [*network.embedding.parameters(), *network.gru.parameters(), *network.decoder.parameters()]
        return torch.optim.SGD(joined, lr=1.0, momentum=0.9)

    return TrainingSetup(
        Supervised(network, nn.CrossEntropyLoss(), return_dict, optimizer),
        datasets.make_loader(text[:, :-1], text[:, 1:], size=32),
    )


class _DetachedBottom(SmallUNet):
    """A U-Net whose lower level is detached, as in its pretraining."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        skipped = self.down(picture)
        return self.up(torch.cat([skipped, self.bottom(skipped).detach()], dim=1))


def _bottom_of_the_unet_detached(seed: int, return_dict: bool) -> TrainingSetup:
    """A detach remains after the lowest level of a U-Net, so only the skip connection learns."""
    train = datasets.make_loader(*datasets.blots(seed, 480), size=8)
    module = Supervised(
        _DetachedBottom(width=4), nn.BCEWithLogitsLoss(), return_dict, lambda p: torch.optim.Adam(p, lr=2e-3)
    )
    return TrainingSetup(module, train)


class _HardGate(nn.Module):
    """Passes a feature if a learned score is above zero."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(16, 64)
        self.scorer = nn.Linear(16, 64)
        self.head = nn.Linear(64, 6)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(inputs) * (self.scorer(inputs) > 0).float())


def _gates_by_comparison(seed: int, return_dict: bool) -> TrainingSetup:
    """Features are gated by a comparison with zero, which has no gradient for the scores."""
    train = datasets.make_loader(*datasets.table(seed, 2000, 16, 6), size=32)
    return TrainingSetup(
        Supervised(_HardGate(), functional.cross_entropy, return_dict, lambda p: torch.optim.Adagrad(p, lr=0.02)), train
    )


class _Copied(nn.Module):
    """Reads its states from a new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 16, batch_first=True)
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(series)
        return self.head(torch.tensor([state[-1].tolist() for state in states]))


def _states_copied_into_a_tensor(seed: int, return_dict: bool) -> TrainingSetup:
    """torch.tensor creates a new tensor without a graph from a list of states."""
    train, validation = datasets.split(*datasets.walks(seed, 1000), size=16, held_out=200)
    return TrainingSetup(
        Supervised(_Copied(), functional.huber_loss, return_dict, lambda p: torch.optim.Adam(p, lr=5e-4)),
        train,
        validation,
    )


class _RatesByDepth(Supervised):
    """One group per layer, with smaller rates for lower layers."""

    def configure_optimizers(self) -> Any:
        layers = [layer for layer in self.network.children() if isinstance(layer, nn.Linear)]
        groups = [
            {"params": layer.parameters(), "lr": 1e-2 * 0.01**above} for above, layer in enumerate(reversed(layers))
        ]
        return torch.optim.Adam(groups)


def _rates_by_depth(seed: int, return_dict: bool) -> TrainingSetup:
    """Each layer has 0.01 times the rate of the layer above: the lower layers do not change."""
    train, validation = datasets.split(*datasets.table(seed, 2200, 24, 4), size=32, held_out=200)
    return TrainingSetup(
        _RatesByDepth(mlp([24, 32, 32, 32, 32, 32, 4]), functional.cross_entropy, return_dict, lambda p: p),
        train,
        validation,
    )


class _Rounded(Supervised):
    """Rounds its weights to sixteenths after each step."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.copy_((parameter * 16).round() / 16)


def _rounded_after_each_step(seed: int, return_dict: bool) -> TrainingSetup:
    """The weights are rounded after each step, without a master copy: small steps are lost."""
    train = datasets.make_loader(*datasets.pictures(seed, 1280, 6), size=32)
    network = conv_net(6, norm=False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_((parameter * 16).round() / 16)
    return TrainingSetup(
        _Rounded(network, functional.cross_entropy, return_dict, lambda p: torch.optim.Adam(p, lr=1e-3)), train
    )


_OUTSIDE = frozenset({Problem.NOT_IN_OPTIMIZER})
_TWICE = frozenset({Problem.IN_TWO_OPTIMIZERS})
_CUT = frozenset({Problem.NO_GRADIENT})

PROGRAMS = [
    Program(
        "decay_groups_without_the_recurrent_weights",
        "sequence",
        _recurrent_weights_in_no_group,
        _OUTSIDE,
        measures.all_of(measures.are_unchanged("network.embedding", "network.lstm"), measures.stays_above(0.3)),
        "https://github.com/Modalities/modalities/pull/142",
    ),
    Program(
        "parameters_chosen_by_an_old_name",
        "convolutional",
        _chosen_by_name,
        _OUTSIDE,
        measures.all_of(measures.are_unchanged("network.0.weight", "network.3.weight"), measures.stays_above(0.3)),
        "https://github.com/namisan/mt-dnn/pull/37",
    ),
    Program(
        "network_rebuilt_in_setup",
        "regression",
        _rebuilt,
        _OUTSIDE,
        measures.falls_by_less_than(0.9),
        "https://theflyingbirds.in/blog/pytorch-mysteries-lets-understand-nnmodule-nnparameter-modulelist-sequential"
        "-and-the-classic-layers-linear-activations-dropout",
    ),
    Program(
        "three_optimizers_over_all_parameters",
        "regression",
        _three_over_all,
        _TWICE,
        measures.stays_above(0.4),
        "https://lightning.ai/docs/pytorch/stable/model/manual_optimization.html",
    ),
    Program(
        "tied_weight_in_two_joined_lists",
        "sequence",
        _tied_weight_twice,
        _TWICE,
        measures.stays_above(1.5),
        "https://pytorch.org/docs/stable/optim.html",
    ),
    Program(
        "bottom_of_the_unet_detached",
        "convolutional",
        _bottom_of_the_unet_detached,
        _CUT,
        measures.are_unchanged("network.bottom"),
        "https://arxiv.org/abs/1910.11015",
    ),
    Program(
        "gates_by_comparison",
        "dense",
        _gates_by_comparison,
        _CUT,
        measures.are_unchanged("network.scorer"),
        "https://taourl.com/read-2031103.html",
    ),
    Program(
        "states_collected_by_tolist",
        "sequence",
        _states_copied_into_a_tensor,
        _CUT,
        measures.are_unchanged("network.gru"),
        "https://www.engineermaxxing.com/micro/lessons/pytorch-internals.html",
    ),
    Program(
        "rates_by_depth_with_a_factor_of_a_hundredth",
        "dense",
        _rates_by_depth,
        frozenset({Problem.WEIGHTS_UNCHANGED, Problem.LEARNING_RATE_ZERO, Problem.LEARNING_RATE_TOO_LOW}),
        measures.all_of(measures.are_unchanged("network.0", "network.2"), measures.stays_above(0.7)),
        "https://github.com/huggingface/transformers/issues/11160",
    ),
    Program(
        "weights_rounded_after_each_step",
        "convolutional",
        _rounded_after_each_step,
        frozenset({Problem.WEIGHTS_UNCHANGED}),
        measures.falls_by_less_than(0.9),
        "https://arxiv.org/abs/1910.11015",
    ),
]
