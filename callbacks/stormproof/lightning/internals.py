"""Access to Lightning's private attributes. A test for each of them fails if Lightning changes it.

An exact resume needs more than Lightning's public hooks: code between two hooks, the complete checkpoint as a dict, and
the progress of the loops. Access to logged metrics is in :mod:`stormproof.lightning.logged_metrics`, and loading in
:mod:`stormproof.lightning.load_plan`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from fractions import Fraction
from functools import partial
from importlib import import_module
from typing import Any

import pytorch_lightning as pl
import torch

from stormproof.internal_errors import do_nothing
from stormproof.lightning.method_replacement import call_after, call_before, replace, undo_together


def callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    """Returns the trainer's callbacks. The attribute is public, but type checkers do not see where it is set."""
    return trainer.callbacks  # type: ignore[attr-defined]


def dump_checkpoint(trainer: pl.Trainer) -> dict[str, Any]:
    """Returns the checkpoint that ``trainer.save_checkpoint`` would write."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def state_keys(trainer: pl.Trainer) -> set[str]:
    """Returns the top-level checkpoint keys that Lightning itself restores."""
    keys = {
        "epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "callbacks", "optimizer_states",
        "lr_schedulers", type(trainer.precision_plugin).__qualname__,
    }  # fmt: skip
    datamodule = getattr(trainer, "datamodule", None)
    return keys if datamodule is None else keys | {type(datamodule).__qualname__}


def ensure_double_precision(trainer: pl.Trainer) -> None:
    """Converts the module to float64 if the trainer uses ``precision="64-true"``.

    Lightning loads weights before it converts the module, so they would be rounded to float32.
    """
    if "DoublePrecision" in {cls.__name__ for cls in type(trainer.precision_plugin).__mro__}:
        trainer.lightning_module.double()


def averaged_models(trainer: pl.Trainer) -> list[torch.nn.Module]:
    """Returns the averaged models of Lightning's weight averaging callbacks.

    Lightning saves their ``state_dict``, which omits the non-persistent buffers.
    """
    models = [getattr(callback, "_average_model", None) for callback in callbacks(trainer)]
    return [model for model in models if isinstance(model, torch.nn.Module)]


def call_on_exception(trainer: pl.Trainer, function: Callable[[], None]) -> Callable[[], None]:
    """Calls ``function`` when the trainer stops with an exception.

    Unlike the hook of callbacks, this also works in a learning rate finder, which replaces the trainer's callbacks.

    Returns:
        Function that undoes this.
    """
    return call_before(trainer.strategy, "on_exception", lambda _: function())


def replace_checkpoint_names(trainer: pl.Trainer, find: Callable[[str], str]) -> None:
    """Makes later calls with ``ckpt_path="best"`` or ``"last"`` load ``find(ckpt_path)``, without a ModelCheckpoint."""
    connector = trainer._checkpoint_connector
    parse = type(connector)._parse_ckpt_path

    def parse_ckpt_path(state_fn: Any, ckpt_path: Any, **options: Any) -> Any:
        finds = ckpt_path in ("best", "last") and not trainer.checkpoint_callbacks
        return parse(connector, state_fn, find(ckpt_path) if finds else ckpt_path, **options)

    replace(connector, "_parse_ckpt_path", parse_ckpt_path)


def call_between_batches(
    trainer: pl.Trainer, function: Callable[[], None], *, run_last: bool = False
) -> Callable[[], None]:
    """Calls ``function`` before each training batch is fetched.

    Replaces the method with which Lightning starts its profiler. There, all work of the previous batch is done, and no
    work of the next one has begun, such as fetching it or copying it to the device. Functions run in reverse order of
    registration, except ``run_last``, which runs directly before fetching.

    Returns:
        Function that undoes this.
    """
    return call_before(trainer.fit_loop.epoch_loop, "_on_before_fetch", function, run_last=run_last)


def loop_position(trainer: pl.Trainer) -> tuple[int, ...]:
    """Returns the epoch, the number of batches in this epoch, and the total number of validation batches."""
    epoch_loop = trainer.fit_loop.epoch_loop
    validation_batches = epoch_loop.val_loop.batch_progress.total.ready
    return trainer.current_epoch, epoch_loop.batch_progress.current.ready, validation_batches


def call_after_batch(trainer: pl.Trainer, function: Callable[[], None]) -> Callable[[], None]:
    """Calls ``function`` after each training batch and all its hooks, and before a validation.

    Returns:
        Function that undoes this.
    """
    return call_before(trainer.fit_loop.epoch_loop, "on_advance_end", lambda *_: function())


def call_with_loaders(trainer: pl.Trainer, function: Callable[[Any], None]) -> Callable[[], None]:
    """Calls ``function`` with each loader of any stage before it is iterated.

    Lightning passes each loader to the strategy and then adds a ``worker_init_fn`` that seeds the workers. Here, it is
    added first.

    Returns:
        Function that undoes this.
    """
    seed_workers = import_submodule(trainer, "trainer.connectors.data_connector")._auto_add_worker_init_fn

    def seed_and_call(loader: object, *_: Any) -> None:
        seed_workers(loader, trainer.global_rank)
        function(loader)

    return call_after(trainer.strategy, "process_dataloader", seed_and_call)


def change_training_loaders(trainer: pl.Trainer, transform: Callable[[list[Any]], list[Any]]) -> Callable[[], None]:
    """Replaces the training loaders by ``transform(loaders)`` whenever Lightning requests them.

    Applies ``overfit_batches`` first, because Lightning supports it only for torch's DataLoader.

    Returns:
        Function that undoes this.
    """
    source: Any = trainer.fit_loop._data_source
    request_loaders = source.dataloader
    combined_loader = import_submodule(trainer, "utilities.combined_loader").CombinedLoader
    stage = import_submodule(trainer, "trainer.states").RunningStage.TRAINING

    def request_transformed_loaders() -> Any:
        loaders = request_loaders()
        is_combined = isinstance(loaders, combined_loader)
        combined_loaders = copy.copy(loaders) if is_combined else combined_loader(loaders, "max_size_cycle")
        if trainer.overfit_batches > 0:  # type: ignore[attr-defined]  # set by the data connector
            import_submodule(trainer, "trainer.connectors.data_connector")._resolve_overfit_batches(
                combined_loaders, mode=stage
            )
        combined_loaders.flattened = transform(combined_loaders.flattened)
        return combined_loaders

    return replace(source, "dataloader", request_transformed_loaders)


def uses_distributed_sampler(trainer: pl.Trainer) -> bool:
    """Returns whether the trainer divides the data among the ranks."""
    return trainer._accelerator_connector.use_distributed_sampler


def evaluates_in_sequence(trainer: pl.Trainer) -> bool:
    """Returns whether the current validation, test or prediction iterates the loaders one after the other."""
    loader = trainer._active_loop._combined_loader  # type: ignore[union-attr]  # a loop is active during evaluation
    return loader is not None and loader._mode == "sequential"


def dump_sharded_checkpoint(trainer: pl.Trainer) -> dict[str, Any]:
    """Returns the checkpoint that ``trainer.save_checkpoint`` would write, without copying parameters and states.

    Lightning copies them to host memory. The returned tensors are those that training modifies.
    """
    from torch.distributed.checkpoint.state_dict import (  # noqa: PLC0415 (0.3 s at the start of unsharded runs too)
        get_model_state_dict,
        get_optimizer_state_dict,
    )

    strategy: Any = trainer.strategy
    undo = undo_together(
        replace(strategy, "lightning_module_state_dict", lambda: get_model_state_dict(strategy.model)),
        replace(
            strategy,
            "optimizer_state",
            lambda optimizer: get_optimizer_state_dict(strategy.model, getattr(optimizer, "_optimizer", optimizer)),
        ),
    )
    try:
        return dump_checkpoint(trainer)
    finally:
        undo()


def loads_with_torch(trainer: pl.Trainer) -> bool:
    """Returns whether the trainer loads a checkpoint by ``torch.load`` on the CPU.

    Returns False if the strategy overrides ``load_checkpoint`` or the user passed a ``CheckpointIO``.
    """
    strategy: Any = trainer.strategy
    defining_class = next(cls for cls in type(strategy).__mro__ if "load_checkpoint" in vars(cls))
    return defining_class.__name__ == "Strategy" and type(strategy.checkpoint_io).__name__ == "TorchCheckpointIO"


def list_launched_rank_pids(trainer: pl.Trainer) -> list[int]:
    """Returns the process ids of the ranks that this process started with Lightning's launcher."""
    return [process.pid for process in getattr(trainer.strategy.launcher, "procs", [])]


def disable_signal_handling(trainer: pl.Trainer) -> Callable[[], None]:
    """Disables Lightning's signal handlers and its broadcast of SIGTERM before each batch.

    Lightning's handlers save a checkpoint or communicate with other ranks inside the handler, at any point of the
    program.

    Returns:
        Function that undoes this.
    """
    return undo_together(
        replace(trainer._signal_connector, "register_signal_handlers", do_nothing),
        replace(trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor", do_nothing),
    )


def call_before_update(trainer: pl.Trainer, function: Callable[[torch.optim.Optimizer], None]) -> Callable[[], None]:
    """Calls ``function(optimizer)`` after gradient clipping and all hooks, directly before the update.

    Works in automatic and manual optimization.

    Returns:
        Function that undoes this.
    """
    return call_after(trainer.precision_plugin, "_after_closure", lambda *arguments: function(arguments[-1]))


def skip_idle_profiler(trainer: pl.Trainer) -> Callable[[], None]:
    """Skips the profiling of a trainer without a profiler. Otherwise, Lightning enters a generator for each hook.

    Returns:
        Function that undoes this.
    """
    profiler = trainer.profiler  # type: ignore[attr-defined]  # set in Trainer.__init__
    if type(profiler).__name__ != "PassThroughProfiler" or "profile" in vars(profiler):
        return do_nothing
    profiler.profile = nullcontext
    return lambda: vars(profiler).pop("profile", None)


def fetches_in_training_step(trainer: pl.Trainer) -> bool:
    """Returns whether ``training_step`` takes an iterator and fetches its batches itself."""
    return type(trainer.fit_loop._data_fetcher).__name__ == "_DataLoaderIterDataFetcher"


def count_prefetched_batches(trainer: pl.Trainer) -> int:
    """Returns the number of batches that were fetched but not trained on yet. Call it between two batches."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return fetcher.fetched - trainer.fit_loop.epoch_loop.batch_progress.current.ready


def capture_loops(trainer: pl.Trainer) -> dict[str, Any]:
    """Returns the progress of the fit loop and its child loops. Call it between two batches."""
    fit_loop = trainer.fit_loop
    progress = fit_loop.state_dict()
    progress["state_dict"].pop("combined_loader", None)  # loader states are saved per rank
    return {
        "progress": progress,
        "train_reload_epoch": fit_loop._last_train_dl_reload_epoch,
        "val_reload_epoch": fit_loop.epoch_loop.val_loop._last_val_dl_reload_epoch,
    }


def restore_loops(trainer: pl.Trainer, state: Mapping[str, Any]) -> None:
    """Restores the loops to a state from :func:`capture_loops`, and marks the restart as complete.

    Call it between two batches.
    """
    fit_loop = trainer.fit_loop
    fit_loop.load_state_dict(state["progress"])
    fit_loop._last_train_dl_reload_epoch = state["train_reload_epoch"]
    fit_loop.epoch_loop.val_loop._last_val_dl_reload_epoch = state["val_reload_epoch"]
    for loop in _iterate_loops(fit_loop):
        loop.on_iteration_done()  # Lightning calls it after the first iteration


def adjust_progress(checkpoint: dict[str, Any]) -> None:
    """Modifies a checkpoint taken between two batches so that a plain ``Trainer.fit`` resumes correctly.

    Lightning expects that a checkpoint is saved inside a batch. It adds 1 to the step of the loggers. If all counters
    are equal, it runs a validation, and schedulers would step twice.

    Args:
        checkpoint: From :func:`dump_checkpoint`. Modified in place.
    """
    fit_loop = checkpoint["loops"]["fit_loop"]
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    fit_loop["epoch_loop.batch_progress"]["total"]["ready"] += 1


def rescale_batch_counts(fit_loop: dict[str, Any], factor: Fraction) -> None:
    """Multiplies the batch counts in the progress of the fit loop by ``factor``."""
    progress = fit_loop["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts.update({name: int(count * factor) for name, count in counts.items()})


def set_loader_states(checkpoint: dict[str, Any], states: list[Any]) -> None:
    """Sets the states that Lightning loads into the stateful training loaders, in its order."""
    checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = states


def load_pending_loader_states(trainer: pl.Trainer) -> None:
    """Loads the states into the training loaders if Lightning has not done so. Call it at the start of training.

    Lightning does not load them if the checkpoint was saved at the end of an epoch, or if a schedule read
    ``trainer.estimated_stepping_batches`` before the checkpoint was loaded. The loaders would repeat the order of the
    first epoch.
    """
    loop = trainer.fit_loop
    if loop._combined_loader_states_to_load and loop._combined_loader is not None:
        loop._combined_loader._load_state_dicts(loop._combined_loader_states_to_load)
        loop._combined_loader_states_to_load = []
        assert loop._data_fetcher is not None
        iter(loop._data_fetcher)


def call_before_loading_loaders(trainer: pl.Trainer, function: Callable[[], None]) -> Callable[[], None]:
    """Calls ``function`` before Lightning loads the states of the training loaders.

    Returns:
        Function that undoes this.
    """
    return call_before(trainer.fit_loop, "_load_combined_loader_states", function)


TUNERS = {
    "LearningRateFinder": ("lr_find", "_attr_name", ("lr", "learning_rate")),
    "BatchSizeFinder": ("scale_batch_size", "_batch_arg_name", ()),
}
"""Method, attribute with the name of the tuned attribute, and default names of Lightning's tuner callbacks."""


def capture_tuned(trainer: pl.Trainer) -> dict[str, Any]:
    """Returns the attributes that Lightning's tuner callbacks set, by name."""
    parsing, module = import_submodule(trainer, "utilities.parsing"), trainer.lightning_module
    names = [name for _, _, tuned_names in _find_tuners(trainer) for name in tuned_names]
    values = {
        name: parsing.lightning_getattr(module, name) for name in names if parsing.lightning_hasattr(module, name)
    }
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def restore_tuned(trainer: pl.Trainer, values: Mapping[str, Any]) -> None:
    """Sets the attributes from :func:`capture_tuned`."""
    for name, value in values.items():
        import_submodule(trainer, "utilities.parsing").lightning_setattr(trainer.lightning_module, name, value)


def wrap_tuners(trainer: pl.Trainer, run: Callable[[Callable[[], None], bool], None]) -> list[Callable[[], None]]:
    """Makes Lightning's tuner callbacks call ``run(tune, ends_fit)`` instead of ``tune``, which trains inside ``fit``.

    Returns:
        Functions that undo this.
    """

    def wrap(callback: Any, name: str) -> Callable[[], None]:
        tune = getattr(callback, name)
        return replace(callback, name, lambda *arguments: run(partial(tune, *arguments), callback._early_exit))

    return [wrap(callback, name) for callback, name, _ in _find_tuners(trainer)]


def _find_tuners(trainer: pl.Trainer) -> Iterator[tuple[Any, str, Sequence[str]]]:
    for callback in callbacks(trainer):
        for name in {base.__name__ for base in type(callback).__mro__} & TUNERS.keys():
            method, attribute, default_names = TUNERS[name]
            tuned_name = getattr(callback, attribute)
            yield callback, method, (tuned_name,) if tuned_name else default_names


def get_combining_mode(trainer: pl.Trainer) -> str:
    """Returns the ``mode`` of ``CombinedLoader`` for the training loaders."""
    loader = trainer.fit_loop._combined_loader
    assert loader is not None
    return loader._mode


def prepare_validation(trainer: pl.Trainer) -> None:
    """Creates the validation loaders, which Lightning creates at the first validation."""
    stage = trainer.state.stage
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.setup_data()
    trainer.state.stage = stage


def _iterate_loops(loop: Any) -> Iterator[Any]:
    yield loop
    base = next(cls for cls in type(loop).__mro__ if cls.__name__ == "_Loop")
    for child in vars(loop).values():
        if isinstance(child, base):
            yield from _iterate_loops(child)


def import_submodule(trainer: pl.Trainer, name: str) -> Any:
    """Imports a module from the trainer's package, ``pytorch_lightning`` or ``lightning.pytorch``.

    The packages define separate classes.
    """
    package = type(trainer.fit_loop).__module__.rpartition(".loops")[0]
    full_name = f"{package}.{name}"
    return sys.modules.get(full_name) or import_module(full_name)
