"""In-place weight initialization."""

from stormproof_train.initialization.auto import auto
from stormproof_train.initialization.by_fan import kaiming, torch_default, xavier
from stormproof_train.initialization.checkpoint import from_checkpoint
from stormproof_train.initialization.edge_of_chaos import edge_of_chaos
from stormproof_train.initialization.lsuv import lsuv
from stormproof_train.initialization.orthogonal import orthogonal

__all__ = ["auto", "edge_of_chaos", "from_checkpoint", "kaiming", "lsuv", "orthogonal", "torch_default", "xavier"]
