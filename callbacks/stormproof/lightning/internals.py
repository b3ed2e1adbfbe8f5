"""Private names of Lightning, but for those of what was logged; each has a test that fails when it moves.

What a public hook cannot reach, and an exact resume needs: places between its hooks, the whole checkpoint as a
dictionary, the progress of the loops.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from stormproof.lightning.method_replacement import call_after, call_before, replace


def callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    """All of them. The name is public, but Lightning gives it to the trainer where no type checker sees it."""
    return trainer.callbacks  # type: ignore[attr-defined]


def dump_checkpoint(trainer: pl.Trainer) -> dict[str, Any]:
    """What ``trainer.save_checkpoint`` would write, before it is written."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def state_keys(trainer: pl.Trainer) -> set[str]:
    """Returns the top-level checkpoint keys that Lightning itself restores."""
    keys = {
        "epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "callbacks", "optimizer_states",
        "lr_schedulers", type(trainer.precision_plugin).__qualname__,
    }  # fmt: skip
    datamodule = getattr(trainer, "datamodule", None)
    return keys if datamodule is None else keys | {type(datamodule).__qualname__}


def call_after_loading(
    trainer: pl.Trainer, function: Callable[[dict[str, Any], bool | None], None]
) -> Callable[[], None]:
    """Calls ``function(checkpoint, weights_only)`` when a checkpoint is loaded, before any ``on_load_checkpoint`` hook.

    Returns:
        Function that undoes this.
    """

    def on_loaded(checkpoint: dict[str, Any], _path: Any, weights_only: bool | None = None) -> None:
        function(checkpoint, weights_only)

    return call_after(trainer.strategy, "load_checkpoint", on_loaded)


def ensure_double_precision(trainer: pl.Trainer) -> None:
    """Converts the module to float64 if the trainer uses ``precision="64-true"``.

    Lightning loads weights before it converts the module, so they would be rounded to float32.
    """
    if "DoublePrecision" in {cls.__name__ for cls in type(trainer.precision_plugin).__mro__}:
        trainer.lightning_module.double()


def patch_checkpoint_loading(
    trainer: pl.Trainer, folder: Path, retry: Callable[[Callable[[], None]], None]
) -> Callable[[], None]:
    """Makes the trainer load checkpoints in ``folder`` with ``weights_only=True`` and retry failed reads.

    An explicit ``fit(weights_only=…)`` takes precedence. Without this patch, torch unpickles checkpoints if the
    environment variable ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`` is set.

    Args:
        trainer: Trainer to patch.
        folder: Folder of the checkpoints.
        retry: Calls its argument, again after an OSError.

    Returns:
        Function that undoes this.
    """
    connector = trainer._checkpoint_connector
    original_resume_start = connector.resume_start

    def read(path: Any, weights_only: bool) -> None:
        try:
            original_resume_start(path, weights_only)
        except FileNotFoundError as error:
            Path(path).stat()
            raise OSError(f"{path} exists but could not be found") from error  # fsspec hides the error of the storage

    def resume_start(checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
        if checkpoint_path and Path(checkpoint_path).parent.resolve() == folder.resolve():
            retry(lambda: read(checkpoint_path, True if weights_only is None else weights_only))
        else:
            original_resume_start(checkpoint_path, weights_only)

    return replace(connector, "resume_start", resume_start)


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


def resume_from(trainer: pl.Trainer, path: str, weights_only: bool | None) -> Callable[[], None]:
    """Resumes from the checkpoint ``path`` if ``fit`` is called without ``ckpt_path``.

    Args:
        trainer: Trainer whose ``fit`` has begun.
        path: Checkpoint.
        weights_only: As for ``fit``.

    Returns:
        Function that undoes this.
    """
    connector = trainer._checkpoint_connector
    original_resume_start = connector.resume_start

    def resume_start(checkpoint_path: Any = None, *args: Any, **kwargs: Any) -> None:
        if checkpoint_path:
            original_resume_start(checkpoint_path, *args, **kwargs)
        else:
            original_resume_start(path, weights_only)

    return replace(connector, "resume_start", resume_start)


def call_between_batches(
    trainer: pl.Trainer, function: Callable[[], None], *, run_last: bool = False
) -> Callable[[], None]:
    """Has ``function`` called before each training batch is fetched, and returns what ends that.

    Lightning starts its profiler there: whatever the batch before brought about is done, and nothing of the next has
    begun, not even its fetching and its transfer to the device. What was asked for last is called first, unless it is
    to be the ``run_last``, right before the fetching.
    """
    return call_before(trainer.fit_loop.epoch_loop, "_on_before_fetch", function, run_last=run_last)


def call_with_loaders(trainer: pl.Trainer, function: Callable[[Any], None]) -> Callable[[], None]:
    """Has ``function`` called with each loader of any stage before it is iterated, and returns what ends that.

    Lightning hands each to the strategy. What it would do to it afterwards, give the workers its seeds, is done first.
    """
    seed_workers = import_submodule(trainer, "trainer.connectors.data_connector")._auto_add_worker_init_fn

    def seed_and_call(loader: object, *_: Any) -> None:
        seed_workers(loader, trainer.global_rank)
        function(loader)

    return call_after(trainer.strategy, "process_dataloader", seed_and_call)


def change_training_loaders(trainer: pl.Trainer, transform: Callable[[list[Any]], list[Any]]) -> Callable[[], None]:
    """Replaces the training loaders by ``change(loaders)`` whenever Lightning requests them, before it uses them.

    ``overfit_batches`` is applied first, because Lightning can apply it to torch's DataLoader only.

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
    """Whether the validation, test or prediction that goes on takes one loader after the other."""
    loader = trainer._active_loop._combined_loader  # type: ignore[union-attr]  # in a pass there is a loop
    return loader is not None and loader._mode == "sequential"


def gathers_checkpoints(trainer: pl.Trainer) -> bool:
    """Whether the strategy spreads parameters over all ranks, which share the data, and gathers checkpoints on rank 0.

    Lightning's by default spreads them over the devices of a node, each of which then has the same data.
    """
    strategy: Any = trainer.strategy
    if "ModelParallelStrategy" not in {cls.__name__ for cls in type(strategy).__mro__}:
        return False
    mesh = strategy._device_mesh
    shares_data = strategy._tensor_parallel_size == 1 if mesh is None else mesh["tensor_parallel"].size() == 1
    return shares_data and not strategy._save_distributed_checkpoint


def list_launched_rank_pids(trainer: pl.Trainer) -> list[int]:
    """The process numbers of the further ranks that this process started, by Lightning's own launcher."""
    return [process.pid for process in getattr(trainer.strategy.launcher, "procs", [])]


def disable_signal_handling(trainer: pl.Trainer) -> Callable[[], None]:
    """Keeps Lightning from answering signals, until what is returned is called.

    Its handlers save, or talk to the other ranks, inside of the handler, wherever the program is. Nor does rank 0 tell
    the others before each batch whether a signal came: none comes that Lightning would answer.
    """
    undo_functions = [
        replace(trainer._signal_connector, "register_signal_handlers", _do_nothing),
        replace(trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor", _do_nothing),
    ]

    def undo_all() -> None:
        for undo in undo_functions:
            undo()

    return undo_all


def call_before_clipping(
    trainer: pl.Trainer, function: Callable[[torch.optim.Optimizer, float, bool], None]
) -> Callable[[], None]:
    """Has ``function(optimizer, clip_val, by_value)`` called before gradients are clipped; returns what ends that.

    It is before whatever leads to ``LightningModule.clip_gradients``: the trainer's ``gradient_clip_val``, a module's
    own ``configure_gradient_clipping``, and a call in manual optimization, which comes before
    ``on_before_optimizer_step``.
    """

    def on_clip(optimizer: torch.optim.Optimizer, clip_val: float = 0.0, gradient_clip_algorithm: Any = "norm") -> None:
        if clip_val > 0:
            function(optimizer, clip_val, gradient_clip_algorithm == "value")

    return call_before(trainer.precision_plugin, "clip_gradients", on_clip)


def call_before_update(trainer: pl.Trainer, function: Callable[[torch.optim.Optimizer], None]) -> Callable[[], None]:
    """Has ``function(optimizer)`` called once all hooks are done that look at its gradients, and they are clipped.

    Next comes the update, in automatic and manual optimization. Returns what ends that.
    """
    return call_after(trainer.precision_plugin, "_after_closure", lambda *arguments: function(arguments[-1]))


def fetches_in_training_step(trainer: pl.Trainer) -> bool:
    """Whether ``training_step`` takes an iterator and fetches its batches: between two of them is inside of it."""
    return type(trainer.fit_loop._data_fetcher).__name__ == "_DataLoaderIterDataFetcher"


def count_prefetched_batches(trainer: pl.Trainer) -> int:
    """Batches that were fetched and are not trained on yet, between two batches."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return fetcher.fetched - trainer.fit_loop.epoch_loop.batch_progress.current.ready


def capture_loops(trainer: pl.Trainer) -> dict[str, Any]:
    """The progress of the fit loop and all its children, between two batches."""
    fit_loop = trainer.fit_loop
    progress = fit_loop.state_dict()
    progress["state_dict"].pop("combined_loader", None)  # the loaders' own states are kept for each rank
    return {
        "progress": progress,
        "train_reload_epoch": fit_loop._last_train_dl_reload_epoch,
        "val_reload_epoch": fit_loop.epoch_loop.val_loop._last_val_dl_reload_epoch,
    }


def restore_loops(trainer: pl.Trainer, state: Mapping[str, Any]) -> None:
    """Sets the loops to ``state``, taken between two batches, inside the same place: nothing is a restart any more."""
    fit_loop = trainer.fit_loop
    fit_loop.load_state_dict(state["progress"])
    fit_loop._last_train_dl_reload_epoch = state["train_reload_epoch"]
    fit_loop.epoch_loop.val_loop._last_val_dl_reload_epoch = state["val_reload_epoch"]
    for loop in _iterate_loops(fit_loop):
        loop.on_iteration_done()  # what Lightning itself calls after the first iteration


def adjust_progress(checkpoint: dict[str, Any]) -> None:
    """Changes a checkpoint taken between two batches so that a plain ``Trainer.fit`` goes on there.

    Lightning knows checkpoints that were saved inside a batch: it adds one to the step that its loggers see, and where
    all counters are equal it takes a validation to be due, for which schedules would then be stepped twice.

    Args:
        checkpoint: what :func:`dump_checkpoint` gave.
    """
    fit_loop = checkpoint["loops"]["fit_loop"]
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    fit_loop["epoch_loop.batch_progress"]["total"]["ready"] += 1


def rescale_batch_counts(fit_loop: dict[str, Any], factor: Fraction) -> None:
    """Changes the counts of batches in the fit loop's progress to those where a step has ``factor`` times as many."""
    progress = fit_loop["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts.update({name: int(count * factor) for name, count in counts.items()})


def set_loader_states(checkpoint: dict[str, Any], states: list[Any]) -> None:
    """Sets the states that Lightning hands to the training loaders that have one, in its order."""
    checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = states


def load_pending_loader_states(trainer: pl.Trainer) -> None:
    """At the start of the training, hands the training loaders those states that Lightning has kept to itself.

    It does so where the checkpoint is that of an epoch's end, and where somebody asked for
    ``trainer.estimated_stepping_batches`` before it was loaded, as a schedule does: then the loaders had been iterated.
    They would begin with the order of the first epoch again.
    """
    loop = trainer.fit_loop
    if loop._combined_loader_states_to_load and loop._combined_loader is not None:
        loop._combined_loader._load_state_dicts(loop._combined_loader_states_to_load)
        loop._combined_loader_states_to_load = []
        assert loop._data_fetcher is not None
        iter(loop._data_fetcher)


def get_combining_mode(trainer: pl.Trainer) -> str:
    """How batches of several training loaders are combined, in the words of ``CombinedLoader``."""
    loader = trainer.fit_loop._combined_loader
    assert loader is not None
    return loader._mode


def prepare_validation(trainer: pl.Trainer) -> None:
    """Builds the validation loaders now, where they would be built with the first validation."""
    stage = trainer.state.stage
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.setup_data()
    trainer.state.stage = stage


def _do_nothing() -> None:
    pass


def _iterate_loops(loop: Any) -> Iterator[Any]:
    yield loop
    base = next(cls for cls in type(loop).__mro__ if cls.__name__ == "_Loop")
    for child in vars(loop).values():
        if isinstance(child, base):
            yield from _iterate_loops(child)


def import_submodule(trainer: pl.Trainer, name: str) -> Any:
    """A module of the Lightning that the trainer is of, which must be given classes of its own."""
    package = type(trainer.fit_loop).__module__.rpartition(".loops")[0]  # pytorch_lightning or lightning.pytorch
    full_name = f"{package}.{name}"
    return sys.modules.get(full_name) or import_module(full_name)
