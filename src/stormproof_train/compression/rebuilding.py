"""The network of an artifact, in PyTorch again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from stormproof_train.activations import activation_factory
from stormproof_train.compression.structure.rebuild import smaller
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.signature_binding import bind
from stormproof_train.errors import UserError
from stormproof_train.initialization.checkpoint import read_checkpoint
from stormproof_train.run.trained_weights import refuse_unknown, shipped

_OFFERED = ("input_shape", "num_outputs", "num_classes")


def load_network(path: str | Path, allowed: Collection[str] = ()) -> nn.Module:
    """Builds the network of a ``model.ckpt`` of a compression, with its weights, in evaluation mode.

    Args:
        path: of the file. It is data: what it names is built only if this application's own configs name it.
        allowed: import paths of models and activations of your own that it may name.

    Raises:
        UserError: if there is none, it is of something else, or it names what is not allowed.
    """
    content = read_checkpoint(Path(path))
    told: Any = content.get("network")
    if not isinstance(told, Mapping):
        raise UserError(f"{path} is no model.ckpt of a compression: it does not say what network its weights are of")
    ours = shipped(conf_dir())
    for group in ("model", "activation"):
        refuse_unknown(told[group], group, ours[group] | set(allowed), Path(path), "give allowed=[…] its path")
    activation = activation_factory(bind(told["activation"], "activation", tensors=1).factory())
    offered = {name: told[name] for name in _OFFERED} | {"activation": activation}
    network = bind(told["model"], "model", frozenset(offered)).build(**offered)
    network = smaller(network, told["shapes"], told["ranks"])
    network.load_state_dict(content["state_dict"])
    return network.eval()
