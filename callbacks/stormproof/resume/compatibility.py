"""What a training must be like, so that its state can be taken and set back."""

from __future__ import annotations

from math import inf

import pytorch_lightning as pl
from torch.nn.parameter import is_lazy

from stormproof.distributed.ddp_buckets import order_problem
from stormproof.errors import NotResumableError
from stormproof.lightning import internals
from stormproof.resumable_loader import inexact
from stormproof.resume import snapshot

PLAIN_STRATEGIES = {"SingleDeviceStrategy", "DDPStrategy"}
"""Strategies that keep the whole state on every rank in one checkpoint file. Their subclasses may not."""
OF_THE_STATE = ("lightning_module_state_dict", "optimizer_state", "save_checkpoint")
"""Methods that a subclass overrides if it shards the state."""


def keeps_state_whole(trainer: pl.Trainer) -> bool:
    """Returns whether every rank has the whole state.

    Compares class names, because ``pytorch_lightning`` and ``lightning.pytorch`` define separate classes.
    """
    kinds = type(trainer.strategy).__mro__
    names = [kind.__name__ for kind in kinds]
    plain = next((place for place, name in enumerate(names) if name in PLAIN_STRATEGIES), None)
    return plain is not None and not any(method in vars(kind) for kind in kinds[:plain] for method in OF_THE_STATE)


def refuse_strategy(trainer: pl.Trainer, need: str) -> None:
    """Raises NotResumableError for a strategy that keeps gradients and checkpoints in pieces of its own.

    Args:
        trainer: about to train.
        need: who needs what that is whole, the beginning of the sentence.
    """
    name = type(trainer.strategy).__name__
    if not keeps_state_whole(trainer) and not internals.gathers_checkpoints(trainer):
        raise NotResumableError(
            f"{need}, and {name} does not give it: use one of "
            f"{', '.join(sorted(PLAIN_STRATEGIES))}, or ModelParallelStrategy(data_parallel_size=<ranks>, "
            "tensor_parallel_size=1, save_distributed_checkpoint=False)"
        )


def refuse_loop(trainer: pl.Trainer) -> None:
    """Raises NotResumableError for a training in which there is no place between two batches."""
    if internals.step_fetches_itself(trainer):
        raise NotResumableError(
            "training_step takes dataloader_iter: CheckpointRecovery needs Lightning to fetch the batches"
        )


def refuse_uninitialized(module: pl.LightningModule) -> None:
    """Raises NotResumableError for lazy modules, which torch does not load with ``weights_only=True``."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise NotResumableError(
            f"{lazy[0]} belongs to a lazy module and is uninitialized, so it cannot be saved: run a dummy batch "
            "through the network in setup()"
        )


FORGETFUL = {
    "ModelPruning": "saves the pruned weights, and not its masks",
}
"""Callbacks of Lightning, by class, of whose state not all is in a checkpoint, and what is not."""


def doubts(trainer: pl.Trainer) -> list[str]:
    """Why a resume of this training will not be exact, one reason each; empty if it will."""
    loaders = snapshot.train_loaders(trainer)
    found = [reason for loader in loaders for reason in inexact(loader)]
    if internals.combining_mode(trainer) == "max_size" and trainer.num_training_batches == inf:
        found.append(
            'CombinedLoader(mode="max_size") fetches ahead where a length is not known, and forgets which loaders had '
            'ended: use "max_size_cycle" or "min_size"'
        )
    order = order_problem(trainer.strategy.model)
    found += [] if order is None else [order]
    for callback in internals.callbacks(trainer):
        names = {base.__name__ for base in type(callback).__mro__}
        found += [f"{type(callback).__name__} {FORGETFUL[name]}" for name in sorted(names & FORGETFUL.keys())]
    return found
