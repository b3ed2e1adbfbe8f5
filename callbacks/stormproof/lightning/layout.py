"""Describes how a trainer distributes the state over the ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl

from stormproof.errors import StormproofError

REPLICATING_STRATEGIES = {"SingleDeviceStrategy", "DDPStrategy"}
"""Strategies that keep the whole state on every rank in one checkpoint file. Their subclasses may not."""
STATE_METHODS = ("lightning_module_state_dict", "optimizer_state", "save_checkpoint")
"""Methods that a subclass overrides if it shards the state."""


@dataclass(frozen=True)
class Layout:
    """Describes how many ranks there are, and which part of the state each of them has.

    If the state is neither replicated nor sharded, the strategy distributes it in an unsupported way.

    Attributes:
        rank: Rank of this process.
        world_size: Number of ranks.
        tensor_parallel_size: Number of consecutive ranks that shard each layer and train on the same samples.
        is_replicated: Whether every rank has the whole state.
        is_sharded: Whether the strategy is a ModelParallelStrategy, which shards parameters over the ranks.
        saves_shards: Whether each rank saves its shard. Only with ``is_sharded``.

    Example:
        >>> layout = Layout(rank=3, world_size=8, tensor_parallel_size=2, is_replicated=False, is_sharded=True)
        >>> layout.data_rank, layout.data_parallel_size
        (1, 4)
    """

    rank: int = 0
    world_size: int = 1
    tensor_parallel_size: int = 1
    is_replicated: bool = True
    is_sharded: bool = False
    saves_shards: bool = False

    @classmethod
    def of(cls, trainer: pl.Trainer) -> Layout:
        """Returns the layout of a trainer. Valid from the hook ``setup`` of callbacks on.

        ``Strategy.setup_environment``, which Lightning calls before that hook, fixes the ranks and the device mesh.
        ``configure_model`` and ``Strategy.setup``, which shard and move the parameters, do not change the layout.

        Raises:
            RuntimeError: If the strategy is a ModelParallelStrategy without a device mesh yet.
        """
        strategy: Any = trainer.strategy
        # names, because ``pytorch_lightning`` and ``lightning.pytorch`` define separate classes
        is_sharded = "ModelParallelStrategy" in {base.__name__ for base in type(strategy).__mro__}
        return cls(
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            tensor_parallel_size=strategy.device_mesh["tensor_parallel"].size() if is_sharded else 1,
            is_replicated=_is_replicated(type(strategy)),
            is_sharded=is_sharded,
            saves_shards=is_sharded and strategy._save_distributed_checkpoint,
        )

    @property
    def data_rank(self) -> int:
        """Number of the tensor-parallel group of this rank. The rank without tensor parallelism."""
        return self.rank // self.tensor_parallel_size

    @property
    def data_parallel_size(self) -> int:
        """Number of tensor-parallel groups. The number of ranks without tensor parallelism."""
        return self.world_size // self.tensor_parallel_size

    def refuse_tensor_parallelism(self, callback: pl.Callback) -> None:
        """Checks that each rank computes whole layers, which ``callback`` requires.

        Raises:
            StormproofError: If the ranks of a tensor-parallel group compute different units of a layer.
        """
        size, name = self.tensor_parallel_size, type(callback).__name__
        if size > 1:
            raise StormproofError(
                f"{name} requires the outputs of whole layers on each rank, but {size} ranks split each layer: remove "
                f"{name}, or set tensor_parallel_size=1"
            )


def _is_replicated(strategy: type) -> bool:
    classes = strategy.__mro__
    names = [cls.__name__ for cls in classes]
    index = next((index for index, name in enumerate(names) if name in REPLICATING_STRATEGIES), None)
    return index is not None and not any(method in vars(cls) for cls in classes[:index] for method in STATE_METHODS)
