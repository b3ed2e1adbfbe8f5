"""Records each optimizer step: state before it, its inputs, and the state after it."""

from __future__ import annotations

import functools
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from stormproof.replay.ledger import BEFORE_STEPS
from stormproof.replay.recorder import losses
from stormproof.replay.recorder.batches import Batch, BatchLog
from stormproof.replay.recorder.checkpoint_log import CheckpointLog
from stormproof.replay.recorder.checkpoints import CallAfterImport
from stormproof.replay.recorder.hashing import hash_tensors, hash_value
from stormproof.replay.recorder.module_tree import OwnerTree, TreeState, collect, find_owners
from stormproof.replay.recorder.optimizer_state import (
    describe_learning_rates,
    hash_hyperparameters,
    hash_optimizer,
    hash_scalers,
    hash_schedulers,
    list_parameters,
)
from stormproof.replay.recorder.program_state import ProgramState
from stormproof.replay.recorder.random_generators import hash_global_generators
from stormproof.replay.recorder.session import Session

Components = dict[str, str | int]


@dataclass
class OptimizerRecord:
    """An optimizer.

    Attributes:
        index: Index in the order of the first steps.
        steps: Number of its steps.
        owners: Modules that belong to it.
        modules_added: Number of modules that existed when ``owners`` was determined.
        is_hashed: Whether the current step is hashed.
        inputs: Components of the current step that are read before it.
        has_closure: Whether the current step computes the gradients in a closure.
    """

    index: int
    steps: int = 0
    owners: OwnerTree = field(default_factory=lambda: OwnerTree((), ()))
    modules_added: int = -1
    is_hashed: bool = False
    inputs: Components = field(default_factory=dict[str, str | int])
    has_closure: bool = False


class StepLog:
    """Hooks of all optimizers.

    Args:
        session: State of the recorder.
        checkpoints: Checkpoint files of this process.
    """

    def __init__(self, session: Session, checkpoints: CheckpointLog) -> None:
        self._session = session
        self._checkpoints = checkpoints
        self.batches = BatchLog(session, self.is_in_training_mode)
        self._program = ProgramState(session, self.batches)
        self._records: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._first_inputs: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._forward_hook: RemovableHandle | None = None
        self._count = 0
        self._is_initializing = False

    def install(self, call_after_import: CallAfterImport) -> None:
        """Registers the hooks of all optimizers and loaders."""
        call_after_import("torch.distributed.checkpoint.state_dict", self._skip_initialization)
        self.batches.install()
        self._forward_hook = register_module_forward_pre_hook(self._before_first_forward)
        register_optimizer_step_pre_hook(self._before_step)
        register_optimizer_step_post_hook(self._after_step)

    def is_in_training_mode(self) -> bool:
        """Returns whether a trained root module is in training mode, or none is known yet."""
        references = [root for record in list(self._records.values()) for root in record.owners.roots]
        roots = [root for reference in references if (root := reference()) is not None]
        return not roots or any(root.training for root in roots)

    def _before_first_forward(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Hashes buffers and variables before the first forward pass of the training can change them."""
        if torch.compiler.is_compiling() or not (module.training and torch.is_grad_enabled()):
            return
        with self._session.writer.guard("forward pre hook"), torch.no_grad():
            optimizers = list(self._session.optimizers)
            if optimizers:
                self._remove_forward_hook()
            for optimizer in optimizers:
                parameters = list_parameters(optimizer)
                tree = collect(self._find_owners(parameters).roots)
                components = self._program.read(sys._getframe(1), tree.modules, parameters).components
                if tree.buffers and not any(map(is_lazy, tree.buffers)):
                    components["buffers"] = hash_tensors(tree.buffers)
                self._first_inputs[optimizer] = components

    def _skip_initialization(self, module: Any) -> None:
        """Excludes the step with which torch.distributed.checkpoint creates an optimizer state to load into."""
        original = module._init_optim_state

        @functools.wraps(original)
        def initialize(*args: Any, **kwargs: Any) -> Any:
            self._is_initializing = True
            try:
                return original(*args, **kwargs)
            finally:
                self._is_initializing = False

        module._init_optim_state = initialize

    def _remove_forward_hook(self) -> None:
        if self._forward_hook is not None:
            self._forward_hook.remove()
            self._forward_hook = None

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with self._session.writer.guard("optimizer pre hook"), torch.no_grad():
            if self._is_initializing or _is_nested(optimizer):
                return
            self._remove_forward_hook()
            record = self._get_record(optimizer)
            record.is_hashed = self._session.is_hashed(record.index, record.steps + 1)
            record.has_closure = len(args) > 1 or bool(kwargs.get("closure"))
            record.inputs = {"learning_rate": describe_learning_rates(optimizer)}
            self._checkpoints.finish()
            if record.is_hashed:
                self._read_inputs(optimizer, record)

    def _read_inputs(self, optimizer: torch.optim.Optimizer, record: OptimizerRecord) -> None:
        parameters = list_parameters(optimizer)
        inputs = record.inputs
        inputs["hyperparameters"] = hash_hyperparameters(optimizer)
        inputs.update(hash_schedulers(optimizer, self._session.schedulers))
        scaler = hash_scalers(self._session.scalers)
        if scaler is not None:
            inputs["scaler"] = scaler
        if not record.has_closure:
            inputs["gradients"] = hash_tensors([parameter.grad for parameter in parameters])
        if self._session.steps < BEFORE_STEPS:
            state, _ = self._read_state(optimizer, record, parameters)
            state.pop("buffers", None)  # the forward pass has changed them
            state.update(self._first_inputs.pop(optimizer, {}))
            components = {name: value for name, value in inputs.items() if name != "gradients"} | state
            self._session.writer.write(
                "before", n=self._session.steps + 1, optimizer=record.index, components=components
            )

    def _read_state(
        self, optimizer: torch.optim.Optimizer, record: OptimizerRecord, parameters: list[torch.Tensor]
    ) -> tuple[Components, TreeState]:
        """Returns the components that are the same kind of state before and after a step, and the modules."""
        self._update_owners(optimizer, record, parameters)
        tree = collect(record.owners.roots)
        components: Components = {
            "parameters": hash_tensors(parameters),
            f"optimizer/{type(optimizer).__name__}": hash_optimizer(optimizer, parameters),
            **_hash_tree(tree),
            **hash_global_generators(),
        }
        if record.owners.averaged:
            averaged = collect(record.owners.averaged)
            components["averaged"] = hash_tensors([*averaged.parameters, *averaged.buffers])
        return components, tree

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with self._session.writer.guard("optimizer post hook"), torch.no_grad():
            if self._is_initializing or _is_nested(optimizer):
                return
            record = self._get_record(optimizer)
            record.steps += 1
            self._session.steps += 1
            if self._session.steps == 1:
                self._session.writer.write_packages()
            self._write_step(optimizer, record)

    def _write_step(self, optimizer: torch.optim.Optimizer, record: OptimizerRecord) -> None:
        batches = self.batches.take()
        components = record.inputs
        if batches:
            components["data/count"] = len(batches)
        loss = losses.take(self._session)
        if loss is not None:
            components["loss"] = loss
        fields: dict[str, Any] = {}
        if record.is_hashed:
            fields = _hash_batches(batches, components)
            parameters = list_parameters(optimizer)
            if record.has_closure:
                components["gradients"] = hash_tensors([parameter.grad for parameter in parameters])
            state, tree = self._read_state(optimizer, record, parameters)
            program = self._program.read(sys._getframe(2), tree.modules, parameters)
            components.update(state | program.components)
            fields["values"] = program.texts
        self._session.writer.write(
            "step",
            n=self._session.steps,
            optimizer=record.index,
            time=time.time(),
            hashed=record.is_hashed,
            components=components,
            **fields,
        )

    def _get_record(self, optimizer: torch.optim.Optimizer) -> OptimizerRecord:
        record = self._records.get(optimizer)
        if record is None:
            record = self._records[optimizer] = OptimizerRecord(self._count)
            self._count += 1
        return record

    def _update_owners(
        self, optimizer: torch.optim.Optimizer, record: OptimizerRecord, parameters: list[torch.Tensor]
    ) -> None:
        """Finds the modules of an optimizer again if modules were created. New loss functions do not count."""
        modules = self._session.modules
        added = modules.added
        if record.modules_added >= 0 and not any(map(_has_content, modules.list_new(record.modules_added))):
            record.modules_added = added
            return
        record.owners = self._find_owners(parameters)
        record.modules_added = added

    def _find_owners(self, parameters: list[torch.Tensor]) -> OwnerTree:
        trained = [parameter for other in self._session.optimizers for parameter in list_parameters(other)]
        return find_owners(list(self._session.modules), parameters, [*trained, *parameters])


def _has_content(module: nn.Module) -> bool:
    return bool(module._parameters or module._modules)


def _hash_batches(batches: list[Batch], components: Components) -> dict[str, Any]:
    """Adds the hashes of all batches to ``components``, and returns the hashes of each."""
    contents = [batch.content for batch in batches]
    indices = [batch.indices for batch in batches if batch.indices is not None]
    if contents:
        components["data/batches"] = hash_value(contents)
    if indices:
        components["data/indices"] = hash_value(indices)
    return {"batches": contents, "indices": indices}


def _hash_tree(tree: TreeState) -> Components:
    components: Components = {}
    if tree.modules:
        components["frozen"] = hash_value([parameter.requires_grad for parameter in tree.parameters])
        components["mode"] = hash_value([module.training for module in tree.modules])
    if tree.buffers:
        components["buffers"] = hash_tensors(tree.buffers)
    return components


def _is_nested(optimizer: torch.optim.Optimizer) -> bool:
    """Returns whether the step is called by the step of a subclass of the same optimizer."""
    hooked = sum(hasattr(vars(parent).get("step"), "hooked") for parent in type(optimizer).__mro__)
    if hooked < 2:
        return False
    frame = sys._getframe(2).f_back  # the caller of this step
    while frame is not None:
        if frame.f_code.co_qualname == "Optimizer.profile_hook_step.<locals>.wrapper":
            arguments = frame.f_locals.get("args")
            return bool(arguments) and arguments[0] is optimizer
        frame = frame.f_back
    return False
