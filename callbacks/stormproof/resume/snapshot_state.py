"""The training state between two batches that Lightning's own checkpoint lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Self

from stormproof.data.rng import State as RngState
from stormproof.lightning.layout import Layout
from stormproof.resume.extra_tensors import Tensors
from stormproof.resume.frozen_modules import FrozenState
from stormproof.resume.rank_entries import Entry

CHECKPOINT_KEY = "stormproof"
"""Key of the snapshot in a Lightning checkpoint."""
FORMAT = 1


@dataclass(frozen=True)
class _State:
    def to_dict(self) -> dict[str, Any]:
        """Returns the fields by name, as they are in the checkpoint file. Copies no values."""
        return {state_field.name: getattr(self, state_field.name) for state_field in fields(self)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Reads :meth:`to_dict`. Fields that an earlier release did not save get their defaults.

        Raises:
            KeyError: If a field without a default is missing.
        """
        optional_names = {
            state_field.name
            for state_field in fields(cls)
            if {state_field.default, state_field.default_factory} != {MISSING}
        }
        names = [
            state_field.name
            for state_field in fields(cls)
            if state_field.name in saved or state_field.name not in optional_names
        ]
        return cls(**{name: saved[name] for name in names})


@dataclass(frozen=True)
class JobState(_State):
    """State that all ranks share.

    Attributes:
        loops: Progress of Lightning's loops. None after the training run has ended.
        should_stop: ``trainer.should_stop``.
        accumulated: Batches per optimizer step on each rank. None if an earlier release did not save it.
        unstepped_optimizers: Indices of the optimizers without a state.
        is_sharded: Whether the parameters are sharded.
        tensor_parallel_size: Number of consecutive ranks that train on the same samples.
        averaging: From :mod:`stormproof.resume.swa_state`.
        syncs_buffers: From :func:`stormproof.distributed.ddp_buckets.syncs_buffers`.
        reduction_order: From :func:`stormproof.distributed.ddp_buckets.capture_order`.
        settings: From :func:`stormproof.resume.script_settings.describe`.
        tuned: From :func:`stormproof.lightning.internals.capture_tuned`.
    """

    loops: dict[str, Any] | None
    should_stop: bool
    accumulated: int | None = None
    unstepped_optimizers: Sequence[int] = ()
    is_sharded: bool = False
    tensor_parallel_size: int = 1
    averaging: list[dict[str, Any]] | None = None
    syncs_buffers: bool | None = None
    reduction_order: list[int] | None = None
    settings: dict[str, Any] | None = None
    tuned: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RankState(_State):
    """State of one rank. Ranks other than 0 store only the tensors and entries that differ from rank 0's.

    Attributes:
        rng: Random number generators of the process.
        metrics: From :mod:`stormproof.resume.metric_state`.
        frozen: From :mod:`stormproof.resume.frozen_modules`.
        train_loaders: State of each training loader. None for a loader without one.
        val_loaders: State of each validation loader. None for a loader without one.
        logged: From :mod:`stormproof.lightning.logged_metrics`.
        buffers: Buffers that are not in the ``state_dict``.
        callbacks: Lightning's states of the callbacks. None on rank 0, whose states are in Lightning's checkpoint.
        validated: Whether the validation loaders have been iterated.
        generators: From :mod:`stormproof.resume.owned_state`.
        averaged_buffers: Buffers of each averaged model that are not in its ``state_dict``.
        gradients: Gradients that the next steps may use.
        parameters: Optimized parameters that are not in the checkpoint.
        entries: From :mod:`stormproof.resume.rank_entries`.
    """

    rng: RngState
    metrics: dict[str, Any]
    frozen: FrozenState
    train_loaders: Sequence[Any]
    val_loaders: Sequence[Any]
    logged: dict[str, Any]
    buffers: Tensors
    callbacks: dict[str, Any] | None
    validated: bool
    generators: RngState = field(default_factory=dict)
    averaged_buffers: Sequence[Tensors] = ()
    gradients: Tensors = field(default_factory=dict)
    parameters: Tensors = field(default_factory=dict)
    entries: Sequence[Entry] = ()


@dataclass(frozen=True)
class Snapshot:
    """State of the whole job between two batches.

    Attributes:
        id: Random name.
        job_state: State that all ranks share.
        rank_states: State of each rank. Empty on ranks other than 0 when it was captured there.
    """

    id: str
    job_state: JobState
    rank_states: Sequence[RankState]

    @property
    def data_rank_states(self) -> Sequence[RankState]:
        """State of the first rank of each tensor-parallel group. Of all ranks without tensor parallelism."""
        return self.rank_states[:: self.job_state.tensor_parallel_size]

    def has_ranks_of(self, layout: Layout) -> bool:
        """Returns whether the job had the world size and the tensor-parallel size of ``layout``."""
        sizes = layout.world_size, layout.tensor_parallel_size
        return (len(self.rank_states), self.job_state.tensor_parallel_size) == sizes

    def to_dict(self) -> dict[str, Any]:
        """Returns the dict that is stored in a checkpoint."""
        ranks = [rank.to_dict() for rank in self.rank_states] or None
        return {"format": FORMAT, "id": self.id, "shared": self.job_state.to_dict(), "ranks": ranks}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Snapshot:
        """Reads :meth:`to_dict`.

        Raises:
            KeyError: If a field is missing that every release saves.
        """
        ranks = [RankState.from_dict(rank) for rank in saved["ranks"]]
        return cls(saved["id"], JobState.from_dict(saved["shared"]), ranks)
